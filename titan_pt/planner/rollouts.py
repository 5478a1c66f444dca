"""Memory and time of sampling in a GRPO step: the engine, its cache, and time by the memory's bandwidth.

Completions are taken at their full length, so times are upper bounds in that respect.
"""

from dataclasses import dataclass

from titan_pt.components.accelerators import Accelerator
from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.config.schema.section import switched_on
from titan_pt.generation.decode import LOGIT_ELEMENTS, row_count
from titan_pt.models.transformer import TransformerArgs
from titan_pt.planner.memory import ELEMENT_BYTES
from titan_pt.planner.roofline import known_rates
from titan_pt.protocols.registry import import_attribute
from titan_pt.trainers.grpo.dry_run import row_slots

# Time to launch one layer's kernels from Python, where no graph replays them: 12 ms for 24 layers on an A100 host. An
# estimate: docs/LOG.md has no time from a GPU.
_LAUNCH_SECONDS = 0.0005


@dataclass(frozen=True)
class Rollouts:
    """Sampling and updates of one GRPO step on one rank, with memory in bytes."""

    kv_bytes_per_token: int
    rows: int
    """Most completions decoded together on a rank."""
    slots: int
    """Positions of a row."""
    kv_cache_bytes: float
    engine_bytes: float
    """Bytes of the engine's own weights, which stay in memory."""
    floor_seconds: float
    """Seconds of a step's sampling at the memory's bandwidth: weights and cache are read for every token."""
    rollout_seconds: float
    """Seconds of a step's sampling, with operations, and with kernel launches that no graph replays."""
    train_seconds: float
    """Seconds of a step's updates."""
    completions: int
    """Completions sampled in a step, over all ranks."""
    prompt_tokens: int
    """Assumed length of a prompt."""

    @property
    def step_seconds(self) -> float:
        """Seconds of a step, without evaluations."""
        return self.rollout_seconds + self.train_seconds


def teacher_share(config: GrpoConfig, flops_per_token: float) -> float:
    """Operations of the teacher's forward, which each update has, as a share of a training step's; 0 without one."""
    if not config.grpo.has_teacher:
        return 0.0
    teacher_flops = import_attribute("titan_pt.trainers.grpo.distill:teacher_flops")
    return float(teacher_flops(str(config.teacher.path), config.training.seq_len)) / flops_per_token


def plan_rollouts(
    config: GrpoConfig, args: TransformerArgs, gpu: Accelerator, num_gpus: int, flops_per_token: float, mfu: float
) -> Rollouts:
    """The plan of a GRPO step at an MFU of its updates."""
    grpo, rollout = config.grpo, config.rollout
    element = ELEMENT_BYTES[config.training.mixed_precision_param]
    per_token = 2 * args.num_layers * args.num_kv_heads * args.head_dim * element
    rows, slots = row_count(config.sampled_rows(num_gpus)), row_slots(config)
    if rollout.engine == "vllm":
        from titan_pt.generation.vllm_engine import cache_positions

        rows, slots = config.sampled_rows(num_gpus), cache_positions(config)
    peak = gpu.flops[config.training.mixed_precision_param]
    completions = config.step_rows()
    own = -(-completions // num_gpus)
    turns = -(-own // rollout.max_rows)
    together = -(-own // turns)
    weights = float(element * args.num_parameters)
    # Of float32 the output layer has a transposed copy; bfloat16's products are summed in float32 without one.
    copied = 4 * args.num_embedding_parameters if element == 4 else 0
    kept = copied + 4 * LOGIT_ELEMENTS + 4 * args.max_seq_len * args.head_dim
    if rollout.engine == "vllm":  # whose output layer is not tied
        kept = element * args.num_embedding_parameters if args.tie_embeddings else 0
    read = weights + together * per_token * (config.prompt_tokens() + rollout.completion_tokens / 2)
    floor = read / gpu.bandwidth
    rates = known_rates(gpu)
    reading = read / (1e9 * rates.copy) if rates else floor
    launches = 0.0 if switched_on(rollout.compile, "cuda") else _LAUNCH_SECONDS * args.num_layers
    decode = max(reading, launches, 2.0 * args.num_parameters * together / peak)
    a_prompt = config.prompt_tokens() + rollout.num_samples * rollout.completion_tokens  # read once for its completions
    trained = grpo.prompts_per_step * a_prompt * grpo.num_iterations
    # The first update gives the old log-probabilities of its own minibatch.
    old = (grpo.num_minibatches - 1) / grpo.num_minibatches
    # A forward is a third of a step's operations: the old log-probabilities, and the reference's.
    forwards = (old + (1 if grpo.kl_coef > 0 else 0)) / 3 / grpo.num_iterations + teacher_share(config, flops_per_token)
    return Rollouts(
        kv_bytes_per_token=per_token,
        rows=rows,
        slots=slots,
        kv_cache_bytes=float(rows * slots * per_token),
        engine_bytes=weights + kept,
        floor_seconds=turns * rollout.completion_tokens * floor,
        rollout_seconds=turns * rollout.completion_tokens * decode,
        train_seconds=trained * flops_per_token * (1 + forwards) / (peak * num_gpus * mfu),
        completions=completions,
        prompt_tokens=config.prompt_tokens(),
    )
