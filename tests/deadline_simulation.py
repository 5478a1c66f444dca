"""A run with training.max_hours on a simulated clock. `python tests/deadline_simulation.py` prints the table."""

import functools
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from titan_pt.components.lr_scheduler import PlannedSchedule, build_lr_schedulers
from titan_pt.config.schema.job_config import Checkpoint, JobConfig, LrScheduler, Optimizer, Training, Validation
from titan_pt.run.deadline import Deadline
from titan_pt.run.jumps import seconds_between

HOUR = 3600.0


@dataclass(frozen=True)
class Scenario:
    """What the clock meets. Times in seconds from the first start."""

    name: str
    seconds_per_step: Callable[[float], float] = lambda _: 2.7
    stalls: dict[float, float] = field(default_factory=dict)
    """start: length; the step under way takes so much longer."""
    kills: dict[float, float] = field(default_factory=dict)
    """time: seconds until the next attempt; the steps since the last save are lost."""
    jumps: dict[float, float] = field(default_factory=dict)
    """time: by how much the wall clock is set."""
    moves: bool = False
    """Each attempt is on another machine, which has the wall clock alone to measure from."""
    max_hours: float = 72.0
    max_steps: int = 10**6
    noise: float = 0.05
    validation_seconds: float = 30.0
    save_seconds: float = 20.0


@dataclass(frozen=True)
class Result:
    """How it ended."""

    hours: float
    steps: int
    lr_factor: float
    rates: list[float]
    """The learning rate of each step relative to the peak."""


def config_of(scenario: Scenario, **schedule: object) -> JobConfig:
    """Validation and save every 500 steps."""
    return JobConfig(
        training=Training(max_hours=scenario.max_hours),
        optimizer=Optimizer(lr=1.0),
        lr_scheduler=LrScheduler(**{"warmup_steps": 2000, "min_lr_factor": 0.1, **schedule}),  # type: ignore[arg-type]
        validation=Validation(enable=True, freq=500),
        checkpoint=Checkpoint(interval=500),
    )


def simulate(scenario: Scenario, config: JobConfig, seed: int = 0) -> Result:
    """Run to the end, through all attempts."""
    rng, kills, stalls = random.Random(seed), sorted(scenario.kills.items()), sorted(scenario.stalls.items())
    now, step, saved_step, saved = 60.0, 0, 0, None
    rates: list[float] = []
    noted, note = 60.0, moment_of(scenario, now, 0)
    for attempt, (kill_at, down) in enumerate([*kills, (math.inf, 0.0)]):
        # What is believed to be spent; the run knows no other time.
        ahead = noted + seconds_between(note, moment_of(scenario, now, attempt)) - now
        deadline = Deadline(config, scenario.max_steps, now + ahead, saved)
        end = deadline.latest - ahead
        schedule = PlannedSchedule(functools.partial(build_lr_schedulers, config), scenario.max_steps)
        while step < deadline.steps and now < end:
            schedule.end_at(deadline.plan(step, now + ahead))
            seconds = scenario.seconds_per_step(now) * rng.uniform(1 - scenario.noise, 1 + scenario.noise)
            while stalls and stalls[0][0] <= now:
                seconds += stalls.pop(0)[1]
            if now + seconds > min(kill_at, end):  # no step: it is lost, or dropped between micro-batches
                now = min(kill_at, end)
                break
            now, step = now + seconds, step + 1
            rates[step - 1 :] = [schedule(step)]
            deadline.step_ends(now + ahead)
            if step == deadline.steps or step == 1 or step % 500 == 0:
                for what, lasts in (("validation", scenario.validation_seconds), ("save", scenario.save_seconds)):
                    now += lasts
                    deadline.paused(what, lasts)
                saved_step, saved = step, deadline.state_dict()
                noted, note = now + ahead, moment_of(scenario, now, attempt)
            end = deadline.latest - ahead
        if now < kill_at:
            break
        now, step = kill_at + down, saved_step
    if saved_step < step:
        now += scenario.validation_seconds + scenario.save_seconds
    return Result(now / HOUR, step, rates[-1], rates)


