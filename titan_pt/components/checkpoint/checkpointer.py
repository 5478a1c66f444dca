"""Whole, verified checkpoints: tensors by torch.distributed.checkpoint, everything else as text beside them.

    checkpoint/step-N/tensors/     one file a rank, and DCP's .metadata
    checkpoint/step-N/train.json   counters, identity, random states, learning-rate position
    checkpoint/step-N/data.json    position of every data stream
    checkpoint/step-N/config.toml  the run's resolved config, for the tools that open a step
    checkpoint/step-N/manifest.json  size and sha256 of every file; a folder counts only if it holds

A step is written to `step-N.tmp-*` and renamed when whole. DCP has no checksums, overwrites in place, reads pickles
and raises BaseExceptions: the manifest, the rename, `reader` and the `except` clauses here answer that.
"""

import contextlib
import errno
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException

from titan_pt.components.checkpoint.file_hashes import FORMAT, MANIFEST, file_entry
from titan_pt.components.checkpoint.finite import first_not_finite
from titan_pt.components.checkpoint.step_folders import iter_steps, saved_order
from titan_pt.config.schema.job_config import Checkpoint as CheckpointSection
from titan_pt.distributed.world import World
from titan_pt.run.exit_codes import GaveUp
from titan_pt.run.files import sync_folder, write_json, write_text
from titan_pt.run.heartbeat import beat

