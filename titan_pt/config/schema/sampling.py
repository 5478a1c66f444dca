"""The ranges of all numbers that say how text is sampled, for config keys and flags alike. No torch here."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator

from titan_pt.config.schema.values import Size


class SamplingRange(NamedTuple):
    """Allowed values of one number; NaN and infinity are in no range."""

    low: float
    high: float
    zero: str = ""
    """What 0 stands for, where it is allowed below `low`."""

    def problem(self, value: float) -> str:
        """What the value must be, where it is not; else empty."""
        if self.low <= value <= self.high or (self.zero and value == 0):
            return ""
        return f"must be {f'0 ({self.zero}) or ' if self.zero else ''}from {self.low:.15g} to {self.high:.15g}"


# A lower temperature overflows the logits it divides; at a higher one every token is as likely as any other.
_TEMPERATURE = (0.001, 100.0)
SAMPLING_RANGES = {
    "temperature": SamplingRange(*_TEMPERATURE, "the likeliest token"),
    "top_k": SamplingRange(1, 2**31 - 1, "all"),
    "top_p": SamplingRange(1e-6, 1.0),
    "max_new_tokens": SamplingRange(1, 2**24),
    "seed": SamplingRange(-(2**63), 2**63 - 1),
    "step": SamplingRange(-(2**63), 2**63 - 1),  # -1 for evaluations
    "num_samples": SamplingRange(1, 2**16),
    "samples": SamplingRange(1, 2**16, "greedy answers only"),
    "max_rows": SamplingRange(1, 2**16),
}
"""By the names of keys and flags."""


def within(allowed: SamplingRange) -> Callable[[Any], Any]:
    """A validator of numbers in a range."""

    def check(value: Any) -> Any:
        if problem := allowed.problem(value):
            raise ValueError(problem)
        return value

    return check


TrainedTemperature = Annotated[float, AfterValidator(within(SamplingRange(*_TEMPERATURE)))]
"""Of completions that are trained on: the trainer divides by it too, so that there is no greedy one."""
TopP = Annotated[float, AfterValidator(within(SAMPLING_RANGES["top_p"]))]
TopK = Annotated[int, AfterValidator(within(SAMPLING_RANGES["top_k"]))]
NewTokens = Annotated[Size, AfterValidator(within(SAMPLING_RANGES["max_new_tokens"]))]
GroupSize = Annotated[int, AfterValidator(within(SAMPLING_RANGES["num_samples"]._replace(low=2)))]
EvalSamples = Annotated[int, AfterValidator(within(SAMPLING_RANGES["samples"]))]
MaxRows = Annotated[int, AfterValidator(within(SAMPLING_RANGES["max_rows"]))]
