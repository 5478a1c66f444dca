"""The updates of a step against plain policy gradient, and what must not change them."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from waits import CountWaits

from titan_pt.config.schema.grpo import Grpo, Rollout
from titan_pt.config.schema.job_config import Compile
from titan_pt.distributed.compile import compile_blocks
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.trainers.grpo.packing import TrainSample
from titan_pt.trainers.grpo.policy import PolicyUpdate, UpdateMetrics, global_counts, loglikelihoods

ARGS = TransformerArgs(
    hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=48, vocab_size=40,
    num_tokens=37, init_std=0.2,
)  # fmt: skip
TEMPERATURE = 1.2


@dataclass(frozen=True)
class OneRank:
    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def max(self, value: torch.Tensor) -> torch.Tensor:
        return value


def make_model(seed: int = 0, args: TransformerArgs = ARGS) -> Transformer:
    model = Transformer(args, document_mask=True)
    model.init_weights(seed)
    return model


def make_samples(model: Transformer) -> list[TrainSample]:
    """Eight samples of four prompts and ragged lengths, with the model's own log-probabilities, the last one masked."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for i, (prompt, answer) in enumerate([(3, 5), (3, 9), (7, 1), (7, 12), (2, 6), (2, 4), (5, 10), (5, 3)]):
        ids = torch.randint(1, 37, (prompt + answer,), generator=generator).tolist()
        asked = samples[-1].prompt_ids if i % 2 else tuple(ids[:prompt])
        sample = TrainSample(asked, tuple(ids[prompt:]), (0.0,) * answer, (-1.0) ** i * (0.3 + i / 8), i != 7)
        logprobs = tuple(logprobs_of(model, sample).tolist())
        samples.append(replace(sample, logprobs=logprobs))
    return samples


def logprobs_of(model: Transformer, sample: TrainSample) -> torch.Tensor:
    """By a forward of this sample alone."""
    logits = model(torch.tensor([[*sample.prompt_ids, *sample.completion_ids]]))[0, :, :37]
    log_p = torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1].float() / TEMPERATURE, dim=-1)
    return log_p.gather(-1, torch.tensor(sample.completion_ids)[:, None])[:, 0]


def make_parts(model: Transformer, rows: int = 2, **grpo: Any) -> Any:
    """A context with plain gradient descent, so that the weights move by the gradient."""
    training = SimpleNamespace(seq_len=24, local_batch_size=rows, max_norm=1e9)
    config = SimpleNamespace(training=training, grpo=Grpo(**grpo), rollout=Rollout(temperature=TEMPERATURE))
    return SimpleNamespace(
        config=config,
        world=OneRank(),
        tokenizer=SimpleNamespace(eos_id=0, vocab_size=37),
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        spikes=None,
        raise_if_preempted=lambda: None,
    )


def update(
    model: Transformer,
    samples: list[TrainSample],
    *,
    parts: int = 1,
    lr: float = 1.0,
    reference: Any = None,
    teacher: Any = None,
    **grpo: Any,
) -> UpdateMetrics:
    size = len(samples) // parts
    minibatches = [samples[i * size : (i + 1) * size] for i in range(parts)]
    return PolicyUpdate(make_parts(model, **grpo), reference, teacher)(minibatches, lr)


