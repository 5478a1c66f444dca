"""Sizes, initial weights and attention kernels of the transformer."""

import hashlib
from pathlib import Path
from statistics import NormalDist

import numpy
import pytest
import torch
import torch.nn.functional as F
from helpers import train_here, write_toml

from titan_pt.config import ConfigError, load_config
from titan_pt.config.resolve.checks import model_args
from titan_pt.models.transformer import FLAVORS, Transformer, TransformerArgs, attention
from titan_pt.models.transformer.args import flops_per_token
from titan_pt.models.transformer.attention import SHORT_ROW, attend, document_mask
from titan_pt.models.transformer.flex import FlexMask
from titan_pt.models.transformer.kernels import available_backends, check_backend
from titan_pt.models.transformer.model import SiluTimes
from titan_pt.protocols.model_spec import get_model_spec

SOURCE = '--data.sources=[{name="arithmetic"}]'
SMALL = {
    "hidden_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 80,
    "vocab_size": 96,
}  # fmt: skip


@pytest.mark.parametrize(
    ("flavor", "tied", "millions"),
    [("tiny", True, 61.2), ("small", True, 139.3), ("medium", True, 322.1), ("medium", False, 373.6)],
)
def test_flavors_have_the_published_sizes(flavor: str, tied: bool, millions: float) -> None:
    args = FLAVORS[flavor].model_copy(update={"tie_embeddings": tied})
    assert args.num_parameters / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("flavor", sorted(FLAVORS))
@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"qk_norm": False}])
def test_counted_parameters_equal_the_module_s(flavor: str, changes: dict[str, bool]) -> None:
    args = FLAVORS[flavor].model_copy(update=changes)
    with torch.device("meta"):
        model = Transformer(args)
    assert sum(parameter.numel() for parameter in model.parameters()) == args.num_parameters


def test_flops_follow_the_named_formula() -> None:
    medium = FLAVORS["medium"]
    assert flops_per_token(medium, 2048) == 6 * medium.num_parameters + 12 * 24 * 1024 * 2048
    untied = medium.model_copy(update={"tie_embeddings": False})
    assert flops_per_token(untied, 2048) == flops_per_token(medium, 2048), "a lookup costs nothing"


def test_any_field_of_a_flavor_can_be_overridden() -> None:
    flags = ["--model.flavor", "medium", "--model.num_layers", "6", "--model.tie_embeddings", "false"]
    config = load_config([SOURCE, *flags, "--tokenizer.name", "gpt2"])
    args = model_args(config, get_model_spec("transformer"), 50257)
    expected = {"num_layers": 6, "tie_embeddings": False, "vocab_size": 50304, "num_tokens": 50257}
    assert args == FLAVORS["medium"].model_copy(update=expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_heads": 5}, "not a multiple of model.num_kv_heads"), ({"head_dim": 15}, "must be even")],
)
def test_impossible_architectures_are_refused(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TransformerArgs(**{**SMALL, **changes})


def test_initial_weights_depend_on_seed_and_name_alone() -> None:
    models = [Transformer(TransformerArgs(**{**SMALL, "num_layers": layers})) for layers in (2, 2, 3)]
    for model, seed in zip(models, (1, 2, 1), strict=True):
        model.init_weights(seed)
    first, other_seed, deeper = (model.state_dict() for model in models)
    name = "layers.1.self_attn.q_proj.weight"
    assert torch.equal(first[name], deeper[name])
    assert not torch.equal(first[name], other_seed[name])
    assert not torch.equal(first[name], first["layers.0.self_attn.q_proj.weight"])
    again = Transformer(TransformerArgs(**SMALL))
    torch.manual_seed(99)
    again.init_weights(1)
    assert all(torch.equal(first[key], again.state_dict()[key]) for key in first)


def test_initial_weights_are_those_of_the_formula_on_every_torch() -> None:
    """Derived without torch: uniform numbers of the Mersenne twister, through the normal distribution's inverse."""
    name, std, normal = "layers.1.self_attn.q_proj.weight", 0.02, NormalDist()
    model = Transformer(TransformerArgs(**SMALL))
    model.init_weights(1)
    seed = int.from_bytes(hashlib.blake2b(f"1/{name}".encode(), digest_size=8).digest(), "little") >> 1
    words = numpy.random.RandomState(seed & 0xFFFFFFFF).randint(0, 2**32, 2 * 500, dtype=numpy.uint64).reshape(-1, 2)
    uniform = [((int(high) << 32 | int(low)) & (2**53 - 1)) / 2**53 for high, low in words]
    lowest = normal.cdf(-3.0)
    expected = [std * normal.inv_cdf(lowest + share * (1 - 2 * lowest)) for share in uniform]
    assert torch.equal(model.state_dict()[name].view(-1)[:500], torch.tensor(expected, dtype=torch.float32))


def test_initial_weights_are_scaled_by_depth() -> None:
    args = TransformerArgs(**{**SMALL, "hidden_size": 256, "num_layers": 8})
    model = Transformer(args)
    model.init_weights(0)
    state = model.state_dict()
    assert state["layers.0.mlp.up_proj.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert state[f"layers.3.{name}.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert torch.all(state["norm.weight"] == 1)


def test_every_kernel_of_this_device_gives_the_same() -> None:
    available = available_backends("cpu", torch.float32, 16)
    assert {"flash", "math"} <= set(available)
    outputs = []
    for backend in ("auto", *available):
        model = Transformer(TransformerArgs(**SMALL), sdpa_backend=backend)
        model.init_weights(0)
        outputs.append(model(torch.arange(20)[None]))
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=1e-4, atol=1e-5)


def test_a_kernel_the_device_lacks_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"sdpa_backend = 'cudnn': .* has flash, math"):
        check_backend("cudnn", "cpu", torch.float32, 16)


