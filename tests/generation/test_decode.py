"""The decoding step compiled and as CUDA graphs against the plain one, and its output layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from engine_helpers import ARGS, PROMPTS, STOP, generate, make_model, tokens_of
from torch._subclasses.fake_tensor import FakeTensorMode

from titan_pt.generation import decode
from titan_pt.generation.decode import Decoder, GraphDecoder, OutputLayer
from titan_pt.generation.native import STRIDE, NativeEngine
from titan_pt.generation.sampling import Sampling
from titan_pt.models.transformer import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    return make_model()


def test_the_output_layer_is_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "LOGIT_ELEMENTS", 2 * ARGS.vocab_size)
    model = make_model(dtype=torch.bfloat16)
    layer, hidden = OutputLayer(model), torch.randn(5, ARGS.hidden_size).bfloat16()
    for _ in range(2):
        parts = [part.clone() for part in layer(hidden)]
        assert [len(part) for part in parts] == [2, 2, 1] and {part.dtype for part in parts} == {torch.float32}
        logits = torch.cat(parts)
        torch.testing.assert_close(logits[:, :50], hidden.float() @ model.output_weight.float().T[:, :50])
        assert torch.all(logits[:, 50:] == float("-inf"))
        with torch.no_grad():
            model.output_weight.mul_(2)
        layer.refresh()


def test_a_mixed_product_needs_no_copy_of_the_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    def mm(a: torch.Tensor, b: torch.Tensor, *, out_dtype: torch.dtype, out: torch.Tensor) -> None:
        assert a.dtype == b.dtype == torch.bfloat16 and out_dtype == torch.float32
        out.copy_(a.float() @ b.float())

    model, hidden = make_model(dtype=torch.bfloat16), torch.randn(5, ARGS.hidden_size).bfloat16()
    expected = next(OutputLayer(model)(hidden)).clone()
    with monkeypatch.context() as patched:
        patched.setattr(decode, "has_mixed_product", lambda _: True)
        patched.setattr(torch, "mm", mm)
        layer = OutputLayer(model)
        torch.testing.assert_close(next(layer(hidden)), expected)
        assert [tuple(tensor.shape) for tensor in layer.tensors] == [(layer.rows, ARGS.vocab_size)]
        with torch.no_grad():
            model.output_weight.mul_(2)
        layer.refresh()
        torch.testing.assert_close(next(layer(hidden)), 2 * expected)
    with FakeTensorMode():
        half, whole = (torch.empty(2, 2, dtype=dtype, device="cuda") for dtype in (torch.bfloat16, torch.float32))
        assert decode.has_mixed_product(half) and not decode.has_mixed_product(whole)
        assert torch.mm(half, half.T, out_dtype=torch.float32, out=whole).dtype == torch.float32
        monkeypatch.setattr(torch.ops.aten.mm, "overloads", lambda: ["default", "out"])
        assert not decode.has_mixed_product(half), "a torch that has no such product"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cudas_output_layer_equals_products_in_float32() -> None:
    model = make_model(dtype=torch.bfloat16).cuda()
    hidden = torch.randn(5, ARGS.hidden_size, device="cuda").bfloat16()
    (logits,) = OutputLayer(model)(hidden)
    expected = hidden.double() @ model.output_weight.double().T
    torch.testing.assert_close(logits[:, :50], expected[:, :50].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_steps_equal_plain_steps(model: Transformer, backend: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = NativeEngine(model, [STOP], compile_backend=backend)
    for n, sampling in [(3, Sampling(5 * STRIDE)), (1, Sampling(STRIDE, temperature=0.0)), (17, Sampling(2 * STRIDE))]:
        expected = generate(model, sampling, n)
        completions = compiled.generate(PROMPTS, sampling, n)
        assert tokens_of(completions) == tokens_of(expected)
        for one, other in zip(completions, expected, strict=True):
            torch.testing.assert_close(one.logprobs, other.logprobs, rtol=0, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2, "the model and the draw, for all numbers of rows above 1 and of slots"
    assert tokens_of(compiled.generate(PROMPTS[:1], Sampling(2 * STRIDE), 1)) == tokens_of(
        NativeEngine(model, [STOP]).generate(PROMPTS[:1], Sampling(2 * STRIDE), 1)
    )
    compiled.generate(PROMPTS, Sampling(2 * STRIDE, seed=1, step=2), 5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4, "and one row, where a size is a constant"
    fewer = Sampling(2 * STRIDE, top_k=5)  # the draw is of another width
    assert tokens_of(compiled.generate(PROMPTS, fewer, 3)) == tokens_of(generate(model, fewer, 3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_equal_plain_steps(caplog: pytest.LogCaptureFixture) -> None:
    """Graphs stay right after new weights and in a larger second request, and no capture fails."""
    model = make_model().cuda()
    graphs = NativeEngine(model, [STOP], compile_backend="inductor")
    for seed, n in [(0, 3), (1, 3), (1, 17)]:
        weights, sampling = make_model(seed).cuda(), Sampling(8 * STRIDE, seed=seed)
        graphs.sync_weights(weights)
        expected, completions = generate(weights, sampling, n), graphs.generate(PROMPTS, sampling, n)
        assert tokens_of(completions) == tokens_of(expected)
        for one, other in zip(completions, expected, strict=True):
            torch.testing.assert_close(one.logprobs, other.logprobs, rtol=0, atol=1e-4)
    assert not caplog.records


class FakeGraph:
    """Stands for a CUDA graph where there is none: replays the step that was captured, on the same memory."""

    def __init__(self) -> None:
        self.captured: list[tuple[Any, ...]] = []

    def replay(self) -> None:
        (arguments,) = self.captured
        Decoder.step(*arguments)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """CUDA graphs on a CPU; the list of those that were captured."""
    made: list[FakeGraph] = []

    @contextmanager
    def capture(graph: FakeGraph, **_: object) -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(Decoder, "step", lambda *arguments: graph.captured.append(arguments))
            yield
        made.append(graph)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return made


def graph_engine(model: Transformer) -> NativeEngine:
    engine = NativeEngine(model, [STOP])
    engine.decoder = GraphDecoder(model, [STOP], "eager")
    return engine


def test_graphs_outlive_requests_and_new_weights(graphs: list[FakeGraph]) -> None:
    engine = graph_engine(make_model(5))
    counts = []
    for seed, n in [(0, 3), (0, 3), (1, 2), (1, 17)]:
        weights, sampling = make_model(seed), Sampling(8 * STRIDE)
        engine.sync_weights(weights)
        assert tokens_of(engine.generate(PROMPTS, sampling, n)) == tokens_of(generate(weights, sampling, n))
        counts.append(len(graphs))
    assert counts[0] == counts[1] > 1, "the same request needs no more"
    assert counts[1] <= counts[2] < counts[3]
    sizes = [
        (rows.token_R.shape[0], rows.cache.slots) for graph in graphs[: counts[2]] for _, rows, _ in graph.captured
    ]
    assert len(set(sizes)) == len(sizes), "one for each size while the memory is the same"
    held = {tensor.data_ptr() for tensor in engine.tensors()}
    assert {tensor.data_ptr() for tensor in graphs[-1].captured[0][1].cache.tensors} <= held, "rows outlive a request"


def test_a_failed_capture_is_warned_of_once(
    graphs: list[FakeGraph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def capture(*_: object, **__: object) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", capture)
    model = make_model()
    engine = graph_engine(model)
    assert tokens_of(engine.generate(PROMPTS, Sampling(2 * STRIDE), 3)) == tokens_of(
        generate(model, Sampling(2 * STRIDE), 3)
    )
    (record,) = caplog.records
    assert "rollout.compile: no CUDA graph" in record.message and "not permitted" in record.message