def moment_of(scenario: Scenario, now: float, attempt: int) -> dict[str, object]:
    """A `ledger.moment`: the wall clock with its jumps, and a steady one that begins anew on each machine."""
    boot = attempt if scenario.moves else 0
    wall = now + sum(by for at, by in scenario.jumps.items() if at <= now)
    return {"time": wall, "clock": now + 7 * boot, "boot": f"boot {boot}"}


SCENARIOS = [
    Scenario("constant speed"),
    Scenario("noise of 40 %", noise=0.4),
    Scenario("half the speed from hour 30 on", lambda now: 2.7 if now < 30 * HOUR else 5.4),
    Scenario("twice the speed from hour 30 on", lambda now: 5.4 if now < 30 * HOUR else 2.7),
    Scenario("half the speed from hour 70 on", lambda now: 2.7 if now < 70 * HOUR else 5.4),
    Scenario("slower all the time, 2.7 to 4 s", lambda now: 2.7 + 1.3 * now / (72 * HOUR)),
    Scenario("stalls of 1, 3 and 2 hours", stalls={10 * HOUR: HOUR, 40 * HOUR: 3 * HOUR, 66 * HOUR: 2 * HOUR}),
    Scenario("a stall of 10 min in every hour", stalls={hour * HOUR: 600.0 for hour in range(1, 72)}),
    Scenario("a stall of 1 hour, 1.5 hours before the end", stalls={70.5 * HOUR: HOUR}),
    Scenario("killed 5 times, 20 min to restart", kills={h * HOUR: 1200.0 for h in (5, 20.3, 41, 60.7, 70.9)}),
    Scenario("killed, 12 hours without a machine", kills={30 * HOUR: 12 * HOUR}),
    Scenario(
        "killed, back on half the machines", lambda now: 2.7 if now < 40 * HOUR else 5.4, kills={40 * HOUR: 600.0}
    ),
    Scenario("the clock is set 5 s back", jumps={600.0: -5.0}),
    Scenario("2 hours forward, and back", jumps={600.0: 2 * HOUR, 40 * HOUR: -2 * HOUR}),
    Scenario(
        "a day back, killed before and after", kills={5 * HOUR: 600.0, 9 * HOUR: 600.0}, jumps={7 * HOUR: -86400.0}
    ),
    Scenario("killed, a day forward meanwhile", kills={30 * HOUR: 1200.0}, jumps={30 * HOUR + 60: 86400.0}),
    Scenario("killed, on other machines", kills={h * HOUR: 1200.0 for h in (5, 20.3, 70.9)}, moves=True),
    Scenario("a length that is reached before", max_steps=50_000),
    Scenario("1 hour, 8 s a step", lambda _: 8.0, max_hours=1.0),
    Scenario("24 hours, 5 min a step (grpo)", lambda _: 300.0, max_hours=24.0, noise=0.3),
]
SCHEDULES: dict[str, dict[str, object]] = {
    "cosine": {"decay_type": "cosine"},
    "WSD, 20 %, 1-sqrt": {"decay_type": "sqrt", "decay_ratio": 0.2},
}


def main() -> None:
    """The table."""
    print(
        "| scenario | schedule | steps | ends at, of its hours | rate of the last step / peak |\n|---|---|---|---|---|"
    )
    for scenario, (name, schedule) in itertools.product(SCENARIOS, SCHEDULES.items()):
        result = simulate(scenario, config_of(scenario, **schedule))
        print(
            f"| {scenario.name} | {name} | {result.steps:,} | {result.hours:.2f} of {scenario.max_hours:g} "
            f"({result.hours / scenario.max_hours:.2%}) | {result.lr_factor:.4f} |"
        )


if __name__ == "__main__":
    main()
