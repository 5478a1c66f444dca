"""A trainer, a model and a source from outside the package, without an edit of titan_pt."""

import json
import os
import subprocess
import sys
from pathlib import Path

PLUGIN = '''
"""A bigram model, trained by pretraining with a section and a metric of its own, on a source of its own."""
import dataclasses

import torch
import torch.nn.functional as F

from titan_pt.config.schema.job_config import Section
from titan_pt.data.sources.registry import register_source
from titan_pt.distributed.fsdp import shard
from titan_pt.distributed.init import fill_keyed
from titan_pt.protocols.model_spec import ModelSpec, register_model_spec
from titan_pt.protocols.trainer_spec import register_trainer_spec
from titan_pt.trainers import pretrain


class BigramArgs(Section):
    vocab_size: int = 64
    width: int = 16
    """Width of the table."""


class Bigram(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        self.first = torch.nn.Embedding(args.vocab_size, args.width)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(args.width, args.width, bias=False)])
        self.out = torch.nn.Linear(args.width, args.vocab_size, bias=False)

    def forward(self, tokens_BL, positions_BL=None, head=None):
        hidden_BLD = self.layers[0](self.first(tokens_BL))
        return (head or F.linear)(hidden_BLD, self.out.weight)

    def init_weights(self, seed):
        fill_keyed(self, seed, lambda name, full, generator: full.normal_(std=0.05, generator=generator))


def parallelize(model, config, world):
    shard(model, model.layers, config, world)
    return model


register_model_spec(ModelSpec(
    name="bigram", args_type=BigramArgs, flavors={"default": BigramArgs()},
    build=lambda args, config: Bigram(args), parallelize=parallelize,
    flops_per_token=lambda args, seq_len: 6.0 * args.width * (args.width + args.vocab_size),
))


class Scaled(Section):
    lr_scale: float = 1.0
    """Multiplies the learning rate."""


def build_step(context):
    schedule = context.schedule
    scale = context.config.scaled.lr_scale
    inner = pretrain.build_step(dataclasses.replace(context, schedule=lambda step: scale * schedule(step)))

    def step(state):
        metrics = inner(state)
        return metrics and dataclasses.replace(metrics, extra={**metrics.extra, "my/scale": scale})

    return step


register_trainer_spec(dataclasses.replace(
    pretrain.SPEC, name="scaled_pretrain", build_step=build_step, sections={"scaled": Scaled},
))


class Counting:
    fingerprint = "counting"

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return " ".join(str(i) for i in range(index, index + 20))


register_source("counting", lambda source, seed: Counting())
'''

CONFIG = """
experimental.custom_import = "my_plugin"
job = {trainer = "scaled_pretrain", dump_folder = "run"}
model = {name = "bigram", flavor = "default", width = 24}
scaled.lr_scale = 2.0
data.sources = [{name = "counting"}]
training = {steps = 12, seq_len = 32, local_batch_size = 4, mixed_precision_param = "float32"}
optimizer.lr = 5e-3
lr_scheduler = {warmup_steps = 0, min_lr_factor = 1.0}
"""


def test_a_trainer_a_model_and_a_source_from_outside(tmp_path: Path) -> None:
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    (tmp_path / "mine.toml").write_text(CONFIG)
    command = [sys.executable, "-m", "titan_pt.train", "--job.config_file", "mine.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 12 and rows[-1]["my/scale"] == 2.0
    assert rows[-1]["lr"] == 1e-2, "twice optimizer.lr"
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.2
    assert "source/counting/tokens" in rows[-1]
    saved = json.loads((tmp_path / "run" / "checkpoint" / "step-12" / "train.json").read_text())
    assert saved["identity"]["model"]["width"] == 24

    again = subprocess.run(
        [*command, "--training.steps", "14"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0 and "Training starts at step 13" in again.stderr
    other = subprocess.run(
        [*command, "--job.trainer", "pretrain", "--scaled.lr_scale", "1.0"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert other.returncode == 2 and "Traceback" not in other.stderr
