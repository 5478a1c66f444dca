"""`rollout.engine = "vllm"`: vLLM samples in this process, with the policy's weights handed over in place.

vLLM builds the model from a config.json alone, and gets each parameter by its Hugging Face name, gathered one at a
time. Tokens go in and tokens come out; there is no tokenizer. Each rank has an engine of its own, on its own device.
"""

import contextlib
import functools
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from titan_pt.components.tokenizer import Tokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.resolve.checks import model_args
from titan_pt.config.schema.grpo import GrpoConfig, RolloutConfig
from titan_pt.config.schema.section import switched_on
from titan_pt.config.vllm_package import INSTALL, check_vllm
from titan_pt.distributed.world import World
from titan_pt.generation import engine as interface
from titan_pt.generation.engine import Completion, GenerationStopped, NonFiniteLogits
from titan_pt.generation.sampling import Sampling
from titan_pt.models.keyed_noise import row_key
from titan_pt.protocols.model_spec import HuggingFaceLayout, get_model_spec
from titan_pt.run.progress import reached
from titan_pt.run.signals import stop_requested

_REFUSED = 'rollout.engine = "vllm"'
# Most tokens of prompts in one forward.
_PREFILL_TOKENS = 8192
# Positions of a row are rounded up to this, a multiple of every attention kernel's block.
_BLOCK = 128
# Read when vllm is imported: one process, no thread bound to a core, no report to its makers, no notices.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
}


