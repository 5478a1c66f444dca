"""`python -m titan_pt.tools.scaling RUN RUN RUN ...`: a power law of the loss over the compute of finished runs.

A ladder of sizes, such as those of model.flavor = "depth-N", says what a larger run would reach: at ten times the most
compute of these, at --compute, or for the experiment of --job.config_file with its flags.
"""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from titan_pt.config.errors import ConfigError, one_of
from titan_pt.config.manager import load_config
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import ToolParser, number, run_tool

if TYPE_CHECKING:
    from titan_pt.report.record import RunRecord
    from titan_pt.report.scaling import PowerLaw, Prediction

METRICS = ("val_loss", "val_bpb", "loss")


class Point(NamedTuple):
    """A run as the law sees it."""

    run: str
    state: str
    parameters: int | None
    tokens: int
    flops: float
    loss: float


def main(argv: list[str] | None = None) -> int:
    """Print the law; returns the exit code."""
    return run_tool(lambda: _scale(*_parser().parse_known_args(argv)))


def _parser() -> ToolParser:
    parser = ToolParser(prog="titan_pt.tools.scaling", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="job.dump_folder of a run; three at least")
    which = "val_bpb where the tokenizers differ, else val_loss"
    parser.add_argument("--metric", choices=METRICS, help=f"what is fitted, at each run's end (default: {which})")
    compute = "FLOPs to predict the loss of, such as 1e18; again for more"
    parser.add_argument("--compute", type=number(1), action="append", default=[], metavar="FLOPS", help=compute)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _scale(own: argparse.Namespace, flags: list[str]) -> None:
    asked = [(f"{flops:.3g} FLOPs", flops) for flops in own.compute]
    if flags:
        config = load_config(flags)
        tokens = plan_run_size(config, 1).tokens
        asked.append((f"{config.job.dump_folder}, {tokens:,} tokens", tokens * _size(config)[1]))
    from titan_pt.report.record import read_runs
    from titan_pt.report.scaling import fit_power_law

    runs = read_runs([flag_path("RUN", run) for run in own.runs])
    metric = own.metric or ("val_loss" if len({_tokenizer(run) for run in runs}) == 1 else "val_bpb")
    points = sorted((_point(run, metric) for run in runs), key=lambda point: point.flops)
    law = fit_power_law([point.flops for point in points], [point.loss for point in points])
    asked = asked or [("ten times the largest", 10 * points[-1].flops)]
    predictions = {what: law.predict(flops) for what, flops in asked}
    if own.json:
        print(json.dumps(_as_json(metric, points, law, predictions), indent=2))
        return
    print("\n".join(_lines(metric, points, law, predictions)))
    for run in runs:
        if run.state != "finished":
            print(f"{run.name}: {run.state}: its rate has not decayed, so that it counts as worse", file=sys.stderr)


def _tokenizer(run: "RunRecord") -> str:
    return str((run.config.get("tokenizer") or {}).get("name"))


def _point(run: "RunRecord", metric: str) -> Point:
    rows = [row for row in run.rows if metric in row and row.get("tokens_seen", 0) > 0]
    if not rows:
        has = [name for name in METRICS if run.column(name)]
        raise ConfigError(
            f"RUN = {str(run.folder)!r}: no step has {metric}; "
            + (f"--metric may be {one_of(has)}" if has else "it has trained no step")
        )
    try:
        parameters, flops_per_token = _size(load_config(["--job.config_file", str(run.folder / "config.toml")]))
    except ConfigError as error:
        raise ConfigError(*(f"RUN = {str(run.folder)!r}: {problem}" for problem in error.problems)) from None
    tokens = int(rows[-1]["tokens_seen"])
    return Point(run.name, run.state, parameters, tokens, tokens * flops_per_token, rows[-1][metric])


def _size(config: JobConfig) -> tuple[int | None, float]:
    """(parameters, FLOPs a token) of a config's model."""
    from titan_pt.components.tokenizer import build_tokenizer
    from titan_pt.config.resolve.checks import BUILTIN_TOKENIZER_SIZES, model_args
    from titan_pt.protocols.model_spec import get_model_spec

    spec = get_model_spec(config.model.name)
    size = BUILTIN_TOKENIZER_SIZES.get(config.tokenizer.name) or build_tokenizer(config.tokenizer).vocab_size
    args = model_args(config, spec, size)
    return getattr(args, "num_parameters", None), spec.flops_per_token(args, config.training.seq_len)


def _lines(metric: str, points: list[Point], law: "PowerLaw", predictions: dict[str, "Prediction"]) -> list[str]:
    width = max(4, *(len(point.run) for point in points))
    lines = [f"{'run':{width}}  parameters           tokens      FLOPs  {metric:>8}   by law"]
    for point in points:
        size = "-" if point.parameters is None else f"{point.parameters:,}"
        lines.append(
            f"{point.run:{width}} {size:>11} {point.tokens:>16,} {point.flops:>10.3g}  {point.loss:8.4f} "
            f"{law(point.flops):8.4f}"
        )
    low, high = law.exponent_interval
    floor = f"{law.floor:.4f} + " if law.has_floor else ""
    lines += [
        "",
        f"{metric} = {floor}({law.scale:.4g} / FLOPs)^{law.exponent:.4f}, exponent {low:.4f} to {high:.4f} (95%), "
        f"runs around it by {law.spread:.4f}",
    ]
    if not law.has_floor:
        lines.append("Three runs cannot tell a floor: it is taken as 0, and what is predicted far away is too low")
    for what, found in predictions.items():
        ratio = found.flops / points[-1].flops
        lines.append(
            f"{what} ({found.flops:.3g} FLOPs, {ratio:.3g} x the largest): {metric} {found.loss:.4f}, "
            f"{found.low:.4f} to {found.high:.4f} (95%)"
        )
    return lines


def _as_json(metric: str, points: list[Point], law: "PowerLaw", predictions: dict[str, "Prediction"]) -> dict[str, Any]:
    return {
        "metric": metric,
        "runs": [{**point._asdict(), "by_law": law(point.flops)} for point in points],
        "law": {
            "floor": law.floor,
            "has_floor": law.has_floor,
            "scale": law.scale,
            "exponent": law.exponent,
            "exponent_interval": law.exponent_interval,
            "spread": law.spread,
        },
        "predictions": {what: asdict(found) for what, found in predictions.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
