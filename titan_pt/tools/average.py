"""`python -m titan_pt.tools.average RUN --last 5 --output DIR`: the mean of a run's last checkpoints as one more.

DIR/step-N opens like any other: in tools.generate, evaluate and export, and as checkpoint.initial_load_path of another
run. Several runs of one model may be given, such as of several seeds, or single steps.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titan_pt.components.checkpoint.no_run import no_run
from titan_pt.config.errors import ConfigError
from titan_pt.run.tool_files import flag_path
from titan_pt.tools.command import ToolParser, run_tool, whole

if TYPE_CHECKING:
    import torch

    from titan_pt.components.checkpoint.checkpointer import CheckpointDocuments
    from titan_pt.hf.tensor_readers import CheckpointTensors


def main(argv: list[str] | None = None) -> int:
    """Average as the arguments say; returns the exit code."""
    return run_tool(lambda: _average(_parser().parse_args(argv)))


def _parser() -> ToolParser:
    parser = ToolParser(prog="python -m titan_pt.tools.average", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, its checkpoint folder, or one step-N")
    parser.add_argument(
        "--last", type=whole(1), default=5, metavar="K", help="newest steps of each folder (default: %(default)s)"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder for the new step-N")
    parser.add_argument("--weights", choices=["trained", "ema"], default="trained", help="as of the other tools")
    return parser


def _average(arguments: argparse.Namespace) -> None:
    output = flag_path("--output", arguments.output)
    runs = [flag_path("RUN", run) for run in arguments.runs]
    for run in runs:
        if not os.path.isdir(run):
            raise ConfigError(f"RUN = {str(run)!r}: {no_run(str(run))}")
    steps = list(dict.fromkeys(step.resolve() for run in runs for step in _newest(run, arguments.last)))
    if len(steps) < 2:
        raise ConfigError(f"RUN = {str(runs[0])!r}: one step alone has no average; raise --last, or give more runs")
    target = output / steps[0].name
    if target.exists():
        raise ConfigError(f"--output = {str(output)!r}: has a {target.name} already; give another folder")

    from titan_pt.components.checkpoint.checkpointer import Checkpointer
    from titan_pt.components.checkpoint.reader import load_documents
    from titan_pt.components.checkpoint.steps import check_has_averages
    from titan_pt.config.schema.job_config import Checkpoint
    from titan_pt.distributed.lone_world import lone_world
    from titan_pt.hf.tensor_readers import CheckpointTensors

    if arguments.weights == "ema":
        for step in steps:
            check_has_averages(step, "--weights ema")
    documents = [load_documents(step) for step in steps]
    _check_one_model(steps, documents)
    for step, document in zip(steps, documents, strict=True):
        if "adapters" in document.train:
            raise ConfigError(
                f"{step}: holds adapters, whose mean is not that of their products; train with "
                "training.ema_decay instead"
            )
    readers = [CheckpointTensors(step, "ema" if arguments.weights == "ema" else "model") for step in steps]
    number = documents[0].train["state"]["step"]
    with lone_world() as world:
        checkpointer = Checkpointer(output, Checkpoint(keep_latest_k=0, async_mode="disabled"), world)
        checkpointer.save(number, mean_weights(readers), _of_average(documents))
    print(target)


def _newest(run: Path, last: int) -> list[Path]:
    """The newest whole steps of a folder, the newest first; a step alone where it is one."""
    from titan_pt.components.checkpoint.manifest import find_damage
    from titan_pt.components.checkpoint.step_folders import REQUIRED, iter_steps

    if (run / "train.json").is_file():
        steps, last = [run], 1
    else:
        steps = [path for folder in (run, run / "checkpoint") for _, path in iter_steps(folder)]
    if len(steps) < last:
        kept = f"{len(steps)} step{'s' * (len(steps) != 1)}" + (f", down to {steps[-1].name}" if steps else "")
        raise ConfigError(
            f"--last = {last}: {run} has {kept}; ask for fewer (a run keeps checkpoint.keep_latest_k of them, one "
            "every checkpoint.interval steps)"
        )
    for step in steps[:last]:
        if damage := find_damage(step, REQUIRED):
            raise ConfigError(f"{step}: not a whole checkpoint: {damage}; move it away to average the others")
    return steps[:last]


def _check_one_model(steps: Sequence[Path], documents: Sequence["CheckpointDocuments"]) -> None:
    """Raise a ConfigError unless all steps are of one architecture and one tokenizer."""
    from titan_pt.components.checkpoint.compatibility import NOT_THE_MODEL

    for step, document in zip(steps[1:], documents[1:], strict=True):
        for part in ("model", "tokenizer"):
            one, other = documents[0].train["identity"][part], document.train["identity"][part]
            differing = [
                key for key in sorted({*one, *other}.difference(NOT_THE_MODEL)) if one.get(key) != other.get(key)
            ]
            if differing:
                key = differing[0]
                raise ConfigError(
                    f"{step}: {part}.{key} is {other.get(key)!r}, and {one.get(key)!r} in {steps[0]}; weights of two "
                    "models have no average"
                )


def mean_weights(readers: "Sequence[CheckpointTensors]") -> "dict[str, torch.Tensor]":
    """The mean of each weight, summed in float64, in the type that it is stored in; others are the first reader's."""
    means = {}
    for name, info in readers[0].infos.items():
        mean = readers[0].read(name)
        if info.dtype.is_floating_point:
            total = mean.double()
            for reader in readers[1:]:
                total += reader.read(name)
            mean = (total / len(readers)).to(info.dtype)
        means[f"model.{name}"] = mean
    return means


def _of_average(documents: "Sequence[CheckpointDocuments]") -> Any:
    from dataclasses import replace

    newest = documents[0]
    train = {key: newest.train[key] for key in ("state", "identity", "world_size")}
    steps = [document.train["state"]["step"] for document in documents]
    return replace(newest, train={**train, "step": {}, "averaged_steps": steps})


if __name__ == "__main__":
    sys.exit(main())
