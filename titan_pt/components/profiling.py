"""Profiler traces and CUDA memory snapshots of a run."""

import logging
import pickle
import time
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
        folder = self._folder / self._options.save_traces_folder / f"iteration_{profile.step_num}"
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        profile.export_chrome_trace(str(folder / f"rank{self._world.rank}_trace.json"))
        logger.info(f"Trace written to {folder} in {time.perf_counter() - start:.1f} s")

    def _write_snapshot(self, name: str) -> None:
        folder = self._folder / self._options.save_memory_snapshot_folder / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"rank{self._world.rank}_memory_snapshot.pickle").open("wb") as file:
            pickle.dump(torch.cuda.memory._snapshot(), file)
        logger.info(f"Memory snapshot written to {folder}")
