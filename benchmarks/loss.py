"""Cross-entropy of the output layer: our chunks against torch's, chunked and not. `python benchmarks/loss.py`

Variants alternate inside each repetition, so that a noisy machine disturbs all alike; medians with minimum and maximum.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from titan_pt.components.loss import ChunkedCrossEntropy

TOKENS, HIDDEN, VOCAB, REPETITIONS = 2048, 1024, 50304, 5

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The chunked loss of this project."""
    return ChunkedCrossEntropy().head(targets[None])(hidden[None], weight).total


def library_chunked(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of torch, in chunks."""
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)


def library_full(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The reference loss of torch, which holds all logits."""
    return F.linear_cross_entropy(hidden, weight, targets, reduction="sum")


def main() -> None:
    """Print a Markdown table."""
    losses: dict[str, Loss] = {
        "ours": ours,
        "linear_cross_entropy, chunked": library_chunked,
        "linear_cross_entropy, all logits": library_full,
    }
    print("| type | loss | seconds: median (min - max) | ratio to ours | error |")
    print("|---|---|---|---|---|")
    for dtype in (torch.bfloat16, torch.float32):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
        weight = (0.02 * torch.randn(VOCAB, HIDDEN, generator=generator)).to(dtype).requires_grad_()
        targets = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
        with torch.no_grad():
            exact = F.cross_entropy(hidden.float() @ weight.float().T, targets, reduction="sum").item()
        seconds: dict[str, list[float]] = {name: [] for name in losses}
        errors: dict[str, float] = {}
        for repetition in range(REPETITIONS + 1):
            for name, loss in losses.items():
                hidden.grad = weight.grad = None
                start = time.perf_counter()
                total = loss(hidden, weight, targets)
                total.backward()
                if repetition:  # the first one warms up
                    seconds[name].append(time.perf_counter() - start)
                errors[name] = total.item() / exact - 1
        base = statistics.median(seconds["ours"])
        for name, times in seconds.items():
            median = statistics.median(times)
            spread = f"{median:.2f} ({min(times):.2f} - {max(times):.2f})"
            print(f"| {dtype} | {name} | {spread} | {median / base:.2f} | {errors[name]:+.1e} |")


if __name__ == "__main__":
    main()
