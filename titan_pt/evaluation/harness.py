"""Adapter that runs lm-evaluation-harness on titan_pt's models; needs its package (extra `eval`)."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows

from titan_pt.components.named_tokens import encode_named
from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.evaluation.scoring import likelihoods
from titan_pt.generation.native import NativeEngine
from titan_pt.generation.sampling import Sampling
from titan_pt.hf.chat import bos_id, chat_text, prompt_tokens
from titan_pt.hf.tokenizer_files import chat_template as chat_template_of
from titan_pt.models.transformer.model import Transformer

HarnessRequest = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), tokens of the context, tokens of the continuation)."""


class HarnessModel(TemplateLM):
    """A model of lm-evaluation-harness: one of titan_pt's on one device.

    Args:
        model: unsharded, with its weights.
        engine: engine of the same model.
        seed: seed of sampled answers.
        chats: whether texts are conversations, in which names of special tokens stand for these tokens.
    """

    def __init__(
        self, model: Transformer, engine: NativeEngine, tokenizer: Tokenizer, seed: int = 42, *, chats: bool = False
    ) -> None:
        super().__init__()
        self._chats = chats
        self._model, self._engine, self._tokenizer, self._seed = model, engine, tokenizer, seed
        self._device = model.output_weight.device

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Token before a rolling text and in place of an empty context: as the harness's own models have it, the
        beginning of a text where the tokenizer has one."""
        begin = bos_id(self._tokenizer)
        return self._tokenizer.eos_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if self._chats:
            return encode_named(self._tokenizer, string)
        return self._tokenizer.encode(string) if add_special_tokens is False else prompt_tokens(self._tokenizer, string)

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str:
        return chat_template_of(self._tokenizer)

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True, **_: Any
    ) -> str:
        return chat_text(self._tokenizer, chat_history, prompt=add_generation_prompt)

    def _loglikelihood_tokens(self, requests: Sequence[HarnessRequest], **_: Any) -> list[tuple[float, bool]]:
        found = likelihoods(self._model, [(context, continuation) for _, context, continuation in requests])
        return [(one.logprob, one.is_greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text: every token once, in windows as long as the model reads."""
        windows = [self._windows(request.args[0]) for request in requests]
        found = iter(likelihoods(self._model, [pair for pairs in windows for pair in pairs]))
        return [sum(next(found).logprob for _ in pairs) for pairs in windows]

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        longest = self._model.args.max_seq_len
        pairs = get_rolling_token_windows(self._tokenizer.encode(text), self.prefix_token_id, longest, 1)
        # The harness gives the row that is read; a pair's last token is only predicted.
        return [([*read, predicted[-1]][: -len(predicted)], predicted) for read, predicted in pairs]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Completions, greedy unless the task samples, cut at the task's stop texts."""
        texts = [""] * len(requests)
        options = [normalize_gen_kwargs(dict(request.args[1])) for request in requests]
        for sampling in dict.fromkeys(map(self._sampling, options)):
            chosen = [i for i, option in enumerate(options) if self._sampling(option) == sampling]
            prompts = [self._prompt(requests[i].args[0], sampling.max_new_tokens) for i in chosen]
            for i, completion in zip(chosen, self._engine.generate(prompts, sampling, 1, chosen), strict=True):
                ids = completion.token_ids if completion.finish_reason == "length" else completion.token_ids[:-1]
                texts[i] = _cut(self._tokenizer.decode(ids), options[i]["until"])
        return texts

    def _sampling(self, options: Any) -> Sampling:
        longest = self._model.args.max_seq_len - 1
        try:
            return Sampling(
                min(options["max_gen_toks"], longest),
                temperature=float(options["temperature"]) if options["do_sample"] else 0.0,
                top_p=float(options.get("top_p", 1.0)),
                top_k=int(options.get("top_k", 0)),
                seed=self._seed,
            )
        except ValueError as error:
            raise ConfigError(f"--tasks: {str(error).replace('rollout.', 'generation_kwargs.')}") from None

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        """Tokens of a context; a too long one loses its beginning."""
        room = self._model.args.max_seq_len - new_tokens
        return (self.tok_encode(context) or [self.prefix_token_id])[-room:]


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        if stop:
            text = text.partition(stop)[0]
    return text
