"""On-policy distillation: a frozen teacher judges each token of the student's completions. Imported for its loss alone.

At each sampled position the loss has the reverse KL divergence of the student pi to the teacher q, both at
rollout.temperature,

    KL(pi || q) = sum over v of pi(v) (log pi(v) - log q(v)),

by itself: what a token leads to later is not credited to it, and no gradient flows through the sampling (GKD, Agarwal
et al., arXiv 2306.13649, with samples of the student alone and the reverse KL as the divergence; Thinking Machines,
"On-Policy Distillation", thinkingmachines.ai/blog/on-policy-distillation: a discount of 0). MiniLLM, arXiv 2306.08543,
credits later tokens too. Two estimators:

- "full" is that sum over the vocabulary, with the gradient d KL / d logit_v = pi(v) (log pi(v) - log q(v) - KL).
- "sampled" sees the sampled token y alone: the policy gradient of the advantage log q(y) - log pi(y), weighted by
  pi(y) / pi_old(y) after a step's first update. Its mean over y is the gradient of "full"; the rest is variance.

Legend: N completion tokens, S samples, C tokens of the longest completion, D, E model dims of student and teacher,
V vocabulary.
"""

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.linalg import vecdot

from titan_pt.components.loss import chunk_size
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError, shown
from titan_pt.config.schema.grpo import GrpoConfig, Teacher
from titan_pt.distributed.dry_run_world import allocate_without_numbers
from titan_pt.distributed.init import allocate
from titan_pt.distributed.world import World
from titan_pt.hf.model_source import ModelSource, open_model_source
from titan_pt.hf.weights import fill, other_ids
from titan_pt.protocols.context import TrainContext
from titan_pt.protocols.model_spec import ModelSpec, get_model_spec
from titan_pt.run.log import say
from titan_pt.trainers.grpo.kl import MAX_LOG_RATIO
from titan_pt.trainers.grpo.logprobs import CHUNK_ELEMENTS, less_one, log_softmax, product, product_type, split
from titan_pt.trainers.grpo.packing import PackedBatch
from titan_pt.trainers.grpo.scoring import Scored, Scorer, run_model, softcap_of

# Both models' logits of a chunk, their probabilities and the gradient: 64 MiB each in float32, on a CPU 8.
_ELEMENTS, _CPU_ELEMENTS = CHUNK_ELEMENTS // 4, 2**21


@dataclass(frozen=True)
class TeacherModel:
    """The model that is learnt from."""

    model: nn.Module
    """Frozen, in training.mixed_precision_param, sharded like the policy."""
    options: Teacher
    fingerprint: str
    """Digest of its architecture and weights, the same in each format that holds these; saved with every step."""


