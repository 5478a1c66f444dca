"""Rows made by other processes: the same rows, the same state, clean ends."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from data_helpers import ThreadWorld
from hub_server import write_shards
from row_group_helpers import TEXTS, config_of

from titan_pt.components.tokenizer import build_tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import JobConfig, Source
from titan_pt.data.stream.loader import DataLoader, build_dataloader
from titan_pt.data.stream.workers import WorkerPool, _sendable


def build(folder: Path, num_workers: int, prefetch: int = 1) -> DataLoader:
    sources = [
        Source(name="web", path=str(folder / "data" / "*.parquet"), weight=0.7),
        Source(name="arithmetic", weight=0.3),
    ]
    config: JobConfig = config_of(folder, *sources, num_workers=num_workers)
    config = config.model_copy(update={"data": config.data.model_copy(update={"prefetch_steps": prefetch})})
    return build_dataloader(config, build_tokenizer(config.tokenizer), ThreadWorld(), plan_run_size(config, 1))


def rows_of(data: DataLoader, count: int) -> list[Any]:
    found = []
    for _ in range(count):
        batch = data.next_batch()
        assert batch is not None
        found.append(([micro.tokens_BL.tolist() for micro in batch.micro_batches], batch.documents))
        data.commit(batch)
    return found


def test_workers_give_the_same_rows_and_states(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", TEXTS, 3, 10)
    alone = build(tmp_path, 0)
    expected = rows_of(alone, 12)
    data = build(tmp_path, 3)  # 4 streams: one worker has two
    found = rows_of(data, 5)
    state = json.loads(json.dumps(data.state_dict()))
    started = time.monotonic()
    data.close()
    assert time.monotonic() - started < 5, "workers that never rest are ended all the same"
    other = build(tmp_path, 2, prefetch=0)
    other.load_state_dict(state)
    found += rows_of(other, 7)
    assert found == expected
    assert other.state_dict() == alone.state_dict()
    other.close()
    alone.close()


def kill_a_worker(number: int = signal.SIGKILL) -> None:
    child = next(pid for pid in children() if "spawn_main" in command_of(pid))
    os.kill(child, number)


def test_a_killed_worker_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed for want of memory, say, or stopped: the rows go on as if nothing had been."""
    monkeypatch.setattr("titan_pt.data.stream.workers._LOOK_SECONDS", 0.1)
    write_shards(tmp_path / "data", TEXTS, 3, 10)
    alone = build(tmp_path, 0)
    expected = rows_of(alone, 12)
    data = build(tmp_path, 2, prefetch=0)
    found = rows_of(data, 3)
    for count, number in ((4, signal.SIGKILL), (2, signal.SIGSTOP), (3, signal.SIGKILL)):
        kill_a_worker(number)
        found += rows_of(data, count)
    assert found == expected
    assert data.state_dict() == alone.state_dict()
    assert caplog.text.count("a data worker was killed") == 3
    assert caplog.text.count("A data worker was stopped by a signal") == 1
    data.close()
    alone.close()


def test_three_killed_within_two_seconds_are_replaced_as_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three pools in a row lose a worker before their first batch, at once; some time apart they end the run."""
    write_shards(tmp_path / "data", TEXTS, 3, 10)
    alone = build(tmp_path, 0)
    expected = rows_of(alone, 4)
    start, left = WorkerPool.__init__, [3]

    def doomed(self: WorkerPool, jobs: Any, ahead: int) -> None:
        start(self, jobs, ahead)
        if left[0]:
            left[0] -= 1
            self._processes[-1].kill()

    monkeypatch.setattr(WorkerPool, "__init__", doomed)
    data = build(tmp_path, 1, prefetch=0)
    assert rows_of(data, 4) == expected and data.state_dict() == alone.state_dict()
    assert caplog.text.count("a data worker was killed") == 3
    data.close()
    monkeypatch.setattr("titan_pt.data.stream.workers._TOGETHER_SECONDS", -1.0)
    left[0] = 3
    data = build(tmp_path, 1, prefetch=0)
    with pytest.raises(RuntimeError, match="a data worker was killed"):
        rows_of(data, 1)
    data.close()
    alone.close()


def test_workers_that_keep_dying_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "data", TEXTS, 3, 10)
    data = build(tmp_path, 1, prefetch=0)
    rows_of(data, 1)
    start = WorkerPool.__init__

    def doomed(self: WorkerPool, jobs: Any, ahead: int) -> None:
        start(self, jobs, ahead)
        self._processes[0].kill()

    with monkeypatch.context() as patch:
        patch.setattr(WorkerPool, "__init__", doomed)
        kill_a_worker()
        with pytest.raises(RuntimeError, match="a data worker was killed"):
            rows_of(data, 10)
    data.close()
    failing = build(tmp_path, 1)
    for path in (tmp_path / "data").iterdir():
        path.write_bytes(b"gone")
    with pytest.raises(ConfigError, match="not the file that rank 0 found"):
        rows_of(failing, 1)
    failing.close()
    deadline = time.monotonic() + 10
    while any("spawn_main" in command_of(pid) for pid in children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any("spawn_main" in command_of(pid) for pid in children())


def test_what_a_worker_raises_arrives(tmp_path: Path) -> None:
    class Odd(Exception):
        pass

    assert repr(_sendable(ConfigError("a", "b"))) == repr(ConfigError("a", "b"))
    assert repr(_sendable(Odd("seven"))) == "RuntimeError('Odd: seven')", "of a class that no other process can find"


def children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except FileNotFoundError:
        return ""
