"""A model that knows one question by heart, and the tools in this process."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import train_here, write_toml
from task_helpers import write_rows

KNOWN = "Question: What is 3 + 4?\nAnswer: 3 + 4 = 7\n#### 7"


def tool_here(main: Callable[[list[str]], int], *arguments: object) -> int:
    """`python -m titan_pt.tools.NAME` in this process; its log is taken away again."""
    log = logging.getLogger("titan_pt")
    before = log.handlers, log.level, log.propagate
    try:
        return int(main([str(argument) for argument in arguments]))
    except SystemExit as end:  # argparse's own
        return int(end.code or 0)
    finally:
        log.handlers, log.level, log.propagate = before


def train_known(folder: Path, text: str = KNOWN, **tables: dict[str, Any]) -> Path:
    """The run folder of a model that has read one document over and over, each time from its beginning."""
    path = write_rows(folder / "known.jsonl", [{"text": text}])
    config = write_toml(
        folder,
        training={"steps": 120, "seq_len": 56, "global_batch_size": 4, "document_mask": True},
        optimizer={"lr": 0.01},
        lr_scheduler={"warmup_steps": 5, "min_lr_factor": 0.1},
        data={"sources": [{"name": "known", "path": path}], "cache_dir": str(folder / "cache")},
        metrics={"log_freq": 40},
        **tables,
    )
    assert train_here(config) == 0
    return folder / "run"
