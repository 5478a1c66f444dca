"""Completions of several turns on one cache: rows that end a turn wait for an answer, which is read behind it.

A round decodes until each row that has the word has ended its turn; then those that were answered go on. Noise, limits
and positions are of each row alone, so that neither the rounds nor the rows beside it change what it draws.

Legend: R rows, L tokens of an answer, D model dim.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from titan_pt.generation.decode import PREFILL_TOKENS, round_up, row_count
from titan_pt.generation.engine import Completion, FinishReason, NonFiniteLogits, Partner
from titan_pt.generation.sampling import Sampling
from titan_pt.models.transformer.cache import forward_cached
from titan_pt.run.progress import reached

if TYPE_CHECKING:
    from titan_pt.generation.native import NativeEngine, Request


class Rounds:
    """Conversations with a partner that are decoded together.

    Args:
        before: number of the first one in the request of the engine.
    """

    def __init__(
        self, engine: "NativeEngine", requests: Sequence["Request"], sampling: Sampling, partner: Partner, before: int
    ) -> None:
        self._engine, self._requests, self._sampling, self._partner = engine, requests, sampling, partner
        self._before = before
        self._size = row_count(len(requests))
        longest = max(len(request.tokens) for request in requests)
        self._slots = round_up(longest + partner.max_tokens, engine.decoder.span)
        self._room = engine.decoder.room(self._size, self._slots, partner.max_tokens)
        self._all = self._room.first(self._size, self._slots)
        self._turns: list[list[tuple[int, int]]] = [[] for _ in requests]
        """(first token, end) of each turn that is over, by completion."""
        self._begins = dict.fromkeys(range(len(requests)), 0)
        """First token of the turn that each completion is in."""

    def completions(self) -> list[Completion]:
        """Hold the conversations."""
        limit = min(self._sampling.max_new_tokens, self._partner.max_tokens)
        hidden_RD = self._engine.read(self._requests, self._all, limit)
        self._engine.decoder.draw(hidden_RD, self._all, self._sampling)
        self._decode()
        while answers := self._partner.answers():
            self._go_on(answers)
            self._decode()
        return [self._completion(place) for place in range(len(self._requests))]

    def _decode(self) -> None:
        """Decode until no row has the word, and tell the partner of each turn that ends."""
        rows, engine = self._all, self._engine
        while True:
            engine.raise_if_stopped()
            view = rows.first(self._size, self._slots)
            state = torch.stack([view.alive_R, view.place_R, view.drawn_R, view.start_R, view.limit_R], dim=1).tolist()
            ended = [(place, drawn, drawn < limit) for alive, place, drawn, _, limit in state if not alive]
            self._tell([turn for turn in ended if turn[0] in self._begins])
            going = sum(alive for alive, *_ in state)
            reached(self._before + len(self._requests) - going)
            if not going:
                return
            if row_count(going) < self._size:
                self._size = row_count(going)
                view.bring_forward(self._size)
            newest = max(start + drawn for _, _, drawn, start, _ in state)
            slots = round_up(newest + 1 + engine.stride, engine.decoder.span)
            view = rows.first(self._size, min(self._slots, slots))
            for _ in range(engine.stride):
                engine.decoder.step(view, self._sampling)
            engine.stats.row_steps += engine.stride * self._size
            engine.stats.dead_row_steps += engine.stride * self._size

    def _tell(self, ended: Sequence[tuple[int, int, bool]]) -> None:
        """Tell the partner of turns: (completion, end, whether the limit has room for more tokens)."""
        written = self._room.tokens_CT[[place for place, _, _ in ended]].tolist() if ended else []
        for (place, end, has_room), tokens in sorted(zip(ended, written, strict=True)):
            begin = self._begins.pop(place)
            turn = tokens[begin:end]
            stopped = bool(turn) and turn[-1] in self._engine.stop_ids
            if has_room and not stopped:
                raise NonFiniteLogits(f"prompt {self._requests[place].prompt + 1}, token {end + 1} of its completion")
            self._turns[place].append((begin, end))
            self._partner.hear(self._before + place, turn, ended=stopped)

    def _go_on(self, answers: Sequence[tuple[int, list[int]]]) -> None:
        """Read answers behind what their rows drew, and draw the first tokens of the next turns."""
        rows, most = self._all, self._partner.max_tokens
        row_of = {place: row for row, place in enumerate(rows.place_R.tolist())}
        new: dict[int, list[int]] = {}
        for number, answer in answers:
            place = number - self._before
            end = self._turns[place][-1][1]
            begin = self._begins[place] = end + len(answer)
            new[place] = [int(rows.tokens_CT[place, end - 1]), *answer]
            row = row_of[place]
            rows.tokens_CT[place, end:begin] = torch.tensor(answer, dtype=torch.long, device=rows.tokens_CT.device)
            rows.logprobs_CT[place, end:begin] = 0.0
            rows.alive_R[row] = True
            rows.limit_R[row] = min(begin + self._sampling.max_new_tokens, most)
        self._engine.stats.prefill_tokens += sum(map(len, new.values()))
        self._size = row_count(len(new))
        rows.bring_forward(self._size)
        view = rows.first(self._size, self._slots)
        # A row without an answer reads at the place of its newest token, which is not in the cache: nothing is lost.
        tokens = [new.get(place, [0]) for place in view.place_R.tolist()]
        hidden_RD = self._read(tokens, (view.start_R + view.drawn_R).tolist())
        view.drawn_R.add_(torch.tensor([len(row) - 1 for row in tokens], device=view.drawn_R.device))
        self._engine.decoder.draw(hidden_RD, view, self._sampling)

    def _read(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> torch.Tensor:
        """Read tokens of the first rows into the cache, from these positions on; returns each row's last hidden_RD.

        The padding repeats a row's last token at its place, so that no other slot is written.
        """
        engine, device = self._engine, self._all.token_R.device
        together = max(1, PREFILL_TOKENS // max(map(len, tokens)))
        hidden = []
        for first in range(0, len(tokens), together):
            engine.raise_if_stopped()
            part, begins = tokens[first : first + together], starts[first : first + together]
            longest = max(map(len, part))
            end = max(begin + len(row) for begin, row in zip(begins, part, strict=True))
            slots = min(self._slots, round_up(end, engine.decoder.span))
            last_R = torch.tensor([len(row) - 1 for row in part], device=device)
            tokens_RL = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in part], device=device)
            steps_RL = torch.minimum(torch.arange(longest, device=device)[None], last_R[:, None])
            positions_RL = torch.tensor(begins, device=device)[:, None] + steps_RL
            cache = self._all.cache.view(slice(first, first + len(part)), slots)
            hidden_RLD = forward_cached(engine.model, tokens_RL, positions_RL, cache, lambda hidden, _: hidden)
            hidden.append(hidden_RLD[torch.arange(len(part), device=device), last_R])
        return torch.cat(hidden)

    def _completion(self, place: int) -> Completion:
        end = self._turns[place][-1][1]
        sampled = [False] * end
        for first, last in self._turns[place]:
            sampled[first:last] = [True] * (last - first)
        tokens, logprobs = self._room.tokens_CT[place, :end].tolist(), self._room.logprobs_CT[place, :end].tolist()
        self._engine.stats.dead_row_steps -= sum(sampled) - len(self._turns[place])
        reason: FinishReason = "stop" if tokens[-1] in self._engine.stop_ids else "length"
        return Completion(self._requests[place].prompt, tokens, logprobs, reason, tuple(sampled))
