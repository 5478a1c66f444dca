"""Tokens per second and peak memory of a training step against transformers. `python benchmarks/train_step.py --help`

The same shape (Qwen3), random tokens, cross-entropy of all tokens, gradient clipping and fused AdamW on both sides,
float32 weights with a compute type of float32 or bfloat16. Each of ours and theirs runs eager and compiled, each in a
process of its own; they take turns, and the better of each side's two counts. Ours is a step of a run as its TOML
builds it. Memory is the peak of resident memory above that before the model was built.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from common import (
    Worker,
    cell,
    environment,
    has_fast_bfloat16,
    matmul_peak,
    memory,
    qwen3,
    ratios,
    report,
    serve,
    spread,
    timed,
)

from titan_pt.models.transformer import FLAVORS

ROWS = {"debugmodel": 4, "tiny": 4, "small": 4, "medium": 1}
VOCABULARY = 50304


def ours(options: argparse.Namespace, *, compiled: bool) -> Callable[[], object]:
    """A step of titan_pt."""
    from training import build_step

    step, _ = build_step(
        [
            "--tokenizer.name=gpt2",
            f"--model.flavor={options.flavor}",
            f"--model.vocab_size={VOCABULARY}",
            f"--training.seq_len={options.length}",
            f"--training.local_batch_size={options.rows}",
            f"--training.global_batch_size={options.rows}",
            f"--training.mixed_precision_param={options.dtype}",
            f"--optimizer.name={options.optimizer}",
            "--activation_checkpoint.mode=none",
            f"--compile.enable={str(compiled).lower()}",
        ]
    )
    return step


def theirs(options: argparse.Namespace, *, compiled: bool) -> Callable[[], object]:
    """A step of transformers' Qwen3 of the same shape, in a plain loop."""
    args = FLAVORS[options.flavor].model_copy(update={"vocab_size": VOCABULARY})
    model = qwen3(args, options.length, use_cache=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    forward = torch.compile(model) if compiled else model
    tokens = torch.randint(0, 50257, (options.rows, options.length), generator=torch.Generator().manual_seed(0))
    low = options.dtype == "bfloat16"

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def work(options: argparse.Namespace) -> None:
    """One side in its process."""
    import transformers  # noqa: F401  # on both sides, so that imports do not count

    before = memory("VmRSS")
    side, mode = options.side.split("-")
    step = {"ours": ours, "theirs": theirs}[side](options, compiled=mode == "compiled")
    first = timed(step)()
    step()
    serve(lambda: {"seconds": timed(step)(), "peak": memory("VmHWM") - before}, {"first": first})


def compare(options: argparse.Namespace) -> None:
    """Both sides in turns: a row and a JSON line."""
    sides = [f"{side}-{mode}" for side in ("ours", "theirs") for mode in options.modes]
    flags = ["--flavor", options.flavor, "--rows", options.rows, "--length", options.length, "--dtype", options.dtype]
    flags += ["--optimizer", options.optimizer]
    workers = {name: Worker([__file__, "--side", name, *map(str, flags)]) for name in sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, float] = {}
    for _ in range(options.repetitions):
        for name, worker in workers.items():
            found = worker.measure()
            seconds[name].append(found["seconds"])
            peaks[name] = found["peak"] / 2**30
    for worker in workers.values():
        worker.close()

    def best(side: str) -> str:
        return min((name for name in sides if name.startswith(side)), key=lambda name: statistics.median(seconds[name]))

    us, them = best("ours"), best("theirs")
    tokens = options.rows * options.length
    speeds = {name: [tokens / each for each in seconds[name]] for name in sides}
    factor = ratios(seconds[us], seconds[them])
    from titan_pt.models.transformer.args import flops_per_token

    args = FLAVORS[options.flavor].model_copy(update={"vocab_size": VOCABULARY})
    peak = matmul_peak(getattr(torch, options.dtype))
    share = flops_per_token(args, options.length) * statistics.median(speeds[us]) / peak
    cells = f"{cell(speeds[us], 0)} ({us[5:]}) | {cell(speeds[them], 0)} ({them[7:]}) | {cell(factor)} | {share:.0%}"
    sizes = f"{peaks[us]:.2f} : {peaks[them]:.2f} GiB = {peaks[us] / peaks[them]:.2f}"
    row = f"| {options.flavor}, {options.rows} x {options.length}, {options.dtype} | {cells} | {sizes} |"
    result = {
        **{key: getattr(options, key) for key in ("flavor", "rows", "length", "dtype", "optimizer")},
        "tokens_per_second": {name: spread(values, 1) for name, values in speeds.items()},
        "ratio": spread(factor),
        "mfu_of_measured_peak": round(share, 3),
        "peak_gib": {name: round(value, 2) for name, value in peaks.items()},
        **environment("transformers"),
    }
    report("train_step", result, row)


def main() -> None:
    """Compare each flavor asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flavor", nargs="+", default=["tiny"], choices=sorted(ROWS))
    parser.add_argument("--rows", type=int, nargs="+", default=[0], help="rows of a batch; 0: 4, of medium 1")
    parser.add_argument("--length", type=int, nargs="+", default=[512])
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="auto: the faster one")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--optimizer", default="AdamW", choices=["AdamW", "AdamW8bit"], help="ours; theirs is AdamW")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="debugmodel, 2 x 256, eager")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dtype == "auto":
        options.dtype = "bfloat16" if has_fast_bfloat16() else "float32"
    if options.short:
        options.flavor, options.rows, options.length, options.modes = ["debugmodel"], [2], [256], ["eager"]
    if not options.side:
        print("| model, batch | ours, tokens/s | transformers | ratio | of the matmul peak | peak memory |")
        print("|---|---|---|---|---|---|")
    for flavor in options.flavor:
        for rows in options.rows:
            for length in options.length:
                one = argparse.Namespace(**{**vars(options), "flavor": flavor, "length": length})
                one.rows = rows or ROWS[flavor]
                (work if options.side else compare)(one)


if __name__ == "__main__":
    sys.exit(main())
