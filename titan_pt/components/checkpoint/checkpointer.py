"""Whole, verified checkpoints: tensors by torch.distributed.checkpoint, everything else as text beside them.

    checkpoint/step-N/tensors/     one file a rank, and DCP's .metadata
    checkpoint/step-N/train.json   counters, identity, random states, learning-rate position
    checkpoint/step-N/data.json    position of every data stream
    checkpoint/step-N/config.toml  the run's resolved config, for the tools that open a step
    checkpoint/step-N/manifest.json  size and sha256 of every file; a folder counts only if it holds

A step is written to `step-N.tmp-*` and renamed when whole. DCP has no checksums, overwrites in place, reads pickles
and raises BaseExceptions: the manifest, the rename, `checkpoint_reader` and the `except` clauses here answer that.
"""

import json
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
from titan_pt.components.checkpoint.reader import SafeReader, TensorOnlyPlanner
from titan_pt.components.checkpoint.steps import REQUIRED, find_resume, iter_steps
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Checkpoint as CheckpointSection
from titan_pt.distributed.world import World
from titan_pt.run.files import sync_folder, write_json, write_text

logger = logging.getLogger("titan_pt")

T = TypeVar("T")
Tensors = Mapping[str, torch.Tensor]


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; raised on all ranks."""


@dataclass(frozen=True)
class CheckpointDocuments:
    """All but the tensors of a checkpoint, whole, as it is on rank 0."""

    train: dict[str, Any]
    data: dict[str, Any]
    config: str
    """TOML; empty in steps of versions that did not save it."""


class _Writer(FileSystemWriter):
    """Says why a file could not be written: torch's zip writer meets a full disk with an error that does not."""

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
        pinned = options.async_mode == "async_with_pinned_mem" and world.device.type == "cuda"
        self._stager = BlockingAsyncStager(cache_staged_state_dict=pinned)
        self.last_step = 0
        """The newest step that is known to be whole on disk."""
        self.seconds = 0.0
        """What the last save took, to its end."""

    def remove_leftovers(self) -> None:
        """Remove what a killed save left. Only for the one run that may write to the folder."""
        if self._world.is_main and not self._options.load_only:
            for leftover in self._folder.glob("step-*.tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def find(self) -> Path | None:
        """The step to resume from, see `find_resume`; None where there is no step at all.

        Raises:
            ConfigError: load_step is missing or damaged, or steps exist and none is whole.
        """
        return self._world.on_main(lambda: find_resume(self._folder, self._options.load_step))

    def save(self, step: int, tensors: Tensors, documents: CheckpointDocuments) -> None:
        """Write `step-N`; with an async mode return once the tensors are copied.

        Args:
            tensors: by name; sharded ones are written by the ranks that hold them.
            documents: those of rank 0 are written.

        Raises:
            CheckpointError: it failed; an asynchronous save's error is logged, and raised by `wait`.
        """
        self._join()
        self._error = None
        attempt = self._world.broadcast(uuid.uuid4().hex[:8])
        temporary = self._folder / f"step-{step}.tmp-{attempt}"
        if self._options.async_mode == "disabled":
            self._write(step, temporary, tensors, documents)
            return
        staged = self._stager.stage(dict(tensors))
        self._writer = threading.Thread(
            target=self._write_in_background, args=(step, temporary, staged, documents), name="checkpoint"
        )
        self._writer.start()

    def wait(self) -> None:
        """Return when no save is under way; raises the error of the last one."""
        self._join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def has(self, step: int) -> bool:
        """Whether this step is whole on disk; waits for a save under way."""
        self._join()
        return 0 < step == self.last_step

    def close(self) -> None:
        """Return when no save is under way; its error was logged."""
        self._join()

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write_in_background(self, *args: Any) -> None:
        try:
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
        """Every rank's value of the action; where it failed on any rank, its reason as a CheckpointError on all."""
        value: T | None = None
        problem: str | None = None
        try:
            value = action()
        except (Exception, CheckpointException) as error:
            problem = _reason(error)
        results = self._world.gather((value, problem), self._world.background)
        problem = next((text for _, text in results if text), None)
        if problem is not None:
            raise CheckpointError(problem)
        return [value for value, _ in results]  # type: ignore[misc]

    def _write_tensors(self, temporary: Path, tensors: Tensors) -> dict[str, Any]:
        """Returns this rank's files with their entries for the manifest."""
        writer = _Writer(temporary / "tensors", sync_files=True, single_file_per_rank=True)
        dcp.save(dict(tensors), storage_writer=writer, process_group=self._world.background)
        rank = self._world.rank
        own = list((temporary / "tensors").glob(f"__{rank}_*"))
        if self._world.is_main:
            own.append(temporary / "tensors" / ".metadata")
        return {str(path.relative_to(temporary)): file_entry(path) for path in own}

    def _commit(self, step: int, temporary: Path, files: dict[str, Any], documents: CheckpointDocuments) -> None:
        """Rank 0: the JSON files, the manifest, then the rename that makes the step exist."""
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
            _remove(target)
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
                _remove(path)
        except OSError as error:  # the new step is whole all the same
            logger.warning(f"an old step could not be removed: {error}")


def load_tensors(step_folder: Path, tensors: dict[str, torch.Tensor], world: World) -> None:
    """Read into the given tensors, in place, whatever the number of ranks that wrote them.

    Raises:
        ConfigError: the folder lacks one of the tensors or has it in another shape.
    """
    problem: str | None = None
    try:
        dcp.load(
            tensors,
            storage_reader=SafeReader(step_folder / "tensors"),
            planner=TensorOnlyPlanner(),
            process_group=world.background,
        )
    except (Exception, CheckpointException) as error:
        problem = _reason(error)
    problem = next((text for text in world.gather(problem) if text), None)
    if problem is not None:
        raise ConfigError(f"{step_folder}: its tensors do not fit this run: {problem}")


def load_documents(step_folder: Path) -> CheckpointDocuments:
    """All but the tensors of a step."""
    config = step_folder / "config.toml"
    return CheckpointDocuments(
        train=json.loads((step_folder / "train.json").read_text()),
        data=json.loads((step_folder / "data.json").read_text()),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )


def _remove(path: Path) -> None:
    """Rename first: a half-deleted folder must not look like a step."""
    doomed = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _reason(error: BaseException) -> str:
    """One line; of a CheckpointException the first rank's own error."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
