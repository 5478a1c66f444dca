"""Python's garbage collector, run on all ranks at the same steps: otherwise each pauses the others at its own time."""

import gc
import logging
import time

from titan_pt.config.schema.job_config import Training

logger = logging.getLogger("titan_pt")


class GarbageCollection:
    """Context without automatic collections; `step` collects every training.gc_freq steps."""

    def __init__(self, options: Training) -> None:
        self._freq, self._debug = options.gc_freq, options.gc_debug

    def __enter__(self) -> "GarbageCollection":
        gc.disable()
        self._collect(generation=2)
        return self

    def __exit__(self, *_error: object) -> None:
        gc.enable()

    def step(self, step: int) -> None:
        """Collect if the step is a multiple of training.gc_freq."""
        if step % self._freq == 0:
            self._collect(generation=1)

    def _collect(self, generation: int) -> None:
        start = time.perf_counter()
        freed = gc.collect(generation)
        if self._debug:
            logger.info(f"gc: generation {generation}, {freed} objects, {time.perf_counter() - start:.3f} s")
