"""A row that was written without its validation, which a signal ended: the next start completes it."""

import time
from collections.abc import Mapping
from typing import Any

from titan_pt.components.metrics import MetricRows, MetricsWriter, line_of
from titan_pt.run.own_json import whole_rows

_KEYS = ("val_", "eval/")
"""Beginnings of the keys that a validation adds to a row."""


def lacks_validation(rows: MetricRows, step: int) -> bool:
    """Whether this step's row was written without a validation; true of a step 0 without a row. A collective."""

    def lacks() -> bool:
        try:
            row = last_row(rows.writer, step) if rows.writer else None
        except OSError:  # told when the rows of before could not be kept
            return False
        return step == 0 if row is None else not any(key.startswith(_KEYS) for key in row)

    return rows.context.world.on_main(lacks)


def complete(
    writer: MetricsWriter | None, step: int, values: Mapping[str, Any], total_steps: int, texts: Mapping[str, str]
) -> None:
    """Add a validation's values to the row of a step, the last one, or make one of them; show its texts."""
    if writer is None:
        return
    added = {**values, "time": time.time()}

    def replace() -> None:  # in one go: a crash leaves the old row or the completed one, never none
        writer.keep(step - 1, line_of({**(last_row(writer, step) or {"step": step}), **added}))

    writer.rows.write(f"the validation of step {step}", len(repr(added)), replace)
    writer.plot({"step": step, **values})
    writer.show({"step": step, **values}, total_steps)
    writer.write_texts(texts, step)


def last_row(writer: MetricsWriter, step: int) -> dict[str, Any] | None:
    """The last row of metrics.jsonl where it is of this step, else None."""
    row = next(reversed(whole_rows(writer.path)), None)
    return row if row and row["step"] == step else None
