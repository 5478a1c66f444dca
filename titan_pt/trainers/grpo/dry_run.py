"""A dry run of GRPO: one decoding step with the engine's memory, and one update on full-length completions."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from titan_pt.config.schema.grpo import Grpo, GrpoConfig
from titan_pt.config.schema.section import switched_on
from titan_pt.distributed.dry_run_world import allocate_without_numbers
from titan_pt.generation.decode import GraphDecoder
from titan_pt.generation.native import build_native_engine
from titan_pt.generation.sampling import rollout_sampling
from titan_pt.protocols.context import StepMetrics, TrainContext, TrainState
from titan_pt.protocols.dry_run_step import DryRunStep
from titan_pt.protocols.registry import import_attribute
from titan_pt.protocols.trainer_spec import TrainerSpec
from titan_pt.tasks.task import check_task, plays_in_turns
from titan_pt.trainers import pretrain
from titan_pt.trainers.grpo.packing import TrainSample, lay_out, row_length
from titan_pt.trainers.grpo.policy import PolicyUpdate, takes_segments
from titan_pt.trainers.grpo.reference import Reference

WITHOUT_ADAPTERS = "titan_pt.lora.adapters:WithoutAdapters"
"""The reference of a policy with adapters: it takes no memory, and is never renewed."""


def build_dry_run(_spec: TrainerSpec, context: TrainContext[GrpoConfig]) -> DryRunStep:
    """The step of a dry run: one micro-batch of full-length completions, and the memory of sampling.

    Raises:
        ConfigError: an unknown task, one in turns without a length of its episodes, or an engine that cannot run this
            model.
    """
    config = context.config
    grpo, rollout = config.grpo, config.rollout
    for row in grpo.tasks:
        check_task(row)
    if played := [row.name for row in grpo.tasks if plays_in_turns(row)]:
        from titan_pt.environments.episodes import episode_tokens

        episode_tokens(rollout, played)
    context = dataclasses.replace(context, config=_one_iteration(config))
    reference = _reference(context)
    held: dict[str, Sequence[torch.Tensor]] = {"reference": list(reference.model.parameters())} if reference else {}
    if rollout.engine == "native":
        held["rollout_engine"], sampling_bytes, tried = _sample(context)
    elif rollout.engine == "vllm":
        held["rollout_engine"], sampling_bytes, tried = _vllm(context)
    else:
        sampling_bytes, tried = 0, f'rollout.engine = "{rollout.engine}" is not tried; its memory is not counted'
    teacher = None
    if grpo.has_teacher:
        from titan_pt.trainers.grpo.distill import dry_teacher

        teacher = dry_teacher(context)
        held["teacher"] = list(teacher.model.parameters())
    update = PolicyUpdate(context, reference.model if reference else None, teacher)
    models = [context.model, *([teacher.model] if teacher else [])]
    size = update_size(config, context.world.size, shares_prompts=all(map(takes_segments, models)))
    samples = synthetic_samples(config, size, context.world.size)

    def step(state: TrainState) -> StepMetrics:
        updated = update([samples], context.schedule(state.step + 1))
        return StepMetrics(
            loss=updated.loss,
            grad_norm=updated.grad_norm,
            skipped=updated.skipped,
            lr=0.0,
            tokens=context.world.size * size.rows * size.row_tokens,
            data_seconds=0.0,
        )

    notes = (tried, f"an update on {len(samples):,} completions of {rollout.completion_tokens:,} tokens")
    batch = (
        f"{grpo.prompts_per_step} prompts x {rollout.num_samples} completions of at most {rollout.completion_tokens} "
        f"tokens, {grpo.num_minibatches * grpo.num_iterations} updates, micro-batches of at most "
        f"{config.training.local_batch_size} rows of {config.training.seq_len:,} tokens a rank"
    )
    return DryRunStep(step, batch, size.accumulates, held, sampling_bytes, notes)


def _sample(context: TrainContext[GrpoConfig]) -> tuple[list[torch.Tensor], int, str]:
    """Decode one token of each row; returns (tensors that stay, bytes of those that do not, text of what was done)."""
    keeps_rows = switched_on(context.config.rollout.compile, "cuda")  # a captured graph knows the addresses of its rows
    config = _uncompiled(context.config)
    engine = build_native_engine(config, context.tokenizer, context.world, [context.tokenizer.eos_id])
    engine.sync_weights(context.model)
    count, slots = config.sampled_rows(context.world.size), row_slots(config)
    rows = engine.decode_once(count, slots, rollout_sampling(config, 1))
    tried = f"one decoding step of {rows.token_R.shape[0]:,} rows of {rows.cache.slots:,} positions"
    if keeps_rows:
        tried += ", which CUDA graphs keep between steps; rollout.compile is off here: there is nothing to compile"
        return [*engine.tensors(), *rows.tensors], 0, tried
    return engine.tensors(), sum(tensor.untyped_storage().nbytes() for tensor in rows.tensors), tried


def _vllm(context: TrainContext[GrpoConfig]) -> tuple[list[torch.Tensor], int, str]:
    """What vLLM holds by its sizes, as `_sample`: nothing is sampled."""
    from titan_pt.generation.vllm_engine import cache_positions, served_model

    config = context.config
    served, rows = served_model(config, context.tokenizer.vocab_size), config.sampled_rows(context.world.size)
    size = served.weight_bytes(sum(parameter.numel() for parameter in context.model.parameters()))
    weights = torch.empty(size, dtype=torch.uint8, device=context.world.device)
    tried = (
        'rollout.engine = "vllm" is not tried: its weights and its cache are counted, and not its activations and '
        "CUDA graphs; between generations its weights too leave a GPU, which is not counted"
    )
    return [weights], rows * cache_positions(config) * served.bytes_per_position, tried


def _uncompiled(config: GrpoConfig) -> GrpoConfig:
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"compile": False})})


def _one_iteration(config: GrpoConfig) -> GrpoConfig:
    """The config with one iteration: a single update needs one forward of the policy, and more need no more memory."""
    updates = {
        name: value.model_copy(update={"num_iterations": 1}) for name, value in config if isinstance(value, Grpo)
    }
    return config.model_copy(update=updates)


def row_slots(config: GrpoConfig) -> int:
    """Positions that the cache has for one row: a prompt and its completion; CUDA graphs round up and spare some."""
    slots = config.prompt_tokens() + config.rollout.completion_tokens
    if switched_on(config.rollout.compile, "cuda"):
        slots = (-(-slots // GraphDecoder.span) + 1) * GraphDecoder.span
    return slots


@dataclass(frozen=True)
class UpdateSize:
    """Size of one micro-batch of an update."""

    groups: tuple[int, ...]
    """Completions of each prompt, of one rank."""
    samples: int
    """Completions, over all ranks."""
    rows: int
    """Packed rows of one rank."""
    row_tokens: int
    """Length of such a row."""
    scored_tokens: int
    """Completion tokens of one rank."""
    accumulates: bool
    """Whether an update has several micro-batches."""


def update_size(config: GrpoConfig, num_ranks: int, *, shares_prompts: bool = True) -> UpdateSize:
    """The size of a micro-batch of full-length completions."""
    training, of_a_prompt = config.training, config.rollout.num_samples
    own = -(-update_samples(config) // num_ranks)
    groups = [of_a_prompt] * (own // of_a_prompt) + [own % of_a_prompt] * (own % of_a_prompt > 0)
    batches = lay_out(
        _full_length(config, groups),
        1,
        seq_len=training.seq_len,
        batch_rows=training.local_batch_size,
        shares_prompts=shares_prompts,
    )[0]
    documents = [document for row in batches[0] for document in row]
    held = Counter(number // of_a_prompt for document in documents for number in document.numbers)
    samples = sum(held.values())
    return UpdateSize(
        groups=tuple(held.values()),
        samples=samples * num_ranks,
        rows=len(batches[0]),
        row_tokens=row_length(max(document.length for document in documents), training.seq_len),
        scored_tokens=samples * config.rollout.completion_tokens,
        accumulates=len(batches) > 1,
    )


def synthetic_samples(config: GrpoConfig, size: UpdateSize, num_ranks: int) -> list[TrainSample]:
    """The full-length completions of one micro-batch, over all ranks."""
    return _full_length(config, size.groups * num_ranks)


def _full_length(config: GrpoConfig, groups: Sequence[int]) -> list[TrainSample]:
    """Completions of prompts that differ, a number of each."""
    length = config.rollout.completion_tokens
    answer, logprobs, rest = (0,) * length, (0.0,) * length, (0,) * (config.prompt_tokens() - 1)
    return [TrainSample((p, *rest), answer, logprobs) for p, count in enumerate(groups) for _ in range(count)]


def update_samples(config: GrpoConfig) -> int:
    """Completions of one update over all ranks."""
    grpo = config.grpo
    return grpo.prompts_per_step // grpo.num_minibatches * config.rollout.num_samples


def _reference(context: TrainContext[GrpoConfig]) -> Reference | None:
    options = context.config.grpo
    if options.kl_coef == 0.0:
        return None
    if context.config.lora.enable:
        model = import_attribute(WITHOUT_ADAPTERS)(context.model)
    else:
        built = pretrain.build_model(context.config, context.tokenizer)
        model = pretrain.parallelize(built, context.config, context.world)
        allocate_without_numbers(model, context.config, context.world)
    return Reference(model, context.model, context.optimizer_state, options)
