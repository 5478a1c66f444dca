"""What the benchmarks share: alternating measurements, one JSON line and one Markdown row for each result."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from titan_pt.models.transformer import TransformerArgs

ROOT = Path(__file__).resolve().parents[1]


def alternate(sides: Mapping[str, Callable[[], float]], repetitions: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each side, measured in turns so that a noisy machine disturbs all alike; the first turns warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-warmup, repetitions):
        for name, measure in sides.items():
            found = measure()
            if turn >= 0:
                seconds[name].append(found)
    return seconds


def timed(action: Callable[[], object]) -> Callable[[], float]:
    """An action that returns its own seconds."""

    def measure() -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    return measure


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times as fast ours is, turn by turn."""
    return [b / a for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def cell(values: Sequence[float], digits: int = 2) -> str:
    """Median (minimum - maximum), for a table."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def matmul_peak(dtype: torch.dtype, size: int = 1024, repetitions: int = 5) -> float:
    """Best rate of a square product of matrices on this CPU, in FLOP/s."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return max(2 * size**3 / timed(lambda: a @ b)() for _ in range(repetitions))


def has_fast_bfloat16() -> bool:
    """Whether this CPU has kernels for bfloat16: without, its products are a hundred times slower than float32's."""
    slow = matmul_peak(torch.bfloat16, 256, 2)
    return slow > matmul_peak(torch.float32, 256, 2) / 4


def environment(*packages: str) -> dict[str, Any]:
    """Versions and machine of a result."""
    versions = {name: metadata.version(name) for name in ("torch", *packages)}
    return {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} CPUs",
    }


def report(benchmark: str, result: Mapping[str, Any], row: str) -> None:
    """Print a Markdown row, then the same as a JSON line."""
    print(row)
    print(json.dumps({"benchmark": benchmark, "command": " ".join(sys.argv), **result}), flush=True)


class Worker:
    """A side of a comparison in a process of its own: it answers each line of its input with a JSON line."""

    def __init__(self, command: Sequence[str], **variables: str) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", **variables}
        self._process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.started = self._read()

    def measure(self) -> dict[str, float]:
        """Ask for one measurement."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise SystemExit("a side of the comparison failed; its message is above")


def serve(measure: Callable[[], Mapping[str, float]], started: Mapping[str, float]) -> None:
    """The worker's end of `Worker`."""
    print(json.dumps(started), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def qwen3(args: TransformerArgs, max_positions: int, **options: Any) -> Any:
    """transformers' model of the same shape, with weights of its own.

    Args:
        options: of its config.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

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
        max_position_embeddings=max_positions,
        **options,
    )
    return Qwen3ForCausalLM(config)


def memory(key: str) -> int:
    """Bytes of this process by a key of /proc/self/status: VmRSS now, VmHWM at most."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{key}:"))
