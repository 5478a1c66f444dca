"""Profiler traces and CUDA memory snapshots of a run."""

import contextlib
import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from titan_pt.config.schema.job_config import Profiling
from titan_pt.distributed.world import World

logger = logging.getLogger("titan_pt")

MAX_SNAPSHOT_ENTRIES = 100_000


class Profiler:
    """Context around the training loop that writes what `[profiling]` asks for; call `step` after each step."""

    def __init__(self, options: Profiling, run_folder: Path, world: World) -> None:
        self._options, self._folder, self._world = options, run_folder, world
        self._traces: Any = None
        self._snapshots = options.enable_memory_snapshot and world.device.type == "cuda"
        self._steps = 0
        if options.enable_memory_snapshot and not self._snapshots:
            logger.warning(
                "profiling.enable_memory_snapshot: only CUDA's allocator keeps a history; here it has no effect, "
                "but enable_profiling's traces record each allocation"
            )

    def __enter__(self) -> "Profiler":
        options = self._options
        if options.enable_profiling:
            wait = options.profile_freq - options.profiler_warmup - options.profiler_active
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._world.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._traces = torch.profiler.profile(
                activities=activities,
                schedule=torch.profiler.schedule(
                    wait=wait, warmup=options.profiler_warmup, active=options.profiler_active
                ),
                on_trace_ready=self._write_trace,
                record_shapes=True,
                profile_memory=True,
            )
            self._traces.__enter__()
        if self._snapshots:
            torch.cuda.memory._record_memory_history(max_entries=MAX_SNAPSHOT_ENTRIES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._traces is not None:
            self._traces.__exit__(kind, error, trace)
        if self._snapshots and kind is not None and issubclass(kind, torch.OutOfMemoryError):
            self._write_snapshot(f"iteration_{self._steps}_exit")

    def step(self) -> None:
        """Count a finished training step, and write what is due."""
        self._steps += 1
        if self._traces is not None:
            self._traces.step()
        if self._snapshots and self._steps % self._options.profile_freq == 0:
            self._write_snapshot(f"iteration_{self._steps}")

    def _write_trace(self, profile: Any) -> None:
        def export(path: Path) -> None:
            profile.export_chrome_trace(str(path))
            if not path.exists():  # Kineto only prints that it could not
                raise OSError("no file was made")

        name = f"iteration_{profile.step_num}/rank{self._world.rank}_trace.json"
        self._write("Trace", self._folder / self._options.save_traces_folder / name, export)

    def _write_snapshot(self, name: str) -> None:
        def dump(path: Path) -> None:
            with path.open("wb") as file:
                pickle.dump(torch.cuda.memory._snapshot(), file)

        name = f"{name}/rank{self._world.rank}_memory_snapshot.pickle"
        self._write("Memory snapshot", self._folder / self._options.save_memory_snapshot_folder / name, dump)

    def _write(self, what: str, path: Path, action: Callable[[Path], None]) -> None:
        """Write a file that is too large to be kept where that fails."""
        start = time.perf_counter()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            action(path)
        except (OSError, RuntimeError) as error:  # the profiler raises the second
            logger.error(f"{path} could not be written and is lost: {error}; training goes on")
            with contextlib.suppress(OSError):
                for part in path.parent.glob(f"{path.name}*"):  # it takes the room of what comes next
                    part.unlink()
            return
        logger.info(f"{what} written to {path.parent} in {time.perf_counter() - start:.1f} s")
