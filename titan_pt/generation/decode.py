"""Decoding of many rows, one token a step: kernel by kernel, compiled, or replayed as CUDA graphs.

Legend: R rows, C rows of the output, T tokens of a completion, D model dim, V vocabulary, S stop tokens.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from titan_pt.generation.sampling import Draws, Sampling, invert_softmax, sample, uniform
from titan_pt.models.transformer.args import TransformerArgs
from titan_pt.models.transformer.cache import KVCache, forward_cached
from titan_pt.models.transformer.model import Transformer

logger = logging.getLogger("titan_pt")

# Most logits held at a time, 32 MiB in float32: a larger product of matrices is no faster.
LOGIT_ELEMENTS = 2**23

# Most tokens of prompts, padding included, that are read in one forward; a longer prompt is read alone.
PREFILL_TOKENS = 2**14

_OF_EACH_ROW = ("token_R", "position_R", "start_R", "drawn_R", "limit_R", "keys_R", "place_R", "alive_R")


@dataclass(frozen=True)
class DecodeRows:
    """Unfinished completions and their output.

    Tensors are written in place and never replaced, since a captured CUDA graph keeps their addresses.

    The first token of a completion is drawn from its prompt's last hidden state, each other one by a step.
    """

    cache: KVCache
    token_R: torch.Tensor
    """Newest token of each row, not in the cache yet."""
    position_R: torch.Tensor
    """Position of the newest token."""
    start_R: torch.Tensor
    """Position of the last token before those drawn."""
    drawn_R: torch.Tensor
    """Tokens drawn so far; a finished row draws none."""
    limit_R: torch.Tensor
    """Tokens drawn with which a row is finished."""
    keys_R: torch.Tensor
    """Keys of the rows' noise, see `keyed_noise.row_key`."""
    place_R: torch.Tensor
    """Row of the output that each row writes to."""
    alive_R: torch.Tensor
    """Whether a row is unfinished; False for rows that only fill up the number of rows."""
    tokens_CT: torch.Tensor
    """Tokens of each completion; -1 where there is none. One more than it can have: finished rows write there."""
    logprobs_CT: torch.Tensor

    @classmethod
    def empty(cls, args: TransformerArgs, rows: int, slots: int, new_tokens: int, like: torch.Tensor) -> "DecodeRows":
        """Memory for `rows` rows of `slots` positions and `new_tokens` tokens, of the device and type of `like`."""

        def zeros(*shape: int, dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=like.device)

        return cls(
            cache=KVCache.empty(args, rows, slots, like),
            token_R=zeros(rows),
            position_R=zeros(rows),
            keys_R=zeros(rows),
            start_R=zeros(rows),
            drawn_R=zeros(rows),
            limit_R=zeros(rows),
            place_R=zeros(rows),
            alive_R=zeros(rows, dtype=torch.bool),
            tokens_CT=zeros(rows, new_tokens + 1),
            logprobs_CT=zeros(rows, new_tokens + 1, dtype=torch.float32),
        )

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors of the rows, the cache's included."""
        return [*self.cache.tensors, *(value for value in vars(self).values() if isinstance(value, torch.Tensor))]

    def start(self, keys: Sequence[int], places: Sequence[int], lengths: Sequence[int], limit: int) -> None:
        """Begin a completion for each key.

        Args:
            places: row of the output for each completion.
            lengths: tokens of each prompt.
            limit: most tokens of a completion.
        """
        device, count = self.token_R.device, len(keys)
        others = range(count, self.token_R.shape[0])  # two rows at one place would race
        self.place_R.copy_(torch.tensor([*places, *others], device=device))
        self.keys_R[:count] = torch.tensor(keys, device=device)
        self.start_R.zero_()
        self.start_R[:count] = torch.tensor(lengths, device=device) - 1
        self.drawn_R.zero_()
        self.limit_R.fill_(limit)
        self.alive_R.zero_()
        self.alive_R[:count] = True
        self.tokens_CT.fill_(-1)

    def first(self, rows: int, slots: int) -> "DecodeRows":
        """A view of the first rows, with attention to the first slots."""
        parts = {name: getattr(self, name)[:rows] for name in _OF_EACH_ROW}
        return replace(self, cache=self.cache.view(slice(rows), slots), **parts)

    def keep(self, rows: int) -> None:
        """Move unfinished rows before the finished ones, and keep the first `rows` of them."""
        order_R = torch.argsort(self.alive_R, descending=True, stable=True)[:rows]
        for name in _OF_EACH_ROW:
            tensor = getattr(self, name)
            tensor[:rows] = tensor[order_R]
        self.cache.keep(order_R)

    def bring_forward(self, rows: int) -> None:
        """Swap unfinished rows behind the first `rows` with finished ones among these; none is lost."""
        behind_R = self.alive_R[rows:].nonzero()[:, 0] + rows
        free_R = (~self.alive_R[:rows]).nonzero()[: len(behind_R), 0]
        to_R, from_R = torch.cat([free_R, behind_R]), torch.cat([behind_R, free_R])
        for tensor in (*(getattr(self, name) for name in _OF_EACH_ROW), *self.cache.tensors):
            tensor[to_R] = tensor[from_R]


