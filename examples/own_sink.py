"""The sink "csv". It runs in a thread of its own on rank 0: training waits for nothing that it does."""

import csv
from collections.abc import Mapping
from typing import Any

from titan_pt.sinks import Sink, SinkContext, register_sink

_COLUMNS = ("step", "loss", "lr", "tokens_per_second")


class CsvSink(Sink):
    """Some columns of metrics.jsonl, for a spreadsheet."""

    def __init__(self, context: SinkContext) -> None:
        file = context.run_folder / "metrics.csv"
        goes_on = file.exists()
        self._file = file.open("a", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, _COLUMNS, extrasaction="ignore")
        if not goes_on:
            self._rows.writeheader()

    def write(self, row: Mapping[str, Any]) -> None:
        if "loss" in row:  # a late validation has none
            self._rows.writerow(row)

    def close(self) -> None:
        self._file.close()


register_sink("csv", CsvSink)
