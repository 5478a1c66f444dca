"""One step of a run of any number of ranks, done in this process on tensors without numbers.

Model, sharding, loss and optimizer are the run's own code, on fake tensors in a fake process group. The optimizer has
its state before, as in all steps but the first.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode

from titan_pt.components.loss import default_chunk_tokens
from titan_pt.components.optimizer import guarded_update
from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.checks import padded_size
from titan_pt.config.run_size import RunSize
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.lora import Lora
from titan_pt.config.schema.sft import Sft
from titan_pt.data.sources.registry import check_sources
from titan_pt.distributed.dry_run_world import DryRunWorld, allocate_without_numbers, dry_run_world
from titan_pt.planner.kernels import cuda_kernels
from titan_pt.planner.memory import peak_of, storage_bytes
from titan_pt.planner.operations import KernelLog, Operations
from titan_pt.planner.sized_tokenizer import tokenizer_size
from titan_pt.planner.trace import StepTrace
from titan_pt.planner.without_data import build_without_data
from titan_pt.protocols.context import TrainContext, TrainState
from titan_pt.protocols.dry_run_step import DryRunStep
from titan_pt.protocols.plugins import users_line
from titan_pt.protocols.trainer_spec import TrainerSpec, get_trainer_spec
from titan_pt.run.exit_codes import Preempted
from titan_pt.run.signals import stop_requested

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class DryRunResult:
    """Memory and operations of one rank in a step of one micro-batch."""

    run_size: RunSize
    mesh: str
    """The device mesh, such as "64 replicate x 8 shard"."""
    batch: str
    """One step of the real run, in words."""
    num_parameters: int
    """Parameters of the whole model."""
    num_trained: int
    """Those of them that are trained: of a run with [lora] the adapters alone."""
    memory: Mapping[str, int]
    """Bytes at the peak of the step, by kind; includes what stays in memory beside model and optimizer."""
    state_bytes: int
    """Bytes of the optimizer's state over all ranks."""
    sampling_bytes: int
    """Bytes of a rank that samples completions, beside parameters and optimizer; 0 where none are sampled."""
    operations: Operations | None
    """The work of the step; None if not asked for."""
    sums_once: bool
    """The ranks gather weights and sum gradients once a step, and not in every micro-batch."""
    notes: tuple[str, ...]
    """Differences from the real run, and what was tried."""
    seconds: float
    """Duration of the dry run."""

    @property
    def peak_bytes(self) -> int:
        """The largest memory of the step, or of sampling."""
        return int(peak_of(self.memory, self.sampling_bytes))


# Memory of a card that is not named: how many logits the loss holds follows from it.
USUAL_GIB = 80


def dry_run_step(
    config: JobConfig, num_ranks: int, device: Device = "cuda", *, counts: bool = False, card_gib: float = USUAL_GIB
) -> DryRunResult:
    """Build the run of `num_ranks` ranks and do one micro-batch and the update.

    Args:
        device: whose kernels' memory to count. For GPUs other than CUDA's the result is an estimate.
        counts: count the kernels too.
        card_gib: memory of the card.

    Raises:
        ConfigError: the ranks do not fit the batch, the tokenizer's size is not known, or the trainer cannot.
        Preempted: the process was asked to stop.
    """
    start = time.perf_counter()
    spec = get_trainer_spec(config.job.trainer)
    # Local files need not be here: they are where the run will be.
    check_sources(source for source in (*config.data.sources, *config.validation.sources) if source.path is None)
    config, notes = for_dry_run(config)
    if device == "cuda" and not config.training.loss_chunk_tokens:
        config = _with_loss_chunks_of(config, card_gib)
    run_size = spec.plan_run_size(config, num_ranks)
    kernels = cuda_kernels() if device == "cuda" else contextlib.nullcontext()
    with _without_warnings(), dry_run_world(config, num_ranks) as world, kernels:
        context = _build(config, spec, run_size, world)
        with _config_errors(spec):
            dry_run = _build_dry_run(spec, context)
            _make_state(context)
            states = [tensor for state in context.optimizer.state.values() for tensor in _tensors(state)]
            log = KernelLog() if counts else None
            memory = _trace_step(context, dry_run, log)
            sums_once = getattr(context.model, "sums_once", False)
            if dry_run.accumulates and sums_once:
                memory["communication"] += _whole_gradients(context)
        held = {name: storage_bytes(tensors) for name, tensors in dry_run.held.items()}
        if context.ema:
            held["averaged_weights"] = storage_bytes(context.ema.tensors().values())
        return DryRunResult(
            run_size=run_size,
            mesh=_describe_mesh(world),
            batch=dry_run.batch,
            num_parameters=sum(parameter.numel() for parameter in context.model.parameters()),
            num_trained=sum(parameter.numel() for parameter in context.model.parameters() if parameter.requires_grad),
            memory={**memory, **held},
            state_bytes=sum(tensor.numel() * tensor.element_size() for tensor in states),
            sampling_bytes=dry_run.sampling_bytes,
            operations=log.operations() if log else None,
            sums_once=sums_once,
            notes=(*notes, *dry_run.notes),
            seconds=time.perf_counter() - start,
        )


