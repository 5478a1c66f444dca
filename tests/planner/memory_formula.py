"""The memory of one of several ranks by closed formulas, which the dry run must agree with.

Bytes, at the peak of a step. After Korthikanti et al. 2022 (arXiv 2205.05198), section 4, for this transformer: GQA,
SwiGLU, no dropout, attention that keeps no scores. Legend: T tokens of a micro-batch, e bytes of an activation,
h hidden size, f SwiGLU size, n heads x head dim, k key-value heads x head dim, a heads, V vocabulary, P parameters.
"""

from dataclasses import dataclass
from typing import Any

from titan_pt.components.loss import chunk_size, default_chunk_tokens
from titan_pt.config.schema.grpo import GrpoConfig
from titan_pt.config.schema.job_config import ActivationCheckpoint, JobConfig
from titan_pt.models.transformer import TransformerArgs
from titan_pt.planner.dry_run_step import USUAL_GIB, Device
from titan_pt.planner.memory import ELEMENT_BYTES, moment_bytes
from titan_pt.protocols.trainer_spec import get_trainer_spec
from titan_pt.trainers.grpo.dry_run import update_size
from titan_pt.trainers.grpo.logprobs import CHUNK_ELEMENTS

# Logits of a chunk of log-probabilities where the tensors of a trace are: on the CPU.
LOGPROB_CHUNK_ELEMENTS = 2**23


@dataclass(frozen=True)
class Shape:
    """What the formulas need of a run."""

    args: TransformerArgs
    shards: int
    """Ranks that share one copy of the model."""
    rows: int
    """Of a micro-batch."""
    seq_len: int
    element: int
    """Bytes of an activation."""
    reshards: bool
    """Gathered parameters are freed after the forward."""
    accumulates: bool
    """A step has several micro-batches."""
    checkpoint: ActivationCheckpoint
    moment_bytes: float
    """Of Adam's two moments of one parameter."""
    documents: bool
    """Documents of a row are kept apart."""
    scored_tokens: int | None = None
    """Completion tokens of a micro-batch, whose log-probabilities take the loss's place in GRPO."""
    device: Device = "cuda"

    @property
    def tokens(self) -> int:
        """T."""
        return self.rows * self.seq_len


