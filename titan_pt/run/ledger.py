"""Where the time of a run goes: a line of `goodput.jsonl` a start, logged step and save; `goodput.py` reads them."""

import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titan_pt.protocols.registry import import_attribute
from titan_pt.version import made_by

if TYPE_CHECKING:
    from titan_pt.protocols.context import StepMetrics

logger = logging.getLogger("titan_pt")

LEDGER_FILE, USEFUL = "goodput.jsonl", ("training", "sampling")


class Ledger:
    """The seconds of this start, which began at `started`, by what took them. Rank 0 has a path to write to."""

    def __init__(self, path: Path | None, started: float) -> None:
        self._path, self._started, self._mark = path, started, started
        self._seconds, self._earlier = Counter[str](), Counter[str]()
        self._steps, self._first = -1, 0.0

    def begin(self, step: int, *, anew: bool) -> None:
        """Training goes on after this step; `anew`: what is in the file is of other runs."""
        self._mark, self._steps = time.monotonic(), 0
        waited = self._mark - self._started
        if self._path and self._path.exists():
            read = import_attribute("titan_pt.run.goodput:forget" if anew else "titan_pt.run.goodput:earlier_seconds")
            self._earlier = read(self._path, step, waited)
        self._seconds["restart" if self._earlier else "start"] = waited  # type: ignore[assignment]
        self.write(step, begins=True, made_by=made_by() if self._path else "")

    def step_ends(self, metrics: "StepMetrics") -> None:
        """A step is done, before what comes between steps. What the first one takes longer than the second compiles."""
        now = time.monotonic()
        spent: dict[str, Any] = {"sampling": (sampling := metrics.extra.get("seconds/rollout", 0.0))}
        spent["data"] = metrics.data_seconds - sampling  # which GRPO's hold
        seconds, self._mark, self._steps = now - self._mark - sum(map(float, spent.values())), now, self._steps + 1
        compiled = max(0.0, self._first - seconds) if self._steps == 2 else 0.0
        self._first = self._first or seconds
        self._seconds.update({**spent, "compile": compiled, "training": seconds - compiled})

    def paused(self, what: str, seconds: float, step: int) -> None:
        """A validation, save or export of this step held up training."""
        self._seconds[what] += seconds  # type: ignore[assignment]
        self._mark += seconds
        self.write(step)

    def write(self, step: int, **more: Any) -> dict[str, float]:
        """Write a line of the last finished step. Returns the run's goodput so far, for the row of the step."""
        both = self._earlier + self._seconds
        spent = sum(self._earlier.values()) + time.monotonic() - self._started
        goodput = {"goodput": sum(both[kind] for kind in USEFUL) / (spent or 1.0)}
        if self._path and self._steps >= 0:  # a finished run is not changed by another start
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    line = {"step": step, **more, **moment(), "seconds": self._seconds}
                    file.write(json.dumps(line, default=float) + "\n")
            except OSError as error:  # of no use to a run
                logger.error(f"{self._path.name} could not be written: {error}; training goes on")
            if more.get("done"):
                spent_on = ", ".join(f"{kind} {seconds:,.1f}" for kind, seconds in both.items())
                logger.info(f"Goodput: {100 * goodput['goodput']:.1f} % of {spent:,.1f} s: {spent_on}")
        return goodput


def steady_seconds() -> float:
    """Seconds on a clock that nobody sets. It goes on while the machine sleeps, where there is such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def moment() -> dict[str, Any]:
    """Now, as JSON."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except (OSError, ValueError):
        boot = ""
    return {"time": time.time(), "clock": steady_seconds(), "boot": boot}