_NEEDS_NUMBERS = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


def for_dry_run(config: JobConfig) -> tuple[JobConfig, tuple[str, ...]]:
    """Switch off the features of a config that need tensor values; returns the config and a note on each change."""
    updates: dict[str, dict[str, Any]] = {}
    notes = []
    if config.compile.enable:  # "auto" too, whatever the device
        updates["compile"] = {"enable": False}
        notes.append("compile.enable is off here: there is nothing to compile")
    if config.model.converters:
        updates["model"] = {"converters": None}
        notes.append("quantize.linear.float8 is not tried: its layers compute in training.mixed_precision_param")
    if config.model.sdpa_backend != "auto":
        updates.setdefault("model", {})["sdpa_backend"] = "auto"
        notes.append(f'model.sdpa_backend = "{config.model.sdpa_backend}" is not tried: kernels belong to a device')
    if config.optimizer.name == "AdamW8bit":
        updates["optimizer"] = {"name": "AdamW", "implementation": "fused"}
        notes.append('optimizer.name = "AdamW8bit" is not tried: AdamW is, with moments of 32 bits')
    elif config.optimizer.implementation != "fused":
        updates["optimizer"] = {"implementation": "fused"}
        notes.append(f'optimizer.implementation = "{config.optimizer.implementation}" is not tried: "fused" is')
    if config.training.enable_cpu_offload:
        updates["training"] = {"enable_cpu_offload": False}
        notes.append("training.enable_cpu_offload is off here: parameters, gradients and optimizer are counted too")
    for _, section in config:
        if isinstance(section, Lora) and section.enable:
            notes.append(
                "[lora]: FLOPs a token and MFU are those of training all weights; adapters need about two thirds"
            )
        if isinstance(section, Sft) and section.epochs is not None:
            notes.append(
                f"sft.epochs = {section.epochs:g}: its steps follow from the data; training.steps stands for them"
            )
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in updates.items()}
    return config.model_copy(update=sections), tuple(notes)


def _with_loss_chunks_of(config: JobConfig, card_gib: float) -> JobConfig:
    """The config with the loss chunks that a run on such a card has."""
    vocabulary = config.model.vocab_size or padded_size(tokenizer_size(config))
    tokens = default_chunk_tokens(card_gib * 2**30, vocabulary)
    training = config.training.model_copy(update={"loss_chunk_tokens": tokens})
    return config.model_copy(update={"training": training})


def _whole_gradients(context: TrainContext) -> int:
    """Bytes of the gradients that several micro-batches add up before their sum over the ranks."""
    size = getattr(torch, context.config.training.mixed_precision_reduce).itemsize
    return size * sum(parameter.numel() for parameter in context.model.parameters() if parameter.requires_grad)


