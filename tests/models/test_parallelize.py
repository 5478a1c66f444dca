"""One rank without FSDP2 against FSDP2 on one rank, to the bit; the collectives of FSDP2 on two."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor

from titan_pt.components.loss import ChunkedCrossEntropy
from titan_pt.config import load_config
from titan_pt.distributed.dry_run_world import dry_run_world
from titan_pt.distributed.fsdp import shard
from titan_pt.distributed.lone_world import lone_world
from titan_pt.distributed.world import World, sum_over_ranks
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.models.transformer.parallelize import parallelize

FLAGS = ("--tokenizer.name=byte", '--data.sources=[{name="arithmetic"}]', "--compile.backend=aot_eager")

SMALL = TransformerArgs(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=48,
    vocab_size=320,
    num_tokens=None,
)


@pytest.mark.parametrize(
    ("reshard", "gathers", "reductions"),
    [
        # Three units: both blocks and the rest. A gather of each in the first forward, and sums in the last backward.
        ("never", 3, 3),
        ("default", 3, 3),  # small
        # The first block's weights are freed after its forward, and gathered again for its backward.
        ("always", 4 * 4, 4 * 3),
    ],
)
def test_collectives_of_a_step_of_four_micro_batches(
    reshard: str, gathers: int, reductions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([*FLAGS, f"--parallelism.fsdp_reshard_after_forward={reshard}"])
    counts: Counter[type] = Counter()
    for kind in (DefaultAllGather, DefaultReduceScatter):
        monkeypatch.setattr(kind, "__call__", counted(kind.__call__, kind, counts))
    with dry_run_world(config, 2) as world:
        model = Transformer(SMALL)
        shard(model, model.layers, config, world)
        for i in range(4):
            sum_over_ranks(model, last=i == 3)
            tokens = torch.zeros(1, 8, dtype=torch.long)
            model(tokens, None, ChunkedCrossEntropy().head(tokens)).total.backward()
    assert (counts[DefaultAllGather], counts[DefaultReduceScatter]) == (gathers, reductions)


def counted(function: Callable[..., Any], kind: type, counts: Counter[type]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        counts[kind] += 1
        return function(*args, **kwargs)

    return call


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
    args = SMALL.model_copy(update={"tie_embeddings": tied})
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
