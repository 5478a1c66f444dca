"""The end of a run that was asked to stop."""

import io
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from titan_pt.config.schema.job_config import Job, JobConfig
from titan_pt.run import signals
from titan_pt.run.exit_codes import ExitCode, Preempted, Stalled
from titan_pt.run.log import init_logging, logger
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


def test_a_stop_on_a_terminal_ends_with_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no live line of a step stays below it."""
    screen = cast(Any, io.StringIO())
    screen.isatty = lambda: True
    for name, value in {"TERM": "xterm", "LOG_FORMAT": "", "NO_COLOR": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(signals, "_requested", threading.Event())
    init_logging()
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 2.5}\n')
    context = SimpleNamespace(world=SimpleNamespace(is_main=True, on_main=lambda count: count()))
    trainer = SimpleNamespace(state=SimpleNamespace(step=3), has_checkpoint=True, context=context)
    ending = cast(Any, SimpleNamespace(trainer=trainer, first_step=0, close=lambda wait: None))
    logger.info("step 3/4000  eta 00:10", extra={"live": True})
    assert close_stopped(ending, JobConfig(job=Job(dump_folder=str(tmp_path))), Preempted()) == ExitCode.PREEMPTED
    shown = screen.getvalue().rpartition("eta 00:10")[2]
    assert shown.startswith("\r\r\033[K\033[KWARNING: Stopped by a signal"), "the live line is gone"
    assert "step 3: loss 2.5000" in shown and str(tmp_path) in shown
    assert "Next      the same command goes on" in shown
