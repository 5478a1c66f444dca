"""What follows a save that failed: room for another try, a failure that training survives, or the end of the run."""

import errno
import shutil
from dataclasses import dataclass
from pathlib import Path

from titan_pt.components.checkpoint.keeping import remove_superseded
from titan_pt.config.schema.checkpoint import Checkpoint
from titan_pt.distributed.world import World
from titan_pt.run.exit_codes import CannotStart, GaveUp


@dataclass(frozen=True)
class FailedSave:
    """A step that could not be written."""

    error: Exception
    """By the words of the first rank that failed."""
    step: int
    size: int
    """Bytes of the step."""
    last_step: int
    """The newest whole step; 0: there is none."""
    in_a_row: int
    """Saves that failed, with this one; 0 before the first step, where there was no save."""

    @property
    def no_space(self) -> bool:
        """Whether a disk or a quota is full."""
        return any(f"[Errno {number}]" in str(self.error) for number in (errno.ENOSPC, errno.EDQUOT))

    def make_room(
        self, folder: Path, run_folder: Path, options: Checkpoint, world: World, temporary: Path | None = None
    ) -> None:
        """Remove what was written of it, and where space is missing a step that this one supersedes. A collective.

        Raises:
            CheckpointError: there is none, or space is not what is missing; the error's own class.
            GaveUp: the same, after the last of checkpoint.max_failed_saves, or no space before the first step.
            CannotStart: another error before the first step.
        """
        if temporary and world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        coming = self.step if self.in_a_row else self.step + 1
        frees = self.no_space and world.is_main and remove_superseded(folder, run_folder, options, coming)
        if any(world.gather(frees, world.background)):
            return
        told = self._describe(folder)
        way_out = f"{'free some space' if self.no_space else 'mend that'}, and run the same command again"
        if not self.in_a_row:
            kind = GaveUp if self.no_space else CannotStart  # a disk that gives errors now may not give them later
            raise kind(f"no step can be saved: {told}; {way_out}")
        if self.in_a_row < options.max_failed_saves:
            raise type(self.error)(told)
        raise GaveUp(f"checkpoint.max_failed_saves = {self.in_a_row} saves in a row failed; {told}; {way_out}")

    def _describe(self, folder: Path) -> str:
        what = f"step {self.step} could not be saved to {folder}: " if self.in_a_row else f"{folder}: "
        told = f"{what}{self.error}"
        if self.no_space and folder.is_dir():  # the error of a quota, or in the middle of a write, has no numbers
            told += f" (a step needs {self.size:,} bytes, {shutil.disk_usage(folder).free:,} are free)"
        last = folder / f"step-{self.last_step}" if self.last_step else "none"
        return f"{told}; the last whole step is {last}"
