"""The collapse guard (grpo.on_collapse): held-out accuracy that falls and stays low, and what moved with it.

Long reinforcement learning can unlearn what it learnt, and its reward may rise all the while. What counts is held-out
accuracy: two evaluations in a row below the best one by more than a margin are a collapse. Entropy, length, the gap
between the strict and the lenient rule, and KL are watched to say what went with it.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

from titan_pt.components.checkpoint.keeping import BEST
from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.protocols.context import TrainState
from titan_pt.run.exit_codes import GaveUpTogether, GoBack
from titan_pt.run.run_folder import run_folder
from titan_pt.trainers.grpo.forecast import Forecast, forecast

logger = logging.getLogger("titan_pt")

IN_A_ROW = 2
"""Evaluations below the bar that are a collapse: one may be chance."""

RATE_FACTOR = 0.3
"""The learning rate after a way back, relative to the one before."""

_SIGNALS = ("entropy", "completion length", "lenient above strict", "KL")


class HeldOutWatch:
    """Follows the held-out evaluations of a run: warns of a collapse, answers it, and forecasts the end.

    The same on all ranks, whose values are the same.
    """

    def __init__(self, config: GrpoConfig, total_steps: int) -> None:
        self._options, self._total_steps = config.grpo, total_steps
        checkpoint = config.checkpoint
        self._best_key, self._best_path = checkpoint.keep_best, run_folder(config) / checkpoint.folder / BEST
        self.step = 0
        """The last finished step."""
        self._points: list[list[float]] = []  # step, value and its binomial variance, of each evaluation
        self._below = 0
        self._sums, self._count = [0.0] * len(_SIGNALS), 0
        self._at_best: list[float] | None = None
        self.collapse = ""
        """What happened, from the evaluation on that is one too many below the bar."""

    def note_step(self, step: int, values: Mapping[str, Any]) -> None:
        """Note the figures of a finished step."""
        found = [values["entropy"], values["completion_tokens_mean"]]
        found += [values["accuracy_lenient"] - values["accuracy_strict"], values["kl"]]
        self._sums = [a + float(b) for a, b in zip(self._sums, found, strict=True)]
        self.step, self._count = step, self._count + 1

    def note_evaluation(self, values: Mapping[str, float]) -> dict[str, float]:
        """Note the values of an evaluation of the last finished step; returns those of the forecast, to log too.

        The first one of a step counts: another is that of the averaged weights (validation.weights = "both").
        """
        if self._points and self._points[-1][0] == self.step:
            return {}
        keys = [key for key in values if key == self._best_key and _is_accuracy(key)]
        keys = keys or [key for key in values if key.endswith("/accuracy")]
        value = sum(values[key] for key in keys) / len(keys)
        number = sum(values[f"{key.rpartition('/')[0]}/problems"] for key in keys)
        share = (min(max(value, 0.0), 1.0) * number + 1) / (number + 2)
        self._points = [*self._points, [float(self.step), value, share * (1 - share) / number]]
        signals = [part / self._count for part in self._sums] if self._count else None
        self._sums, self._count = [0.0] * len(_SIGNALS), 0
        if value >= max(point[1] for point in self._points):
            self._at_best, self._below = signals, 0
        else:
            self._below = self._below + 1 if value < self._bar() else 0
        self.collapse = self._describe(signals) if self._below >= IN_A_ROW else ""
        if self._below == IN_A_ROW and self._options.on_collapse == "warn":  # the other answers tell it themselves
            logger.warning(f"{self.collapse}; grpo.on_collapse is 'warn'")
        return self._forecast() if self._options.forecast else {}

    def answer(self, state: TrainState) -> None:
        """Do what grpo.on_collapse says, before a step.

        Raises:
            GaveUpTogether, GoBack: the run has collapsed, and is to stop or to go back.
        """
        if not self.collapse or self._options.on_collapse == "warn":
            return
        if self._options.on_collapse == "stop":
            best = max(self._points, key=lambda point: point[1])[0]
            raise GaveUpTogether(
                f'{self.collapse}; grpo.on_collapse = "stop"; to go on from the best step, {best:.0f}, or one near it: '
                "checkpoint.load_step, with a lower optimizer.lr"
            )
        state.guard["rate_factor"] = RATE_FACTOR * state.guard.get("rate_factor", 1.0)
        rate = f"the learning rate is {state.guard['rate_factor']:.3g} of the schedule's from here on"
        raise GoBack(self._best_key, self._bar(), f"{self.collapse}; {rate}")

    def end(self, state: TrainState) -> None:
        """Do what is left of grpo.on_collapse behind the last step, from which there is no way back.

        Raises:
            GaveUpTogether: the run has collapsed, and grpo.on_collapse is "stop".
        """
        if self._options.on_collapse != "rewind":
            self.answer(state)
        elif self.collapse:
            logger.warning(
                f"{self.collapse}; there are no steps left to go back for: the best saved one is {self._best_path}"
            )

    def state_dict(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        state = {"step": self.step, "points": self._points, "below": self._below}
        state |= {"sums": self._sums, "count": self._count}  # a save between two evaluations
        return state | {"at_best": self._at_best, "collapse": self.collapse}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set what `state_dict` gave; checkpoints of earlier releases hold nothing of it."""
        self._points, self._below = list(state.get("points", [])), state.get("below", 0)
        self._at_best, self.collapse, self.step = state.get("at_best"), state.get("collapse", ""), state.get("step", 0)
        self._sums, self._count = list(state.get("sums", [0.0] * len(_SIGNALS))), state.get("count", 0)

    def _bar(self) -> float:
        """What a value has to be below: the best one without the margin and without two standard errors."""
        _, best, variance = max(self._points, key=lambda point: point[1])
        return best - max(self._options.collapse_margin * best, 2 * math.sqrt(2 * variance))

    def _describe(self, signals: list[float] | None) -> str:
        best = max(self._points, key=lambda point: point[1])
        *_, before, last = self._points
        text = (
            f"step {self.step}: held-out accuracy {before[1]:.3f} and {last[1]:.3f}, twice in a row below "
            f"{self._bar():.3f}; its best was {best[1]:.3f} at step {best[0]:.0f}"
        )
        pairs = zip(_SIGNALS, self._at_best or signals or [], signals or [], strict=False)
        moved = [f"{name} {then:.3g} -> {now:.3g}" for name, then, now in pairs if then != now]
        return f"{text} ({', '.join(moved)} since then)" if moved else text

    def _forecast(self) -> dict[str, float]:
        if not 0.3 * self._total_steps <= self.step < self._total_steps:
            return {}
        found = forecast([(step, value, variance) for step, value, variance in self._points], self._total_steps)
        logger.info(f"Forecast: {found}")
        return found.values if isinstance(found, Forecast) else {}


def _is_accuracy(key: str) -> bool:
    return key.rpartition("/")[2].startswith(("accuracy", "pass_at_"))
