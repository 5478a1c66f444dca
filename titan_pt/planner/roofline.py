"""The time of a traced step on a card: each kernel at the card's rate for its shape, or at its memory's bandwidth.

Rates come from published measurements or are estimates, and each card says which. What `benchmarks/gpu` prints on a
card replaces them: its `layer` rows are `products`, its `copy` is `copy`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from titan_pt.components.accelerators import Accelerator
from titan_pt.planner.operations import Kernel, Operations

# Time of the host for one kernel that no graph replays.
LAUNCH_SECONDS = 8e-6


@dataclass(frozen=True)
class CardRates:
    """What a card reaches in bfloat16."""

    source: str
    """Where the rates come from."""
    products: Mapping[tuple[int, int], float]
    """TFLOP/s of matrix products by the two smallest of their three sides; the nearest entry counts."""
    attention: Mapping[int, tuple[float, float]]
    """TFLOP/s of causal attention by head dim, forward and backward, where the masked half is not counted."""
    copy: float
    """GB/s of a copy, read and written."""
    link: float = math.inf
    """GB/s that a GPU sends to others of its node while it receives as many."""
    network: float = math.inf
    """The same between nodes, of each GPU."""


# Large products: stas00/ml-engineering, "maximum achievable matmul FLOPS" (268 on an A100, 792 on an H100 at their best
# shape); attention: after FlashAttention-2 and -3 (2307.08691, 2407.08608), causal, 2,048 tokens, kernel of version 2.
# What small sides cost, and the rest, are estimates.
_A100 = CardRates(
    source="published rates and estimates",
    products={(256, 1024): 172, (1024, 1024): 231, (1024, 2816): 250, (2048, 2048): 256, (4096, 4096): 265},
    attention={64: (144, 125), 128: (172, 150)},
    copy=1750,
    link=230,
    network=23,
)
_H100 = CardRates(
    source="published rates and estimates",
    products={(256, 1024): 415, (1024, 1024): 564, (1024, 2816): 653, (2048, 2048): 692, (4096, 4096): 742},
    attention={64: (307, 267), 128: (376, 316)},
    copy=2950,
    link=360,
    network=45,
)
_CARDS = {
    "a100-80gb": _A100,
    "a100-40gb": replace(_A100, copy=1340),
    "h100-80gb": _H100,
    "h200": replace(_H100, copy=4200),
}


@dataclass(frozen=True)
class StepTime:
    """Seconds of one GPU in a step, by what takes them."""

    products: float
    """Matrix products of all micro-batches."""
    attention: float
    other: float
    """All other kernels of forward and backward."""
    launches: float
    """What the host needs for the kernels beyond the time that they run; 0 where they are large."""
    communication: float
    """What is left of the collectives behind the kernels."""
    update: float
    """The optimizer's step; its collectives hide behind nothing."""

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.products + self.attention + self.other + self.launches + self.communication + self.update


def known_rates(gpu: Accelerator) -> CardRates | None:
    """The rates of a card; None if they are not known."""
    return _CARDS.get(gpu.name)


def data_sheet(gpu: Accelerator) -> CardRates:
    """The rates that no card reaches: good for comparing ways of one run alone."""
    peak = _peak(torch.bfloat16, gpu) / 1e12
    return CardRates("data sheet", {(1, 1): peak}, {64: (peak, peak)}, gpu.bandwidth / 1e9)


def step_time(
    work: Operations, gpu: Accelerator, micro_batches: float, *, compiled: bool, sums_once: bool = False
) -> StepTime:
    """The time of so many micro-batches like the traced one, and of one update.

    Gathers and reductions run while other layers compute, as FSDP orders them.

    Args:
        compiled: kernels between two products are one, and are launched together.
        sums_once: weights are gathered and gradients summed once a step, not in every micro-batch.
    """
    rates = known_rates(gpu) or data_sheet(gpu)
    bandwidth = 1e9 * rates.copy
    seconds = {"product": 0.0, "attention": 0.0, "collective": 0.0}
    longest = 0.0
    for kernel, count in work.kernels.items():
        took = _kernel_seconds(kernel, gpu, rates)
        seconds[kernel.kind.split("_")[0]] += count * took
        longest = max(longest, took if kernel.kind == "collective" else 0.0)
    other = (work.fused_bytes if compiled else work.other_bytes) / bandwidth
    computing = seconds["product"] + seconds["attention"] + other
    hosts = LAUNCH_SECONDS * (work.fused_launches if compiled else work.launches)
    launches = max(0.0, hosts - computing)
    # The first gather and the last reduction have nothing to hide behind.
    waiting = max(seconds["collective"] - computing - launches, 2 * longest if seconds["collective"] else 0.0)
    return StepTime(
        products=micro_batches * seconds["product"],
        attention=micro_batches * seconds["attention"],
        other=micro_batches * other,
        launches=micro_batches * launches,
        communication=waiting if sums_once else micro_batches * waiting,
        update=work.update_bytes / bandwidth
        + sum(count * _kernel_seconds(kernel, gpu, rates) for kernel, count in work.update_kernels.items()),
    )


def _kernel_seconds(kernel: Kernel, gpu: Accelerator, rates: CardRates) -> float:
    if kernel.kind == "collective":
        return kernel.moved_bytes / 1e9 / (rates.link if kernel.sides[1] == 1 else rates.network)
    # Of another type than bfloat16: the same share of its own peak.
    rate = 1e12 * _rate(kernel, rates) * _peak(kernel.dtype, gpu) / _peak(torch.bfloat16, gpu)
    return max(kernel.flops / rate, kernel.moved_bytes / 1e9 / rates.copy)


def _rate(kernel: Kernel, rates: CardRates) -> float:
    if kernel.kind == "product":
        small, middle, _ = kernel.sides
        return rates.products[min(rates.products, key=lambda sides: _distance(sides, (small, middle)))]
    forward, backward = rates.attention[min(rates.attention, key=lambda dim: abs(dim - kernel.sides[0]))]
    return forward if kernel.kind == "attention" else backward


def _distance(sides: tuple[int, int], others: tuple[int, int]) -> float:
    return sum(abs(math.log(side / max(1, other))) for side, other in zip(sides, others, strict=True))


def _peak(dtype: torch.dtype, gpu: Accelerator) -> float:
    """Operations a second; products in 8 bits take half the time of those in 16."""
    half = gpu.flops.get("bfloat16") or gpu.flops["float32"]
    if dtype.itemsize == 1:
        return 2 * half
    return half if dtype.itemsize == 2 else gpu.flops.get("float32", half)
