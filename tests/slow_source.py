"""`experimental.custom_import = "slow_source"`: a source, "slow", whose n-th read takes SLOW_SECONDS on rank 1."""

import os
import time

from titan_pt.data.sources.registry import register_source


class Slow:
    fingerprint = "slow"
    reads = 0

    def __len__(self) -> int:
        return 500

    def __getitem__(self, index: int) -> str:
        self.reads += 1
        if self.reads == 75 and os.environ.get("RANK") == "1":
            time.sleep(float(os.environ.get("SLOW_SECONDS", "0")))
        return f"Document {index}: " + "some words " * (index % 30 + 5)


register_source("slow", lambda _source, _seed: Slow())
