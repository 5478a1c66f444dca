"""The black box of a bad step: what it read, and the norms of what it computed, in blackbox/ of the run folder.

    blackbox/step-N-HASH/box.json      what was wrong, all documents, norms of gradients, weights and optimizer state
    blackbox/step-N-HASH/rank-R.json   this rank's rows as text, each with its loss, and the norms of its activations
    blackbox/step-N-HASH/config.toml   the resolved config

The batch is made and computed again with the weights of the moment, without an update. The hash is of the documents,
so that a step that is trained again after a kill has the same box, and other documents in its place another one.
"""

import contextlib
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from titan_pt.config.errors import ConfigError
from titan_pt.distributed.init import parameter_name, whole
from titan_pt.protocols.context import StepMetrics, TrainContext, TrainState
from titan_pt.run.black_boxes import FOLDER, boxes
from titan_pt.run.exit_codes import Preempted
from titan_pt.run.files import write_atomic
from titan_pt.run.heartbeat import beat

if TYPE_CHECKING:
    from titan_pt.components.bad_steps import TakenStep

logger = logging.getLogger("titan_pt")

_BEGUN = "again.begun"
"""In a box whose batch is being computed again, or could not be."""
_TEXT_CHARACTERS = 20_000
"""Most of a row's text that is kept."""


def describe(taken: "TakenStep", *, short: bool = False) -> str:
    """What is wrong with a bad step."""
    if taken.flag > 1:
        return "a spike of the loss" if short else f"the loss is a spike, {taken.flag:.3g} deviations above the median"
    ours = taken.metrics.why_bad == StepMetrics.why_bad
    return "a non-finite loss or gradient" if short and ours else taken.metrics.why_bad


def write_black_box(
    context: TrainContext[Any],
    run_folder: Path,
    state: TrainState,
    taken: "TakenStep",
    documents: list[str],
    *,
    again: bool,
) -> None:
    """Write the box of a bad step; a failing disk costs the box. A collective.

    Args:
        documents: of all ranks.
        again: compute the batch again, if training.black_boxes are not full yet.

    Raises:
        Preempted: on all ranks, when one was asked to stop.
    """
    name = hashlib.sha256("\n".join(documents).encode(errors="replace")).hexdigest()[:8]
    folder = run_folder / FOLDER / f"step-{taken.step}-{name}"
    full = len(boxes(run_folder)) >= context.config.training.black_boxes and not folder.is_dir()
    metrics = taken.metrics
    box: dict[str, Any] = {
        "step": taken.step,
        "why": describe(taken),
        "answer": context.config.training.on_bad_step,
        "time": time.time(),
        "loss": float(metrics.loss),
        "grad_norm": float(metrics.grad_norm),
        "lr": metrics.lr,
        "tokens": metrics.tokens,
        "weights_of_step": state.step,
        "documents": documents,
        "values": {key: float(value) for key, value in metrics.extra.items()},
    }
    own: dict[str, Any] = {"documents": metrics.documents}
    once_more = again and not full and metrics.again is not None and not (folder / _BEGUN).exists()
    if context.world.broadcast(once_more):
        if context.world.is_main:  # where this costs the run, the next start of it does not try again
            _write(folder, {_BEGUN: ""})
        context.model.noise = context.config.debug.seed, taken.step - 1  # type: ignore[assignment]  # the same dropout
        try:
            compute_again(context, metrics, own, box)
        except Preempted:
            _forget_begun(folder)
            raise
        except Exception as error:
            if context.world.size > 1 and not isinstance(error, ConfigError):  # which all have
                raise
            box["again"] = f"{type(error).__name__}: {error}"
            logger.error(
                f"step {taken.step}: its batch could not be computed again, and the black box lacks it: {error}"
            )
    files = {f"rank-{context.world.rank}.json": json.dumps(finite(own), ensure_ascii=False)}
    if context.world.is_main:
        files |= {"box.json": json.dumps(finite(box), ensure_ascii=False), "config.toml": context.config.to_toml()}
    if _write(folder, files) and "optimizer_groups" in box:
        _forget_begun(folder)


