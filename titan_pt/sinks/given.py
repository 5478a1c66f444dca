"""What a service was given that cannot take a step back: its run's id, and the last step."""

import uuid
from pathlib import Path

from titan_pt.run.files import write_json
from titan_pt.run.own_json import read_own


class GivenSteps:
    """The steps that a service has, over all starts of a run. A run that begins anew has a new id.

    Args:
        path: where this is kept.
        first_step: the first step that this start writes.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        kept = read_own(path) if first_step > 0 else {}
        self._path, self._first_step = path, first_step
        self._last_step = int(kept.get("step", -1))
        self.id = str(kept.get("id") or uuid.uuid4().hex[:8])
        self._until = self._last_step

    def has(self, step: int) -> bool:
        """Whether an earlier start gave this step already, which is trained again."""
        return self._first_step <= step <= self._until

    def note(self, step: int) -> None:
        """Keep that this step was given."""
        if step > self._last_step:
            self._last_step = step
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"id": self.id, "step": step})