@dataclass(frozen=True)
class ServedModel:
    """The policy as vLLM knows it."""

    layout: HuggingFaceLayout[Any]
    config: Mapping[str, Any]
    """Content of config.json. The output layer is not tied there: on a CPU vLLM computes it with a copy in another
    order, which a new embedding would not renew."""
    tied: bool
    """Whether the policy's output layer is its embedding."""

    def weights(self, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the policy's weights by the names of Hugging Face, without the padding rows of the vocabulary."""
        for name, whole in interface.whole_weights(model):
            part = whole[: self.config["vocab_size"]] if name in self.layout.vocabulary else whole
            yield self.layout.to_name(name), part
            if self.tied and name == self.layout.vocabulary[0]:
                yield "lm_head.weight", part

    def weight_bytes(self, num_parameters: int) -> int:
        """Bytes of vLLM's weights; those of an output layer are its own."""
        element: int = getattr(torch, self.config["torch_dtype"]).itemsize
        return element * (num_parameters + self.tied * self.config["vocab_size"] * self.config["hidden_size"])

    @property
    def bytes_per_position(self) -> int:
        """Bytes of one position in the cache of keys and values."""
        heads, width = self.config["num_attention_heads"], self.config["hidden_size"]
        keys = (self.config.get("num_key_value_heads") or heads) * (self.config.get("head_dim") or width // heads)
        return 2 * self.config["num_hidden_layers"] * keys * getattr(torch, self.config["torch_dtype"]).itemsize


class VllmEngine:
    """A `RolloutEngine` on vLLM.

    Args:
        llm: a `vllm.LLM` of the served model, with any weights.
        make_params: makes `vllm.SamplingParams` that know the tokens that end a completion.
        longest: most tokens of a prompt and its completion, training.seq_len.
        sleeps: between generations its memory is the trainer's.
    """

    def __init__(
        self, llm: Any, served: ServedModel, make_params: Callable[..., Any], longest: int, *, sleeps: bool
    ) -> None:
        self._llm, self._served, self._make_params, self._longest = llm, served, make_params, longest
        self._sleeps, self._asleep = sleeps, False

    @torch.no_grad()
    def sync_weights(self, model: nn.Module) -> None:
        """Hand the weights over in place, and forget the keys and values of the old ones. A collective."""
        self._wake()
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._served.weights(model)})
        self._llm.reset_prefix_cache()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, n: int, prompt_ids: Sequence[int] | None = None
    ) -> list[Completion]:
        """Sample `n` completions of each prompt, in the order of the prompts; see `RolloutEngine`.

        The seed of a completion is its key in the native engine, so that neither ranks nor batches change the draw.
        """
        interface.check_prompts(prompts, sampling, self._longest, "training.seq_len")
        ids = range(len(prompts)) if prompt_ids is None else prompt_ids
        keys = [row_key(sampling.seed, sampling.step, prompt_id, i) for prompt_id in ids for i in range(n)]
        names, done, engine = [str(row) for row in range(len(keys))], dict[str, Any](), self._llm.llm_engine
        options = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p")}
        self._wake()
        try:
            for row, key in enumerate(keys):
                params = self._make_params(max_tokens=sampling.max_new_tokens, seed=key, **options)
                engine.add_request(names[row], {"prompt_token_ids": [*prompts[row // n]]}, params)
            while engine.has_unfinished_requests():
                if stop_requested():
                    raise GenerationStopped
                done |= {output.request_id: output.outputs[0] for output in engine.step() if output.finished}
                reached(len(done))
        finally:
            engine.abort_request([name for name in names if name not in done])
            if self._sleeps:
                self._llm.sleep(level=1)
                self._asleep = True
        return [self._completion(row // n, done[name]) for row, name in enumerate(names)]

    def _wake(self) -> None:
        if self._asleep:
            self._llm.wake_up()
            self._asleep = False

    def _completion(self, prompt: int, output: Any) -> Completion:
        tokens = list(output.token_ids)
        logprobs = [of_token[token].logprob for token, of_token in zip(tokens, output.logprobs, strict=True)]
        if bad := [place for place, logprob in enumerate(logprobs, 1) if not math.isfinite(logprob)]:
            raise NonFiniteLogits(f"prompt {prompt + 1}, token {bad[0]} of its completion")
        return Completion(prompt, tokens, logprobs, "stop" if output.finish_reason == "stop" else "length")


def build_vllm_engine(config: RolloutConfig, tokenizer: Tokenizer, world: World, stop_ids: Sequence[int]) -> VllmEngine:
    """The engine of `[rollout]` on vLLM, on the rank's device; its weights come with `sync_weights`. A collective.

    Raises:
        ConfigError: vLLM is missing, of another version or built for other devices, or cannot run this model.
    """
    check_vllm()
    served = served_model(config, tokenizer.vocab_size)
    compiles = switched_on(config.rollout.compile, world.device.type)
    vllm, sleeps = _import_vllm(world.device.type, compiles=compiles)
    final = vllm.sampling_params.RequestOutputKind.FINAL_ONLY
    params = functools.partial(  # logprobs = 0: of the drawn token alone
        vllm.SamplingParams,
        stop_token_ids=list(stop_ids),
        ignore_eos=True,
        detokenize=False,
        output_kind=final,
        logprobs=0,
    )
    try:
        with tempfile.TemporaryDirectory(prefix="titan_pt-vllm-") as folder:
            Path(folder, "config.json").write_text(json.dumps(served.config))
            options = _options(config, served, world) | {"enforce_eager": not compiles, "enable_sleep_mode": sleeps}
            llm = vllm.LLM(folder, **options)
        llm.llm_engine.engine_core._finalizer.detach()  # at the end it would close the run's process groups again
        engine = VllmEngine(llm, served, params, config.training.seq_len, sleeps=sleeps)
        with contextlib.suppress(GenerationStopped):  # which the run answers
            engine.generate([[0]], Sampling(1), 1)  # some kernels say only now that they are not made for this model
    except Exception as error:
        raise ConfigError(
            f"{_REFUSED}: it cannot sample from this model here: {type(error).__name__}: {error}; change [model], or "
            'set rollout.engine = "native"'
        ) from error
    return engine


def served_model(config: RolloutConfig, vocab_size: int) -> ServedModel:
    """The policy in its Hugging Face form, without what nothing may choose: the padding rows of the vocabulary.

    Raises:
        ConfigError: it has none.
    """
    spec = get_model_spec(config.model.name)
    layout, args = spec.layout(), model_args(config, spec, vocab_size)
    if layout is None:
        raise ConfigError(f"{_REFUSED}: model.name = {spec.name!r} has no Hugging Face layout, by which vLLM knows one")
    rows = getattr(args, "num_tokens", None) or args.vocab_size
    try:
        found = layout.write_config(args.model_copy(update={"vocab_size": rows, "num_tokens": None}))
    except ConfigError as error:
        raise ConfigError(*(f"{_REFUSED}: {problem}" for problem in error.problems)) from None
    changed = {"tie_word_embeddings": False, "torch_dtype": config.training.mixed_precision_param}
    return ServedModel(layout, {**found, **changed}, bool(found.get("tie_word_embeddings")))


def cache_positions(config: RolloutConfig) -> int:
    """Positions that the cache has for each row: a prompt and its completion. Longer rows take turns."""
    return -(-(config.prompt_tokens() + config.rollout.max_new_tokens) // _BLOCK) * _BLOCK


def _options(config: RolloutConfig, served: ServedModel, world: World) -> dict[str, Any]:
    """Arguments of `vllm.LLM`."""
    rows = config.sampled_rows(world.size) if isinstance(config, GrpoConfig) else config.rollout.max_rows
    positions = max(rows * cache_positions(config), config.training.seq_len)
    options = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "dtype": config.training.mixed_precision_param,
        "hf_overrides": {"head_dtype": "float32"},  # as the trainer's
        "logprobs_mode": "processed_logprobs",  # of the distribution that was drawn from
        "max_model_len": config.training.seq_len,
        "max_num_seqs": rows,
        "max_num_batched_tokens": max(rows, _PREFILL_TOKENS),
        "kv_cache_memory_bytes": (positions + 2 * _BLOCK) * served.bytes_per_position,  # some blocks are vLLM's own
        "distributed_executor_backend": "external_launcher" if world.size > 1 else "uni",
    }
    if world.device.type == "cuda":  # where less is free it would not start, whatever the cache takes
        free, total = torch.cuda.mem_get_info(world.device)
        options["gpu_memory_utilization"] = 0.95 * free / total
    return options


def _import_vllm(device: str, *, compiles: bool) -> tuple[Any, bool]:
    """The package, and whether it can sleep here.

    Raises:
        ConfigError: it cannot be imported, or is built for other devices.
    """
    os.environ.update(_ENVIRONMENT)
    warnings.filterwarnings("ignore", module=r"vllm(\.|$)")
    try:
        import vllm
        import vllm.sampling_params
        from vllm.platforms import current_platform as platform
    except Exception as error:
        raise ConfigError(f"{_REFUSED}: import vllm: {type(error).__name__}: {error}; {INSTALL}") from error
    if not compiles:  # read by the decorators of small functions, which compile whatever enforce_eager says
        platform.simple_compile_backend = "eager"
    if platform.device_type != device:
        made = platform.device_type or "no device here"
        raise ConfigError(f"{_REFUSED}: this vllm is built for {made}, and the run is on {device}; {INSTALL}")
    return vllm, device == "cuda" and platform.is_sleep_mode_available()
