"""Chunked log-probabilities against full logits in float64."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from titan_pt.data.stream.batch import IGNORED
from titan_pt.trainers.grpo.logprobs import logprob_head, product


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 11),
    vocab=st.integers(2, 30),
    padding=st.integers(0, 5),
    rows=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.2]),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_equal_the_definition(
    tokens: int, vocab: int, padding: int, rows: int, temperature: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(2, tokens, 6, generator=generator).requires_grad_()
    weight = torch.randn(vocab + padding, 6, generator=generator).requires_grad_()
    targets = torch.randint(0, vocab, (2, tokens), generator=generator)
    targets[torch.rand(2, tokens, generator=generator) < 0.3] = IGNORED
    upstream = torch.randn(2, tokens, generator=generator)
    head = logprob_head(targets, temperature=temperature, num_tokens=vocab, elements=rows * (vocab + padding))
    result = head(hidden, weight)
    (result.logprobs_BL * upstream).sum().backward()

    hidden_64, weight_64 = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    log_p = torch.log_softmax(hidden_64 @ weight_64[:vocab].T / (temperature or 1.0), dim=-1)
    kept = targets != IGNORED
    expected = torch.where(kept, log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0], 0.0)
    entropy = torch.where(kept, -(log_p.exp() * log_p).sum(-1), 0.0)
    (expected * upstream).sum().backward()
    torch.testing.assert_close(result.logprobs_BL.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.entropy_BL.double(), entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), hidden_64.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), weight_64.grad, rtol=1e-4, atol=1e-5)
    assert not result.entropy_BL.requires_grad


def test_the_output_layer_is_float32_in_a_bfloat16_model() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 64, 32, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(100, 32, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(0, 100, (1, 64), generator=generator)
    result = logprob_head(targets)(hidden, weight)
    exact = torch.log_softmax(hidden.double() @ weight.double().T, dim=-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(result.logprobs_BL.double(), exact, rtol=1e-5, atol=1e-4)
    result.logprobs_BL.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


def test_on_cuda_products_of_bfloat16_are_summed_in_float32_without_a_cast() -> None:
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(), Record():
        a, b = (torch.empty(shape, dtype=torch.bfloat16, device="cuda") for shape in ((64, 32), (32, 90)))
        seen.clear()
        assert product(a, b).dtype == torch.float32 and product(b.T, a.T).dtype == torch.float32
    assert seen.count(torch.ops.aten.mm.dtype) == 2 and torch.ops.aten._to_copy.default not in seen
