"""One rank without FSDP2 against FSDP2 on one rank: the same numbers, to the bit."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from titan_pt.components.loss import ChunkedCrossEntropy
from titan_pt.config import load_config
from titan_pt.distributed.fsdp import shard
from titan_pt.distributed.world import World, lone_world
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.models.transformer.parallelize import parallelize

FLAGS = ("--tokenizer.name=byte", '--data.sources=[{name="arithmetic"}]', "--compile.backend=aot_eager")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with lone_world() as world:
        yield world


def gradients(model: torch.nn.Module, micro_batches: int = 2) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of some micro-batches of packed documents, and the sums of their gradients."""
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(micro_batches):
        tokens, targets = torch.randint(0, 300, (2, 2, 24), generator=generator)
        positions = torch.arange(24).remainder(9).expand(2, 24)
        found = model(tokens, positions, ChunkedCrossEntropy(1e-4).head(targets))
        (found.total / 96).backward()
        losses.append(found.total.item())
    whole = {
        name.replace("_checkpoint_wrapped_module.", ""): grad.full_tensor() if isinstance(grad, DTensor) else grad
        for name, parameter in model.named_parameters()
        if (grad := parameter.grad) is not None
    }
    return losses, whole


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "flags",
    [
        ("--training.mixed_precision_param=bfloat16", "--activation_checkpoint.mode=none"),
        ("--training.mixed_precision_param=bfloat16", "--activation_checkpoint.mode=full"),
        ("--training.mixed_precision_param=bfloat16", "--compile.enable=true", "--activation_checkpoint.mode=none"),
        ("--training.mixed_precision_param=float32", "--activation_checkpoint.selective_ac_option=op"),
    ],
)
def test_one_rank_computes_what_fsdp_computes(world: World, flags: tuple[str, ...], tied: bool) -> None:
    config = load_config([*FLAGS, *flags])
    args = TransformerArgs(
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=48,
        vocab_size=320,
        num_tokens=None,
        tie_embeddings=tied,
    )
    plain = Transformer(args, document_mask=True)
    plain.init_weights(0)
    sharded = copy.deepcopy(plain)
    shard(sharded, sharded.layers, config, world)
    assert isinstance(sharded, FSDPModule)
    plain = parallelize(plain, config, world)
    assert not isinstance(plain, FSDPModule)

    expected, found = gradients(sharded), gradients(plain)
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.dtype == found[1][name].dtype == torch.float32
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, found[1][name]), name
