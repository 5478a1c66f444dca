"""Documents by the kernel for sequences of different lengths: what it is told, and when it is chosen."""

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from titan_pt.data.stream.batch import MicroBatch
from titan_pt.models.transformer import Transformer, TransformerArgs, attention, kernels, varlen
from titan_pt.models.transformer.attention import document_mask
from titan_pt.models.transformer.varlen import DocumentBounds, document_bounds

ARGS = TransformerArgs(
    hidden_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=80, vocab_size=96
)
ROWS = (  # lengths of the documents of each row, and the position at which the row begins
    ([100, 28, 128], 0),
    ([1, 1, 254], 0),
    ([256], 0),
    ([70, 186], 0),
    ([40, 216], 900),
)


def positions(rows: Any = ROWS) -> torch.Tensor:
    parts = [[torch.arange(n) for n in lengths] for lengths, _ in rows]
    for row, (_, start) in zip(parts, rows, strict=True):
        row[0] += start
    return torch.stack([torch.cat(row) for row in parts])


def loops(q: Any, k: Any, v: Any, starts: Any, starts_k: Any, most: int, most_k: int, **options: Any) -> torch.Tensor:
    """torch's varlen_attn, document by document."""
    assert options == {"window_size": (-1, 0), "enable_gqa": True} and starts is starts_k and most == most_k
    assert starts.dtype == torch.int32 and starts[0] == 0 and starts[-1] == len(q)
    out = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        assert 0 <= end - start <= most
        parts = (x[start:end].transpose(0, 1) for x in (q, k, v))
        out.append(F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True).transpose(0, 1))
    return torch.cat(out)


def run(model: Transformer, tokens: torch.Tensor, where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(tokens, where)
    logits.square().sum().backward()
    grad = model.layers[0].self_attn.k_proj.weight.grad  # type: ignore[union-attr]
    model.zero_grad()
    assert isinstance(grad, torch.Tensor)
    return logits.detach(), grad


def test_it_is_the_mask_of_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", loops)
    model = Transformer(ARGS, document_mask=True)
    model.init_weights(0)
    where = positions()
    tokens = torch.randint(0, 96, where.shape, generator=torch.Generator().manual_seed(0))
    expected = run(model, tokens, where)
    model.varlen = True
    where.num_documents = 10  # type: ignore[attr-defined]
    assert isinstance(document_mask(where, varlen=True), torch.Tensor), "too many for rows of this length"
    monkeypatch.setattr(varlen, "SHORTEST_MEAN", 64)
    assert isinstance(document_mask(where, varlen=True), DocumentBounds)
    for found, wanted in zip(run(model, tokens, where), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_bounds_end_with_the_slots_that_are_left() -> None:
    where = positions((([200, 56], 0), ([256], 0)))
    assert document_bounds(where) is None, "nobody counted"
    where.num_documents = 3  # type: ignore[attr-defined]
    found = document_bounds(where)
    assert found is not None and (found.starts_S1.tolist(), found.longest) == ([0, 200, 256, 512, 512], 256)
    one = torch.arange(128)[None]
    one.num_documents = 1  # type: ignore[attr-defined]
    found = document_bounds(one)
    assert found is not None and found.starts_S1.tolist() == [0, 128]


def test_batches_count_their_documents_before_they_leave_the_host() -> None:
    where = positions()
    batch = MicroBatch(where, where, where, where)
    assert batch.to(torch.device("meta")).positions_BL.num_documents == 16  # type: ignore[attr-defined]
    assert not hasattr(batch.to(torch.device("cpu")).positions_BL, "num_documents")


def test_the_newest_flash_kernels_that_are_installed_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    activated: list[str] = []
    installed = {"flash_attn", "flash_attn_interface", "flash_attn.cute"}
    cuda, major = torch.device("cuda"), 9
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activated.append, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (major, 0))
    finds = types.SimpleNamespace(find_spec=lambda name: name in installed or None)
    monkeypatch.setattr(kernels, "importlib", types.SimpleNamespace(util=finds))
    assert kernels.activate_flash(torch.device("cpu")) is None
    assert kernels.activate_flash(cuda) == "FA3"
    major = 10
    assert kernels.activate_flash(cuda) == "FA4"
    for capability, left in ((8, installed), (10, {"flash_attn"}), (9, set[str]())):
        major, installed = capability, left
        assert kernels.activate_flash(cuda) is None
    assert activated == ["FA3", "FA4"]


def test_an_installed_kernel_that_does_not_work_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_name: str) -> None:
        raise RuntimeError("another ABI")

    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", refuse, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(kernels, "FLASH_PACKAGES", {9: ("FA3", "json")})
    assert kernels.activate_flash(torch.device("cuda")) is None
    assert "json is installed, but torch cannot use it (another ABI)" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_all_kernels_of_a_gpu_give_the_same(compiled: bool) -> None:
    """Documents by varlen_attn and FlexAttention against a boolean mask; causal by each kernel of the device."""
    torch.manual_seed(0)
    where = positions().cuda()
    counted = where.clone()
    counted.num_documents = 16  # type: ignore[attr-defined]
    make = {"device": "cuda", "dtype": torch.bfloat16}
    q, k, v = (torch.randn(5, heads, 256, 64, **make) for heads in (4, 2, 2))  # type: ignore[call-overload]
    attend = torch.compile(attention.attend, fullgraph=True) if compiled else attention.attend

    def check(mask: Any, backend: str, reference: Any) -> None:
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        plain = [x.float().requires_grad_() for x in (q, k, v)]
        out = attend(*inputs, mask, backend)
        wanted = attention.attend(*plain, reference, "math")
        grad = torch.randn_like(out)
        out.backward(grad)
        wanted.backward(grad.float())
        torch.testing.assert_close(out.float(), wanted, rtol=2e-2, atol=2e-2)
        for found, expected in zip(inputs, plain, strict=True):
            assert found.grad is not None
            torch.testing.assert_close(found.grad.float(), expected.grad, rtol=5e-2, atol=5e-2)

    reference = document_mask(where.cpu())
    assert isinstance(reference, torch.Tensor)
    check(document_mask(where), "auto", reference.cuda())
    if varlen.knows_varlen("cuda", torch.bfloat16, 64):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(varlen, "SHORTEST_MEAN", 64)
            bounds = document_mask(counted, varlen=True)
        assert isinstance(bounds, DocumentBounds)
        check(bounds, "auto", reference.cuda())
    for backend in kernels.available_backends("cuda", torch.bfloat16, 64):
        check(None, backend, None)
