"""training.max_hours: planned on a simulated clock, and kept by a whole run on one."""

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from deadline_simulation import HOUR, SCENARIOS, SCHEDULES, Scenario, config_of, simulate
from helpers import losses, read_json, read_rows, train, train_here, write_toml

from titan_pt.components.lr_scheduler import build_lr_schedulers
from titan_pt.config import load_config
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Checkpoint, JobConfig, Training
from titan_pt.protocols.context import Step, StepMetrics, TrainContext, TrainState, Validator
from titan_pt.protocols.trainer_spec import register_trainer_spec
from titan_pt.run.deadline import CLOCK_FILE, Deadline, Speed, spent_seconds
from titan_pt.run.jumps import seconds_between
from titan_pt.run.ledger import moment
from titan_pt.trainers import pretrain

DAY = Scenario("one day", max_hours=24.0, noise=0.0)


@pytest.mark.parametrize(
    ("scenario", "schedule"),
    list(itertools.product(SCENARIOS, SCHEDULES)),
    ids=lambda value: getattr(value, "name", value),
)
def test_a_run_ends_decayed_and_just_before_its_deadline(scenario: Scenario, schedule: str) -> None:
    """Days are simulated in a quarter of a second, by steps that are four times as long."""
    if scenario.max_hours > 24:
        quick = scenario.seconds_per_step
        slower: dict[str, Any] = {"seconds_per_step": lambda now: 4 * quick(now), "max_steps": scenario.max_steps // 4}
        scenario = dataclasses.replace(scenario, **slower)
    result = simulate(scenario, config_of(scenario, **SCHEDULES[schedule]))
    assert result.lr_factor == pytest.approx(0.1, abs=1e-12)
    assert result.hours <= scenario.max_hours
    if scenario.max_steps > result.steps:
        # Of a short run the 50 s that the last validation and save take are more than a percent.
        assert result.hours >= 0.99 * scenario.max_hours - 2 * (50 + scenario.seconds_per_step(0.0)) / HOUR
    else:
        assert result.steps == scenario.max_steps


@pytest.mark.parametrize("max_hours", [24.0, 72.0])
def test_days_end_less_than_a_percent_before(max_hours: float) -> None:
    scenario = Scenario("days", max_hours=max_hours, stalls={10 * HOUR: 2 * HOUR}, kills={15 * HOUR: 1800.0})
    assert 0.99 * max_hours <= simulate(scenario, config_of(scenario)).hours <= max_hours


def test_a_cooldown_starts_when_it_must() -> None:
    steady = simulate(DAY, config_of(DAY, decay_type="linear", decay_ratio=0.25))
    first = next(i for i, rate in enumerate(steady.rates) if i > 2000 and rate < 1.0)
    assert first / steady.steps == pytest.approx(0.75, abs=0.01)
    assert steady.rates[2000:first] == [1.0] * (first - 2000)
    slow = Scenario("slow", lambda now: 2.7 if now < 12 * HOUR else 5.4, max_hours=24.0)
    slowed = simulate(slow, config_of(slow, decay_type="linear", decay_ratio=0.25))
    begins = next(i for i, rate in enumerate(slowed.rates) if i > 2000 and rate < 1.0)
    assert begins < first and begins / slowed.steps == pytest.approx(0.75, abs=0.01)


def test_at_a_constant_speed_a_cosine_is_that_of_the_steps_it_had() -> None:
    config = config_of(DAY, decay_type="cosine")
    result = simulate(DAY, config)
    plain = build_lr_schedulers(config, result.steps)
    assert result.rates == pytest.approx([plain(step) for step in range(1, result.steps + 1)], abs=5e-3)


def test_one_long_step_is_no_change_of_speed() -> None:
    speed, now = Speed(0.0), 0.0
    for step in range(100):
        now += 3600.0 if step == 60 else 2.0
        speed.step_ends(now)
    assert speed.seconds_per_step == pytest.approx(2.0)


def test_a_speed_is_known_from_the_second_step_on_and_the_first_one_compiles() -> None:
    speed = Speed(5.0)
    speed.step_ends(300.0)
    assert speed.seconds_per_step == 5.0, "that of the attempt before"
    speed.step_ends(302.0)
    speed.pause(100.0)
    speed.step_ends(404.0)
    assert speed.seconds_per_step == pytest.approx(2.0)


def test_a_plan_that_changes_by_more_than_a_percent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(logging.getLogger("titan_pt"), "info", told.append)
    deadline = Deadline(config_of(DAY), 10**6)
    for step in range(1, 400):
        deadline.step_ends(step * 2.0)
        deadline.plan(step, step * 2.0)
    assert len(told) == 1 and "43,0" in told[0] and "1,000,000 were" in told[0]
    for step in range(400, 500):
        deadline.step_ends(800 + (step - 400) * 3.0)
        deadline.plan(step, 800 + (step - 400) * 3.0)
    assert len(told) > 1 and "3 s a step" in told[-1]


def test_what_comes_between_steps_is_paid_by_them_even_where_it_costs_more_than_they_do() -> None:
    """A save of 0.2 s every 4 steps of 0.04 s: 0.09 s a step."""
    config = JobConfig(training=Training(max_hours=1.0), checkpoint=Checkpoint(interval=4))
    for max_steps, fewest, most in ((16, 16, 16), (10**6, 39_500, 40_000)):
        deadline, now = Deadline(config, max_steps, 0.0), 0.0
        for _ in range(3):
            now += 0.04
            deadline.step_ends(now)
        deadline.paused("save", 0.2)
        assert fewest <= deadline.plan(3, now + 0.2) <= most


def test_a_raised_deadline_or_budget_goes_on_and_the_same_one_does_not() -> None:
    first = Deadline(config_of(DAY), 1000)
    for step in range(1, 6):
        first.step_ends(step * 10_000.0)
    planned = first.plan(5, 50_000.0)
    assert planned == 7
    saved = json.loads(json.dumps(first.state_dict()))
    assert Deadline(config_of(DAY), 1000, 60_000.0, saved).steps == 7
    assert Deadline(config_of(DAY), 1000, 20_000.0, saved).steps == 12, "a clock had cut it: there is time for more"
    assert Deadline(config_of(DAY), 1000, 20_000.0, {**saved, "seconds_per_step": -1.0}).steps == 1000
    earlier = {"started": 5.0, "end": 5.0 + 24 * HOUR, **{key: saved[key] for key in saved if key != "max_seconds"}}
    assert Deadline(config_of(DAY), 1000, 60_000.0, earlier).steps == 7
    longer = Scenario("two days", max_hours=48.0)
    assert Deadline(config_of(longer), 1000, 60_000.0, saved).plan(7, 80_000.0) == 15
    assert Deadline(config_of(DAY), 2000, 60_000.0, saved).steps == 2000


def test_what_was_spent_is_what_the_newest_note_says(tmp_path: Path) -> None:
    """Of the run folder and the checkpoint; damaged notes and those of earlier releases included."""
    note = tmp_path / CLOCK_FILE
    assert spent_seconds(tmp_path, 5.0, None) == 5.0
    note.write_text(json.dumps({"spent": 20.0, "at": moment()}))
    assert spent_seconds(tmp_path, 5.0, None) == pytest.approx(20.0, abs=1)
    saved = {"spent": 70.0, "at": moment()}
    assert spent_seconds(tmp_path, 5.0, saved) == pytest.approx(70.0, abs=1)
    assert spent_seconds(None, 5.0, saved) == 5.0, "without checkpoints each start is another run"
    numbers = ("1e999", "-1e999", "-1e308", "NaN", "9" * 400)
    damaged = [f'{{"spent": {number}, "at": {json.dumps(moment())}}}' for number in numbers]
    damaged += [f'{{"started": {number}}}' for number in numbers]
    for number in numbers[:-1]:
        note.write_text(json.dumps({"spent": 20.0, "at": {**moment(), "clock": 0.5}}).replace("0.5", number))
        assert spent_seconds(tmp_path, 5.0, None) == pytest.approx(20.0, abs=1)
    for text in ('{"spe', "[]", '{"spent": 9}', '{"spent": "x"}', "[" * 100_000, *damaged):
        note.write_text(text)
        assert spent_seconds(tmp_path, 5.0, saved) == pytest.approx(70.0, abs=1)
        assert spent_seconds(tmp_path, 5.0, None) == 5.0
    earlier = {"started": time.time() - 90.0}
    assert spent_seconds(tmp_path, 5.0, earlier) == pytest.approx(90.0, abs=1)
    assert spent_seconds(tmp_path, 5.0, {"started": time.time() + 90.0}) == 5.0


@pytest.mark.parametrize(
    ("boot", "jump", "spent", "told"),
    [
        ("", 0.0, 30.0, ""),
        ("another", 0.0, 30.0, ""),
        ("another", -99.0, 0.0, "back by 69 s; no time counts"),
        ("another", 365 * 86400.0, 0.0, "forward by 31,536,030 s; no time counts"),
        ("another", 86400.0, 86430.0, ""),
    ],
)
def test_between_two_machines_the_wall_clock_counts_where_there_is_sense_in_it(
    monkeypatch: pytest.MonkeyPatch, boot: str, jump: float, spent: float, told: str
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(logging.getLogger("titan_pt"), "warning", warnings.append)
    then = {"time": 1000.0, "clock": 500.0, "boot": boot}
    now = {"time": 1030.0 + jump, "clock": 7.0, "boot": boot and "this one"}
    assert seconds_between(then, now, tell=True) == spent
    assert [told in text for text in warnings] == ([True] if told else [])


@pytest.mark.parametrize("jump", [-5.0, 7200.0, -86400.0])
def test_on_one_machine_a_jump_between_starts_is_told_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(logging.getLogger("titan_pt"), "warning", warnings.append)
    then = {"time": 1000.0, "clock": 500.0, "boot": "one"}
    assert seconds_between(then, {"time": 1030.0 + jump, "clock": 530.0, "boot": "one"}, tell=True) == 30.0
    assert len(warnings) == 1 and f"{'forward' if jump > 0 else 'back'} by {abs(jump):,.0f} s" in warnings[0]


class Clock:
    """Clocks that only a step moves, by `seconds` of the first step that they hold for."""

    CLOCK_BOOTTIME = 7
    now = 1_000_000.0
    breaks_at = 0
    wall_jumps: Mapping[int, float] = {}
    """step: by how much the wall clock is set in it."""

    def __init__(self) -> None:
        self.seconds, self.ahead = {1: 10.0}, 0.0

    def time(self) -> float:
        return self.now + self.ahead

    def monotonic(self) -> float:
        return self.now

    def clock_gettime(self, clock: int) -> float:
        assert clock == self.CLOCK_BOOTTIME
        return self.now

    def tick(self, step: int) -> None:
        self.ahead += self.wall_jumps.get(step, 0.0)
        if step == self.breaks_at:
            raise RuntimeError("as if it were killed")
        self.now += self.seconds[max(first for first in self.seconds if first <= step)]


CLOCK = Clock()


def build_step(context: TrainContext) -> Step:
    inner = pretrain.build_step(context)

    def step(state: TrainState) -> StepMetrics | None:
        CLOCK.tick(state.step + 1)
        context.raise_if_preempted()
        return inner(state)

    return step


register_trainer_spec(dataclasses.replace(pretrain.SPEC, name="ticking", build_step=build_step))


def build_slow_validator(context: TrainContext, _step: Step) -> Validator:
    """The second validation takes until after the deadline."""
    calls = itertools.count(1)

    def validate() -> dict[str, float]:
        if next(calls) == 2:
            CLOCK.now += 10_000.0
        context.raise_if_preempted()
        return {"val_loss": 1.0, "val_perplexity": 2.0, "val_bpb": 3.0}

    return validate


register_trainer_spec(
    dataclasses.replace(
        pretrain.SPEC, name="slow_validation", build_step=build_step, build_validator=build_slow_validator
    )
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of runs with job.trainer = "ticking"."""
    for module in ("titan_pt.run.deadline", "titan_pt.run.ledger", "titan_pt.run.signals", "titan_pt.train"):
        monkeypatch.setattr(f"{module}.time", CLOCK)
    CLOCK.now, CLOCK.ahead, CLOCK.breaks_at, CLOCK.seconds, CLOCK.wall_jumps = 1_000_000.0, 0.0, 0, {1: 10.0}, {}
    return CLOCK


def write_ticking(folder: Path, **tables: dict[str, Any]) -> Path:
    """An hour for up to 1000 steps of ten seconds."""
    return write_toml(
        folder,
        job={"trainer": "ticking", "dump_folder": str(folder / "run")},
        model={"num_layers": 1, "hidden_size": 32, "intermediate_size": 32},
        training={"steps": 1000, "global_batch_size": 4, "seq_len": 32, "max_hours": 1, **tables.pop("training", {})},
        lr_scheduler={"warmup_steps": 5, "decay_ratio": 0.5, "min_lr_factor": 0.1},
        checkpoint={"interval": 50, "keep_latest_k": 0},
        metrics={"log_freq": 1, "enable_tensorboard": False},
        **tables,
    )


def test_a_run_keeps_its_deadline(tmp_path: Path, clock: Clock) -> None:
    began, clock.seconds = clock.now, {1: 10.0, 100: 20.0}
    assert train_here(write_ticking(tmp_path)) == 0
    rows = read_rows(tmp_path / "run")
    assert 3480 < clock.now - began < 3600
    assert 220 < rows[-1]["step"] < 230
    assert rows[-1]["lr"] == pytest.approx(8e-5, abs=1e-15)
    assert read_json(tmp_path / "run" / "checkpoint" / f"step-{rows[-1]['step']}", "train")["state"]["step"] > 220
    assert (tmp_path / "run" / "checkpoint" / "step-1").is_dir(), "to know how long a save takes"
    assert train_here(write_ticking(tmp_path)) == 0, "the same command finds the run at its end"
    assert read_rows(tmp_path / "run") == rows


@pytest.mark.parametrize("jump", [-5.0, 7200.0])
def test_a_wall_clock_that_jumps_changes_no_plan(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str], jump: float
) -> None:
    """In a run and between two starts of it; the plan and all rates are those of a clock that did not jump."""
    training = {"steps": 60, "max_hours": 1}
    clock.wall_jumps, clock.breaks_at = {5: jump, 52: jump}, 55
    assert train_here(config := write_ticking(tmp_path, training=training)) == 1
    clock.breaks_at, clock.ahead = 0, 3 * jump
    assert train_here(config) == 0
    told = f"The clock was set {'forward' if jump > 0 else 'back'} by {abs(jump):,.0f} s"
    assert capsys.readouterr().err.count(told) == 3
    rates = [row["lr"] for row in read_rows(tmp_path / "run")]
    clock.now, clock.wall_jumps, clock.ahead = 1_000_000.0, {}, 0.0
    assert train_here(write_ticking(tmp_path / "without", training=training)) == 0
    assert rates == [row["lr"] for row in read_rows(tmp_path / "without" / "run")]


def test_hours_are_spent_over_restarts_and_in_between(tmp_path: Path, clock: Clock) -> None:
    config = write_ticking(tmp_path)
    began, clock.breaks_at = clock.now, 60
    assert train_here(config) == 1
    clock.now, clock.breaks_at = began + 1600.0, 0
    assert train_here(config) == 0
    assert 3480 < clock.now - began < 3600
    last = read_rows(tmp_path / "run")[-1]
    assert 240 < last["step"] < 260 and last["lr"] == pytest.approx(8e-5, abs=1e-15)


def test_a_run_that_comes_back_too_late_ends_at_once(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_ticking(tmp_path)
    clock.breaks_at = 60
    assert train_here(config) == 1
    clock.now, clock.breaks_at = clock.now + 7200.0, 0
    assert train_here(config) == 0
    assert "The deadline came before the planned last step" in capsys.readouterr().err
    assert max(losses(tmp_path / "run")) == 59, "which was saved when the next one failed"
    assert train_here(config, "--training.max_hours", "3") == 0
    assert read_rows(tmp_path / "run")[-1]["step"] > 300


def test_a_step_that_would_end_too_late_is_dropped(tmp_path: Path, clock: Clock) -> None:
    clock.seconds = {1: 10.0, 340: 500.0}
    assert train_here(write_ticking(tmp_path)) == 0
    assert max(losses(tmp_path / "run")) == 339
    assert (tmp_path / "run" / "checkpoint" / "step-339").is_dir()


def test_a_deadline_in_a_validation_leaves_one_row(tmp_path: Path, clock: Clock) -> None:
    config = write_ticking(tmp_path, validation={"enable": True, "freq": 20})
    assert train_here(config, "--job.trainer", "slow_validation") == 0
    rows = read_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["step"] for row in rows if "val_loss" in row] == [1, 20]
    assert (tmp_path / "run" / "checkpoint" / "step-20").is_dir()


def test_a_deadline_before_the_first_step_is_a_mistake(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.seconds = {1: 5000.0}
    assert train_here(write_ticking(tmp_path)) == 2
    assert "training.max_hours = 1: over before the first step was done" in capsys.readouterr().err


def test_a_run_that_is_done_before_is_not_changed(tmp_path: Path, clock: Clock) -> None:
    training = {"steps": 30}
    assert train_here(write_ticking(tmp_path / "with", training=training)) == 0
    plain = write_ticking(tmp_path / "without", training=training)
    plain.write_text(plain.read_text().replace("max_hours = 1\n", ""))
    assert train_here(plain) == 0
    assert losses(tmp_path / "with" / "run") == losses(tmp_path / "without" / "run")


def test_a_fixed_end_of_the_decay_and_a_deadline_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data.sources", '[{name="arithmetic"}]', "--training.max_hours", "3d"]
    assert load_config(flags).training.max_hours == 72.0
    with pytest.raises(ConfigError, match=r"total_steps = 500: fixes the end of the decay"):
        load_config([*flags, "--lr_scheduler.total_steps", "500"])
    with pytest.raises(ConfigError, match=r"training\.max_hours"):
        load_config([*flags[:2], "--training.max_hours", "0"])


@pytest.mark.slow
def test_two_ranks_keep_their_deadline(tmp_path: Path) -> None:
    """On the real clock. A loaded machine may drop the last step, but is not late."""
    config = write_toml(tmp_path, training={"steps": 10**6, "max_hours": 40 / 3600})
    started = time.time()
    done = train(config, ranks=2)
    assert done.code == 0, done.stderr
    assert time.time() - started < 40, done.stderr
    rows = read_rows(tmp_path / "run")
    assert rows[-1]["time"] - started > 25 and rows[-1]["lr"] < 0.1 * rows[len(rows) // 2]["lr"]