@dataclass(frozen=True)
class Distillation:
    """Scores completions with student and teacher."""

    student: Scorer
    teacher: TeacherModel

    def __call__(self, batch: PackedBatch) -> Scored:
        """What the student's scorer gives, with the teacher's part."""
        if self.teacher.options.kl_estimator == "sampled":
            theirs = replace(self.student, model=self.teacher.model)
            with torch.no_grad():
                q_SC = theirs(batch).logprobs_SC
            scored = self.student(batch)
            return replace(scored, teacher_kl_SC=scored.logprobs_SC.detach() - q_SC)
        with torch.no_grad():  # FSDP2 keeps the output layer gathered after the forward (`distributed.fsdp.shard`)
            hidden_NE, weight_VE = run_model(self.teacher.model, batch, lambda *states: states)
        size, scale = min(self.student.num_tokens, len(weight_VE)), 1.0 / (self.student.temperature or 1.0)
        options = hidden_NE, weight_VE, size, scale, softcap_of(self.student.model), softcap_of(self.teacher.model)

        def head(hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> Any:
            return _ChunkedKL.apply(hidden_ND, weight_VD, batch.targets_N, *options)

        return Scored(*map(batch.by_sample, run_model(self.student.model, batch, head)))

    def penalty(self, scored: Scored, old_logprobs_SC: torch.Tensor) -> torch.Tensor:
        """kl_coef times the divergence at each token, with its gradient."""
        kl_SC = scored.teacher_kl_SC
        assert kl_SC is not None, "it is from __call__"
        if self.teacher.options.kl_estimator == "sampled":  # the ratio is 1 where there is one update
            kl_SC = kl_SC * (scored.logprobs_SC - old_logprobs_SC).clamp(max=MAX_LOG_RATIO).exp()
        return self.teacher.options.kl_coef * kl_SC


class _ChunkedKL(torch.autograd.Function):
    """(log pi(y), entropy, KL(pi || q)) of each token, in chunks of tokens whose logits the backward computes again."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, *teacher: Any
    ) -> tuple[torch.Tensor, ...]:
        found = []
        for _, kept_T, safe_T1, log_p_TV, _, gap_TV in _chunks(hidden_ND, weight_VD, targets_N, teacher):
            p_TV = log_p_TV.exp()
            values = log_p_TV.gather(-1, safe_T1)[:, 0], -vecdot(p_TV, log_p_TV), vecdot(p_TV, gap_TV)
            found.append(torch.where(kept_T, torch.stack(values), 0.0))
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, *teacher[:2])
        ctx.options = teacher[2:]
        logprobs_N, entropy_N, kl_N = torch.cat(found, dim=1)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N, kl_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, *states = ctx.saved_tensors
        size, scale = ctx.options[:2]
        chunks = _chunks(hidden_ND, weight_VD, targets_N, (*states, *ctx.options))
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part, kept_T, safe_T1, log_p_TV, slope_TV, gap_TV in chunks:
            of_logprob_T1, of_kl_T1 = (torch.where(kept_T, grads[i][part], 0.0)[:, None] for i in (0, 2))
            p_TV = log_p_TV.exp_()
            slant_TV = p_TV * gap_TV.sub_(vecdot(p_TV, gap_TV)[:, None]) * of_kl_T1
            gradient_TV = slant_TV.sub_(less_one(p_TV, safe_T1).mul_(of_logprob_T1)).mul_(scale)
            gradient_TV = (gradient_TV if slope_TV is None else gradient_TV * slope_TV).to(product_type(hidden_ND))
            grad_hidden_ND[part] = product(gradient_TV, weight_VD[:size])
            if grad_weight_VD is not None:  # it is frozen under [lora]
                grad_weight_VD[:size] += product(gradient_TV.T, hidden_ND[part])
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_ND, grad_weight_VD, *[None] * 7  # targets and all of the teacher


def _chunks(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, teacher: tuple[Any, ...]
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]]:
    """Yield (place in N, `split` of its targets, log pi, slope of the student's soft cap, log pi - log q) by chunks."""
    hidden_NE, weight_VE, size, scale, softcap, theirs = teacher
    rows = chunk_size(len(hidden_ND), (_CPU_ELEMENTS if hidden_ND.is_cpu else _ELEMENTS) // size)
    for start in range(0, len(hidden_ND), rows):
        part = slice(start, start + rows)
        log_p_TV, slope_TV = log_softmax(hidden_ND[part], weight_VD[:size], scale, softcap)
        gap_TV = log_p_TV - log_softmax(hidden_NE[part], weight_VE[:size], scale, theirs)[0]
        yield part, *split(targets_N[part]), log_p_TV, slope_TV, gap_TV


def build_teacher(context: TrainContext[GrpoConfig], config: GrpoConfig) -> TeacherModel:
    """The teacher of [teacher]; every rank reads its weights and keeps its shards.

    Args:
        config: the run's, with document masks.

    Raises:
        ConfigError: it cannot be opened, or its tokenizer is not the student's.
    """
    source = context.world.together(lambda: open_teacher(str(config.teacher.path), context.tokenizer))
    model = _frozen(source, config, context.world)
    allocate(model, config, context.world)
    own: Any = model
    own.init_buffers() if hasattr(own, "init_buffers") else own.init_weights(config.debug.seed)
    digest = hashlib.blake2b(_arguments(source).model_dump_json().encode(), digest_size=16)

    def note(name: str, tensor: torch.Tensor) -> None:
        digest.update(name.encode())
        digest.update(tensor.float().contiguous().view(-1).numpy().data)

    context.world.together(lambda: fill(model, source.tensors, note))
    fingerprint = digest.hexdigest()
    say("Teacher", f"{source.folder}: {source.args.num_parameters:,} parameters, fingerprint {fingerprint}")
    return TeacherModel(model, config.teacher, fingerprint)


def dry_teacher(context: TrainContext[GrpoConfig]) -> TeacherModel:
    """The teacher without numbers, for a dry run."""
    config, world = context.config, context.world
    model = _frozen(open_teacher(str(config.teacher.path)), config, world)
    allocate_without_numbers(model, config, world)
    return TeacherModel(model, config.teacher, "")


@functools.cache
def teacher_flops(path: str, seq_len: int) -> float:
    """Operations of the forward of the teacher at a path on one token, for the planner."""
    source = open_teacher(path)
    return _spec(source).flops_per_token(_arguments(source), seq_len) / 3


def open_teacher(path: str, tokenizer: Tokenizer | None = None) -> ModelSource:
    """The teacher on disk, its weights not read yet.

    Args:
        tokenizer: the student's; None: it is not compared.

    Raises:
        ConfigError: it cannot be opened, or its tokenizer is another.
    """
    source = open_model_source(path, key="teacher.path")
    if tokenizer is None or source.tokenizer.fingerprint == tokenizer.fingerprint:
        return source
    there, here = (
        {
            "tokens": f"{each.vocab_size:,}",
            "the end of a document": each.eos_id,
            **{f"special token {name!r}": i for name, i in each.special_ids.items()},
        }
        for each in (source.tokenizer, tokenizer)
    )
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    found = [f"{name}: {there.get(name, 'none')} there, {here.get(name, 'none')} here" for name in names[:5]]
    text = None if "tokens" in names else other_ids(tokenizer, source.tokenizer)
    if text is not None:
        found.append(f"other ids, such as to {shown(text)}")
    if found:
        raise ConfigError(
            f"teacher.path = {path!r}: its tokenizer is not the student's: {'; '.join(found)}; a teacher judges the "
            "student's tokens, so that both need the same: choose another teacher, or another student"
        )
    return source


def _spec(source: ModelSource) -> ModelSpec[Any]:
    return source.own.spec if source.own else get_model_spec("transformer")


def _arguments(source: ModelSource) -> Any:
    return source.own.args if source.own else source.args


def _frozen(source: ModelSource, config: GrpoConfig, world: World) -> nn.Module:
    """The model on the meta device: without gradients, in the compute type, sharded like the policy."""
    spec, args = _spec(source), _arguments(source)
    sections = {
        "model": config.model.model_copy(update={"converters": None}),
        "activation_checkpoint": config.activation_checkpoint.model_copy(update={"mode": "none"}),
    }
    config = config.model_copy(update=sections)
    if not source.own:  # a table of positions for the run's rows
        args = args.model_copy(update={"max_seq_len": max(args.max_seq_len, config.training.seq_len), "dropout": 0.0})
    with torch.device("meta"):
        model = spec.build(args, config).eval()  # dropout of a family of its own is off
    for parameter in model.requires_grad_(False).parameters():
        parameter.data = parameter.data.to(getattr(torch, config.training.mixed_precision_param))
    return spec.parallelize(model, config, world)
