"""goodput.jsonl: the time of a run over all its starts, by what took it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import read_rows, train_here, write_faulty, write_toml

from titan_pt.protocols.context import StepMetrics
from titan_pt.run import ledger as ledger_module
from titan_pt.run.goodput import all_seconds, goodput_of
from titan_pt.run.ledger import LEDGER_FILE, Ledger
from titan_pt.run.own_json import read_lines
from titan_pt.tools import goodput as tool
from titan_pt.version import made_by


class Clock:
    """All clocks of the ledger."""

    CLOCK_BOOTTIME = 7
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def clock_gettime(self, _clock: int) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ledger_module, "time", clock)
    return clock


def metrics(data: float = 0.0, **extra: float) -> StepMetrics:
    zero = torch.zeros(())
    return StepMetrics(zero, zero, zero, lr=0.0, tokens=1, data_seconds=data, extra=extra)


def start(path: Path, clock: Clock, step: int, seconds: float = 5.0, *, anew: bool = False) -> Ledger:
    began, clock.now = clock.now, clock.now + seconds
    ledger = Ledger(path, began)
    ledger.begin(step, anew=anew)
    return ledger


def steps(ledger: Ledger, clock: Clock, *seconds: float, data: float = 0.0) -> None:
    for each in seconds:
        clock.now += each
        ledger.step_ends(metrics(data))


def test_every_second_of_a_killed_and_resumed_run_is_accounted_for(tmp_path: Path, clock: Clock) -> None:
    path, began = tmp_path / LEDGER_FILE, clock.now
    first = start(path, clock, 0)
    steps(first, clock, 12.0, 2.0, data=0.5)
    clock.now += 3.0
    first.paused("save", 3.0, 2)
    steps(first, clock, 2.0, 2.0)
    first.write(4)
    steps(first, clock, 2.0)  # killed
    clock.now += 7.0
    second = start(path, clock, 2)
    steps(second, clock, 4.0, 2.0)
    clock.now += 8.0
    second.paused("validation", 8.0, 4)
    clock.now += 6.0
    second.step_ends(metrics(5.5, **{"seconds/rollout": 5.0}))  # as GRPO's: samples and rewards
    goodput = second.write(5, done=True)["goodput"]
    seconds = all_seconds(path)
    assert seconds == pytest.approx(
        {
            "start": 5.0,
            "compile": 10.0 + 2.0,
            "data": 1.0 + 0.5,
            "save": 3.0,
            "validation": 8.0,
            "sampling": 5.0,
            "training": 3.0 + 4.0 + 0.5,
            "lost": 4.0,
            "restart": 2.0 + 7.0 + 5.0,
        }
    )
    assert sum(seconds.values()) == pytest.approx(clock.now - began)
    assert goodput == pytest.approx(12.5 / (clock.now - began)) == goodput_of(seconds)


def test_a_run_that_was_done_and_is_made_longer_lost_no_time_in_between(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / LEDGER_FILE
    first = start(path, clock, 0)
    steps(first, clock, 10.0)
    first.write(1, done=True)
    clock.now += 1e6
    start(path, clock, 1)
    assert all_seconds(path) == pytest.approx({"start": 5.0, "training": 10.0, "restart": 5.0})
    start(path, clock, 0, anew=True)
    assert all_seconds(path) == pytest.approx({"start": 5.0})


def test_damaged_lines_and_a_full_disk_cost_no_run(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / LEDGER_FILE
    steps(start(path, clock, 0), clock, 10.0)
    whole = path.read_text()
    line = '{"step": %s, "time": 1, "clock": 1, "boot": "", "seconds": {"training": %s}}'
    huge = "9" * 400
    numbers = [line % pair for pair in (("1e999", 1), (huge, 1), (2, "NaN"), (2, "-1e999"), (2, huge))]
    for damage in ("[" * 200_000, '{"step": "x"}', '{"step": 1, "seconds": 5}', "null", '{"step": 2, "seco', *numbers):
        path.write_text(f"{damage}\n{whole}{damage}")
        assert all_seconds(path) == {"start": 5.0}
        assert start(path, clock, 0).write(0)["goodput"] == 0.0
    path.unlink()
    path.mkdir()
    ledger = start(path, clock, 0, 0.0)
    assert start(path, clock, 0, anew=True).write(0)["goodput"] == 0.0
    clock.now -= 4
    ledger.step_ends(metrics())
    assert ledger.write(1)["goodput"] == 1.0


def test_a_run_tells_its_goodput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validation = {"enable": True, "freq": 2, "steps": 1, "local_batch_size": 4}
    config = write_faulty(tmp_path, {"kind": "raise", "steps": [4]}, checkpoint={"interval": 2}, validation=validation)
    assert train_here(config) == 1
    assert train_here(config, "--fault.kind", "none") == 0
    assert "Goodput: " in capsys.readouterr().err
    starts = [line for _, _, line in read_lines(tmp_path / "run" / "goodput.jsonl") if line and line.get("begins")]
    assert [line["made_by"] for line in starts] == [made_by()] * 2
    rows = read_rows(tmp_path / "run")
    assert all(0 < row["goodput"] < 1 for row in rows) and len(rows) == 6
    assert tool.main([str(tmp_path / "run"), "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert told["seconds"].keys() == {"start", "restart", "compile", "training", "save", "validation", "data"}
    assert told["goodput"] == pytest.approx(rows[-1]["goodput"], rel=0.2)
    assert tool.main([str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith("goodput ")
    assert tool.main([str(tmp_path)]) == 2
    assert "give the job.dump_folder of a run" in capsys.readouterr().err


def test_without_checkpoints_each_start_is_a_run_of_its_own(tmp_path: Path) -> None:
    config = write_toml(tmp_path, training={"steps": 2}, checkpoint={"enable": False})
    assert [train_here(config) for _ in range(2)] == [0, 0]
    assert "lost" not in all_seconds(tmp_path / "run" / LEDGER_FILE)