class OutputLayer:
    """Output layer in float32 whatever the type of the model, like the trainer's log-probabilities (grpo/logprobs.py).

    On CUDA products of bfloat16 are added up in float32 by the tensor cores, straight from the model's weight.
    Elsewhere the layer has a copy in float32, transposed: for a few rows, as at the end of a generation, that is up to
    twice as fast on a CPU.
    """

    def __init__(self, model: Transformer) -> None:
        self._source_VD = model.output_weight.detach()
        self._is_mixed = has_mixed_product(self._source_VD)
        self._weight_DV = self._source_VD.T if self._is_mixed else self._source_VD.T.contiguous().float()
        self._num_tokens = model.args.num_tokens or model.args.vocab_size
        self._softcap = getattr(model.args, "logit_softcap", None)
        self.rows = max(1, LOGIT_ELEMENTS // model.args.vocab_size)
        """Most rows whose logits come together."""
        # Kept: on a CPU the page faults of fresh memory of this size take longer than the sampling.
        self._logits_RV = self._weight_DV.new_empty(self.rows, model.args.vocab_size, dtype=torch.float32)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Tensors that the layer holds beside the model's."""
        return [self._logits_RV] if self._is_mixed else [self._weight_DV, self._logits_RV]

    def refresh(self) -> None:
        """Copy the model's weight in place."""
        if not self._is_mixed:
            self._weight_DV.copy_(self._source_VD.T)

    def __call__(self, hidden_RD: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield logits_RV of `rows` rows at a time; each is overwritten by the next."""
        for part_RD in hidden_RD.split(self.rows):
            logits_RV = self._logits_RV[: len(part_RD)]
            if self._is_mixed:
                torch.mm(part_RD, self._weight_DV, out_dtype=torch.float32, out=logits_RV)
            else:
                torch.mm(part_RD.float(), self._weight_DV, out=logits_RV)
            if self._softcap:
                logits_RV.div_(self._softcap).tanh_().mul_(self._softcap)
            logits_RV[:, self._num_tokens :] = float("-inf")  # rows that only pad the vocabulary
            yield logits_RV


def has_mixed_product(weight: torch.Tensor) -> bool:
    """Whether torch.mm has products of this type and device whose result is in float32."""
    half = weight.dtype in (torch.bfloat16, torch.float16)
    return half and weight.device.type == "cuda" and "dtype_out" in torch.ops.aten.mm.overloads()


class Decoder:
    """Runs decoding steps kernel by kernel.

    Args:
        model: the engine's model.
        stop_ids: tokens that end a completion.
    """

    span = 16
    """Attention reads a multiple of this number of slots."""

    def __init__(self, model: Transformer, stop_ids: Sequence[int]) -> None:
        self.output = OutputLayer(model)
        self._model = model
        self._stop_S = torch.tensor(stop_ids, dtype=torch.long, device=model.output_weight.device)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Tensors held between requests, beside the model's."""
        return self.output.tensors

    def room(self, rows: int, slots: int, new_tokens: int) -> DecodeRows:
        """Empty rows of at least the given size."""
        return DecodeRows.empty(self._model.args, rows, slots, new_tokens, self._model.output_weight)

    def step(self, rows: DecodeRows, sampling: Sampling) -> None:
        """Read the newest token of each row and draw the next one."""
        torch.add(rows.start_R, rows.drawn_R, out=rows.position_R)
        self.draw(self._read(rows), rows, sampling)

    def _read(self, rows: DecodeRows) -> torch.Tensor:
        return _new_hidden(self._model, rows.token_R, rows.position_R, rows.cache)

    def draw(self, hidden_RD: torch.Tensor, rows: DecodeRows, sampling: Sampling) -> None:
        """Draw the next token of each row."""
        noise_R = uniform(rows.keys_R, rows.drawn_R)
        parts = zip(self.output(hidden_RD), noise_R.split(self.output.rows), strict=True)
        drawn = [sample(logits_RV, noise_R, sampling, self._invert) for logits_RV, noise_R in parts]
        rows.token_R.copy_(torch.cat([token for token, _ in drawn]))
        logprob_R = torch.cat([logprob for _, logprob in drawn])
        rows.alive_R.logical_and_(logprob_R.isfinite())  # a row that ends without a stop token: the engine tells
        rows.tokens_CT[rows.place_R, rows.drawn_R] = torch.where(rows.alive_R, rows.token_R, -1)
        rows.logprobs_CT[rows.place_R, rows.drawn_R] = logprob_R
        rows.drawn_R.add_(rows.alive_R)
        rows.alive_R.logical_and_((rows.token_R[:, None] != self._stop_S).all(dim=-1))
        rows.alive_R.logical_and_(rows.drawn_R < rows.limit_R)

    def _invert(self, logits_RV: torch.Tensor, noise_R: torch.Tensor) -> Draws:
        return invert_softmax(logits_RV, noise_R)


class CompiledDecoder(Decoder):
    """Runs the model and the draw through torch.compile: one graph each for all numbers of rows and slots, and one more
    for a single row, since a compiler takes a size of 1 as a constant.
    """

    def __init__(self, model: Transformer, stop_ids: Sequence[int], backend: str) -> None:
        super().__init__(model, stop_ids)
        self._compiled_hidden = torch.compile(_new_hidden, backend=backend, fullgraph=True)
        self._compiled_invert = torch.compile(invert_softmax, backend=backend, fullgraph=True)

    def room(self, rows: int, slots: int, new_tokens: int) -> DecodeRows:
        """Empty rows with spare slots: a cache that is read in full is contiguous, which would be another graph."""
        return super().room(rows, slots + self.span, new_tokens)

    def _read(self, rows: DecodeRows) -> torch.Tensor:
        _mark_rows(rows.token_R, rows.position_R)
        _mark_rows(*rows.cache.tensors)
        for tensor in rows.cache.tensors:
            torch._dynamo.mark_dynamic(tensor, 2)
        return self._compiled_hidden(self._model, rows.token_R, rows.position_R, rows.cache)

    def _invert(self, logits_RV: torch.Tensor, noise_R: torch.Tensor) -> Draws:
        _mark_rows(logits_RV, noise_R)
        torch._dynamo.mark_static(logits_RV, 1)  # the draw is cut into parts by it; top-k makes it another
        return self._compiled_invert(logits_RV, noise_R)


class GraphDecoder(CompiledDecoder):
    """Replays the compiled kernels of a step as one CUDA graph, captured for each number of rows and slots.

    A captured graph reads and writes fixed memory: the rows are kept from request to request while they are large
    enough, and new weights are copied in place. That it equals Decoder on a device is checked by the `gpu` test of
    tests/generation/test_decode.py.
    """

    span = 128  # fewer graphs

    def __init__(self, model: Transformer, stop_ids: Sequence[int], backend: str) -> None:
        super().__init__(model, stop_ids, backend)
        self._rows: DecodeRows | None = None
        self._size = (0, 0, 0)
        self._graphs: dict[tuple[int, int, float, int, float], torch.cuda.CUDAGraph | None] = {}
        self._captures = True

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Tensors held between requests: the largest cache asked for too, whose addresses the graphs know."""
        return [*super().tensors, *(self._rows.tensors if self._rows else [])]

    def room(self, rows: int, slots: int, new_tokens: int) -> DecodeRows:
        """The rows of the previous request, or larger ones, for which graphs are captured anew."""
        larger = tuple(max(sizes) for sizes in zip(self._size, (rows, slots, new_tokens), strict=True))
        if self._rows is None or larger != self._size:
            self._graphs.clear()
            self._pool = torch.cuda.graph_pool_handle()  # that of graphs which are gone may not be used again
            self._rows = None  # freed before there are others
            self._size = larger[0], larger[1], larger[2]
            self._rows = super().room(*self._size)
        return self._rows

    def step(self, rows: DecodeRows, sampling: Sampling) -> None:
        """Read the newest token of each row and draw the next one.

        The first step of a size runs kernel by kernel, which loads the kernels; the second is captured.
        """
        size = rows.token_R.shape[0], rows.cache.slots
        key = *size, sampling.temperature, sampling.top_k, sampling.top_p
        graph = self._graphs.get(key)
        if graph is None and key in self._graphs and self._captures:
            graph = self._graphs[key] = self._capture(rows, sampling)
        self._graphs.setdefault(key, None)
        if graph is None:
            super().step(rows, sampling)
        else:
            graph.replay()

    def _capture(self, rows: DecodeRows, sampling: Sampling) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads (data, checkpoints) may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                super().step(rows, sampling)
        except RuntimeError as error:
            self._captures = False
            logger.warning(f"rollout.compile: no CUDA graph of the decoding step ({error}); it runs kernel by kernel")
            return None
        return graph


def build_decoder(model: Transformer, stop_ids: Sequence[int], compile_backend: str | None) -> Decoder:
    """The decoder for the model's device.

    Args:
        compile_backend: backend of torch.compile; on CUDA the compiled step is also captured. None: neither.
    """
    if compile_backend is None:
        return Decoder(model, stop_ids)
    if model.output_weight.device.type == "cuda":
        return GraphDecoder(model, stop_ids, compile_backend)
    return CompiledDecoder(model, stop_ids, compile_backend)


def _new_hidden(model: Transformer, token_R: torch.Tensor, position_R: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """hidden_RD after one more token of each row."""
    return forward_cached(model, token_R[:, None], position_R[:, None], cache, lambda hidden, _: hidden[:, 0])


def _mark_rows(*tensors: torch.Tensor) -> None:
    """Tell the compiler that the number of rows changes."""
    for tensor in tensors:
        if tensor.shape[0] > 1:
            torch._dynamo.mark_dynamic(tensor, 0)


def row_count(rows: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, ... that is at least `rows`: few shapes to compile or capture."""
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if rows <= power * 3 // 4 else power


def round_up(slots: int, multiple: int) -> int:
    return -(-slots // multiple) * multiple
