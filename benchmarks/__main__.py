"""The short form of the benchmarks against others, one after the other: `python -m benchmarks [name ...]`

Each prints its rows and a JSON line. The long forms, their options and figures: benchmarks/README.md.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

SHORT = {
    "train_step": ("--short",),
    "rollout": ("--short",),
    "grpo_step": ("--short",),
    "loop_overhead": ("--short",),
    "startup": ("--short",),
    "scaling": ("--short",),
}


def main(names: list[str]) -> int:
    """Run the benchmarks of these names, or all; returns 1 where one failed."""
    unknown = set(names) - SHORT.keys()
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SHORT)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or SHORT:
        start = time.perf_counter()
        print(f"\n## {name}\n", flush=True)
        script = Path(__file__).parent / f"{name}.py"
        environment = {**os.environ, "PYTHONPATH": f"{script.parents[1]}:{os.environ.get('PYTHONPATH', '')}"}
        if subprocess.run([sys.executable, str(script), *SHORT[name]], env=environment).returncode:
            failed.append(name)
        print(f"\n{name}: {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
