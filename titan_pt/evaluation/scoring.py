"""Log-likelihoods of given continuations, by an unsharded model on one device.

Legend: B rows, L tokens, D model dim, V vocabulary, T scored tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from titan_pt.generation.decode import OutputLayer
from titan_pt.generation.engine import NonFiniteLogits
from titan_pt.models.transformer.model import Transformer
from titan_pt.run.progress import more

# Most tokens of one forward, padding included; a longer row goes alone.
_BATCH_TOKENS = 2**14


@dataclass(frozen=True)
class Likelihood:
    """Log-probability of one continuation."""

    logprob: float
    """Sum over the continuation's tokens, in nats."""
    is_greedy: bool
    """Whether each token of the continuation is the likeliest one."""


@dataclass(frozen=True)
class _Wanted:
    """One continuation to score at the end of a row."""

    number: int
    tokens: Sequence[int]


@torch.no_grad()
def likelihoods(model: Transformer, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
    """The likelihood of each continuation after its context, in order; neither may be empty.

    Equal rows of input, as of the answers " A" and " B" to one question, are read once. A context that is too long
    loses its beginning. The output layer is computed in float32, as the engine's.

    Raises:
        ValueError: an empty context or continuation, or a continuation longer than the model reads.
        NonFiniteLogits: the model gives no distribution.
    """
    rows: dict[tuple[int, ...], list[_Wanted]] = {}
    for number, (context, continuation) in enumerate(pairs):
        row = _row(context, continuation, model.args.max_seq_len, number)
        rows.setdefault(row, []).append(_Wanted(number, continuation))
    output = OutputLayer(model)
    found: dict[int, Likelihood] = {}
    for batch in _batches(sorted(rows, key=len, reverse=True)):
        read = _read(model, output, batch, [rows[row] for row in batch])
        found |= read
        more(len(read))
    return [found[number] for number in range(len(pairs))]


def _row(context: Sequence[int], continuation: Sequence[int], longest: int, number: int) -> tuple[int, ...]:
    if not context or not continuation:
        raise ValueError(f"pair {number}: context and continuation need a token each")
    if len(continuation) > longest:
        raise ValueError(f"pair {number}: a continuation of {len(continuation)} tokens; the model reads {longest}")
    return tuple([*context, *continuation][:-1][-longest:])


def _batches(rows: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
    """Yield rows of similar length together; they are sorted by length, the longest first."""
    start = 0
    while start < len(rows):
        count = max(1, _BATCH_TOKENS // len(rows[start]))
        yield rows[start : start + count]
        start += count


def _read(
    model: Transformer, output: OutputLayer, rows: Sequence[tuple[int, ...]], wanted: Sequence[Sequence[_Wanted]]
) -> dict[int, Likelihood]:
    """Likelihoods by number, from one forward. The padding is on the right, where a causal model does not see it."""
    longest, device = len(rows[0]), model.output_weight.device
    tokens_BL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    places = [
        (b * longest + len(row) - len(want.tokens) + i, token)
        for b, row in enumerate(rows)
        for want in wanted[b]
        for i, token in enumerate(want.tokens)
    ]
    place_T, token_T = torch.tensor(places, device=device).T
    hidden_TD = model(tokens_BL, None, lambda hidden_BLD, _: hidden_BLD.flatten(0, 1)[place_T])
    logprobs, greedy = _score(output, hidden_TD, token_T)
    found, at = {}, 0
    for want in (want for wants in wanted for want in wants):
        span = slice(at, at + len(want.tokens))
        if any(map(math.isnan, logprobs[span])):
            raise NonFiniteLogits(f"scored text {want.number + 1}")
        found[want.number] = Likelihood(sum(logprobs[span]), all(greedy[span]))
        at = span.stop
    return found


def _score(output: OutputLayer, hidden_TD: torch.Tensor, token_T: torch.Tensor) -> tuple[list[float], list[bool]]:
    """(log-probability, whether it is the likeliest) of each token, without holding all logits at once."""
    logprobs, greedy = [], []
    for logits_TV, token in zip(output(hidden_TD), token_T.split(output.rows), strict=True):
        logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
        logprobs.append(logprobs_TV.gather(-1, token[:, None])[:, 0])
        greedy.append(logprobs_TV.argmax(dim=-1) == token)
    return torch.cat(logprobs).tolist(), torch.cat(greedy).tolist()
