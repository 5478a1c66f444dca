"""Run folders that no run made: as many steps and rollouts as a test asks for, in a moment."""

import json
import math
from pathlib import Path
from typing import Any

import tomli_w

HOSTILE = (
    "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"> & ünï 🙂 \u2028"
)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_run(
    folder: Path, steps: int = 100, rollouts: int = 0, *, lr: float = 1e-3, done: bool = True, hostile: str = ""
) -> Path:
    """A GRPO-like run with every kind of value: sources, evaluations, a restart, a bad step, goodput."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "job": {"trainer": "grpo", "description": f"made for a test {hostile}", "dump_folder": str(folder)},
        "training": {"steps": steps, "seq_len": 256},
        "optimizer": {"name": "AdamW", "lr": lr},
        "data": {"sources": [{"name": "wiki", "weight": 0.75}, {"name": "code", "weight": 0.25}]},
    }
    (folder / "config.toml").write_text("# titan_pt 0.9, commit abc1234\n\n" + tomli_w.dumps(config), encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        wave = math.sin(step * 12.9898) * 0.5 + math.sin(step * 78.233) * 0.5
        done_share = step / steps
        loss = 1.2 + 4 * math.exp(-6 * done_share) + 0.12 * wave
        rows.append(
            {
                "step": step,
                "loss": loss,
                "grad_norm": 0.8 + 0.3 * wave,
                "lr": lr * (1 - done_share),
                "tokens_seen": step * 4096,
                "tokens_per_second": 7000 + 300 * wave,
                "mfu": 0.4 + 0.02 * wave,
                "step_seconds": 0.6,
                "data_seconds": 0.01,
                "memory_gib": 0.4,
                "skipped_steps": int(step >= steps // 2),
                "goodput": 0.8 * done_share,
                "reward_mean": done_share + 0.05 * wave,
                "accuracy_strict": 0.9 * done_share,
                "accuracy_lenient": 0.95 * done_share,
                "completion_tokens_mean": 20 + 3 * wave,
                "source/wiki/loss": loss + 0.1,
                "source/code/loss": loss - 0.3,
                "seconds/rollout": 0.3,
                "seconds/train": 0.2,
                "time": 1_795_000_001 + 250 * done_share + 100 * (done_share >= 0.5),
                **({"val_loss": loss + 0.02, "val_bpb": loss / 2} if step % max(steps // 10, 1) == 0 else {}),
                **(
                    {"eval/arithmetic/accuracy": 0.9 * done_share, "eval/arithmetic/problems": 200}
                    if step % max(steps // 10, 1) == 0
                    else {}
                ),
            }
        )
    write_lines(folder / "metrics.jsonl", rows)
    half, spent = steps // 2, {"training": 60.0, "sampling": 20.0, "data": 1.0, "start": 5.0}
    lines = [
        {"step": 0, "begins": True, "time": 1_795_000_000, "clock": 1.0, "boot": "a", "seconds": {"start": 5.0}},
        {"step": half, "time": 1_795_000_100, "clock": 101.0, "boot": "a", "seconds": spent},
        {"step": half, "begins": True, "time": 1_795_000_200, "clock": 201.0, "boot": "a", "seconds": {"restart": 6.0}},
        {"step": steps, "time": 1_795_000_300, "clock": 301.0, "boot": "a", "seconds": {"restart": 6.0, **spent}},
    ]
    write_lines(folder / "goodput.jsonl", [*lines[:3], {**lines[3], **({"done": True} if done else {})}])
    box = folder / "blackbox" / f"step-{half}-0a1b2c3d" / "box.json"
    box.parent.mkdir(parents=True)
    box.write_text(json.dumps({"why": f"the loss is a spike {hostile}", "answer": "skip", "documents": ["a", "b"]}))
    per_step = 50
    for first in range(0, rollouts, per_step):
        step = 1 + first * max(steps // max(rollouts, 1), 1)
        write_lines(folder / "rollouts" / f"step-{step}.jsonl", [_rollout(first + i, hostile) for i in range(per_step)])
    return folder


def _rollout(n: int, hostile: str) -> dict[str, Any]:
    right = n % 3 == 0
    return {
        "task": "arithmetic" if n // 5 % 5 else "gsm8k",
        "id": f"problem-{n // 5}",
        "prompt": f"Question: What is {n % 10} + {n % 7}?\nAnswer:",
        "gold": str(n % 10 + n % 7),
        "sample": n % 5,
        "completion": f"Let me think about number {n}. " * (1 + n % 12) + f"#### {n % 10 + n % 7} {hostile}",
        "num_tokens": 10 + 12 * (n % 12),
        "finish_reason": "length" if n % 12 == 11 else "stop",
        "rewards": {"correct": float(right), "format": 0.1 * (n % 2)},
        "reward": float(right) + 0.1 * (n % 2),
        "strict": right,
        "lenient": right or n % 7 == 0,
        "advantage": None if n % 11 == 0 else 0.5 - n % 2,
    }