def test_one_update_is_plain_policy_gradient_over_global_tokens() -> None:
    model, expected = make_model(), make_model()
    samples = make_samples(model)
    metrics = update(model, samples)
    kept = samples[:7]
    tokens = sum(len(sample.completion_ids) for sample in kept)
    loss = -sum(sample.advantage * logprobs_of(expected, sample).sum() for sample in kept) / tokens
    loss.backward()
    for (name, moved), start in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(moved.detach(), start.detach() - start.grad, rtol=1e-4, atol=1e-6, msg=name)
    weighted = sum(sample.advantage * len(sample.completion_ids) for sample in kept) / tokens
    assert metrics.loss.item() == pytest.approx(-weighted, rel=1e-5), "the ratio is 1"
    assert metrics.logprob_diff_max.item() < 2e-5 and metrics.clip_fraction.item() == 0
    assert metrics.kl.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_split_into_micro_batches_changes_nothing(rows: int) -> None:
    model, other = make_model(), make_model()
    samples = make_samples(model)
    update(model, samples)
    PolicyUpdate(make_parts(other, rows=rows), None)([samples], 1.0)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_later_updates_use_ratios_to_sampling_weights() -> None:
    model, expected = make_model(), make_model()
    samples = make_samples(model)
    metrics = update(model, samples, parts=2, lr=0.5, num_iterations=2, clip_low=0.05, clip_high=0.05)
    old = [logprobs_of(expected, sample).detach() for sample in samples]
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.5)
    clipped = total = 0
    for _ in range(2):
        for start in (0, 4):
            part = [(s, o) for s, o in zip(samples[start : start + 4], old[start : start + 4], strict=True) if s.trains]
            tokens = sum(len(sample.completion_ids) for sample, _ in part)
            loss = torch.zeros(())
            for sample, before in part:
                ratio = (logprobs_of(expected, sample) - before).exp()
                bound = ratio.clamp(0.95, 1.05)
                loss = loss - torch.minimum(ratio * sample.advantage, bound * sample.advantage).sum() / tokens
                clipped += int((bound * sample.advantage < ratio * sample.advantage).sum())
                total += len(ratio)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert clipped > 0
    assert metrics.clip_fraction.item() == pytest.approx(clipped / total, abs=2.5 / total)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4)


def test_the_kl_penalty_pulls_back_to_the_reference() -> None:
    reference = make_model(seed=5).requires_grad_(False)
    model, expected = make_model(), make_model()
    samples = [replace(sample, advantage=0.0) for sample in make_samples(model)]
    metrics = update(model, samples, reference=reference, kl_coef=0.5, kl_estimator="k2")
    kept = samples[:7]
    tokens = sum(len(sample.completion_ids) for sample in kept)
    kl = sum((logprobs_of(expected, s) - logprobs_of(reference, s)).square().sum() / 2 for s in kept) / tokens
    (0.5 * kl).backward()
    assert metrics.kl.item() == pytest.approx(kl.item(), rel=1e-4) and kl.item() > 1e-3
    for ours, start in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), start.detach() - start.grad, rtol=1e-3, atol=1e-6)


def test_importance_weights_correct_a_foreign_engine() -> None:
    model, expected = make_model(), make_model()
    samples = make_samples(model)
    shifted = [replace(s, logprobs=tuple(value - 0.3 * (t % 3) for t, value in enumerate(s.logprobs))) for s in samples]
    metrics = update(model, shifted, importance_sampling="token", importance_cap=1.5)
    assert metrics.logprob_diff_max.item() == pytest.approx(0.6, abs=1e-4)
    tokens = global_counts(samples)["num_tokens"]
    loss = torch.zeros(())
    for sample in samples[:7]:
        weights = torch.tensor([min(1.5, 2.718281828 ** (0.3 * (t % 3))) for t in range(len(sample.logprobs))])
        loss = loss - (weights * sample.advantage * logprobs_of(expected, sample)).sum() / tokens
    loss.backward()
    for ours, start in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), start.detach() - start.grad, rtol=1e-3, atol=1e-6)