def _build(config: JobConfig, spec: TrainerSpec, run_size: RunSize, world: DryRunWorld) -> TrainContext:
    context = build_without_data(
        config, spec, world, run_size, materialize=allocate_without_numbers, raise_if_preempted=_raise_if_preempted
    )
    context.model.train()
    return context


def _build_dry_run(spec: TrainerSpec, context: TrainContext) -> DryRunStep:
    if spec.build_dry_run is None:
        raise ConfigError(
            f"job.trainer = {spec.name!r}: its spec has no build_dry_run, which a dry run and the planner need; "
            "give it one (see trainers/dry_run.py)"
        )
    return spec.build_dry_run(spec, context)


def _make_state(context: TrainContext) -> None:
    """Make the optimizer's state by an update with zero gradients.

    Where parameters are sharded, DTensor works out the shapes of an update here, by tensors that must not be measured.
    """
    optimizer: Any = context.optimizer
    if not (optimizer.defaults.get("fused") and getattr(optimizer, "_step_supports_amp_scaling", False)):
        _take_no_flag(optimizer)
    optimizer.defaults["fused"] = optimizer._step_supports_amp_scaling = True  # else the guard reads whether to step
    for parameter in context.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    name = f"optimizer {type(optimizer).__name__}"
    try:
        guarded_update(context.model, optimizer, 0.0, context.config.training.max_norm, torch.zeros(()))
    except _NEEDS_NUMBERS as error:
        place = f", {users_line(error)}" if users_line(error) else ""
        raise ConfigError(
            f"{name}: its step reads the numbers of a tensor, or has an operation without shapes ({error}{place}); "
            "a dry run has shapes alone: plan with --optimizer.name AdamW"
        ) from error
    except RuntimeError as error:
        place = f" ({users_line(error)})" if users_line(error) else ""
        first, _, _ = str(error).partition("\n")
        raise ConfigError(f"{name}: its step fails, as it would in a run: {first}{place}") from error


def _take_no_flag(optimizer: Any) -> None:
    """Keep the guard's flag from an optimizer that is not fused; one of torch's may read numbers too."""
    step, is_own = optimizer.step, not f"{type(optimizer).__module__}.".startswith("torch.optim.")

    def update() -> None:
        optimizer.found_inf = None
        with contextlib.nullcontext() if is_own else _AnyNumbers():
            step()

    optimizer.step = update


class _AnyNumbers(TorchDispatchMode):
    """A number that is read is a half, or 1 where it is whole."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.5 if args[0].is_floating_point() else 1
        return func(*args, **(kwargs or {}))


def _tensors(state: Any) -> list[torch.Tensor]:
    """The tensors of one parameter's state; sharded ones count whole."""
    return [value for value in state.values() if isinstance(value, torch.Tensor)] if isinstance(state, dict) else []


def _trace_step(context: TrainContext, dry_run: DryRunStep, log: KernelLog | None) -> dict[str, int]:
    """Do one step, note its kernels, and return the bytes at its peak by kind."""
    if dry_run.accumulates:
        for parameter in context.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with StepTrace(context.model, context.optimizer, log) as trace:
        dry_run.step(TrainState(step=1))
    return trace.memory.peak_by_kind()


def _describe_mesh(world: DryRunWorld) -> str:
    """Text such as "64 replicate x 8 shard"."""
    names = world.mesh.mesh_dim_names or ()
    return " x ".join(f"{size} {name}" for size, name in zip(world.mesh.shape, names, strict=True))


def _raise_if_preempted() -> None:
    if stop_requested():
        raise Preempted


@contextlib.contextmanager
def _config_errors(spec: TrainerSpec) -> Iterator[None]:
    """Explain errors of a user's own step that needs more than a dry run has."""
    try:
        yield
    except _NEEDS_NUMBERS as error:
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
def _without_warnings() -> Iterator[None]:
    """Silence torch.distributed, which warns of what a fake group does not do."""
    log = logging.getLogger("torch.distributed")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