def shape_of(
    config: JobConfig,
    args: Any,
    num_ranks: int,
    *,
    accumulates: bool,
    scored_tokens: int | None = None,
    device: Device = "cuda",
) -> Shape:
    """The shape of a run of the transformer.

    Args:
        args: of the model; only `TransformerArgs` has formulas.
    """
    assert isinstance(args, TransformerArgs)
    training = config.training
    small = ELEMENT_BYTES[training.mixed_precision_param] * args.num_parameters <= 2**31
    reshards = {"always": True, "never": False, "default": not small}[config.parallelism.fsdp_reshard_after_forward]
    return Shape(
        args=args,
        shards=max(1, num_ranks // config.parallelism.data_parallel_replicate_degree),
        rows=training.local_batch_size,
        seq_len=training.seq_len,
        element=ELEMENT_BYTES[training.mixed_precision_param],
        reshards=reshards,
        accumulates=accumulates,
        checkpoint=config.activation_checkpoint,
        moment_bytes=moment_bytes(config),
        documents=training.document_mask,
        scored_tokens=scored_tokens,
        device=device,
    )


def estimate(shape: Shape) -> dict[str, float]:
    """Bytes by kind at the largest of three moments: the loss, the backward of the last block, the update."""
    args, e = shape.args, shape.element
    share = args.num_parameters / shape.shards
    states = {
        "parameters": 4 * share + 4.0 * args.max_seq_len * args.head_dim,  # and RoPE's two tables
        "gradients": 4 * share if shape.accumulates else 0.0,
        "optimizer": shape.moment_bytes * share,
    }
    activations, last_norm = kept_activations(shape), shape.tokens * _last_norm_bytes(shape)
    block, output = _gathered(shape)
    gathers = e * block
    held = e * (output + block * (1 if shape.reshards else args.num_layers))
    # Whole, until the last micro-batch sums them over the ranks.
    added_up = 4 * args.num_parameters if shape.accumulates and not shape.reshards else 0.0
    at_loss = {
        **states,
        "activations": activations,
        "logits": loss_bytes(shape),
        "communication": added_up + held + gathers,
    }
    if shape.scored_tokens is not None:
        at_loss |= {"logits": e * shape.scored_tokens * args.hidden_size, "temporary": logprob_bytes(shape)}
    in_backward = {
        **states,
        "activations": activations - last_norm,
        "temporary": backward_bytes(shape),
        "communication": added_up + held + 2 * e * block + (gathers if shape.reshards else 0.0),
    }
    at_update = {**states, "gradients": 4 * share, "communication": added_up + (2 * e + 4) * output}
    return max((at_loss, in_backward, at_update), key=lambda kinds: sum(kinds.values()))


def kept_activations(shape: Shape) -> float:
    """What the forward of all blocks keeps for the backward."""
    args, e = shape.args, shape.element
    whole, input_only = layer_bytes(shape), e * args.hidden_size
    options = shape.checkpoint
    if options.mode == "none":
        layers = args.num_layers * whole
    elif options.mode == "selective" and options.selective_ac_option == "op":
        layers = args.num_layers * saved_operations_bytes(shape)
    else:
        wrapped = len(range(0, args.num_layers, _every(options)))
        layers = wrapped * input_only + (args.num_layers - wrapped) * whole
    # Tokens, targets and positions in 64 bits.
    return shape.tokens * (layers + _last_norm_bytes(shape) + 24) + _mask_bytes(shape)


def layer_bytes(shape: Shape) -> float:
    """What one block keeps of each token: e (10 h - 2 h + 4 n + 2 k + 3 f) + 4 a and its norms."""
    args, e = shape.args, shape.element
    h, n, k = args.hidden_size, args.num_heads * args.head_dim, args.num_kv_heads * args.head_dim
    norms = 2 * _norm_bytes(shape, h)
    if args.qk_norm:
        norms += _norm_bytes(shape, n, args.num_heads) + _norm_bytes(shape, k, args.num_kv_heads)
    # Both normed inputs; rotated q and k, v; attention's output twice, by heads and in a row; gate, up, product.
    return norms + e * (2 * h + n + k + k + 2 * n + 3 * args.intermediate_size) + 4 * args.num_heads


def saved_operations_bytes(shape: Shape) -> float:
    """The same where only the outputs of matrix products and attention are kept, and the block's input."""
    args, e = shape.args, shape.element
    h, n, k = args.hidden_size, args.num_heads * args.head_dim, args.num_kv_heads * args.head_dim
    return e * (3 * h + 2 * n + 2 * k + 2 * args.intermediate_size) + 4 * args.num_heads


def loss_bytes(shape: Shape) -> float:
    """Of the chunked cross-entropy in its last chunk: its logits and two copies in float32, and both gradients."""
    args, e = shape.args, shape.element
    memory = USUAL_GIB * 2**30 if shape.device == "cuda" else 50 * 2**28
    rows = chunk_size(shape.tokens, default_chunk_tokens(memory, args.vocab_size))
    copies = e + 8 if e == 2 else 8  # the logits in float32 are their own first copy
    summed = 4 if shape.tokens > rows else 0  # in float32; of one chunk the product comes behind the copies
    embedding = args.vocab_size * args.hidden_size
    return rows * args.vocab_size * copies + summed * embedding + e * shape.tokens * args.hidden_size


def logprob_bytes(shape: Shape) -> float:
    """Of the log-probabilities: the logits of a chunk twice in float32, or their kept gradients and the weight's.

    On CUDA bfloat16 has products that are summed in float32: neither gradients nor weights are copied for them.
    """
    args, scored = shape.args, shape.scored_tokens or 0
    copies = shape.element != 4 and shape.device == "cpu"
    kept_bytes = shape.element if shape.device == "cuda" else 4
    rows = min(scored, LOGPROB_CHUNK_ELEMENTS // args.vocab_size)
    kept = scored if scored * args.vocab_size <= 2 * CHUNK_ELEMENTS else 0
    weights = 4 * args.vocab_size * args.hidden_size
    in_float32 = weights if copies else 0
    forward = (kept_bytes * kept + 4 * 2 * rows) * args.vocab_size + in_float32
    backward = (kept_bytes * kept or 4 * 2 * rows) * args.vocab_size + 2 * weights + in_float32
    return max(forward, backward + shape.element * scored * args.hidden_size)


def backward_bytes(shape: Shape) -> float:
    """Of the last block: gradients inside the SwiGLU, what is computed again, and the output layer's gradient."""
    args, e = shape.args, shape.element
    again = 0.0
    options = shape.checkpoint
    if options.mode == "selective" and options.selective_ac_option == "op":
        again = layer_bytes(shape) - saved_operations_bytes(shape)
    elif options.mode != "none" and (args.num_layers - 1) % _every(options) == 0:
        again = layer_bytes(shape)
    inside = e * (2 * args.intermediate_size + args.hidden_size)
    return shape.tokens * (inside + again) + e * args.vocab_size * args.hidden_size


def _last_norm_bytes(shape: Shape) -> float:
    """Of a token, by the norm before the output layer: it is freed before the backward of the last block."""
    return shape.element * shape.args.hidden_size + _norm_bytes(shape, shape.args.hidden_size)


def _norm_bytes(shape: Shape, width: int, rows: int = 1) -> float:
    """Kept by an RMSNorm: on CUDA its input and a number a row; on the CPU two copies in float32."""
    return (8 if shape.device == "cpu" else shape.element) * width + 4 * rows


def _mask_bytes(shape: Shape) -> float:
    """On the CPU documents are kept apart by a mask, which attention keeps in each block."""
    if shape.device != "cpu" or not shape.documents:
        return 0.0
    return shape.rows * shape.seq_len**2 * (1 + shape.element * shape.args.num_layers)


def _gathered(shape: Shape) -> tuple[float, float]:
    """(parameters of one block, of the output layer and embedding)."""
    args = shape.args
    outside = args.num_embedding_parameters * (1 if args.tie_embeddings else 2) + args.hidden_size
    return (args.num_parameters - outside) / args.num_layers, float(outside)


def _every(options: ActivationCheckpoint) -> int:
    return 1 if options.mode == "full" else int(options.selective_ac_option)


def estimated_kinds(config: JobConfig, args: Any, num_gpus: int) -> dict[str, float]:
    """Bytes of a run by kind, including the reference of GRPO, without the engine."""
    run_size = get_trainer_spec(config.job.trainer).plan_run_size(config, num_gpus)
    if not isinstance(config, GrpoConfig):
        shape = shape_of(config, args, num_gpus, accumulates=run_size.accumulation_steps > 1)
        return estimate(shape)
    size = update_size(config, num_gpus)
    # One of several micro-batches; its rows are as many and as long as its completions need.
    training = config.training.model_copy(update={"local_batch_size": size.rows, "seq_len": size.row_tokens})
    config = config.model_copy(update={"training": training})
    shape = shape_of(config, args, num_gpus, accumulates=size.accumulates, scored_tokens=size.scored_tokens)
    kinds = estimate(shape)
    if config.grpo.kl_coef > 0:
        kinds["reference"] = 4 * args.num_parameters / shape.shards
    return kinds
