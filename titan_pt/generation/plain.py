"""An engine for any model: it reads the whole text again for each token, for it knows no cache of keys and values.

Legend: R rows (prompt x sample), L tokens, D model dim, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from titan_pt.generation.decode import OutputLayer
from titan_pt.generation.engine import Completion, GenerationStopped, NonFiniteLogits, check_prompts
from titan_pt.generation.sampling import Sampling, sample, uniform
from titan_pt.models.keyed_noise import row_key


class PlainEngine:
    """A `RolloutEngine` for models of one's own. The noise is keyed as the native engine's.

    Args:
        model: has `args`, `output_weight` and the forward of `ModelSpec`.
        stop_ids: tokens that end a completion.
        max_rows: most rows read together; more are done in turns.
    """

    def __init__(
        self,
        model: Any,
        stop_ids: Sequence[int],
        max_rows: int = 1024,
        *,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model, self._output, self._stop_ids = model, OutputLayer(model), frozenset(stop_ids)
        self._max_rows, self._stop_requested = max_rows, stop_requested

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        n: int,
        prompt_ids: Sequence[int] | None = None,
        watch: Callable[[list[list[int]]], None] | None = None,
    ) -> list[Completion]:
        """Sample `n` completions of each prompt, in the order of the prompts; arguments as of `NativeEngine`."""
        check_prompts(prompts, sampling, self._model.args.max_seq_len)
        ids = range(len(prompts)) if prompt_ids is None else prompt_ids
        rows = [
            (number, list(prompt), row_key(sampling.seed, sampling.step, prompt_id, i))
            for number, (prompt, prompt_id) in enumerate(zip(prompts, ids, strict=True))
            for i in range(n)
        ]
        return [
            completion
            for start in range(0, len(rows), self._max_rows)
            for completion in self._turn(rows[start : start + self._max_rows], sampling, watch)
        ]

    def sync_weights(self, model: torch.nn.Module) -> None:
        """Nothing to copy: the engine reads the model itself."""

    def _turn(self, rows: list[tuple[int, list[int], int]], sampling: Sampling, watch: Any) -> list[Completion]:
        drawn: list[list[int]] = [[] for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        alive = list(range(len(rows)))
        for position in range(sampling.max_new_tokens):
            if self._stop_requested():
                raise GenerationStopped
            token_R, logprob_R = self._draw([(*rows[i][1], *drawn[i]) for i in alive], [rows[i][2] for i in alive],
                                            position, sampling)  # fmt: skip
            for i, token, logprob in zip(alive, token_R, logprob_R, strict=True):
                if not torch.tensor(logprob).isfinite():
                    raise NonFiniteLogits(f"prompt {rows[i][0] + 1}, token {position + 1} of its completion")
                drawn[i].append(token)
                logprobs[i].append(logprob)
            if watch:
                watch(drawn)
            alive = [i for i in alive if drawn[i][-1] not in self._stop_ids]
            if not alive:
                break
        return [
            Completion(number, drawn[i], logprobs[i], "stop" if drawn[i][-1] in self._stop_ids else "length")
            for i, (number, _, _) in enumerate(rows)
        ]

    def _draw(
        self, texts: list[tuple[int, ...]], keys: list[int], position: int, sampling: Sampling
    ) -> tuple[list[int], list[float]]:
        """The next token of each text and its log-probability. Padding is on the right: a causal model sees none."""
        device, longest = self._model.output_weight.device, max(map(len, texts))
        tokens_RL = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
        last_R = torch.tensor([len(text) - 1 for text in texts], device=device)
        row_R = torch.arange(len(texts), device=device)
        hidden_RD = self._model(tokens_RL, None, lambda hidden_RLD, _: hidden_RLD[row_R, last_R])
        noise_R = uniform(torch.tensor(keys, device=device), torch.tensor([position], device=device))
        parts = zip(self._output(hidden_RD), noise_R.split(self._output.rows), strict=True)
        drawn = [sample(logits_RV, noise_R, sampling) for logits_RV, noise_R in parts]
        return torch.cat([token for token, _ in drawn]).tolist(), torch.cat([p for _, p in drawn]).tolist()
