"""What is trained while faults come: runs of a second or two, of each kind of training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

STEPS, INTERVAL = 16, 4
BAD_STEPS = (3, 9)
"""Of the experiment "bad gradients"."""

_TINY: dict[str, dict[str, Any]] = {
    "model": {
        "num_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "head_dim": 16,
        "num_heads": 2,
        "num_kv_heads": 1,
    },
    "training": {
        "steps": STEPS,
        "seq_len": 32,
        "local_batch_size": 2,
        "global_batch_size": 4,
        "mixed_precision_param": "float32",
    },
    "activation_checkpoint": {"mode": "none"},
    "lr_scheduler": {"warmup_steps": 3},
    "metrics": {"log_freq": 1, "enable_tensorboard": False},
    "checkpoint": {"interval": INTERVAL, "keep_latest_k": 2},
    "validation": {"enable": True, "freq": 6, "steps": 1, "local_batch_size": 2},
    "data": {"sources": [{"name": "arithmetic", "weight": 0.7}, {"name": "texts", "path": "TEXTS", "weight": 0.3}]},
}
_RL: dict[str, dict[str, Any]] = {
    "experimental": {"custom_import": "rl_plugin"},
    "training": {"steps": 8, "local_batch_size": 4, "seq_len": 96},
    "rollout": {"num_samples": 4, "max_new_tokens": 4, "max_rows": 8},
    "grpo": {
        "prompts_per_step": 2,
        "eval_prompts": 2,
        "eval_samples": 2,
        "probe_prompts": 2,
        "overlong": "penalty",
        "overlong_buffer": 1,
        "overlong_penalty": 0.0,
        "tasks": [{"name": "coin", "weight": 3.0}, {"name": "second_coin"}],
    },
    "checkpoint": {"interval": 2},
    "validation": {"freq": 4},
}


@dataclass(frozen=True)
class Experiment:
    """One kind of run."""

    tables: dict[str, dict[str, Any]]
    trainer: str = "pretrain"
    ranks: int = 1
    weight: int = 4
    """How often it is drawn."""

    def write(self, folder: Path, texts: Path, address: str) -> Path:
        """`folder/run.toml`, whose run folder is `folder/run`.

        Args:
            texts: a folder of .jsonl and .parquet files.
            address: of a server of that folder.
        """
        merged: dict[str, Any] = {name: dict(table) for name, table in _TINY.items()}
        for name, table in self.tables.items():
            merged[name] = {**merged.get(name, {}), **table}
        if self.trainer == "grpo":
            del merged["data"], merged["training"]["global_batch_size"]
        else:
            places = {"TEXTS": str(texts / "texts.jsonl"), "WEB": f"{address}/{{000..003}}_00000.parquet"}
            sources = [{**row, **_placed(row, places)} for row in merged["data"]["sources"]]
            merged["data"] = {**merged["data"], "sources": sources, "cache_dir": str(folder / "cache")}
        folder.mkdir(parents=True, exist_ok=True)
        merged["job"] = {"dump_folder": str(folder / "run"), "trainer": self.trainer}
        path = folder / "run.toml"
        path.write_text(tomli_w.dumps(merged))
        return path

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.tables.get("training", {}).get("steps", STEPS)

    @property
    def interval(self) -> int:
        """Steps between two saves."""
        return self.tables.get("checkpoint", {}).get("interval", INTERVAL)


def _placed(row: dict[str, Any], places: dict[str, str]) -> dict[str, str]:
    return {"path": places[row["path"]]} if "path" in row else {}


EXPERIMENTS = {
    "pretrain": Experiment({"metrics": {"enable_tensorboard": True}}),
    "background saves": Experiment({"checkpoint": {"async_mode": "async", "export_hf_interval": 8}}),
    "deadline": Experiment({"training": {"max_hours": 1.0}, "lr_scheduler": {"decay_ratio": 0.3}}),
    "http": Experiment({"data": {"sources": [{"name": "web", "path": "WEB"}, {"name": "arithmetic"}]}}),
    "sft": Experiment(
        {"training": {"seq_len": 96}, "data": {"sources": [{"name": "arithmetic", "subset": "level-1"}]}}, trainer="sft"
    ),
    "grpo": Experiment(_RL, trainer="grpo", weight=2),
    "two ranks": Experiment({}, ranks=2, weight=2),
    "bad gradients": Experiment(
        {
            "experimental": {"custom_import": "faults"},
            "fault": {"kind": "nan_gradient", "steps": list(BAD_STEPS)},
            "training": {"max_skipped_steps": 4},
        },
        trainer="faulty",
        weight=2,
    ),
}


def write_texts(folder: Path) -> None:
    """The documents of all experiments."""
    import json

    from hub_server import write_shards

    texts = [" ".join(f"{name}{i * j % 17}" for j in range(3 + i % 9)) for i in range(400) for name in ("a", "bc")]
    write_shards(folder, texts, 4, 20)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
