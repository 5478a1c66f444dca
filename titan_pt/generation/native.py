"""The native rollout engine: the training model's modules, each prompt read once, all rows decoded together.

Legend: R rows (prompt x sample), P prompts, L tokens, D model dim.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.checks import model_args
from titan_pt.config.schema.grpo import RolloutConfig
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.section import switched_on
from titan_pt.distributed.compile import check_compiler
from titan_pt.distributed.world import World
from titan_pt.generation.decode import PREFILL_TOKENS, DecodeRows, build_decoder, round_up, row_count
from titan_pt.generation.engine import (
    Completion,
    FinishReason,
    GenerationStopped,
    NonFiniteLogits,
    Partner,
    check_prompts,
    whole_weights,
)
from titan_pt.generation.sampling import Sampling
from titan_pt.models.keyed_noise import row_key
from titan_pt.models.transformer.cache import PromptCache, forward_cached
from titan_pt.models.transformer.model import Transformer
from titan_pt.protocols.model_spec import get_model_spec
from titan_pt.run.progress import reached
from titan_pt.run.signals import stop_requested

# Steps between looks at the finished rows, for which the host waits for the device, and at the stop signal.
STRIDE = 16

Watch = Callable[[list[list[int]]], None]
"""Callback that gets the tokens so far of all rows that are decoded together, finished ones included."""


@dataclass
class DecodeStats:
    """Counts of the work that an engine has done."""

    prefill_tokens: int = 0
    """Tokens of prompts read, padding included."""
    row_steps: int = 0
    """Rows decoded, summed over all steps."""
    dead_row_steps: int = 0
    """Decoded rows that were finished already, or that only filled up the number of rows."""


@dataclass(frozen=True)
class Request:
    """One completion to sample."""

    prompt: int
    tokens: Sequence[int]
    key: int


class NativeEngine:
    """A `RolloutEngine` that decodes with an unsharded copy of the model.

    Args:
        model: the engine's copy, on its device and in the type to generate in.
        stop_ids: tokens that end a completion.
        max_rows: most rows decoded together; more are done in turns.
        stride: steps between looks at the finished rows; few steps let a `watch` see each token as it comes.
        compile_backend: compile the decoding step with it, see `build_decoder`.
        stop_requested: whether this process is to stop; asked every few steps.
    """

    def __init__(
        self,
        model: Transformer,
        stop_ids: Sequence[int],
        max_rows: int = 1024,
        *,
        stride: int = STRIDE,
        compile_backend: str | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.decoder = build_decoder(self.model, stop_ids, compile_backend)
        self.stop_ids, self._stop_requested, self.stride = frozenset(stop_ids), stop_requested, stride
        self._max_rows = next(rows for rows in range(max_rows, 0, -1) if row_count(rows) == rows)
        self.stats = DecodeStats()

    @torch.no_grad()
    def sync_weights(self, model: nn.Module) -> None:
        """Copy the weights in place, gathered parameter by parameter where they are sharded."""
        parameters = dict(self.model.named_parameters())
        for name, whole in whole_weights(model):
            parameters[name].copy_(whole)
        self.decoder.output.refresh()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        n: int,
        prompt_ids: Sequence[int] | None = None,
        watch: Watch | None = None,
    ) -> list[Completion]:
        """Sample `n` completions of each prompt, in the order of the prompts.

        Equal prompts are read once and share their keys and values.

        Args:
            prompts: token ids; none may be empty.
            prompt_ids: keys of the prompts' noise; None: 0, 1, 2, ...
            watch: called while the completions grow.

        Raises:
            ValueError: an empty prompt, or one that leaves no room for max_new_tokens in model.max_seq_len.
            GenerationStopped: `stop_requested` returned True.
            NonFiniteLogits: there is no distribution to draw from.
        """
        check_prompts(prompts, sampling, self.model.args.max_seq_len)
        completions: list[Completion] = []
        for start, requests in self._together(prompts, sampling, n, prompt_ids):
            completions += self._turn(requests, sampling, watch, start)
        return completions

    @torch.no_grad()
    def converse(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        n: int,
        prompt_ids: Sequence[int] | None,
        partner: Partner,
    ) -> list[Completion]:
        """Sample `n` conversations with a partner from each prompt, see `ConversationEngine`."""
        from titan_pt.generation.conversation import Rounds

        check_prompts(prompts, replace(sampling, max_new_tokens=partner.max_tokens), self.model.args.max_seq_len)
        completions: list[Completion] = []
        for start, requests in self._together(prompts, sampling, n, prompt_ids):
            conversations = Rounds(self, requests, sampling, partner, start)
            completions += conversations.completions()
        return completions

    def _together(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int, prompt_ids: Sequence[int] | None
    ) -> Iterator[tuple[int, Sequence[Request]]]:
        """Yield (number of the first one, requests that are decoded together)."""
        ids = range(len(prompts)) if prompt_ids is None else prompt_ids
        requests = [
            Request(number, prompt, row_key(sampling.seed, sampling.step, prompt_id, i))
            for number, (prompt, prompt_id) in enumerate(zip(prompts, ids, strict=True))
            for i in range(n)
        ]
        for start in range(0, len(requests), self._max_rows):
            yield start, requests[start : start + self._max_rows]

    def tensors(self) -> list[torch.Tensor]:
        """Tensors that the engine holds between generations."""
        return [*self.model.parameters(), *self.model.buffers(), *self.decoder.tensors]

    @torch.no_grad()
    def decode_once(self, count: int, slots: int, sampling: Sampling) -> DecodeRows:
        """Run one decoding step of `count` completions of at least `slots` positions, for a dry run."""
        size, slots = row_count(count), round_up(slots, self.decoder.span)
        room = self.decoder.room(size, slots, sampling.max_new_tokens)
        self.decoder.step(room.first(size, slots), sampling)
        return room

    def raise_if_stopped(self) -> None:
        """Raise GenerationStopped if this process is to stop."""
        if self._stop_requested():
            raise GenerationStopped

    def _turn(
        self, requests: Sequence[Request], sampling: Sampling, watch: Watch | None, before: int
    ) -> list[Completion]:
        """Sample the completions of requests that are decoded together; `before` were sampled already."""
        longest, size = max(len(request.tokens) for request in requests), row_count(len(requests))
        slots = round_up(longest + sampling.max_new_tokens, self.decoder.span)
        room = self.decoder.room(size, slots, sampling.max_new_tokens)
        rows = room.first(size, slots)
        self.decoder.draw(self.read(requests, rows, sampling.max_new_tokens), rows, sampling)
        row_steps = 0
        for start in range(1, sampling.max_new_tokens, self.stride):
            self.raise_if_stopped()
            if watch:
                watch(_drawn(room, len(requests)))
            going = int(rows.alive_R.sum())  # the one place that waits for the device
            if going == 0:
                break
            reached(before + len(requests) - going * (1 - start / sampling.max_new_tokens))
            if row_count(going) < size:
                size = row_count(going)
                rows.keep(size)
            rows = room.first(size, min(slots, round_up(longest + start + self.stride, self.decoder.span)))
            steps = min(self.stride, sampling.max_new_tokens - start)
            for _ in range(steps):
                self.decoder.step(rows, sampling)
            row_steps += steps * size
        completions = self._completions(requests, room, sampling.max_new_tokens)
        self.stats.row_steps += row_steps
        self.stats.dead_row_steps += row_steps - sum(len(completion.token_ids) - 1 for completion in completions)
        return completions

    def read(self, requests: Sequence[Request], rows: DecodeRows, limit: int) -> torch.Tensor:
        """Read each different prompt once, the longest first; returns hidden_RD of each row's last prompt token.

        Args:
            limit: most tokens of a completion, or of its first turn.
        """
        places: dict[tuple[int, ...], list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(tuple(request.tokens), []).append(place)
        prompts = sorted(places, key=len, reverse=True)
        order = [place for prompt in prompts for place in places[prompt]]
        rows.start(
            [requests[place].key for place in order], order, [len(requests[place].tokens) for place in order], limit
        )
        hidden, done = [], 0
        for part in _parts(prompts):
            self.raise_if_stopped()
            counts = [len(places[prompt]) for prompt in part]
            hidden.append(self._read_part(part, counts, rows, done))
            done += sum(counts)
        # What fills up the number of rows draws too, from nothing.
        filling = rows.token_R.shape[0] - done
        return torch.cat([*hidden, hidden[0].new_zeros(filling, hidden[0].shape[1])])

    def _read_part(
        self, prompts: Sequence[Sequence[int]], counts: Sequence[int], rows: DecodeRows, start: int
    ) -> torch.Tensor:
        """Read prompts together, into the rows from `start` on: `counts` rows for each prompt."""
        device, longest = rows.token_R.device, len(prompts[0])
        tokens_PL = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
        last_P = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        prompt_R = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)], device=device)
        target = rows.cache.view(slice(start, start + len(prompt_R)), rows.cache.slots)
        positions_PL = torch.arange(longest, device=device).expand_as(tokens_PL)
        hidden_PLD = forward_cached(
            self.model, tokens_PL, positions_PL, PromptCache(target, prompt_R), lambda hidden, _: hidden
        )
        self.stats.prefill_tokens += tokens_PL.numel()
        return hidden_PLD[prompt_R, last_P[prompt_R]]

    def _completions(self, requests: Sequence[Request], rows: DecodeRows, most: int) -> list[Completion]:
        count = len(requests)
        output = zip(requests, _drawn(rows, count), rows.logprobs_CT[:count].tolist(), strict=True)
        completions = []
        for request, tokens, logprobs in output:
            reason: FinishReason = "stop" if tokens and tokens[-1] in self.stop_ids else "length"
            if reason == "length" and len(tokens) < most:
                raise NonFiniteLogits(f"prompt {request.prompt + 1}, token {len(tokens) + 1} of its completion")
            completions.append(Completion(request.prompt, tokens, logprobs[: len(tokens)], reason))
        return completions


def build_native_engine(
    config: RolloutConfig, tokenizer: Tokenizer, world: World, stop_ids: Sequence[int]
) -> NativeEngine:
    """The native engine of `[rollout]`, on the rank's device; its weights come with `sync_weights`.

    Raises:
        ConfigError: the model is not a transformer, or the device cannot compile.
    """
    rollout = config.rollout
    model = unsharded_model(config, tokenizer, world.device)
    if model is None:
        raise ConfigError(
            f'rollout.engine = "native": needs model.name = "transformer", not {config.model.name!r}; register an '
            "engine for this model in experimental.custom_import"
        )
    compiles = switched_on(rollout.compile, world.device.type)
    if compiles:
        check_compiler(config.compile, world.device, "rollout.compile")
    return NativeEngine(
        model,
        stop_ids,
        rollout.max_rows,
        compile_backend=config.compile.backend if compiles else None,
        stop_requested=stop_requested,
    )


def unsharded_model(config: JobConfig, tokenizer: Tokenizer, device: torch.device) -> Transformer | None:
    """The model of `[model]` on one device, without weights; None where it is no transformer."""
    spec = get_model_spec(config.model.name)
    with torch.device("meta"):
        model = spec.build(model_args(config, spec, tokenizer.vocab_size), config)
        if not isinstance(model, Transformer):
            return None
    compute_type = getattr(torch, config.training.mixed_precision_param)
    for module in model.modules():  # not the buffers in this type: RoPE's angles stay in float32
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, dtype=compute_type, device=device)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(buffer, device=device))
    model.init_buffers()
    return model.eval()


def _drawn(rows: DecodeRows, count: int) -> list[list[int]]:
    """Tokens so far of the first `count` completions."""
    return [[token for token in padded if token >= 0] for padded in rows.tokens_CT[:count].tolist()]


def _parts(prompts: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
    """Yield prompts to read together; they are sorted by length, so that little of a part is padding."""
    start = 0
    while start < len(prompts):
        count = max(1, PREFILL_TOKENS // len(prompts[start]))
        yield prompts[start : start + count]
        start += count
