"""The transformer's options that are off by default, against a model in numpy: forward, generation, gradients, runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from config_helpers import problem_of
from helpers import read_tensors, train_here, write_toml
from tool_helpers import tool_here

from titan_pt.components.loss import ChunkedCrossEntropy, compiled_chunk
from titan_pt.components.softcapped_loss import softcapped_chunk
from titan_pt.config import ConfigError
from titan_pt.config.schema.job_config import ActivationCheckpoint
from titan_pt.distributed.activation_checkpoint import apply_activation_checkpoint
from titan_pt.generation.native import NativeEngine
from titan_pt.generation.sampling import Sampling
from titan_pt.hf.transformer import write_config
from titan_pt.models.transformer import Transformer, TransformerArgs
from titan_pt.models.transformer.dropout import dropout_of
from titan_pt.tools import evaluate, export
from titan_pt.trainers.grpo.logprobs import logprob_head

SIZES = {
    "hidden_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 80,
    "vocab_size": 96, "max_seq_len": 64,
}  # fmt: skip
CAPS = {"attention_softcap": 2.0, "logit_softcap": 3.0}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"qk_norm_placement": "after_rope"},
    {"qk_norm_placement": "whole"},
    {"qk_norm": False, "tie_embeddings": False},
    CAPS,
    {"tie_embeddings": False, "qk_norm_placement": "whole", **CAPS},
]
MASK = 0xFFFFFFFF


def model_of(**options: Any) -> Transformer:
    """With large weights, so that caps and norms have something to do."""
    model = Transformer(TransformerArgs(**{**SIZES, **options}), document_mask=True)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.mul_(4)
    return model


def reference_logits(model: Transformer, tokens: np.ndarray, starts: list[int]) -> np.ndarray:
    """The model in float64: a row of documents that begin at `starts`, complex rotations, loops over heads."""
    args, weights = model.args, {name: value.detach().double().numpy() for name, value in model.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + args.norm_eps) * weights[name]

    def cap(x: np.ndarray, most: float | None) -> np.ndarray:
        return x if most is None else most * np.tanh(x / most)

    half, length = args.head_dim // 2, len(tokens)
    document = np.array([max(start for start in starts if start <= i) for i in range(length)])
    angles = np.outer(np.arange(length) - document, args.rope_theta ** (-np.arange(half) / half))

    def rotate(x: np.ndarray) -> np.ndarray:
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=1)

    def heads(x: np.ndarray, name: str, count: int) -> list[np.ndarray]:
        if args.qk_norm and args.qk_norm_placement == "whole":
            x = norm(x, name)
        parts = np.split(x, count, axis=1)
        if not args.qk_norm or args.qk_norm_placement == "whole":
            return [rotate(part) for part in parts]
        after = args.qk_norm_placement == "after_rope"
        return [norm(rotate(part), name) if after else rotate(norm(part, name)) for part in parts]

    visible = (document[:, None] == document[None]) & np.tri(length, dtype=bool)
    x = weights["embed_tokens.weight"][tokens]
    for layer in (f"layers.{i}." for i in range(args.num_layers)):
        h = norm(x, layer + "input_layernorm.weight")
        q, k, v = (h @ weights[f"{layer}self_attn.{name}_proj.weight"].T for name in "qkv")
        queries = heads(q, layer + "self_attn.q_norm.weight", args.num_heads)
        keys = heads(k, layer + "self_attn.k_norm.weight", args.num_kv_heads)
        values, out = np.split(v, args.num_kv_heads, axis=1), []
        for i, query in enumerate(queries):
            shared = i // (args.num_heads // args.num_kv_heads)
            scores = cap(query @ keys[shared].T / np.sqrt(args.head_dim), args.attention_softcap)
            p = np.where(visible, np.exp(scores - scores.max()), 0.0)
            out.append(p / p.sum(1, keepdims=True) @ values[shared])
        x = x + np.concatenate(out, axis=1) @ weights[layer + "self_attn.o_proj.weight"].T
        h = norm(x, layer + "post_attention_layernorm.weight")
        gate, up = (h @ weights[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ weights[layer + "mlp.down_proj.weight"].T
    output = weights["embed_tokens.weight" if args.tie_embeddings else "lm_head.weight"]
    return cap(norm(x, "norm.weight") @ output.T, args.logit_softcap)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forward_and_generation_equal_the_reference(options: dict[str, Any]) -> None:
    model = model_of(**options).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == model.args.num_parameters
    tokens, starts = torch.randint(0, 96, (1, 30), generator=torch.Generator().manual_seed(2)), [0, 11]
    positions = torch.tensor([[i - max(s for s in starts if s <= i) for i in range(30)]])
    for documents, given in (([0], None), (starts, positions)):  # one document, and two that are kept apart
        expected = torch.from_numpy(reference_logits(model, tokens[0].numpy(), documents)).float()
        torch.testing.assert_close(model(tokens, given)[0], expected, rtol=1e-3, atol=1e-4)
    (made,) = NativeEngine(model, [95], stride=4).generate([tokens[0, :9].tolist()], Sampling(5, temperature=0.7), 1)
    read = np.array([*tokens[0, :9].tolist(), *made.token_ids])
    logprobs = F.log_softmax(torch.from_numpy(reference_logits(model, read, [0])) / 0.7, dim=-1)
    wanted = [float(logprobs[8 + i, token]) for i, token in enumerate(made.token_ids)]
    assert made.logprobs == pytest.approx(wanted, abs=1e-3)


def test_gradients_through_caps_are_autograd_s() -> None:
    model, targets = model_of(**CAPS), torch.randint(0, 96, (1, 30))
    tokens = torch.randint(0, 96, (1, 30))

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    logits = model(tokens)[0]
    expected = gradients(
        F.cross_entropy(logits, targets[0], reduction="sum") + 0.1 * logits.logsumexp(-1).square().sum()
    )
    head = ChunkedCrossEntropy(0.1, softcapped_chunk(CAPS["logit_softcap"]), chunk_tokens=8).head(targets)
    torch.testing.assert_close(gradients(model(tokens, None, head).total), expected, rtol=1e-4, atol=1e-4)
    expected = gradients(F.log_softmax(model(tokens)[0] / 0.7, dim=-1).gather(1, targets.T).sum())
    for elements in (96 * 30, 96 * 4):  # the logits' gradients are kept, or computed again
        scored = logprob_head(targets, temperature=0.7, softcap=CAPS["logit_softcap"], elements=elements)
        found = gradients(model(tokens, None, scored).logprobs_BL.sum())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def mix(x: int) -> int:
    """MurmurHash3's finaliser."""
    x = (x ^ x >> 16) * 0x85EBCA6B & MASK
    x = (x ^ x >> 13) * 0xC2B2AE35 & MASK
    return x ^ x >> 16


