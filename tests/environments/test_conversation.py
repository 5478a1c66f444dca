"""Conversations of the native engine: one cache, tokens that are exact, and no row that depends on another."""

from collections.abc import Sequence

import pytest
import torch
from engine_helpers import ARGS, PROMPTS, make_model

from titan_pt.generation.engine import Completion
from titan_pt.generation.native import NativeEngine
from titan_pt.generation.sampling import Sampling
from titan_pt.models.transformer import Transformer
from titan_pt.trainers.grpo.logprobs import logprob_head

STOPS = list(range(0, 50, 5))
SAMPLING, N = Sampling(12, seed=3, step=2), 4


class Script:
    """A partner whose answers are a function of what it hears; some come a round late."""

    max_tokens = 60

    def __init__(self, late: Sequence[int] = (), turns: int = 4) -> None:
        self.heard: dict[int, list[tuple[int, ...]]] = {}
        self.lengths: dict[int, int] = {}
        self.read = 0
        self._late, self._turns = set(late), turns
        self._waiting: list[tuple[int, list[int]]] = []
        self._kept: list[tuple[int, list[int]]] = []

    def hear(self, number: int, tokens: Sequence[int], *, ended: bool) -> None:
        assert ended == (tokens[-1] in STOPS)
        turns = self.heard.setdefault(number, [])
        turns.append(tuple(tokens))
        answer = [11, *range(20, 20 + len(tokens) % 5), 12]
        length = self.lengths.get(number, 0) + len(tokens)
        if ended and len(turns) < self._turns and length + len(answer) < self.max_tokens:
            self.lengths[number] = length + len(answer)
            (self._kept if number in self._late else self._waiting).append((number, answer))

    def answers(self) -> list[tuple[int, list[int]]]:
        ready, self._waiting = self._waiting or self._kept, []
        if ready is self._kept:
            self._kept = []
        self.read += sum(1 + len(answer) for _, answer in ready)
        return sorted(ready)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return make_model()


def converse(engine: NativeEngine, partner: Script, order: Sequence[int] = range(len(PROMPTS))) -> list[Completion]:
    return engine.converse([PROMPTS[i] for i in order], SAMPLING, N, list(order), partner)


def test_a_conversation_goes_on_on_the_same_cache(model: Transformer) -> None:
    engine, partner = NativeEngine(model, STOPS), Script()
    completions = converse(engine, partner)
    different = {tuple(prompt) for prompt in PROMPTS}
    padded = len(different) * max(map(len, different))
    assert engine.stats.prefill_tokens == padded + partner.read, "nothing is read twice"
    assert 0 <= engine.stats.dead_row_steps < engine.stats.row_steps
    assert max(len(turns) for turns in partner.heard.values()) == 4
    for number, completion in enumerate(completions):
        drawn = [token for token, own in zip(completion.token_ids, completion.sampled, strict=True) if own]
        assert drawn == [token for turn in partner.heard[number] for token in turn]
        assert completion.sampled[-1] and len(completion.token_ids) <= partner.max_tokens
        # What was drawn had the probabilities of a forward over the whole episode, without any cache.
        prompt = PROMPTS[completion.prompt]
        tokens = torch.tensor([[*prompt, *completion.token_ids]])
        with torch.no_grad():
            head = logprob_head(tokens[:, 1:], temperature=1.0, num_tokens=ARGS.num_tokens)
            expected = model(tokens[:, :-1], None, head).logprobs_BL[0, len(prompt) - 1 :]
        own = torch.tensor(completion.sampled)
        torch.testing.assert_close(torch.tensor(completion.logprobs)[own], expected[own], rtol=0, atol=1e-4)


def test_neither_layout_nor_order_nor_late_answers_change_a_token(model: Transformer) -> None:
    expected = converse(NativeEngine(model, STOPS), Script())
    few, late = NativeEngine(model, STOPS, max_rows=3, stride=5), Script(late=range(0, 20, 3))
    for completions in (converse(few, Script()), converse(NativeEngine(model, STOPS), late)):
        assert [each.token_ids for each in completions] == [each.token_ids for each in expected]
        assert [each.sampled for each in completions] == [each.sampled for each in expected]
    order = [4, 2, 0, 1, 3]
    found = converse(NativeEngine(model, STOPS), Script(), order)
    for place, i in enumerate(order):
        ours, theirs = found[place * N : place * N + N], expected[i * N : i * N + N]
        assert [each.token_ids for each in ours] == [each.token_ids for each in theirs]


def test_a_single_turn_is_what_generate_samples(model: Transformer) -> None:
    engine = NativeEngine(model, STOPS)
    silent = converse(engine, Script(turns=1))
    plain = engine.generate(PROMPTS, SAMPLING, N)
    assert [(each.token_ids, each.finish_reason) for each in silent] == [(e.token_ids, e.finish_reason) for e in plain]
    assert [each.logprobs for each in silent] == [each.logprobs for each in plain]
