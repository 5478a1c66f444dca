"""20 steps are 10 steps, a stop, and 10 more, to the last bit; and the same run on 1 and 2 ranks."""

import os
import runpy
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    assert_same_step,
    losses,
    read_json,
    read_rows,
    read_tensors,
    run,
    train,
    train_here,
    write_toml,
)

# Two ranks cannot share these sizes evenly.
UNEVEN = {"hidden_size": 65, "intermediate_size": 129, "tie_embeddings": False, "dropout": 0.1}
TABLES: dict[str, Any] = {
    "training": {"steps": 20, "ema_decay": 0.9},
    "checkpoint": {"interval": 10, "keep_latest_k": 0},
    "validation": {"enable": True, "freq": 10, "steps": 1, "weights": "both"},
    "data": {"sources": [{"name": "arithmetic"}, {"name": "python_stdlib"}]},
}

# Prints a hash of every initial parameter, whole.
INITIAL = """
import hashlib, json, os, sys
from torch.distributed.tensor import DTensor
from titan_pt.config.manager import load_config
from titan_pt.distributed.world import stop_world
from titan_pt.run.leaving import leave
from titan_pt.train import build_trainer

context = build_trainer(load_config(sys.argv[1:])).context
hashes = {}
for name, tensor in context.model.state_dict().items():
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    hashes[name] = hashlib.sha256(full.contiguous().numpy().tobytes()).hexdigest()
if context.world.is_main:
    print(json.dumps(hashes, sort_keys=True))
stop_world()
if "RANK" in os.environ:  # a process of its own
    leave(0)
"""


def stop_after_10(folder: Path, target: Path) -> Path:
    """What a kill after step 10 and before step 20 leaves of a run."""
    shutil.copytree(folder / "run", target / "run")
    shutil.rmtree(target / "run" / "checkpoint" / "step-20")
    with (target / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    text = (folder / "run.toml").read_text()
    (target / "run.toml").write_text(text.replace(str(folder), str(target)))
    return target / "run.toml"


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_step(one / "run" / "checkpoint" / "step-20", other / "run" / "checkpoint" / "step-20")
    assert losses(one / "run") == losses(other / "run")
    validated = [[row.get("ema/val_loss") for row in read_rows(folder / "run")] for folder in (one, other)]
    assert validated[0] == validated[1]
    assert [i + 1 for i, value in enumerate(validated[0]) if value is not None] == [1, 10, 20]


@pytest.mark.parametrize("model", [{}, UNEVEN], ids=["tied", "untied"])
def test_20_is_10_and_10_on_one_rank(tmp_path: Path, model: dict[str, Any]) -> None:
    checkpoint = {**TABLES["checkpoint"], "async_mode": "async" if model else "disabled"}
    config = write_toml(tmp_path / "whole", model=model, **{**TABLES, "checkpoint": checkpoint})
    assert train_here(config) == 0
    (tmp_path / "parts").mkdir()
    assert train_here(stop_after_10(tmp_path / "whole", tmp_path / "parts")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps on 2 ranks with shards of different sizes."""
    folder = tmp_path_factory.mktemp("two_ranks")
    done = train(write_toml(folder, model=UNEVEN, **TABLES), ranks=2)
    assert done.code == 0, done.stderr
    return folder


@pytest.mark.slow
def test_20_is_10_and_10_on_two_ranks(two_ranks: Path, tmp_path: Path) -> None:
    done = train(stop_after_10(two_ranks, tmp_path), ranks=2)
    assert done.code == 0, done.stderr
    assert "Resumed from" in done.stderr
    assert_same_run(two_ranks, tmp_path)


@pytest.mark.slow
def test_a_run_of_two_ranks_goes_on_with_one(two_ranks: Path, tmp_path: Path) -> None:
    assert train_here(stop_after_10(two_ranks, tmp_path)) == 0
    steps = [folder / "run" / "checkpoint" / "step-20" for folder in (two_ranks, tmp_path)]
    assert read_json(steps[0], "data") == read_json(steps[1], "data"), "the same documents in the same order"
    for number, value in losses(tmp_path / "run").items():
        assert value == pytest.approx(losses(two_ranks / "run")[number], abs=2e-5), number
    a, b = (read_tensors(step) for step in steps)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_the_initial_weights_are_the_same_on_one_and_two_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "initial.py"
    script.write_text(INITIAL)
    arguments = [str(script), "--job.config_file", str(write_toml(tmp_path, model=UNEVEN))]
    done = run([sys.executable, "-m", "titan_pt.launch", "--standalone", "--nproc_per_node", "2", *arguments])
    assert done.code == 0, done.stderr
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(script))
    assert capsys.readouterr().out == done.stdout and len(done.stdout) > 1000


# Killed while it writes the manifest of step 4.
KILLED_IN_A_SAVE = f"""
import os
from titan_pt.components.checkpoint import checkpointer as checkpoint

write = checkpoint.write_json

def write_or_die(path, content):
    if path.name == "manifest.json" and content["step"] == 4:
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    write(path, content)

checkpoint.write_json = write_or_die
"""


@pytest.mark.parametrize("mode", ["disabled", pytest.param("async", marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_a_save(tmp_path: Path, mode: str) -> None:
    (tmp_path / "killing.py").write_text(KILLED_IN_A_SAVE)
    tables: dict[str, Any] = {
        "checkpoint": {"interval": 2, "keep_latest_k": 1, "async_mode": mode},
        "training": {"steps": 5},
    }
    config = write_toml(tmp_path, **tables)
    done = train(config, "--experimental.custom_import", "killing", cwd=tmp_path)
    assert done.code == -signal.SIGKILL
    folder = tmp_path / "run" / "checkpoint"
    left = sorted(path.name for path in folder.iterdir())
    assert left[:2] == [".lock", "step-2"] and left[2].startswith("step-4.tmp-") and len(left) == 3
    assert train_here(config) == 0
    assert os.listdir(folder) == ["step-5"]
    assert train_here(write_toml(tmp_path / "whole", **tables)) == 0
    assert_same_step(folder / "step-5", tmp_path / "whole" / "run" / "checkpoint" / "step-5")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole" / "run")
