"""One step of a run of any number of ranks, traced in this process: its memory on one rank, and its operations.

The model, sharding, loss and optimizer are the run's own code, on fake tensors in a fake process group; torch's
FSDPMemTracker adds up what is alive. A second step is measured: it has the optimizer's state, as all but the first do.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker, _FSDPRefType
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from titan_pt.build import build_context
from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.checks import tokenizer_size
from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.data.sources.registry import check_sources
from titan_pt.distributed.dry_run_world import DryRunWorld, dry_run_world
from titan_pt.distributed.fsdp import allocate
from titan_pt.planner.dry_run_config import SizedTokenizer, for_dry_run
from titan_pt.planner.kernels import cuda_kernels
from titan_pt.protocols.context import DryRunStep, TrainContext, TrainState
from titan_pt.protocols.trainer_spec import TrainerSpec, get_trainer_spec
from titan_pt.run.exit_codes import Preempted
from titan_pt.run.signals import stop_requested

Device = Literal["cuda", "cpu"]

_KINDS = {
    "parameters": (_FSDPRefType.SHARDED_PARAM, _FSDPRefType.BUFFER),
    "gradients": (_FSDPRefType.SHARDED_GRAD, _FSDPRefType.UNSHARDED_GRAD),
    "optimizer": (_FSDPRefType.OPT,),
    "activations": (_FSDPRefType.ACT,),
    "logits": (_FSDPRefType.INP,),
    "communication": (_FSDPRefType.UNSHARDED_PARAM, _FSDPRefType.ALL_GATHER, _FSDPRefType.REDUCE_SCATTER),
    "temporary": (_FSDPRefType.TEMP,),
}


@dataclass(frozen=True)
class Traced:
    """What one rank does in one step, with one micro-batch."""

    run_size: RunSize
    mesh: str
    batch: str
    """One step of the run, in words."""
    num_parameters: int
    """Of the whole model."""
    memory: Mapping[str, int]
    """Bytes at the peak of the step, by kind; with what else stays in memory."""
    sampling_bytes: int
    """Of a rank that samples completions, beside parameters and optimizer; 0 where none are sampled."""
    flops: int | None
    """Counted by torch.utils.flop_counter in the forward, backward and recomputation of one micro-batch, if asked."""
    notes: tuple[str, ...]
    """What was done otherwise than in the run, and what was tried."""
    seconds: float
    """That this took."""

    @property
    def peak_bytes(self) -> int:
        """The most that is alive at a time."""
        return int(peak_of(self.memory, self.sampling_bytes))


def peak_of(kinds: Mapping[str, float], sampling_bytes: float) -> float:
    """The larger of a step, and of sampling beside what is there between steps too."""
    resting = sum(size for kind, size in kinds.items() if kind not in _PASSING)
    return max(sum(kinds.values()), resting + sampling_bytes)


# Not there between steps.
_PASSING = ("gradients", "activations", "logits", "communication", "temporary")


def trace(config: JobConfig, num_ranks: int, device: Device = "cuda", *, counts: bool = False) -> Traced:
    """Build the run of `num_ranks` ranks and do one micro-batch and the update.

    Args:
        device: whose kernels' memory to count. On a GPU of the other kinds than CUDA's it is an estimate.
        counts: count the operations too, which takes a second or two more.

    Raises:
        ConfigError: the ranks do not fit the batch, the tokenizer's size is not known, or the trainer cannot.
        Preempted: the process was asked to stop.
    """
    start = time.perf_counter()
    spec = get_trainer_spec(config.job.trainer)
    # Of local files nothing is asked: they are where the run will be.
    check_sources(source for source in (*config.data.sources, *config.validation.sources) if source.path is None)
    config, notes = for_dry_run(config)
    run_size = spec.plan_run_size(config, num_ranks)
    kernels = cuda_kernels() if device == "cuda" else contextlib.nullcontext()
    with _quiet(), dry_run_world(config, num_ranks) as world, kernels:
        context = _build(config, spec, run_size, world)
        with _told(spec):
            trial = _build_trial(spec, context)
            # Makes the optimizer's state; also, DTensor works out its shapes once, by tensors that must not be counted.
            first = functools.partial(trial.step, TrainState())
            flops = count_flops(first) if counts else None
            if not counts:
                first()
            tracker = _second_step(context, trial)
        held = {name: _bytes(tensors) for name, tensors in trial.held.items()}
        return Traced(
            run_size=run_size,
            mesh=_describe(world),
            batch=trial.batch,
            num_parameters=sum(parameter.numel() for parameter in context.model.parameters()),
            memory={**_by_kind(tracker), **held},
            sampling_bytes=trial.sampling_bytes,
            flops=flops,
            notes=(*notes, *trial.notes),
            seconds=time.perf_counter() - start,
        )


def _build(config: JobConfig, spec: TrainerSpec, run_size: RunSize, world: DryRunWorld) -> TrainContext:
    """The context of a run, without what opens a file."""
    tokenizer = SizedTokenizer(tokenizer_size(config))
    context = build_context(
        spec,
        config,
        world,
        tokenizer,
        spec.build_model(config, tokenizer),
        run_size,
        materialize=allocate,
        raise_if_preempted=_raise_if_stopped,
        reads_data=False,
    )
    context.model.train()
    return context


def _build_trial(spec: TrainerSpec, context: TrainContext) -> DryRunStep:
    if spec.build_dry_run is None:
        raise ConfigError(
            f"job.trainer = {spec.name!r}: its spec has no build_dry_run, which a dry run and the planner need; "
            "give it one (see pretrain.build_dry_run)"
        )
    return spec.build_dry_run(spec, context)


def count_flops(step: Callable[[], Any]) -> int:
    """Operations of products and attention, also of the CPU's own attention, which torch's table leaves out."""
    aten = torch.ops.aten
    more = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop(
            g, q, k, v
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=more) as counter:
        step()
    return counter.get_total_flops()


def _second_step(context: TrainContext, trial: DryRunStep) -> "_Tracker":
    if trial.accumulates:
        for parameter in context.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    tracker = _Tracker(context.model, context.optimizer)
    hook = context.model.register_forward_pre_hook(tracker.mark_loss, with_kwargs=True)
    with tracker:
        trial.step(TrainState(step=1))
    hook.remove()
    return tracker


class _Tracker(FSDPMemTracker):
    """Tells the loss from activations: it has the kind of inputs, of which nothing else is tracked here."""

    _in_loss = False

    def mark_loss(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Before the model's forward: its head is the loss."""

        def marked(head: Callable[..., Any]) -> Callable[..., Any]:
            def run(*inputs: Any) -> Any:
                self._in_loss = True
                try:
                    return head(*inputs)
                finally:
                    self._in_loss = False

            return run

        return (
            tuple(marked(value) if _is_head(value) else value for value in args),
            {name: marked(value) if _is_head(value) else value for name, value in kwargs.items()},
        )

    def _update_peak_stats(self, peak_state: Any) -> None:
        """Of the whole step alone: its copies of the snapshot for each module take a third of the time."""
        for device, now in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < now["Total"]:
                self._peak_mem[device], self._peak_mem_snap[device] = now["Total"], dict(now)

    def _track(self, reftype: Any, t: torch.Tensor) -> None:
        super()._track(_FSDPRefType.INP if self._in_loss and reftype is _FSDPRefType.ACT else reftype, t)


