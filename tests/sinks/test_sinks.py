"""Sinks: what they are given and when, and that none of them costs a run anything."""

import json
import shutil
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import read_rows, train_here, write_toml

from titan_pt.components.metrics import Interval
from titan_pt.config.schema.job_config import JobConfig, Metrics
from titan_pt.sinks import Sink, SinkContext, background, register_sink
from titan_pt.sinks.background import BackgroundSink
from titan_pt.sinks.given import GivenSteps
from titan_pt.sinks.prometheus import PrometheusSink

PLUGIN = """
import json
from titan_pt.sinks import Sink, register_sink

class Lines(Sink):
    def __init__(self, context):
        self.path = context.run_folder / "lines"
        self.write({"first_step": context.first_step})

    def write(self, row):
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\\n")

    def close(self):
        self.write({"closed": True})

class Broken(Sink):
    def write(self, row):
        raise SystemExit("broken on purpose")

register_sink("lines_of_a_test", Lines)
register_sink("broken_of_a_test", lambda context: Broken())
"""


class Given(Sink):
    """Keeps what it is given; what `fault` says comes in between."""

    def __init__(self, fault: Any = None) -> None:
        self.steps: list[int] = []
        self.fault, self.closed = fault, False

    def write(self, row: Mapping[str, Any]) -> None:
        if self.fault:
            self.fault(row["step"])
        self.steps.append(row["step"])

    def close(self) -> None:
        self.closed = True


def context(folder: Path) -> SinkContext:
    return SinkContext(JobConfig(), folder, 1, 1)


def give(folder: Path, sink: Sink, steps: range = range(1, 6)) -> None:
    behind = BackgroundSink("mine", lambda _: sink, context(folder))
    for step in steps:
        behind.write({"step": step})
    behind.close()


def test_a_users_sink_gets_every_row_and_a_broken_one_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sinks_of_a_test.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = write_toml(
        tmp_path,
        training={"steps": 2},
        metrics={"sinks": ["lines_of_a_test", "broken_of_a_test"]},
        experimental={"custom_import": "sinks_of_a_test"},
    )
    assert train_here(config) == 0
    assert "broken on purpose" in (told := capsys.readouterr().err) and "sinks_of_a_test.py:" in told
    assert train_here(config, "--training.steps=3") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "lines").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "time"} for row in read_rows(tmp_path / "run")]
    assert lines == [{"first_step": 0}, *rows[:2], {"closed": True}, {"first_step": 3}, rows[2], {"closed": True}]


def test_errors_of_the_network_are_tried_again_and_others_lose_their_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fault(step: int) -> None:
        if step == 2 and len(calls) < 4:
            calls.append(step)
            raise ConnectionError("no network")
        if step == 4:
            raise ValueError("a bug")

    calls: list[int] = []
    sink = Given(fault)
    give(tmp_path, sink)
    assert sink.steps == [1, 2, 3, 5] and sink.closed
    assert caplog.text.count("no network") == 1 and 'sink "mine" failed: ValueError: a bug (' in caplog.text
    assert 'sink "mine" did not get 1 rows or texts' in caplog.text


def test_a_sink_that_cannot_start_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def build(_: SinkContext) -> Sink:
        raise RuntimeError("cannot start")

    behind = BackgroundSink("mine", build, context(tmp_path))
    behind.write({"step": 1})
    behind.close()
    assert "cannot start" in caplog.text and "did not get 2 rows" in caplog.text


def test_a_sink_that_hangs_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(background, "_MOST_WAITING", 3)
    start = time.monotonic()
    give(tmp_path, Given(lambda _: released.wait()), range(1, 100))
    assert time.monotonic() - start < 10
    assert (
        "hangs: the run ends without it" in caplog.text and "rows or texts; metrics.jsonl has every row" in caplog.text
    )
    released.set()


def test_steps_are_given_once_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "given.json"
    given = GivenSteps(path, 0)
    for step in range(1, 8):
        assert not given.has(step)
        given.note(step)
    again = GivenSteps(path, 5)
    assert again.id == given.id
    assert [step for step in range(4, 10) if again.has(step)] == [5, 6, 7], "4 is a late validation"
    assert GivenSteps(path, 0).id != given.id, "a run that begins anew"


