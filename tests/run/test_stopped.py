"""The end of a run that was asked to stop."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from titan_pt.config.schema.job_config import Job, JobConfig
from titan_pt.run import signals
from titan_pt.run.exit_codes import ExitCode, Preempted, Stalled
from titan_pt.run.stopped import close_stopped


def test_a_signal_to_one_rank_is_one_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node's launcher obeys it, and starts nothing again that waits for the node which it reached."""
    ending = cast(Any, SimpleNamespace(trainer=None, first_step=0, close=lambda wait: None, failed=lambda error: None))
    config = JobConfig(job=Job(dump_folder=str(tmp_path)))
    monkeypatch.setattr(signals, "_requested", threading.Event())
    with pytest.raises(Stalled):
        close_stopped(ending, config, Stalled("no data"))
    assert not signals.signalled()
    assert close_stopped(ending, config, Preempted()) == ExitCode.TERMINATED
    assert signals.signalled()
