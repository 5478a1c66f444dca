"""The MFU that an earlier run had."""

import json
import statistics
from pathlib import Path

from titan_pt.components.metrics import FILE
from titan_pt.config.errors import ConfigError

# Steps that compile, connect and fill caches.
_WARM_STEPS = 10


def measured_mfu(run: Path) -> float:
    """The median over the second half of a run's rows; of a GRPO run that of its updates alone.

    Raises:
        ConfigError: there is no such run, or it has no MFU.
    """
    path = run / FILE
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise ConfigError(
            f"--from_run {str(run)!r}: its {FILE} cannot be read: {error.strerror or error}; give a run folder"
        ) from None
    except ValueError:
        raise ConfigError(f"--from_run {str(run)!r}: its {FILE} is damaged") from None
    found = [_of_row(row) for row in rows if isinstance(row, dict) and row.get("step", 0) > 0]
    later = [mfu for row, mfu in zip(rows[-len(found) :], found, strict=True) if row["step"] > _WARM_STEPS]
    known = [mfu for mfu in later or found if mfu is not None]
    if not known:
        raise ConfigError(
            f"--from_run {str(run)!r}: none of its {len(rows)} rows has an MFU; it ran on a device whose "
            "peak is not known, or logged no step; give --mfu"
        )
    return statistics.median(known[len(known) // 2 :])


def _of_row(row: dict[str, float | None]) -> float | None:
    mfu, train, whole = row.get("mfu"), row.get("seconds/train"), row.get("step_seconds")
    if mfu is None:
        return None
    return mfu * whole / train if train and whole else mfu
