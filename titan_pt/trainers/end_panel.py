"""The panel at the end of a run on a terminal: its result, its best validation, and what to type next."""

import logging
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from titan_pt.config.schema.job_config import JobConfig
from titan_pt.protocols.registry import import_attribute
from titan_pt.run.log import say
from titan_pt.run.log_lines import format_seconds
from titan_pt.run.own_json import whole_rows
from titan_pt.run.run_folder import METRICS_FILE, run_folder
from titan_pt.run.terminal import TerminalStream

logger = logging.getLogger("titan_pt")

_HIGHER_IS_BETTER = ("accuracy", "pass_at_", "core_metric")


def tell_end(config: JobConfig, seconds: float, goodput: float) -> None:
    """Enter a finished run into its leaderboard, and show its end on a terminal. Arguments as of `show_end`."""
    if config.job.leaderboard:
        import_attribute("titan_pt.report.leaderboard:add_run")(config)
    if hasattr(sys.stderr, "end_live"):
        show_end(config, seconds, goodput)


def show_end(config: JobConfig, seconds: float, goodput: float) -> None:
    """Log the end of a run from the rows that it wrote.

    Args:
        seconds: that this start took.
        goodput: of the run, over all starts.
    """
    _show(config, "Done", f"{format_seconds(seconds)}, goodput {goodput:.1%}", next_commands(config))


def show_stop(config: JobConfig) -> None:
    """Log where a run is that was stopped with a checkpoint, and how it goes on."""
    _show(config, "Stopped", "", ["the same command goes on from the checkpoint", *next_commands(config)])


def _show(config: JobConfig, title: str, time: str, commands: Sequence[str]) -> None:
    folder = run_folder(config)
    try:
        rows = whole_rows(folder / METRICS_FILE)
    except OSError:  # another end of the run has told it
        rows = []
    if not rows:
        return
    last = rows[-1]
    logger.info(f"{title}: {config.job.description}", extra={"panel": True})
    figures = [f"{name} {last[key]:{form}}" for key, (name, form) in _RESULT.items() if last.get(key) is not None]
    say("Result", f"step {last['step']:,}: {', '.join(figures)}")
    if best := best_validation(rows):
        key, row = best
        say("Best", f"{key} {row[key]:.4f} at step {row['step']:,}")
    if time:
        say("Time", time)
    say("Folder", str(folder))
    for number, command in enumerate(commands):
        say("" if number else "Next", command)
    if isinstance(sys.stderr, TerminalStream):
        sys.stderr.end_panel()


_RESULT = {
    "loss": ("loss", ".4f"),
    "val_loss": ("validation loss", ".4f"),
    "reward_mean": ("reward", ".3f"),
    "accuracy_strict": ("accuracy", ".1%"),
    "tokens_seen": ("tokens", ",.0f"),
}


def best_validation(rows: Sequence[Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]] | None:
    """The key of the validation and its best row: the first accuracy of a task where there is one, else the loss."""
    keys = [key for row in rows for key in row if key.startswith("eval/")]
    scored = next((key for key in keys if key.rpartition("/")[2].startswith(_HIGHER_IS_BETTER)), None)
    key, sign = (scored, -1) if scored else ("val_loss", 1)
    found = [row for row in rows if isinstance(row.get(key), float)]
    return (key, min(found, key=lambda row: sign * row[key])) if found else None


def next_commands(config: JobConfig) -> list[str]:
    """What a person would type next."""
    folder = shlex.quote(config.job.dump_folder)
    commands = []
    if config.checkpoint.enable:
        talks = "" if config.job.trainer in ("sft", "grpo") else ' --prompt "Once upon a time"'
        commands += [("generate", f"{folder}{talks}"), ("export", f"{folder} --output hf")]
    commands.append(("report", folder))
    installed = shutil.which("titan-pt") is not None
    return [
        f"titan-pt {tool} {arguments}" if installed else f"python -m titan_pt.tools.{tool} {arguments}"
        for tool, arguments in commands
    ]