def compute_again(context: TrainContext[Any], metrics: StepMetrics, own: dict[str, Any], box: dict[str, Any]) -> None:
    """Compute the batch of a step again, and add what is seen to this rank's part and to the box. A collective."""
    rows = []
    with recorded_activations(context.model) as activations, force_eager():
        for batch, losses in metrics.again() if metrics.again else ():
            rows += decoded(context, batch, losses)
            beat()
    own["rows"] = rows
    own["activations"] = {name: numbers(value) for name, value in activations.items()}
    box["gradients"] = norms({f"{n}": p.grad for n, p in named_parameters(context.model) if p.grad is not None})
    box["weights"] = norms({n: p.detach() for n, p in named_parameters(context.model)})
    box["optimizer"] = norms(context.optimizer_state.tensors())
    box["optimizer_groups"] = [
        {k: v for k, v in group.items() if isinstance(v, int | float | str)} for group in context.optimizer.param_groups
    ]


def _forget_begun(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / _BEGUN).unlink(missing_ok=True)


def _write(folder: Path, files: dict[str, str]) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            write_atomic(folder / file, text)
    except OSError as error:
        logger.error(f"{folder} could not be written and is lost: {error}; training goes on")
        return False
    return True


@contextlib.contextmanager
def recorded_activations(model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Context in which the outputs of all modules are recorded: [sum of squares, largest, non-finite values]."""
    found: dict[str, torch.Tensor] = {}
    handles = []

    def recorder(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and torch.is_grad_enabled():
                seen = moments(output.detach())
                found[name] = combine(found[name], seen) if name in found else seen

        return hook

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(recorder(parameter_name(name))))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def force_eager() -> Iterator[None]:
    """Context without torch.compile: what is recorded once is not worth a compilation."""
    torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        torch.compiler.set_stance("default")


def moments(tensor: torch.Tensor) -> torch.Tensor:
    """[sum of squares, largest absolute value, number of non-finite values, number of values]."""
    values = tensor.float()
    count = torch.tensor(float(values.numel()), device=values.device)
    if not values.numel():
        return torch.zeros(4, device=values.device)
    return torch.stack([values.square().sum(), values.abs().amax(), (~values.isfinite()).sum().float(), count])


def combine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The moments of two tensors together."""
    return torch.stack([one[0] + other[0], torch.maximum(one[1], other[1]), one[2] + other[2], one[3] + other[3]])


def numbers(found: torch.Tensor) -> dict[str, float]:
    """Moments by name."""
    square, largest, non_finite, count = found.tolist()
    rms = math.sqrt(square / count) if count and square >= 0 else math.nan
    return {
        "norm": math.sqrt(square) if square >= 0 else math.nan,
        "rms": rms,
        "max": largest,
        "non_finite": non_finite,
    }


def norms(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Norm, root mean square, largest and number of non-finite values of each whole tensor. A collective."""
    found = {}
    for name, tensor in tensors.items():
        beat()
        full = whole(tensor)
        if full.is_floating_point():
            found[name] = numbers(moments(full.detach()))
    return found


def named_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(parameter_name(name), parameter) for name, parameter in model.named_parameters()]


def decoded(context: TrainContext[Any], batch: Any, losses: torch.Tensor | None) -> list[dict[str, Any]]:
    """The rows of a micro-batch as text, a document after the other, with source and mean loss."""
    tokens_BL, positions_BL = batch.tokens_BL.cpu(), batch.positions_BL.cpu()
    losses_BL = None if losses is None else losses.detach().float().cpu().view(tokens_BL.shape)
    sources_BL = getattr(batch, "sources_BL", None)
    names = [source.name for source in context.config.data.sources]
    rows = []
    for number, (row, positions) in enumerate(zip(tokens_BL, positions_BL, strict=True)):
        padding = (positions == 0) & (row == context.tokenizer.eos_id)
        length = 1 + int((~padding).nonzero().max()) if not padding.all() else 1
        row, positions = row[:length], positions[:length]
        starts = [0, *(i for i in (positions == 0).nonzero().flatten().tolist() if i)]
        pieces = []
        for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
            piece: dict[str, Any] = {"tokens": end - start}
            if sources_BL is not None:
                piece["source"] = names[int(sources_BL[number, start])]
            if losses_BL is not None:
                piece["loss"] = float(losses_BL[number, start:end].mean())
            piece["text"] = context.tokenizer.decode(row[start:end].tolist())[:_TEXT_CHARACTERS]
            pieces.append(piece)
        rows.append({"pieces": pieces, **({} if losses_BL is None else {"loss": float(losses_BL[number].mean())})})
    return rows


def finite(value: Any) -> Any:
    """The value with "nan", "inf" and "-inf" for the numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
