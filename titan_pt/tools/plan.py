"""`python -m titan_pt.tools.plan --job.config_file F [--gpu a100-80gb] [--num_gpus 8]`: plan a run.

Parameters, memory, time, disk, passes over the data and cost, from the config alone: no GPU, no data, no tokenizer.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from titan_pt.components.accelerators import GIB, find_accelerator
from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve import depth
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.dry_run_world import MOST_RANKS
from titan_pt.planner.plan import ASSUMED_MFU, Plan, Target, as_json, make_plan
from titan_pt.planner.report import lines, shown
from titan_pt.planner.search import Choice, cheapest_changes, fastest
from titan_pt.run.files import parse_json
from titan_pt.run.run_folder import METRICS_FILE as FILE
from titan_pt.run.tool_files import flag_path, read_lines
from titan_pt.tools.arguments import run_config_tool
from titan_pt.tools.command import ToolParser

# Steps that compile, connect and fill caches.
_WARM_STEPS = 10


def target_of(own: argparse.Namespace) -> Target:
    """The target that the flags ask for.

    Raises:
        ConfigError: a GPU that is not known, or a number out of range.
    """
    gpu = find_accelerator(own.gpu)
    count = _number("num_gpus", own.num_gpus, int, lambda n: 1 <= n <= MOST_RANKS, f"an integer from 1 to {MOST_RANKS}")
    price = None
    if own.price_per_gpu_hour is not None:
        price = _number("price_per_gpu_hour", own.price_per_gpu_hour, float, lambda p: 0 <= p < math.inf, "0 or more")
    mfu, source = None, "assumed"
    if own.mfu is not None and own.from_run is not None:
        raise ConfigError("--mfu and --from_run: give one")
    if own.from_run is not None:
        run = flag_path("--from_run", own.from_run)
        mfu, source = measured_mfu(run), f"measured in {run}"
    elif own.mfu is not None:
        share = "a share of the peak, above 0 and at most 1, such as 0.5"
        mfu, source = _number("mfu", own.mfu, float, lambda value: 0 < value <= 1, share), "given"
    return Target(gpu, count, mfu, source, price)


def measured_mfu(run: Path) -> float:
    """The MFU that an earlier run had: the median over the second half of its rows; for GRPO that of its updates.

    Raises:
        ConfigError: there is no such run, or it has no MFU.
    """
    path = run / FILE
    try:
        rows = [parse_json(line) for line in read_lines(path)]
    except OSError as error:
        raise ConfigError(
            f"--from_run {str(run)!r}: its {FILE} cannot be read: {error.strerror or error}; give a run folder"
        ) from None
    except ValueError:
        raise ConfigError(f"--from_run {str(run)!r}: its {FILE} is damaged") from None
    found = [_row_mfu(row) for row in rows if isinstance(row, dict) and row.get("step", 0) > 0]
    later = [mfu for row, mfu in zip(rows[-len(found) :], found, strict=True) if row["step"] > _WARM_STEPS]
    known = [mfu for mfu in later or found if mfu is not None]
    if not known:
        raise ConfigError(
            f"--from_run {str(run)!r}: none of its {len(rows)} rows has an MFU; it ran on a device whose "
            "peak is not known, or logged no step; give --mfu"
        )
    return statistics.median(known[len(known) // 2 :])


def _row_mfu(row: dict[str, float | None]) -> float | None:
    mfu, train, whole = row.get("mfu"), row.get("seconds/train"), row.get("step_seconds")
    if mfu is None:
        return None
    return mfu * whole / train if train and whole else mfu


def plan(own: argparse.Namespace, config: JobConfig) -> None:
    """Print the plan."""
    target = target_of(own)
    found = make_plan(config, target)
    suggestion = fastest(found) if own.suggest else None
    if own.json:
        follows = depth.as_json(config)
        known = {**as_json(found), **({"follows": follows} if follows else {})}
        print(json.dumps({**known, **_advice(found, own, suggestion)}, indent=2))
        return
    if ladder := depth.lines(config):
        print(f"What follows from model.flavor = {config.model.flavor}", *ladder, "", sep="\n")
    print("\n".join(lines(found)))
    if own.suggest:
        print("\n".join(_suggested(suggestion)))


def _advice(found: Plan, own: argparse.Namespace, suggestion: Choice | None) -> dict[str, Any]:
    changes = [] if found.memory.fits else [change.flags for change in cheapest_changes(found)]
    if not own.suggest:
        return {"changes": changes}
    summary = suggestion and {
        "flags": suggestion.flags,
        "needed_bytes": suggestion.needed_bytes,
        "fits_memory": suggestion.fits,
    }
    return {"changes": changes, "suggestion": summary}


def _suggested(suggestion: Choice | None) -> list[str]:
    if suggestion is None:
        return ["SUGGESTION: nothing that was searched fits"]
    if not suggestion.settings:
        return [
            "SUGGESTION: local batch size, activation checkpointing and resharding are the fastest that fit already"
        ]
    return [
        f"SUGGESTION: {shown(suggestion)}",
        f"  traced: needs {suggestion.needed_bytes / GIB:.1f} of {suggestion.memory.available_bytes / GIB:.1f} GiB",
    ]


def _number(name: str, text: str, convert: Callable[[str], float], holds: Callable[[float], bool], allowed: str) -> Any:
    """A flag's value, or a ConfigError: argparse's own message would not say what is allowed."""
    try:
        value = convert(text)
    except ValueError:
        value = math.nan
    if not holds(value):
        raise ConfigError(f"--{name} = {text!r}: must be {allowed}")
    return value


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; 0 also where the run does not fit."""
    parser = ToolParser(prog="titan_pt.tools.plan", description=__doc__, allow_abbrev=False)
    parser.add_argument("--gpu", default="a100-80gb", help="such as a100-40gb, h100-80gb, l4 (default a100-80gb)")
    parser.add_argument("--num_gpus", default="1", help="GPUs of the run over all nodes (default 1)")
    default = f"a roofline on cards whose rates are known, else {ASSUMED_MFU}"
    parser.add_argument("--mfu", help=f"model FLOPs utilisation to plan with, such as 0.5 (default: {default})")
    parser.add_argument("--from_run", metavar="RUN", help="take the MFU that this run folder's run had")
    parser.add_argument("--price_per_gpu_hour", metavar="P", help="for the cost, in any currency")
    parser.add_argument("--suggest", action="store_true", help="search for the fastest way to use the memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return run_config_tool(parser, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