def is_kept(
    row: list[int], place: int, channel: int, layer: int, branch: int, key: int, width: int, rate: float
) -> bool:
    """Whether dropout leaves a number, by the definition in integers of Python."""
    row_hash = sum(mix(token ^ mix(i + 1)) for i, token in enumerate(row)) & MASK
    keyed = mix(mix(mix(row_hash ^ key & MASK) ^ key >> 32) ^ mix(place + 1))
    keyed = mix(keyed ^ layer * 0x9E3779B9 & MASK)
    half = -(-width // 2)
    pair = mix(keyed ^ mix(2 * (channel % half) + branch))
    return (pair >> 16 if channel >= half else pair & 0xFFFF) >= round(rate * 65536)


@pytest.mark.parametrize("width", [7, 8])
def test_dropout_is_a_function_of_its_key(width: int) -> None:
    from titan_pt.models.keyed_noise import row_key

    tokens = torch.randint(0, 96, (3, 5))
    drop = dropout_of(tokens, 0.3, seed=11, step=4).layer(2)
    out = drop(torch.ones(3, 5, width), 1)
    key = row_key(11, 4)
    wanted = [
        [[is_kept(tokens[b].tolist(), i, c, 2, 1, key, width, 0.3) for c in range(width)] for i in range(5)]
        for b in range(3)
    ]
    assert (out != 0).tolist() == wanted
    assert out[out != 0].unique().tolist() == pytest.approx([1 / 0.7], rel=1e-4)


def test_dropped_shares_are_even_and_independent() -> None:
    tokens, kept = torch.randint(0, 96, (16, 64)), []
    for seed, step, layer, branch in ((1, 2, 1, 0), (2, 2, 1, 0), (1, 3, 1, 0), (1, 2, 2, 0), (1, 2, 1, 1)):
        out = dropout_of(tokens, 0.25, seed, step).layer(layer)(torch.ones(16, 64, 64), branch)
        kept.append((out != 0).double().flatten())
        assert float(out.mean()) == pytest.approx(1.0, abs=0.01)
    # 65,536 draws: the standard deviation of a mean is 0.0017, of a correlation 0.004.
    assert [float(mask.mean()) for mask in kept] == pytest.approx([0.75] * 5, abs=0.008)
    pairs = torch.corrcoef(torch.stack(kept)) - torch.eye(5)
    assert float(pairs.abs().max()) < 0.02
    channels = torch.corrcoef(kept[0].view(-1, 64).T) - torch.eye(64)
    places = torch.corrcoef(kept[0].view(16, 64, 64).transpose(0, 1).reshape(64, -1)) - torch.eye(64)
    assert max(float(channels.abs().max()), float(places.abs().max())) < 0.16, "5 standard deviations of 1024 draws"


def test_dropout_is_the_same_however_it_is_computed_and_off_outside_of_training() -> None:
    tokens, targets = torch.randint(0, 96, (4, 16)), torch.randint(0, 96, (4, 16))

    def gradients(mode: str = "", backend: str = "", rows: int = 4, step: int = 7) -> list[torch.Tensor]:
        model = model_of(dropout=0.2, **CAPS)
        model.noise, chunk = (1, step), softcapped_chunk(3.0)
        if mode:
            apply_activation_checkpoint(model.layers, ActivationCheckpoint(mode=mode, selective_ac_option="op"))
        if backend:
            chunk = compiled_chunk(backend, chunk)
            for layer in model.layers:
                layer.compile(backend=backend, fullgraph=True)
        for part in torch.arange(4).split(rows):
            model(tokens[part], None, ChunkedCrossEntropy(chunk=chunk).head(targets[part])).total.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    usual = gradients()
    for how in ({"mode": "full"}, {"mode": "selective"}, {"mode": "full", "backend": "aot_eager"}):
        assert all(torch.equal(one, other) for one, other in zip(gradients(**how), usual, strict=True)), how
    torch.testing.assert_close(gradients(rows=1), usual, rtol=1e-4, atol=1e-4)
    assert any(not torch.allclose(one, other, rtol=0.1) for one, other in zip(gradients(step=8), usual, strict=True))
    model, plain = model_of(dropout=0.2).eval(), model_of()
    assert torch.equal(model(tokens), plain(tokens)), "in evaluation, and without it in training"


def test_a_run_with_options_resumes_evaluates_and_is_no_hugging_face_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"qk_norm_placement": "whole", "dropout": 0.1, **CAPS}
    tables = {"training": {"steps": 4}, "checkpoint": {"interval": 2}}
    config = write_toml(tmp_path, model=model, **tables)
    assert train_here(config) == 0
    whole = read_tensors(tmp_path / "run" / "checkpoint" / "step-4")
    (tmp_path / "run" / "checkpoint" / "step-4").rename(tmp_path / "step-4")
    assert train_here(config) == 0
    again = read_tensors(tmp_path / "run" / "checkpoint" / "step-4")
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    assert train_here(config, "--model.dropout=0.0", "--training.steps=5") == 0, "dropout may change"
    text = tmp_path / "text.txt"
    text.write_text("1 + 1 = 2\n" * 9)
    assert tool_here(evaluate.main, "--checkpoint", tmp_path / "run", "--text", text) == 0
    capsys.readouterr()
    assert tool_here(export.main, "--checkpoint", tmp_path / "run", "--output", tmp_path / "hf") == 2
    told = (
        "model.qk_norm_placement = 'whole', model.attention_softcap = 2.0, model.logit_softcap = 3.0: no Hugging Face"
    )
    assert told in capsys.readouterr().err and not (tmp_path / "hf").exists()


def test_what_cannot_go_together_is_refused(tmp_path: Path) -> None:
    interval = "[checkpoint]\nexport_hf_interval = 5\n"
    assert "logit_softcap = 15.0: no Hugging Face folder" in problem_of(
        tmp_path, f"{interval}[model]\nlogit_softcap = 15.0\n"
    )
    placed = '[model]\nqk_norm = false\nqk_norm_placement = "whole"\n'
    assert "needs model.qk_norm = true" in problem_of(tmp_path, placed)
    grpo = '[job]\ntrainer = "grpo"\n[[grpo.tasks]]\nname = "arithmetic"\n[model]\ndropout = 0.1\n'
    assert "model.dropout = 0.1: grpo trains the model that sampled" in problem_of(tmp_path, grpo)
    with pytest.raises(ConfigError, match="attention_softcap = 50"):
        write_config(TransformerArgs(**SIZES, attention_softcap=50))
    assert write_config(TransformerArgs(**SIZES, dropout=0.1))["attention_dropout"] == 0.0
