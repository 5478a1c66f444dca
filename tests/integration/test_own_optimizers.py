"""Optimizers of a plugin: their state is resumed to the bit or refused before the first step, and their rates act."""

import logging
from pathlib import Path

import pytest
import torch
from helpers import assert_same_step, losses, read_rows, read_tensors, train, train_here, write_toml

SAVED = ("muon", "sgd", "adagrad", "nadam", "part", "odd", "own")


def write(folder: Path, name: str, **tables: object) -> Path:
    return write_toml(
        folder,
        job={"trainer": f"opt_{name}", "dump_folder": str(folder / "run")},
        experimental={"custom_import": "optimizer_plugins"},
        training={"steps": 4, "seq_len": 32, "local_batch_size": 4, "mixed_precision_param": "float32"},
        lr_scheduler={"warmup_steps": 1, "total_steps": 8},
        checkpoint={"interval": 2, "keep_latest_k": 0},
        optimizer={"lr": 1e-2},
        **tables,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", SAVED)
def test_resumed_is_the_uninterrupted_run(tmp_path: Path, name: str) -> None:
    whole, parts = write(tmp_path / "whole", name), write(tmp_path / "parts", name)
    assert train_here(whole) == 0
    assert train_here(parts, "--training.steps", "2") == 0
    assert train_here(parts) == 0
    assert_same_step(tmp_path / "whole/run/checkpoint/step-4", tmp_path / "parts/run/checkpoint/step-4")
    assert losses(tmp_path / "whole/run") == losses(tmp_path / "parts/run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "odd"])
def test_the_same_on_two_ranks(tmp_path: Path, name: str) -> None:
    whole, parts = write(tmp_path / "whole", name), write(tmp_path / "parts", name)
    for config, flags in ((whole, ()), (parts, ("--training.steps", "2")), (parts, ())):
        done = train(config, *flags, ranks=2)
        assert done.code == 0, done.stderr
    assert_same_step(tmp_path / "whole/run/checkpoint/step-4", tmp_path / "parts/run/checkpoint/step-4")
    if name == "muon":
        assert train_here(parts, "--training.steps", "6") == 0, "goes on alone"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lbfgs", "torch.optim.lbfgs.LBFGS: its step needs a closure"),
        ("hidden", "optimizer_plugins.Hidden: its step changes the attribute count, which is in no checkpoint"),
        ("sparse", "optimizer_plugins.Sparse: its step changes the attribute slow, which is in no checkpoint"),
        ("iterator", "optimizer_plugins.FromIterator: after its state was saved and loaded, its steps are not those"),
        ("wrapped", "optimizer_plugins.Wrapped: its attribute parts is or holds an optimizer too"),
        ("picky", "ValueError: of seven alone (" + str(Path(__file__).parents[1] / "optimizer_plugins.py:")),
        ("copies", "SGD: 24 of the 24 tensors of its group 1 are no parameters of the model, the first of shape"),
        ("adamw_copies", "AdamW: 24 of the 24 tensors of its group 1 are no parameters of the model"),
        ("nothing", "build_optimizers of job.trainer = 'opt_nothing' gives a NoneType and no torch.optim.Optimizer ("),
        (
            "one_argument",
            "build_optimizers of job.trainer = 'opt_one_argument', a (model, config) -> Optimizer, fails: TypeError: ",
        ),
        ("negative", "fails: ValueError: Invalid learning rate: -1"),
        ("queue", "norms of its state is a deque, which a checkpoint cannot hold"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_the_first_step(
    tmp_path: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(write(tmp_path, name)) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not (tmp_path / "run/metrics.jsonl").exists()


def test_another_optimizer_is_refused_and_left_out_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, "sgd")
    assert train_here(config, "--training.steps", "2") == 0
    text = config.read_text()
    config.write_text(text.replace('trainer = "opt_sgd"', 'trainer = "opt_muon"'))
    saved = tmp_path / "run/checkpoint/step-2/train.json"
    capsys.readouterr()
    assert train_here(config) == 2
    assert "job.trainer" in capsys.readouterr().err
    assert saved.exists()


def test_a_group_keeps_its_own_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The schedule is a factor on it; the metric `lr` stays the main rate."""
    slow, fast = write(tmp_path / "slow", "muon"), write(tmp_path / "fast", "muon")
    assert train_here(slow, "--plugin.lr", "0.001") == 0
    assert "group matrices: 14 tensors, 73,728 parameters, lr 0.001, weight_decay 0" in capsys.readouterr().err
    assert train_here(fast, "--plugin.lr", "0.02") == 0
    rows = [read_rows(tmp_path / name / "run") for name in ("slow", "fast")]
    assert [row["lr"] for row in rows[0]] == [row["lr"] for row in rows[1]]
    for row in rows[1]:
        assert row["lr/matrices"] == pytest.approx(2 * row["lr"], rel=1e-12)
    assert rows[0][-1]["loss"] != rows[1][-1]["loss"]
    assert train_here(slow, "--plugin.lr", "0.02", "--training.steps", "6") == 0
    (warned,) = [line for line in capsys.readouterr().err.splitlines() if "The learning rate" in line]
    assert (
        "lr/matrices rises from 0.0005714 at step 4 to 0.008571 at step 5: the group's own rate is 0.1 times" in warned
    )
    assert warned.endswith("optimizer.lr there and 2 times here")
    tensors = [read_tensors(tmp_path / name / "run/checkpoint/step-4") for name in ("slow", "fast")]
    name = "optimizer.layers.0.self_attn.q_proj.weight.momentum"
    assert tensors[0][name].dtype == torch.float32 and tensors[0][name].any()
    logging.getLogger("titan_pt").handlers.clear()