def _is_head(value: Any) -> bool:
    return callable(value) and not isinstance(value, torch.Tensor)


def _by_kind(tracker: _Tracker) -> dict[str, int]:
    peak: dict[Any, int] = max(tracker.get_tracker_snapshot("peak").values(), key=lambda snapshot: snapshot["Total"])
    return {kind: sum(peak[part] for part in parts) for kind, parts in _KINDS.items()}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of different storages."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum({id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in local}.values())


def _describe(world: DryRunWorld) -> str:
    """ "64 replicate x 8 shard"."""
    names = world.mesh.mesh_dim_names or ()
    return " x ".join(f"{size} {name}" for size, name in zip(world.mesh.shape, names, strict=True))


def _raise_if_stopped() -> None:
    if stop_requested():
        raise Preempted


@contextlib.contextmanager
def _told(spec: TrainerSpec) -> Iterator[None]:
    """A step of a user's own may need what a dry run does not have."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise ConfigError(
            f"job.trainer = {spec.name!r}: its step reads the numbers of a tensor, or has an operation without shapes "
            f"({error}); a dry run has shapes alone: give its spec a build_dry_run for them"
        ) from error
    except AttributeError as error:
        if "SyntheticBatches" not in str(error):
            raise
        raise ConfigError(
            f"job.trainer = {spec.name!r}: its step asks its data for what a dry run does not have ({error}); give its "
            "spec a build_dry_run of its own"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.distributed warns of what a fake group does not do."""
    log = logging.getLogger("torch.distributed")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
