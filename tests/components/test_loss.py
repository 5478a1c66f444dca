"""Chunked cross-entropy against the definition in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from titan_pt.components.loss import ChunkedCrossEntropy, chunk_size, compiled_chunk, cross_entropy_chunk
from titan_pt.data.stream.batch import IGNORED
from titan_pt.trainers.grpo.distill import _ChunkedKL
from titan_pt.trainers.grpo.logprobs import logprob_head


def reference(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, z_coef: float) -> torch.Tensor:
    """Sum over kept tokens of -log softmax(h W^T)[target] + z_coef * (log sum exp)^2, by the formula."""
    logits = (hidden.double() @ weight.double().T)[targets != IGNORED]
    log_z = logits.exp().sum(dim=-1).log()
    chosen = logits[torch.arange(len(logits)), targets[targets != IGNORED]]
    return (log_z - chosen + z_coef * log_z**2).sum()


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 400),
    vocab=st.integers(2, 40),
    most_rows=st.integers(1, 300),
    z_coef=st.sampled_from([0.0, 1e-4, 0.3]),
    ignored=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
)
def test_value_and_gradients_equal_the_definition(
    tokens: int, vocab: int, most_rows: int, z_coef: float, ignored: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, tokens, 8, generator=generator).requires_grad_()
    weight = torch.randn(vocab, 8, generator=generator).requires_grad_()
    targets = torch.randint(0, vocab, (1, tokens), generator=generator)
    targets[torch.rand(1, tokens, generator=generator) < ignored] = IGNORED
    loss = ChunkedCrossEntropy(z_coef, chunk_tokens=most_rows)
    losses = loss.head(targets)(hidden, weight)
    (losses.total / 3).backward()

    hidden_64, weight_64 = (t.detach().double().requires_grad_() for t in (hidden, weight))
    expected = reference(hidden_64[0], weight_64, targets[0], z_coef)
    torch.testing.assert_close(losses.total.double(), expected, rtol=1e-5, atol=1e-5)
    if (targets != IGNORED).any():
        (expected / 3).backward()
        torch.testing.assert_close(hidden.grad.double(), hidden_64.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weight.grad.double(), weight_64.grad, rtol=1e-4, atol=1e-5)
    else:
        assert not hidden.grad.any() and not weight.grad.any()
    each = reference(hidden_64[0], weight_64, targets[0], 0.0)
    torch.testing.assert_close(losses.cross_entropy_T.double().sum(), each, rtol=1e-5, atol=1e-5)
    assert not losses.cross_entropy_T[targets[0] == IGNORED].any()


def test_bfloat16_keeps_the_loss_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 512, 32, generator=generator).bfloat16().requires_grad_()
    weight = (0.1 * torch.randn(1000, 32, generator=generator)).bfloat16().requires_grad_()
    targets = torch.randint(0, 1000, (1, 512), generator=generator)
    losses = ChunkedCrossEntropy(chunk_tokens=128).head(targets)(hidden, weight)
    expected = reference(hidden.detach()[0], weight.detach(), targets[0], 0.0)
    assert losses.total.dtype == torch.float32
    # Only the logits' own rounding is left: 2^-9 relative on each, which averages out over the tokens.
    assert abs(losses.total.item() / expected.item() - 1) < 1e-3
    losses.total.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16


def test_no_gradients_are_computed_without_need() -> None:
    hidden, weight = torch.randn(1, 4, 8), torch.randn(16, 8, requires_grad=True)
    found = []

    def chunk(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        found.append(cross_entropy_chunk(*args))
        return found[-1]

    targets = torch.zeros(1, 4, dtype=torch.long)
    with torch.no_grad():
        losses = ChunkedCrossEntropy(chunk=chunk).head(targets)(hidden, weight)
    assert found[0][2] is None and not losses.total.requires_grad
    with_gradient = ChunkedCrossEntropy(chunk=chunk).head(targets)(hidden, weight)
    assert found[1][2] is not None and torch.equal(losses.total, with_gradient.total)


def kl_head(targets: torch.Tensor) -> Any:
    """The divergence to a teacher that is all zeros."""
    teacher = torch.zeros(targets.numel(), 4), torch.zeros(16, 4), 16, 1.0, None, None
    return lambda hidden, weight: _ChunkedKL.apply(hidden[0], weight, targets[0], *teacher)[2].sum()


@pytest.mark.parametrize(
    "head",
    [
        lambda targets: lambda *states: ChunkedCrossEntropy(chunk_tokens=3).head(targets)(*states).total,
        lambda targets: lambda *states: logprob_head(targets)(*states).logprobs_BL.sum(),
        kl_head,
    ],
)
def test_a_frozen_output_layer_costs_no_gradient(head: Any) -> None:
    """No buffer and no product of its size; the other gradient is the same to the bit."""
    hidden, weight = torch.randn(2, 1, 7, 8), torch.randn(16, 8)
    targets = torch.arange(7)[None]
    shapes: list[list[torch.Size]] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            if function.overloadpacket in (torch.ops.aten.zeros_like, torch.ops.aten.mm, torch.ops.aten.addmm_):
                shapes[-1].append(found.shape)
            return found

    gradients = []
    for trained in (True, False):
        shapes.append([])
        states = hidden[0].clone().requires_grad_(), weight.clone().requires_grad_(trained)
        with Record():
            head(targets)(*states).backward()
        gradients.append(states[0].grad)
        assert (states[1].grad is not None) == trained
    assert torch.equal(*gradients)
    assert weight.shape in shapes[0] and weight.shape not in shapes[1]


def test_a_second_backward_of_one_loss_is_refused() -> None:
    hidden, weight = torch.randn(1, 4, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    losses = ChunkedCrossEntropy().head(torch.zeros(1, 4, dtype=torch.long))(hidden, weight)
    losses.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward"):
        losses.total.backward()


@pytest.mark.parametrize(
    ("tokens", "most", "size"),
    [
        (2048, 1334, 1024),  # two equal parts, not 1,334 and 714
        (32768, 8192, 8192),
        (2000, 1334, 1024),
        (700, 100, 100),  # too few for a tile
        (100, 1334, 128),
    ],
)
def test_chunks_are_equal_and_whole_tiles(tokens: int, most: int, size: int) -> None:
    assert chunk_size(tokens, most) == size


@pytest.mark.slow
def test_compiled_chunks_give_the_same() -> None:
    hidden, weight = torch.randn(1, 200, 8, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    targets = torch.randint(0, 16, (1, 200))
    targets[0, ::3] = IGNORED
    results = []
    for loss in (ChunkedCrossEntropy(0.1), ChunkedCrossEntropy(0.1, compiled_chunk("inductor"), chunk_tokens=128)):
        hidden.grad = weight.grad = None
        losses = loss.head(targets)(hidden, weight)
        losses.total.backward()
        results.append((losses.total.detach(), losses.cross_entropy_T, hidden.grad, weight.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-4, atol=1e-5)