def test_unused_kernels_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("parallelize", "kernels"):
        monkeypatch.setattr(f"titan_pt.models.transformer.{module}.uses_flex", lambda _device: True)
    config = write_toml(tmp_path, training={"steps": 1})
    for flags in (["--model.sdpa_backend=math"], ["--training.document_mask"]):
        assert train_here(config, *flags) == 0
        assert "has no effect" not in capsys.readouterr().err
    assert train_here(config, "--model.sdpa_backend=math", "--training.document_mask", "--training.steps=2") == 0
    assert capsys.readouterr().err.count("model.sdpa_backend = 'math': has no effect on training with") == 1


def test_document_masks_equal_a_hand_made_one() -> None:
    mask = document_mask(torch.tensor([[0, 1, 0, 1, 2]]))
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert isinstance(mask, torch.Tensor) and mask[0, 0].int().tolist() == expected


def test_segments_of_a_document_see_its_beginning_and_themselves() -> None:
    mask = document_mask(torch.tensor([[0, 1, 2, 2, 3, 0, 1]]), torch.tensor([[0, 0, 1, 2, 2, 0, 1]]))
    expected = ["1......", "11.....", "111....", "11.1...", "11.11..", ".....1.", ".....11"]
    assert isinstance(mask, torch.Tensor)
    assert ["".join("1" if seen else "." for seen in row) for row in mask[0, 0].tolist()] == expected


@pytest.mark.parametrize("has_segments", [False, True])
def test_flex_attention_equals_the_masked_kernel(monkeypatch: pytest.MonkeyPatch, has_segments: bool) -> None:
    """The path of CUDA devices, uncompiled and forward alone, as a CPU has it."""
    model = Transformer(TransformerArgs(**SMALL), document_mask=True).requires_grad_(False)
    model.init_weights(0)
    tokens = torch.randint(0, 96, (2, 256), generator=torch.Generator().manual_seed(0))
    positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in ((100, 28, 128), (1, 255))])
    parts = (positions // 40) * (positions < 120) if has_segments else None
    expected = model(tokens, positions, segments_BL=parts)
    assert torch.equal(expected, model(tokens, positions)) != has_segments
    monkeypatch.setattr(attention, "uses_flex", lambda _device: True)
    torch.compiler.set_stance("force_eager")
    try:
        assert isinstance(document_mask(positions, parts), FlexMask)
        torch.testing.assert_close(model(tokens, positions, segments_BL=parts), expected, rtol=1e-5, atol=2e-6)
    finally:
        torch.compiler.set_stance("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_document_mask_on_a_gpu_equals_the_cpu() -> None:
    model = Transformer(TransformerArgs(**{**SMALL, "head_dim": 64}), document_mask=True)
    model.init_weights(0)
    tokens = torch.randint(0, 96, (2, 256))
    positions = torch.cat([torch.arange(n) for n in (100, 28, 128)]).expand(2, -1)
    expected = model(tokens, positions)
    result = model.to("cuda")(tokens.to("cuda"), positions.to("cuda")).cpu()
    torch.testing.assert_close(result, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("length", "exact"), [(64, True), (SHORT_ROW - 1, True), (SHORT_ROW, False)])
@pytest.mark.parametrize("masked", [False, True])
def test_short_rows_in_bfloat16_are_attended_to_in_float32_on_a_cpu(length: int, exact: bool, masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, n, length, 32, generator=generator).bfloat16().requires_grad_() for n in (4, 2, 2)]
    mask = document_mask(torch.arange(length).expand(2, -1) % 40) if masked else None
    out = attend(*heads, mask, "auto")
    whole = F.scaled_dot_product_attention(
        *(head.float() for head in heads), attn_mask=mask, is_causal=not masked, enable_gqa=True
    )
    assert out.dtype == torch.bfloat16 and torch.equal(out, whole.bfloat16()) == exact
    weight = torch.randn(out.shape, generator=generator).bfloat16()
    found, expected = (
        torch.autograd.grad(result, heads, grad) for result, grad in ((out, weight), (whole, weight.float()))
    )
    assert all(map(torch.equal, found, expected)) == exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_keeps_two_of_three_tensors_and_its_gradients_are_autograd_s_to_the_bit(dtype: torch.dtype) -> None:
    gate, up, weight = (torch.randn(8, 96, dtype=dtype, requires_grad=True) for _ in range(3))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        out = SiluTimes.apply(gate, up)
    assert [tensor.data_ptr() for tensor in kept] == [gate.data_ptr(), up.data_ptr()]
    plain = torch.nn.functional.silu(gate) * up
    assert torch.equal(out, plain)
    found, expected = (torch.autograd.grad(result, (gate, up), weight) for result in (out, plain))
    assert all(map(torch.equal, found, expected))
