"""The model "window". A ModelSpec is a dataclass of functions; its arguments are keys of [model]."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from titan_pt.config.schema.job_config import JobConfig, Section
from titan_pt.distributed.fsdp import shard
from titan_pt.distributed.init import fill_keyed
from titan_pt.distributed.world import World
from titan_pt.protocols.model_spec import ModelSpec, register_model_spec


class WindowArgs(Section):
    vocab_size: int = 64
    """Set from the tokenizer."""
    width: int = 32
    """Width of an embedding."""
    window: int = 6
    """Tokens that a prediction is made of."""


class Window(nn.Module):
    """Predicts a token from the embeddings of the last few. B batch, L sequence, D model dim, V vocabulary."""

    def __init__(self, args: WindowArgs) -> None:
        super().__init__()
        self.window = args.window
        self.embed = nn.Embedding(args.vocab_size, args.width)
        self.layers = nn.ModuleList([nn.Linear(args.window * args.width, 4 * args.width)])
        self.narrow = nn.Linear(4 * args.width, args.width)
        self.output = nn.Linear(args.width, args.vocab_size, bias=False)

    def forward(
        self,
        tokens_BL: torch.Tensor,
        positions_BL: torch.Tensor | None = None,
        head: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Logits, or what `head` makes of the last hidden states and the weight that gives the logits."""
        embedded_BLD = self.embed(tokens_BL)
        padded = F.pad(embedded_BLD, (0, 0, self.window - 1, 0))
        recent = torch.cat([padded[:, i : i + tokens_BL.shape[1]] for i in range(self.window)], dim=-1)
        hidden_BLD = self.narrow(F.relu(self.layers[0](recent)))
        return (head or F.linear)(hidden_BLD, self.output.weight)

    def init_weights(self, seed: int) -> None:
        """The same numbers on any number of ranks."""
        fill_keyed(self, seed, lambda _name, full, generator: full.normal_(std=0.05, generator=generator))


def parallelize(model: nn.Module, config: JobConfig, world: World) -> nn.Module:
    """Shard the layers and the rest over the ranks (FSDP2)."""
    shard(model, model.layers, config, world)
    return model


def flops_per_token(args: WindowArgs, _seq_len: int) -> float:
    """Six for each weight of the matrices, for the progress line."""
    return 6.0 * args.width * (4 * args.window * args.width + 4 * args.width + args.vocab_size)


register_model_spec(
    ModelSpec(
        name="window",
        args_type=WindowArgs,
        flavors={"small": WindowArgs(), "wide": WindowArgs(width=128, window=12)},
        build=lambda args, _config: Window(args),
        parallelize=parallelize,
        flops_per_token=flops_per_token,
    )
)
