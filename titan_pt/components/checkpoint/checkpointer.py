"""Whole, verified checkpoints: tensors by torch.distributed.checkpoint, everything else as text beside them.

    checkpoint/step-N/tensors/     one file a rank, and DCP's .metadata
    checkpoint/step-N/train.json   counters, identity, random states, learning-rate position
    checkpoint/step-N/data.json    position of every data stream
    checkpoint/step-N/config.toml  the run's resolved config, for the tools that open a step
    checkpoint/step-N/manifest.json  size and sha256 of every file; a folder counts only if it holds

A step is written to `step-N.tmp-*` and renamed when whole. DCP has no checksums, overwrites in place, reads pickles
and raises BaseExceptions: the manifest, the rename, `reader` and the `except` clauses here answer that.
"""

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from titan_pt.components.checkpoint.manifest import FORMAT, MANIFEST, file_entry, find_damage
from titan_pt.components.checkpoint.step_folders import REQUIRED, iter_steps
from titan_pt.config.schema.job_config import Checkpoint as CheckpointSection
from titan_pt.distributed.world import World
from titan_pt.run.files import remove_folder, sync_folder, write_json, write_text
from titan_pt.run.heartbeat import beat

logger = logging.getLogger("titan_pt")

T = TypeVar("T")
Tensors = Mapping[str, torch.Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; raised on all ranks."""


@dataclass(frozen=True)
class CheckpointDocuments:
    """Everything in a checkpoint that is not a tensor, gathered from all ranks."""

    train: dict[str, Any]
    """Content of train.json."""
    data: dict[str, Any]
    """Content of data.json."""
    config: str
    """Content of config.toml; empty in steps of versions that did not save it."""


class _Writer(FileSystemWriter):
    """A DCP writer that raises the operating system's error: torch's zip writer hides a full disk behind its own."""

    def write_data(self, *args: Any) -> Any:
        try:
            return super().write_data(*args)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


class Checkpointer:
    """Saves and finds the steps of one run."""

    def __init__(self, folder: Path, options: CheckpointSection, world: World) -> None:
        self._folder, self._options, self._world = folder, options, world
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None
        on_cuda = world.device.type == "cuda"
        self._waits = options.async_mode == "disabled" or (options.async_mode == "auto" and not on_cuda)
        pinned = options.async_mode in ("auto", "async_with_pinned_mem") and on_cuda
        self._stager = BlockingAsyncStager(cache_staged_state_dict=pinned)
        self._staged: set[str] = set()
        self.last_step = 0
        """The newest step that is known to be whole on disk."""
        self.seconds = 0.0
        """Duration of the last save, until the step was whole on disk."""

    def remove_leftovers(self) -> None:
        """Remove the temporary folders of killed saves. Only the run that holds the run folder may call it."""
        if self._world.is_main and not self._options.load_only:
            for leftover in self._folder.glob("step-*.tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def find(self) -> Path | None:
        """Find the folder of the step to resume from by `find_resume`; None if the run has no steps.

        Raises:
            ConfigError: load_step is missing or damaged, or steps exist and none is whole.
        """
        return self._world.on_main(self._find)

    def _find(self) -> Path | None:
        load_step = self._options.load_step
        if load_step < 0 and not any(iter_steps(self._folder)):
            return None
        from titan_pt.components.checkpoint.steps import find_resume

        return find_resume(self._folder, load_step)

    def save(self, step: int, tensors: Tensors, documents: CheckpointDocuments) -> None:
        """Write `step-N`; with an async mode return once the tensors are copied.

        Args:
            tensors: by name; sharded ones are written by the ranks that hold them.
            documents: rank 0 writes its own; those of other ranks are ignored.

        Raises:
            CheckpointError: it failed; an asynchronous save's error is logged, and raised by `wait`.
        """
        self._join()
        self._error = None
        attempt = self._world.broadcast(uuid.uuid4().hex[:8])
        temporary = self._folder / f"step-{step}.tmp-{attempt}"
        if self._waits:
            self._write(step, temporary, tensors, documents)
            return
        if tensors.keys() != self._staged:  # pinned memory is made once, for tensors that stay the same
            self._stager.state_dict_cache, self._staged = None, set(tensors)
        staged = self._stager.stage(dict(tensors))
        self._writer = threading.Thread(
            target=self._write_in_background, args=(step, temporary, staged, documents), name="checkpoint"
        )
        self._writer.start()

    def wait(self) -> None:
        """Wait for a save in progress, and raise the error of the last save."""
        self._join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def has(self, step: int) -> bool:
        """Whether this step is whole on disk; waits for a save in progress."""
        self._join()
        return 0 < step == self.last_step

    def close(self) -> None:
        """Wait for a save in progress; its error was logged."""
        self._join()

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write_in_background(self, *args: Any) -> None:
        try:
            if self._world.device.index is not None:  # a thread begins on device 0, whatever the rank's is
                torch.accelerator.set_device_index(self._world.device)
            self._write(*args)
        except Exception as error:
            self._error = error
            if self._world.is_main:  # now: the next save or the end of the run may be hours away
                logger.error(f"{error}")

    def _write(self, step: int, temporary: Path, tensors: Tensors, documents: CheckpointDocuments) -> None:
        start = time.monotonic()
        try:
            self._on_all_ranks(lambda: temporary.mkdir(parents=True, exist_ok=True))
            parts = self._on_all_ranks(lambda: self._write_tensors(temporary, tensors))
            files = {name: entry for part in parts for name, entry in part.items()}
            self._on_all_ranks(lambda: self._commit(step, temporary, files, documents) if self._world.is_main else None)
        except CheckpointError as error:
            if self._world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"step {step} could not be saved to {self._folder}: {error}") from None
        self.last_step, self.seconds = step, time.monotonic() - start
        if self._world.is_main:
            logger.info(f"saved {self._folder / f'step-{step}'} in {self.seconds:.1f} s")

    def _on_all_ranks(self, action: Callable[[], T]) -> list[T]:
        """Run the action on every rank and return all values; where any rank fails, all raise a CheckpointError."""
        value: T | None = None
        problem: str | None = None
        beat()
        try:
            value = action()
        except (Exception, CheckpointException) as error:
            problem = one_line(error)
        results = self._world.gather((value, problem), self._world.background)
        problem = next((text for _, text in results if text), None)
        if problem is not None:
            raise CheckpointError(problem)
        return [value for value, _ in results]  # type: ignore[misc]

    def _write_tensors(self, temporary: Path, tensors: Tensors) -> dict[str, Any]:
        """Write this rank's tensors and return the entries of its files for the manifest."""
        writer = _Writer(temporary / "tensors", sync_files=True, single_file_per_rank=True)
        dcp.save(dict(tensors), storage_writer=writer, process_group=self._world.background)
        rank = self._world.rank
        own = list((temporary / "tensors").glob(f"__{rank}_*"))
        if self._world.is_main:
            own.append(temporary / "tensors" / ".metadata")
        return {str(path.relative_to(temporary)): file_entry(path) for path in own}

    def _commit(self, step: int, temporary: Path, files: dict[str, Any], documents: CheckpointDocuments) -> None:
        """On rank 0: write the JSON files and the manifest, then rename the folder, which makes the step exist."""
        write_json(temporary / "train.json", documents.train)
        write_json(temporary / "data.json", documents.data)
        write_text(temporary / "config.toml", documents.config)
        for name in ("train.json", "data.json", "config.toml"):
            files[name] = file_entry(temporary / name)
        write_json(temporary / MANIFEST, {"format": FORMAT, "step": step, "time": time.time(), "files": files})
        sync_folder(temporary / "tensors")
        sync_folder(temporary)
        target = self._folder / f"step-{step}"
        if target.exists():  # a damaged step that was trained again
            remove_folder(target)
        os.rename(temporary, target)
        sync_folder(self._folder)
        self._prune(step)

    def _prune(self, step: int) -> None:
        """Keep the newest whole steps up to this one, and `load_step`, which the user named.

        Damaged steps do not count and later ones are of a branch that was left (`load_step`, or a fallback from
        damage): neither may push out the steps to go on from.
        """
        keep, loaded = self._options.keep_latest_k, self._options.load_step
        if not keep:
            return
        steps = [path for number, path in iter_steps(self._folder) if number <= step and number != loaded]
        try:
            for path in [path for path in steps if find_damage(path, REQUIRED, hashes=False) is None][keep:]:
                remove_folder(path)
        except OSError as error:  # the new step is whole all the same
            logger.warning(f"an old step could not be removed: {error}")


def one_line(error: BaseException) -> str:
    """Describe an error in one line; a CheckpointException by the error of the first rank that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
