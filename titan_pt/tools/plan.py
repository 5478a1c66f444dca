"""`python -m titan_pt.tools.plan --job.config_file F [--gpu a100-80gb] [--num_gpus 8]`: know a run before it is rented.

Parameters, memory, time, disk, passes over the data and cost, from the config alone: no GPU, no data, no tokenizer.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from titan_pt.components.accelerators import GIB, find_accelerator
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.dry_run_world import MOST_RANKS
from titan_pt.planner.measured import measured_mfu
from titan_pt.planner.plan import ASSUMED_MFU, Plan, Target, as_json, make_plan
from titan_pt.planner.report import lines, shown
from titan_pt.planner.search import Choice, apply, cheapest_changes, fastest
from titan_pt.tools.arguments import run_config_tool


def target_of(own: argparse.Namespace) -> Target:
    """What the flags ask to plan for.

    Raises:
        ConfigError: a GPU that is not known, or a number out of range.
    """
    gpu = find_accelerator(own.gpu)
    count = _number("num_gpus", own.num_gpus, int, lambda n: 1 <= n <= MOST_RANKS, f"an integer from 1 to {MOST_RANKS}")
    price = None
    if own.price_per_gpu_hour is not None:
        price = _number("price_per_gpu_hour", own.price_per_gpu_hour, float, lambda p: 0 <= p < math.inf, "0 or more")
    mfu, source = ASSUMED_MFU, "assumed"
    if own.mfu is not None and own.from_run is not None:
        raise ConfigError("--mfu and --from_run: give one")
    if own.from_run is not None:
        mfu, source = measured_mfu(own.from_run), f"measured in {own.from_run}"
    elif own.mfu is not None:
        share = "a share of the peak, above 0 and at most 1, such as 0.5"
        mfu, source = _number("mfu", own.mfu, float, lambda value: 0 < value <= 1, share), "given"
    return Target(gpu, count, mfu, source, price)


def plan(own: argparse.Namespace, config: JobConfig) -> None:
    """Print the plan."""
    target = target_of(own)
    found = make_plan(config, target)
    suggestion = fastest(found) if own.suggest else None
    better = make_plan(apply(config, suggestion), target) if suggestion and suggestion.settings else None
    if own.json:
        print(json.dumps({**as_json(found), **_advice(found, own, suggestion, better)}, indent=2))
        return
    print("\n".join(lines(found)))
    if own.suggest:
        print("\n".join(_suggested(found, suggestion, better)))


def _advice(found: Plan, own: argparse.Namespace, suggestion: Choice | None, better: Plan | None) -> dict[str, Any]:
    changes = [] if found.memory.fits else [change.flags for change in cheapest_changes(found)]
    if not own.suggest:
        return {"changes": changes}
    told = suggestion and {
        "flags": suggestion.flags,
        "needed_bytes": better.memory.needed_bytes if better else found.memory.needed_bytes,
        "fits_memory": better.memory.fits if better else found.memory.fits,
    }
    return {"changes": changes, "suggestion": told}


def _suggested(found: Plan, suggestion: Choice | None, better: Plan | None) -> list[str]:
    if suggestion is None:
        return ["SUGGESTION: nothing that was searched fits, or the model has no formulas to search with"]
    if better is None:
        return [
            "SUGGESTION: local batch size, activation checkpointing and resharding are the fastest that fit already"
        ]
    return [
        f"SUGGESTION: {shown(suggestion)}",
        f"  traced: needs {better.memory.needed_bytes / GIB:.1f} of {better.memory.available_bytes / GIB:.1f} GiB",
    ]


def _number(name: str, text: str, convert: Callable[[str], float], holds: Callable[[float], bool], allowed: str) -> Any:
    """A flag's value, or a ConfigError as every other mistake; argparse's own would not say what is allowed."""
    try:
        value = convert(text)
    except ValueError:
        value = math.nan
    if not holds(value):
        raise ConfigError(f"--{name} = {text!r}: must be {allowed}")
    return value


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; 0 also where the run does not fit."""
    parser = argparse.ArgumentParser(prog="titan_pt.tools.plan", description=__doc__, allow_abbrev=False)
    parser.add_argument("--gpu", default="a100-80gb", help="such as a100-40gb, h100-80gb, l4 (default a100-80gb)")
    parser.add_argument("--num_gpus", default="1", help="GPUs of the run over all nodes (default 1)")
    parser.add_argument("--mfu", help=f"model FLOPs utilisation to plan with, such as 0.5 (default {ASSUMED_MFU})")
    parser.add_argument("--from_run", type=Path, metavar="RUN", help="take the MFU that this run folder's run had")
    parser.add_argument("--price_per_gpu_hour", metavar="P", help="for the cost, in any currency")
    parser.add_argument("--suggest", action="store_true", help="search for the fastest way to use the memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return run_config_tool(parser, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
