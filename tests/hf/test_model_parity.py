"""The transformer against transformers' Qwen3 and Llama: the same weights give the same logits and gradients."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from titan_pt.models.transformer import Transformer, TransformerArgs

ARGS = {
    "hidden_size": 64,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "intermediate_size": 160,
    "vocab_size": 128,
    "rope_theta": 50000.0,
    "norm_eps": 1e-5,
}


def reference_model(args: TransformerArgs) -> torch.nn.Module:
    options = {
        "hidden_size": args.hidden_size,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": args.num_heads,
        "num_key_value_heads": args.num_kv_heads,
        "head_dim": args.head_dim,
        "intermediate_size": args.intermediate_size,
        "vocab_size": args.vocab_size,
        "rope_parameters": {"rope_type": "default", "rope_theta": args.rope_theta},
        "rms_norm_eps": args.norm_eps,
        "tie_word_embeddings": args.tie_embeddings,
        "attention_bias": False,
        "attn_implementation": "eager",
    }
    if args.qk_norm:
        return Qwen3ForCausalLM(Qwen3Config(**options))
    return LlamaForCausalLM(LlamaConfig(**options))


def pair(qk_norm: bool, tied: bool) -> tuple[Transformer, torch.nn.Module]:
    args = TransformerArgs(**ARGS, qk_norm=qk_norm, tie_embeddings=tied)
    ours, theirs = Transformer(args), reference_model(args)
    ours.init_weights(seed=1)
    with torch.no_grad():  # norms other than one, so that a missing one shows
        for name, parameter in ours.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    state = {
        name if name.startswith("lm_head") else f"model.{name}": value for name, value in ours.state_dict().items()
    }
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if tied else set())
    return ours, theirs


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qk_norm", [True, False])
def test_logits_and_gradients_equal_transformers(qk_norm: bool, tied: bool) -> None:
    ours, theirs = pair(qk_norm, tied)
    tokens = torch.randint(0, 128, (2, 48), generator=torch.Generator().manual_seed(0))
    our_logits, their_logits = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(our_logits, their_logits, atol=2e-5, rtol=1e-4)
    for logits in (our_logits, their_logits):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = gradients[name if name.startswith("lm_head") else f"model.{name}"].grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("qk_norm", [True, False])
def test_positions_equal_transformers(qk_norm: bool) -> None:
    ours, theirs = pair(qk_norm, True)
    tokens = torch.randint(0, 128, (2, 16))
    positions = torch.arange(7, 23).expand(2, 16)
    expected = theirs(tokens, position_ids=positions).logits
    torch.testing.assert_close(ours(tokens, positions), expected, atol=2e-5, rtol=1e-4)


def test_packed_documents_equal_documents_alone() -> None:
    args = TransformerArgs(**ARGS)
    packed, alone = Transformer(args, document_mask=True), Transformer(args)
    packed.init_weights(seed=3)
    alone.load_state_dict(packed.state_dict())
    tokens = torch.randint(0, 128, (2, 24))
    cuts = [(0, 5), (5, 17), (17, 24)]
    positions = torch.cat([torch.arange(end - start) for start, end in cuts]).expand(2, 24)
    logits = packed(tokens, positions)
    for start, end in cuts:
        torch.testing.assert_close(logits[:, start:end], alone(tokens[:, start:end]), atol=2e-5, rtol=1e-4)
    without_mask = alone(tokens, positions)
    assert (without_mask[:, 5:] - logits[:, 5:]).abs().max() > 1e-2, "the mask makes a difference"


def test_padding_rows_of_the_vocabulary_have_no_probability() -> None:
    args = TransformerArgs(**ARGS).model_copy(update={"num_tokens": 100})
    model = Transformer(args)
    model.init_weights(seed=1)
    probabilities = torch.softmax(model(torch.randint(0, 100, (1, 8))), dim=-1)
    assert torch.all(probabilities[..., 100:] == 0.0)
    assert torch.all(probabilities[..., :100] > 0.0)
