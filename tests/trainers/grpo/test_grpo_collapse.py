"""The watch over held-out evaluations: what is a collapse and what is not, and the forecast of the end."""

import json
import math
import random

import pytest

from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.protocols.context import TrainState
from titan_pt.run.exit_codes import GaveUpTogether, GoBack
from titan_pt.trainers.grpo.collapse import HeldOutWatch
from titan_pt.trainers.grpo.forecast import Forecast, forecast

SIGNALS = ("entropy", "completion_tokens_mean", "accuracy_lenient", "accuracy_strict", "kl")


def watch(keep_best: str | None = None, **grpo: object) -> HeldOutWatch:
    tables = {"grpo": {"tasks": [{"name": "a"}, {"name": "b"}], "forecast": False, **grpo}}
    config = GrpoConfig.model_validate({**tables, "checkpoint": {"keep_best": keep_best}})
    return HeldOutWatch(config, 100)


def stepped(seen: HeldOutWatch, entropy: float) -> None:
    signals = {"entropy": entropy, "completion_tokens_mean": 9, "accuracy_lenient": 1, "accuracy_strict": entropy}
    seen.note_step(seen.step + 1, {**signals, "kl": 0.0})


def evaluated(seen: HeldOutWatch, *accuracies: float, problems: int = 100) -> str:
    """The collapse that these evaluations are, one a step; the two tasks differ around their mean."""
    for accuracy in accuracies:
        stepped(seen, accuracy)
        values = {"eval/a/accuracy": accuracy + 0.01, "eval/b/accuracy": accuracy - 0.01}
        seen.note_evaluation({**values, "eval/a/problems": problems, "eval/b/problems": problems})
    return seen.collapse


@pytest.mark.parametrize(
    ("accuracies", "problems", "collapsed"),
    [
        ((0.2, 0.8, 0.5, 0.5), 100, True),
        ((0.2, 0.8, 0.5), 100, False),  # once
        ((0.2, 0.8, 0.5, 0.7, 0.5), 100, False),  # not in a row
        ((0.2, 0.8, 0.65, 0.65), 100, False),  # within the margin
        ((0.3, 0.2, 0.2), 20, False),  # within what chance does to so few problems
        ((0.3, 0.2, 0.2), 2000, True),
        ((0.0, 0.0, 0.0), 100, False),  # nothing to lose
    ],
)
def test_a_collapse_is_two_evaluations_below_margin_and_noise(
    accuracies: tuple[float, ...], problems: int, collapsed: bool
) -> None:
    assert bool(evaluated(watch(), *accuracies, problems=problems)) == collapsed


def test_what_moved_is_told_and_a_resumed_watch_goes_on() -> None:
    seen, resumed = watch(on_collapse="stop"), watch(on_collapse="stop")
    evaluated(seen, 0.2, 0.8, 0.3)
    resumed.load_state_dict(seen.state_dict())
    assert evaluated(resumed, 0.2) == evaluated(seen, 0.2) != ""
    assert "0.300 and 0.200" in seen.collapse and "best was 0.800 at step 2" in seen.collapse
    assert "entropy 0.8 -> 0.2" in seen.collapse and "lenient above strict 0.2 -> 0.8" in seen.collapse
    with pytest.raises(GaveUpTogether, match="load_step"):
        resumed.answer(TrainState())
    assert not evaluated(resumed, 0.7), "it has recovered"
    resumed.answer(TrainState())


def test_a_save_between_two_evaluations_keeps_the_steps_before_it() -> None:
    seen, resumed = watch(), watch()
    evaluated(seen, 0.2)
    stepped(seen, 0.9)
    resumed.load_state_dict(json.loads(json.dumps(seen.state_dict())))
    for each in (seen, resumed):
        evaluated(each, 0.3)
    assert resumed.state_dict() == seen.state_dict()
    assert seen.state_dict()["at_best"][0] == pytest.approx(0.6), "the mean of both steps"


def test_averaged_weights_are_no_evaluation_of_their_own() -> None:
    """With validation.weights = "both" the validator runs twice a step."""
    seen = watch(forecast=True)
    for accuracy in (0.2, 0.8, *[0.75] * 40):
        evaluated(seen, accuracy)
        assert not seen.note_evaluation({"eval/a/accuracy": 0.1, "eval/a/problems": 100})
    assert not seen.collapse
    evaluated(seen, 0.3)
    assert not seen.note_evaluation({"eval/a/accuracy": 0.3, "eval/a/problems": 100}) and not seen.collapse, "once"
    assert evaluated(seen, 0.3)


@pytest.mark.parametrize(
    ("key", "counts"), [("accuracy_official", True), ("pass_at_1", True), ("truncated_fraction", False)]
)
def test_only_an_accuracy_by_which_steps_are_kept_is_held_out_accuracy(key: str, counts: bool) -> None:
    seen = watch(keep_best=f"eval/a/{key}")
    for accuracy, value in ((0.5, 0.9), (0.6, 0.2), (0.7, 0.1)):
        seen.note_step(seen.step + 1, dict.fromkeys(SIGNALS, 0.0))
        seen.note_evaluation({"eval/a/accuracy": accuracy, f"eval/a/{key}": value, "eval/a/problems": 100})
    assert bool(seen.collapse) == counts


def test_each_way_back_lowers_the_rate() -> None:
    seen, state = watch(on_collapse="rewind"), TrainState()
    evaluated(seen, 0.8, 0.3, 0.2)
    for rate in (0.3, 0.09):
        with pytest.raises(GoBack, match="held-out accuracy"):
            seen.answer(state)
        assert state.guard["rate_factor"] == pytest.approx(rate)


def curve(step: float, start: float, end: float, middle: float) -> float:
    return start + (end - start) / (1 + (middle / step) ** 2) if step else start


@pytest.mark.parametrize(("end", "middle"), [(0.9, 12), (0.6, 20), (0.25, 10)])
def test_a_saturating_run_is_forecast(end: float, middle: float) -> None:
    random.seed(0)
    points = []
    for step in (0, 1, *range(5, 41, 5)):
        value = curve(step, 0.2, end, middle)
        variance = value * (1 - value) / 400
        points.append((float(step), value + random.gauss(0, math.sqrt(variance)), variance))
    found = forecast(points, 100)
    assert isinstance(found, Forecast)
    assert found.low <= curve(100, 0.2, end, middle) <= found.high and found.high - found.low < 0.4
    assert f"{found.low:.2f} to {found.high:.2f}" in str(found)


def test_where_the_data_cannot_tell_it_says_so() -> None:
    few = [(0.0, 0.2, 1e-3), (1.0, 0.2, 1e-3), (30.0, 0.4, 1e-3)]
    assert "1 evaluations behind step 1 are too few" in str(forecast(few, 100))
    rising = [(float(step), 0.1 + step / 100, 2e-3) for step in range(0, 31, 5)]
    assert "cannot tell" in str(forecast(rising, 100)), "nothing in a straight line tells where it ends"


def test_the_forecast_is_logged_from_30_percent_on() -> None:
    seen = watch(forecast=True)
    evaluated(seen, *[0.5] * 28)
    values = {"eval/a/accuracy": 0.5, "eval/a/problems": 200}
    signals = dict.fromkeys(SIGNALS, 0.0)
    seen.note_step(29, signals)
    assert not seen.note_evaluation(values)
    seen.note_step(30, signals)
    found = seen.note_evaluation(values)
    assert 0.4 < found["forecast/low"] < found["forecast/accuracy"] < found["forecast/high"] < 0.7