def test_names_and_packages_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Metrics(sinks=["trackio"], enable_wandb=True).used_sinks == {"tensorboard", "wandb", "trackio"}
    assert Metrics(enable_tensorboard=False).used_sinks == set()
    config = write_toml(tmp_path)
    assert train_here(config, "--metrics.sinks=wandbb,tensorboard") == 2
    assert "metrics.sinks = 'wandbb': unknown; known are" in (told := capsys.readouterr().err)
    assert "did you mean wandb?" in told
    monkeypatch.setattr("importlib.util.find_spec", lambda *_arguments: None)
    assert train_here(config, "--metrics.sinks=trackio", "--metrics.enable_wandb") == 2
    told = capsys.readouterr().err
    assert "pip install 'titan-pt[trackio]'" in told and "pip install 'titan-pt[wandb]'" in told
    assert train_here(config, "--metrics.prometheus_port=70000") == 2
    with pytest.raises(ValueError, match="registered already"):
        register_sink("tensorboard", lambda _: Given())


def ask(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_prometheus_is_told_the_last_row_and_the_age_of_the_last_step(caplog: pytest.LogCaptureFixture) -> None:
    rows: Any = SimpleNamespace(interval=Interval())
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        sink = PrometheusSink(rows, "127.0.0.1", port)
        assert f"metrics.prometheus_port = {port}: 127.0.0.1:{port} cannot be opened" in caplog.text
    row = {"step": 40, "loss": 2.5, "tokens_per_second": 9.0, "mfu": None, 'source/a "b"/loss': 1.0, "eval/x/acc": 0.5}
    sink.write(row)  # the port is free by now
    rows.interval.num_steps, rows.interval.last_end = 3, time.perf_counter() - 100
    lines = ask(port).splitlines()
    assert {"titan_pt_step 43", "titan_pt_loss 2.5", "titan_pt_tokens_per_second 9.0"} <= set(lines)
    assert {'titan_pt_source_loss{source="a \\"b\\""} 1.0', 'titan_pt_eval_acc{task="x"} 0.5'} <= set(lines)
    assert 100 <= float(next(line for line in lines if line.startswith("titan_pt_last_step_age")).split()[1]) < 200
    with pytest.raises(urllib.error.HTTPError):
        ask(port, "/elsewhere")
    sink.close()
    with pytest.raises(OSError, match="refused"):
        ask(port)


def resumed_run(folder: Path, sink: str) -> list[int]:
    """Steps 1 to 6; then a start from step 4, as after a kill, up to step 8. Returns the logged steps of both."""
    config = write_toml(folder, metrics={"sinks": [sink]}, checkpoint={"interval": 2, "keep_latest_k": 0})
    assert train_here(config) == 0
    shutil.rmtree(folder / "run" / "checkpoint" / "step-6")
    assert train_here(config, "--training.steps=8") == 0
    return [row["step"] for row in read_rows(folder / "run")]


def entries(path: Path) -> Iterator[bytes]:
    """What an offline file of W&B holds: LevelDB's log format, behind a header of 7 bytes."""
    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no head fits into the rest of the block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the only part of an entry, or its last one
            yield whole
            whole = b""


def test_wandb_offline_is_one_run_without_a_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'titan-pt[wandb]'")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    steps = resumed_run(tmp_path, "wandb")
    found, ids = [], set()
    for path in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")):
        ids.add(path.name)
        for entry in entries(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(entry)
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                assert "loss_metrics/global_avg_loss" in items
                found.append(int(items["_step"]))
    assert found == steps == list(range(1, 9)) and len(ids) == 1


def test_trackio_is_one_run_without_a_step_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    if not os.environ.get("TRACKIO_DIR"):  # read where the package is imported
        monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'titan-pt[trackio]'")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setenv("TRACKIO_PROJECT", f"test-{tmp_path.parent.name}")
    steps = resumed_run(tmp_path, "trackio")
    project = f"test-{tmp_path.parent.name}"
    (run,) = SQLiteStorage.get_runs(project)
    logged = SQLiteStorage.get_logs(project, run)
    assert [row["step"] for row in logged] == steps == list(range(1, 9))
    assert all("loss_metrics/global_avg_loss" in row for row in logged)