class WithoutSegments(nn.Module):
    """A model whose forward knows no segments, as a plugin's may be."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BL: torch.Tensor, positions_BL: torch.Tensor | None = None, head: Any = None) -> Any:
        return self.model(tokens_BL, positions_BL, head)


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "gspo", "cispo", "reinforce"])
def test_a_prompt_read_once_teaches_what_it_does_before_each_completion(loss: str) -> None:
    options = {"loss": loss, "num_iterations": 2, "kl_coef": 0.1, "importance_sampling": "token"}
    models = [make_model().double() for _ in range(2)]
    reference = make_model(seed=5).double().requires_grad_(False)
    samples = make_samples(make_model())
    shifted = [replace(sample, logprobs=tuple(value - 0.1 for value in sample.logprobs)) for sample in samples]
    found = []
    for model, (own, other) in zip(
        models, [(models[0], reference), (WithoutSegments(models[1]), WithoutSegments(reference))], strict=True
    ):
        metrics = PolicyUpdate(make_parts(own, **options), other)([shifted[:4], shifted[4:]], 0.1)
        found.append((metrics, list(model.parameters())))
    (ours, moved), (theirs, expected) = found
    for a, b in zip(moved, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # the output layer is in float32
    for name, value in vars(ours).items():
        torch.testing.assert_close(value, getattr(theirs, name), rtol=1e-4, atol=1e-6, msg=name)
    assert ours.kl.item() > 1e-3


def test_two_ranks_add_up_to_one() -> None:
    one, start, *two = (make_model() for _ in range(4))
    samples = make_samples(start)
    PolicyUpdate(make_parts(one), None)([samples], 1.0)
    for rank, model in enumerate(two):
        parts = make_parts(model)
        parts.world = OneRank(rank=rank, size=2)
        PolicyUpdate(parts, None)([samples], 1.0)
    for whole, before, *halves in zip(*(m.parameters() for m in (one, start, *two)), strict=True):
        torch.testing.assert_close(whole, sum(halves) - before, rtol=1e-4, atol=1e-5)
        assert all((half != before).any() for half in halves)


def test_a_non_finite_step_is_not_applied() -> None:
    model, start = make_model(), make_model()
    samples = make_samples(model)
    metrics = update(model, [replace(samples[0], advantage=float("inf")), *samples[1:]])
    assert metrics.skipped.item() == 1.0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


def test_loglikelihoods_equal_those_of_samples_alone() -> None:
    model = make_model()
    samples = make_samples(model)
    found = loglikelihoods(make_parts(model), samples)
    for sample, value in zip(samples, found, strict=True):
        logits = model(torch.tensor([[*sample.prompt_ids, *sample.completion_ids]]))[0, :, :37]
        log_p = torch.log_softmax(logits[len(sample.prompt_ids) - 1 : -1], dim=-1)
        expected = log_p.gather(-1, torch.tensor(sample.completion_ids)[:, None]).sum()
        assert value == pytest.approx(expected.item(), abs=1e-4)


def test_after_all_shapes_were_seen_nothing_is_compiled_and_no_update_waits() -> None:
    """Rows and their lengths differ from step to step; graphs are few, and none is new once each shape was seen.

    The one wait of a step is for its duration, behind the updates.
    """
    model = make_model()
    samples = make_samples(model)
    parts = make_parts(model, num_iterations=2)
    parts.config.training.seq_len = 256
    long = replace(samples[0], prompt_ids=samples[0].prompt_ids * 50)  # a row of another length, where they are trimmed
    shapes = [samples, samples[:2], [*samples, long], [long] * 3]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    policy = PolicyUpdate(SimpleNamespace(**{**vars(parts), "optimizer": optimizer}), None)  # type: ignore[arg-type]
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(model.layers, Compile(backend="eager"), torch.device("cpu"))
    for minibatch in shapes:
        policy([minibatch], 1e-3)
    graphs = counters["stats"]["unique_graphs"]
    torch.compiler.set_stance("fail_on_recompile")
    try:
        for minibatch in reversed(shapes):
            policy([minibatch], 1e-3)
    finally:
        torch.compiler.set_stance("force_eager")  # torch.compile does not work in a mode
    try:
        with CountWaits() as counter:
            updated = policy([samples], 1e-3)
            assert counter.operators > 300 and not counter.waits
            float(updated.loss)
    finally:
        torch.compiler.set_stance("default")
    assert counter.waits == {"aten._local_scalar_dense.default": 1}
    assert not counters["graph_break"] and 2 <= graphs == counters["stats"]["unique_graphs"] <= 6
