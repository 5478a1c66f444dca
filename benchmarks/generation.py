"""Tokens per second and memory of generation with quantized weights. `python benchmarks/generation.py --help`

The same random weights and prompt in every form, no early stop. The forms alternate inside each repetition, so that a
noisy machine disturbs all alike; medians with minimum and maximum.
"""

import argparse
import statistics
import time
from dataclasses import dataclass

import torch

from titan_pt.generation.native import NativeEngine
from titan_pt.generation.quantize import quantize_weights, weight_bytes
from titan_pt.generation.sampling import Sampling
from titan_pt.models.transformer import FLAVORS, Transformer


@dataclass(frozen=True)
class Form:
    """One way to hold the weights: a type and a quantization."""

    name: str
    dtype: torch.dtype
    is_int8: bool = False

    def build(self, flavor: str, device: str) -> Transformer:
        """A model of this form with random weights; every row of its vocabulary stands for a token."""
        model = Transformer(FLAVORS[flavor].model_copy(update={"num_tokens": None})).to(device)
        model.init_weights(0)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(self.dtype)
        model.eval().requires_grad_(False)
        if self.is_int8:
            quantize_weights(model, "int8")
        return model


FORMS = (
    Form("float32", torch.float32),
    Form("bfloat16", torch.bfloat16),
    Form("int8, computed in float32", torch.float32, is_int8=True),
    Form("int8, computed in bfloat16", torch.bfloat16, is_int8=True),
)


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--flavor", default="tiny", choices=sorted(FLAVORS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--prompt_tokens", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: for a CPU shared with others")
    return parser.parse_args()


def main() -> None:
    """Measure and print a Markdown table."""
    options = read_options()
    now = time.perf_counter if options.clock == "wall" else time.process_time
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {form.name: form.build(options.flavor, device) for form in FORMS}
    engines = {name: NativeEngine(model, []) for name, model in models.items()}
    prompt = torch.randint(1, 50_000, (options.prompt_tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    speeds: dict[tuple[str, int], list[float]] = {(name, rows): [] for name in engines for rows in options.rows}
    for repetition in range(options.repetitions + 1):
        for (name, rows), found in speeds.items():
            start = now()
            engines[name].generate([prompt], Sampling(options.new_tokens, seed=repetition), rows)
            if repetition:  # the first one warms up
                found.append(rows * options.new_tokens / (now() - start))
    print(
        f"{options.flavor}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}; prompt of "
        f"{options.prompt_tokens} tokens, {options.new_tokens} new ones; {options.clock} time; tokens/s and MB\n"
    )
    print("| weights | " + " | ".join(f"rows: {rows}" for rows in options.rows) + " | all | blocks |")
    print("|---" * (len(options.rows) + 3) + "|")
    for name, model in models.items():
        cells = [
            f"{statistics.median(v):.0f} ({min(v):.0f} - {max(v):.0f})"
            for v in (speeds[name, rows] for rows in options.rows)
        ]
        sizes = [f"{weight_bytes(part) / 1e6:.0f}" for part in (model, model.layers)]
        print(f"| {name} | " + " | ".join([*cells, *sizes]) + " |")


if __name__ == "__main__":
    main()
