"""The learning-rate schedules, value by value."""

import logging
import math

import pytest

from titan_pt.components.lr_scheduler import build_lr_schedulers, lr_factor
from titan_pt.config import load_config
from titan_pt.trainers.summary import warn_of_short_warmup

SOURCE = '--data.sources=[{name="arithmetic"}]'


def factors(total: int, warmup: int, decay: int, kind: str, floor: float = 0.0) -> list[float]:
    return [lr_factor(step, total, warmup, decay, kind, floor) for step in range(1, total + 1)]


def test_warmup_then_linear_decay_ends_at_the_floor() -> None:
    values = factors(10, 4, 6, "linear", 0.25)
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]
    assert values[4:] == pytest.approx([1 - 0.75 * i / 6 for i in range(1, 7)])
    assert values[-1] == 0.25


def test_wsd_is_constant_in_between() -> None:
    values = factors(20, 2, 5, "linear")
    assert values[1:15] == [1.0] * 14
    assert values[15:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


@pytest.mark.parametrize(
    ("kind", "middle"), [("linear", 0.5), ("cosine", 0.5 * (1 + math.cos(math.pi / 2))), ("sqrt", 1 - math.sqrt(0.5))]
)
def test_shapes_at_half_of_the_decay(kind: str, middle: float) -> None:
    assert lr_factor(15, 20, 0, 10, kind, 0.0) == pytest.approx(middle)
    assert lr_factor(20, 20, 0, 10, kind, 0.1) == pytest.approx(0.1)
    assert lr_factor(25, 20, 0, 10, kind, 0.1) == pytest.approx(0.1)


def test_the_schedule_follows_the_config() -> None:
    flags = ["--optimizer.lr", "2e-3", "--lr_scheduler.warmup_steps", "10", "--lr_scheduler.decay_ratio", "0.2"]
    schedule = build_lr_schedulers(load_config([SOURCE, *flags, "--lr_scheduler.min_lr_factor", "0.1"]), 100)
    assert schedule(5) == pytest.approx(1e-3)
    assert schedule(10) == schedule(80) == pytest.approx(2e-3)
    assert schedule(90) == pytest.approx(1.1e-3)
    assert schedule(100) == pytest.approx(2e-4)


def test_total_steps_may_differ_from_the_run() -> None:
    flags = ["--lr_scheduler.warmup_steps", "0", "--lr_scheduler.total_steps", "50"]
    schedule = build_lr_schedulers(load_config([SOURCE, *flags]), 100)
    assert schedule(25) == pytest.approx(4e-4)
    assert schedule(50) == schedule(100) == 0.0


def test_a_warmup_longer_than_the_run_is_shortened_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("titan_pt").propagate = True
    with caplog.at_level(logging.WARNING, logger="titan_pt"):
        config = load_config([SOURCE, "--lr_scheduler.warmup_steps", "200"])
        warn_of_short_warmup(config, 20)
    schedule = build_lr_schedulers(config, 20)
    assert "shortened to 19" in caplog.text
    assert schedule(19) == pytest.approx(8e-4) and schedule(20) == 0.0


def test_a_warmup_longer_than_total_steps_is_shortened_too(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("titan_pt").propagate = True
    with caplog.at_level(logging.WARNING, logger="titan_pt"):
        config = load_config([SOURCE, "--lr_scheduler.warmup_steps", "200", "--lr_scheduler.total_steps", "5"])
        warn_of_short_warmup(config, 100)
    assert "warmup_steps = 200: not below the 5 steps of lr_scheduler.total_steps; shortened to 4" in caplog.text
    schedule = build_lr_schedulers(config, 100)
    assert [schedule(step) for step in (4, 5, 100)] == pytest.approx([8e-4, 0.0, 0.0])


def test_a_run_of_one_step_has_a_schedule() -> None:
    assert build_lr_schedulers(load_config([SOURCE]), 1)(1) == 0.0