if TYPE_CHECKING:
    from titan_pt.components.checkpoint.background import BackgroundWriter
    from titan_pt.components.checkpoint.mirror import Mirror

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

    def __init__(self, folder: Path, options: CheckpointSection, world: World, run_folder: Path | None = None) -> None:
        self._folder, self._run_folder = folder, run_folder or folder.parent
        self._options, self._world = options, world
        self._order = 0  # of the last save, among all of the folder; 0: not known yet
        self._background: BackgroundWriter | None = None
        on_cuda = world.device.type == "cuda"
        if options.async_mode not in ("auto", "disabled") or (options.async_mode == "auto" and on_cuda):
            from titan_pt.components.checkpoint import background

            self._background = background.BackgroundWriter(world, pinned=options.async_mode != "async" and on_cuda)
        self.mirror: Mirror | None = None
        self._num_failed = 0
        self._saved_at = time.monotonic()
        self.last_step = 0
        """The newest step that is known to be whole on disk."""
        self.seconds = 0.0
        """Duration of the last save, until the step was whole on disk."""

    def open(self) -> None:
        """Remove what killed saves and exports left, and take the mirror; for the run that holds the run folder."""
        if self._world.is_main and not self._options.load_only:
            for leftover in (*self._folder.glob("step-*.tmp-*"), *(self._run_folder / "hf").glob("step-*.tmp-*")):
                shutil.rmtree(leftover, ignore_errors=True)
            for leftover in self._run_folder.glob("*.json.tmp"):  # of a disk that could be written to no more
                with contextlib.suppress(OSError):
                    leftover.unlink()
        if self._options.mirror and not self._options.load_only:
            from titan_pt.components.checkpoint.mirror import open_mirror

            self.mirror = open_mirror(self._folder, self._run_folder, self._options, self._world)

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

    def require_space(self, size: int) -> None:
        """Raise GaveUp on all ranks unless there is room for a step of so many bytes."""
        self._persist(self.last_step, size)

    def is_due(self, step: int) -> bool:
        """Whether a step is to be saved. A collective where the time counts too."""
        minutes, passed = self._options.interval_minutes, time.monotonic() - self._saved_at
        return step % self._options.interval == 0 or (minutes is not None and self._world.any(passed >= 60 * minutes))

    def save(self, step: int, tensors: Tensors, documents: CheckpointDocuments) -> None:
        """Write `step-N`; with an async mode return once the tensors are copied.

        Args:
            tensors: by name; sharded ones are written by the ranks that hold them.
            documents: rank 0 writes its own; those of other ranks are ignored.

        Raises:
            CheckpointError: it failed; an asynchronous save's error is logged, and raised by `wait`.
            GaveUp: a tensor is not finite, which replaces no good step; or several saves in a row failed.
        """
        self.join()
        if self._background:
            self._background.raise_error(GaveUp)
        bad = first_not_finite(tensors, own_optimizer="optimizer" in documents.train)
        marks = self._world.gather((uuid.uuid4().hex[:8], bad))
        if bad := next((name for _, name in marks if name), None):
            last = self._folder / f"step-{self.last_step}" if self.last_step else "none"
            raise GaveUp(f"step {step} is not saved: {bad} is not finite; the last step that is good: {last}")
        self._saved_at = time.monotonic()
        temporary = self._folder / f"step-{step}.tmp-{marks[0][0]}"
        if self._background:
            self._background.start(tensors, lambda staged: self._write(step, temporary, staged, documents))
        else:
            self._write(step, temporary, tensors, documents)

    def wait(self) -> None:
        """Wait for a save in progress, and raise the error of the last save."""
        self.join()
        if self._background:
            self._background.raise_error(Exception)

    def has(self, step: int) -> bool:
        """Whether this step is whole on disk; waits for a save in progress."""
        self.join()
        return 0 < step == self.last_step

    def close(self, grace: float = float("inf")) -> None:
        """The same, and wait for the upload, after a signal within its grace; nothing is saved any more."""
        self.join()
        if self.mirror:
            self.mirror.close(grace)

    def join(self) -> None:
        """Wait for a save in progress, whose error was logged."""
        if self._background:
            self._background.join()

    def _write(self, step: int, temporary: Path, tensors: Tensors, documents: CheckpointDocuments) -> None:
        start = time.monotonic()

        def write() -> None:
            self._on_all_ranks(lambda: temporary.mkdir(parents=True, exist_ok=True))
            parts = self._on_all_ranks(lambda: self._write_tensors(temporary, tensors))
            files = {name: entry for part in parts for name, entry in part.items()}
            self._on_all_ranks(lambda: self._commit(step, temporary, files, documents) if self._world.is_main else None)

        self._persist(step, step_bytes(tensors), write, temporary)
        self.last_step, self.seconds, self._num_failed = step, time.monotonic() - start, 0
        if self._world.is_main:
            logger.info(f"saved {self._folder / f'step-{step}'} in {self.seconds:.1f} s")

    def _persist(
        self, step: int, size: int, write: Callable[[], None] | None = None, temporary: Path | None = None
    ) -> None:
        """Write where there is space; again where a step could go that this one supersedes."""
        while True:
            try:
                self._on_all_ranks(lambda: self._check_space(size))
                return write() if write else None
            except CheckpointError as error:
                from titan_pt.components.checkpoint.failed_save import FailedSave

                failed = FailedSave(error, step, size, self.last_step, self._num_failed + 1 if write else 0)
                self._num_failed += bool(write)
                failed.make_room(self._folder, self._run_folder, self._options, self._world, temporary)
                self._num_failed -= bool(write)

    def _check_space(self, size: int) -> None:
        """Raise an OSError unless there is room; some network disks do not tell."""
        self._folder.mkdir(parents=True, exist_ok=True)
        usage = shutil.disk_usage(self._folder)
        if usage.total and usage.free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

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
        if problem := next((text for _, text in results if text), None):
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
        files |= {name: file_entry(temporary / name) for name in ("train.json", "data.json", "config.toml")}
        orders = (saved_order(path)[0] for _, path in iter_steps(self._folder))
        self._order = 1 + (self._order or max(orders, default=0))
        entry = {"format": FORMAT, "step": step, "time": time.time(), "order": self._order, "files": files}
        write_json(temporary / MANIFEST, entry)
        sync_folder(temporary / "tensors")
        sync_folder(temporary)
        target = self._folder / f"step-{step}"
        if target.exists():  # a damaged step that was trained again
            from titan_pt.run.removal import remove_folder

            remove_folder(target)
        os.rename(temporary, target)
        try:
            sync_folder(self._folder)
            if self.mirror:
                self.mirror.add(step)
            if self._options.keep_best or 0 < self._options.keep_latest_k < len(list(iter_steps(self._folder))):
                from titan_pt.components.checkpoint.keeping import prune

                prune(self._folder, self._run_folder, self._options, step)
        except Exception as error:
            logger.warning(f"{target} is whole, but what follows a save failed: {one_line(error)}")


def step_bytes(tensors: Tensors) -> int:
    """Size of a step's folder: its tensors, and what their file and index add to each."""
    return sum(tensor.numel() * tensor.element_size() + 3000 for tensor in tensors.values())


def one_line(error: BaseException) -> str:
    """Describe an error in one line; a CheckpointException by the error of the first rank that failed."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
