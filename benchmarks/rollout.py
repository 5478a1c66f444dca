"""Tokens per second of the native engine and of transformers' generate. `python benchmarks/rollout.py --help`

Same weights (converted to Qwen3ForCausalLM), same prompts, same number of new tokens, no early stop, temperature 1.
Both alternate inside each repetition, so that a noisy machine disturbs both alike; medians with minimum and maximum.
Our engine also returns log-probabilities, and computes its output layer in float32.
"""

import argparse
import logging
import statistics
import time

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM

from titan_pt.generation.native import NativeEngine
from titan_pt.generation.sampling import Sampling
from titan_pt.models.transformer import FLAVORS, Transformer, TransformerArgs

SAMPLES = 16
Prompts = list[list[int]]


def convert(model: Transformer) -> Qwen3ForCausalLM:
    """A transformers model with the weights of a titan_pt model."""
    args = model.args
    config = Qwen3Config(
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_layers,
        num_attention_heads=args.num_heads,
        num_key_value_heads=args.num_kv_heads,
        head_dim=args.head_dim,
        intermediate_size=args.intermediate_size,
        vocab_size=args.vocab_size,
        rope_parameters={"rope_type": "default", "rope_theta": args.rope_theta},
        rms_norm_eps=args.norm_eps,
        tie_word_embeddings=args.tie_embeddings,
        max_position_embeddings=args.max_seq_len,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    other = Qwen3ForCausalLM(config)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    weight = model.output_weight
    return other.to(weight.device, weight.dtype).eval()


def generate_theirs(model: Qwen3ForCausalLM, prompts: Prompts, n: int, new_tokens: int, *, sampled: bool) -> Prompts:
    """New tokens of each row by transformers, which pads on the left."""
    longest = max(len(prompt) for prompt in prompts)
    padding = [longest - len(prompt) for prompt in prompts]
    tokens = torch.tensor([[0] * pad + prompt for pad, prompt in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {"do_sample": False}
    rows = model.generate(
        tokens.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=new_tokens,
        num_return_sequences=n,
        **options,
    )
    assert rows.shape == (len(prompts) * n, longest + new_tokens)
    return rows[:, longest:].tolist()


def differing(engine: NativeEngine, other: Qwen3ForCausalLM, prompts: Prompts, new_tokens: int) -> int:
    """Number of greedy tokens that differ between the two implementations."""
    ours = engine.generate(prompts, Sampling(new_tokens, temperature=0.0), 1)
    theirs = generate_theirs(other, prompts, 1, new_tokens, sampled=False)
    return sum(a != b for one, row in zip(ours, theirs, strict=True) for a, b in zip(one.token_ids, row, strict=True))


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--flavor", default="debugmodel", choices=sorted(FLAVORS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256], help=f"1 or multiples of {SAMPLES}")
    parser.add_argument("--prompt_tokens", type=int, default=96, help="of the longest prompt")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: for a CPU shared with others")
    parser.add_argument("--compile", action="store_true", help="rollout.compile")
    return parser.parse_args()


def build(options: argparse.Namespace) -> tuple[NativeEngine, Qwen3ForCausalLM]:
    """Both models with the same random weights; every row of the vocabulary stands for a token."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    args: TransformerArgs = FLAVORS[options.flavor].model_copy(update={"num_tokens": None})
    model = Transformer(args).to(device)
    model.init_weights(0)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, options.dtype))
    engine = NativeEngine(model, [], compile_backend="inductor" if options.compile else None)
    return engine, convert(model)


def main() -> None:
    """Measure and print a Markdown table."""
    options = read_options()
    now = time.perf_counter if options.clock == "wall" else time.process_time
    logging.getLogger("transformers").setLevel(logging.ERROR)
    engine, other = build(options)
    print(
        f"{options.flavor}, {options.dtype}, {other.device.type}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}; {options.new_tokens} new tokens, prompts "
        f"of up to {options.prompt_tokens} tokens, {SAMPLES} samples of each; {options.clock} time\n"
    )
    print("| rows | ours, tokens/s: median (min - max) | transformers | ratio: median (min - max) |\n|---|---|---|---|")
    generator = torch.Generator().manual_seed(0)
    for rows in options.rows:
        n = min(rows, SAMPLES)
        lengths = [max(1, options.prompt_tokens - 7 * (i % 8)) for i in range(rows // n)]
        prompts = [torch.randint(1, 50_000, (length,), generator=generator).tolist() for length in lengths]
        if rows == options.rows[0]:
            wrong = differing(engine, other, prompts, options.new_tokens)
        speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for repetition in range(options.repetitions + 1):
            for name in speeds:
                start = now()
                if name == "ours":
                    engine.generate(prompts, Sampling(options.new_tokens, seed=repetition), n)
                else:
                    generate_theirs(other, prompts, n, options.new_tokens, sampled=True)
                if repetition:  # the first one warms up
                    speeds[name].append(rows * options.new_tokens / (now() - start))
        ratios = [ours / theirs for ours, theirs in zip(speeds["ours"], speeds["theirs"], strict=True)]
        cells = [f"{statistics.median(v):.0f} ({min(v):.0f} - {max(v):.0f})" for v in speeds.values()]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        print(f"| {rows} | {cells[0]} | {cells[1]} | {ratio} |", flush=True)
    print(f"\ngreedy tokens that differ: {wrong} of {options.new_tokens}")


if __name__ == "__main__":
    main()
