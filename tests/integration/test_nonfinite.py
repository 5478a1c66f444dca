"""A loss or gradient that is not finite is never applied, is counted and named, and ends the run when it stays."""

import json
import os
import shutil
import signal
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
    telling,
    train,
    train_here,
    write_faulty,
    write_toml,
)

from titan_pt.components.checkpoint import resume
from titan_pt.components.checkpoint.file_hashes import file_entry
from titan_pt.components.optimizer import guarded_update
from titan_pt.data.stream.batch import StepBatch
from titan_pt.data.stream.loader import DataLoader
from titan_pt.trainers import pretrain


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [("nan_loss", "fused"), ("nan_gradient", "fused"), ("nan_gradient", "foreach"), ("nan_loss", "for-loop")],
)
def test_a_bad_step_changes_nothing_but_the_data_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, implementation: str
) -> None:
    config = write_faulty(
        tmp_path,
        {"kind": kind, "steps": [3]},
        metrics={"log_freq": 100},  # step 3 is neither logged nor looked at by itself
        checkpoint={"interval": 1, "keep_latest_k": 0},
        optimizer={"implementation": implementation},
    )
    assert train_here(config) == 0
    folder = tmp_path / "run" / "checkpoint"
    before, bad, after = (read_tensors(folder / f"step-{step}") for step in (2, 3, 4))
    for name, tensor in before.items():
        assert torch.equal(bad[name], tensor), name
        assert torch.isfinite(after[name]).all(), name
    assert {float(value) for name, value in after.items() if name.endswith(".step")} == {3.0}
    assert read_json(folder / "step-2", "data") != read_json(folder / "step-3", "data")
    counts = [read_json(folder / f"step-{step}", "train")["state"]["skipped_steps"] for step in (2, 3, 6)]
    assert counts == [0, 1, 1], "counted where it is saved, logged or not"
    assert [row["skipped_steps"] for row in read_rows(tmp_path / "run")] == [0, 1]
    error = capsys.readouterr().err
    assert error.count("step 3: loss or gradient is not finite; weights are unchanged") == 1
    assert "arithmetic:" in error, "its documents are named"


def test_the_run_gives_up_and_keeps_what_it_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_faulty(
        tmp_path,
        {"kind": "nan_loss", "steps": [3, 4, 5, 6]},
        training={"max_skipped_steps": 2},
        checkpoint={"interval": 1, "keep_latest_k": 0},
        job=telling(tmp_path),
    )
    assert train_here(config) == 70
    assert (tmp_path / "told").read_text().startswith("70 gave up: 3 steps had a non-finite loss or gradient")
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].startswith("gave up: 3 steps had a non-finite loss or gradient")
    assert "Traceback" not in error
    rows = read_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in rows[2:]] == [None] * 3
    newest = tmp_path / "run" / "checkpoint" / "step-4"
    assert newest.is_dir() and not (tmp_path / "run" / "checkpoint" / "step-5").exists()
    assert train_here(config) == 70, "the count goes on over a restart"
    assert train_here(config, "--fault.kind", "none") == 0
    assert read_rows(tmp_path / "run")[-1]["skipped_steps"] == 2


@pytest.mark.slow
def test_one_ranks_nan_is_skipped_on_all(tmp_path: Path) -> None:
    config = write_faulty(
        tmp_path,
        {"kind": "nan_gradient", "steps": [2], "rank": 1},
        training={"steps": 4, "max_skipped_steps": 1},
        checkpoint={"interval": 1, "keep_latest_k": 0},
    )
    done = train(config, ranks=2)
    assert done.code == 0, done.stderr
    assert losses(tmp_path / "run").keys() == {1, 2, 3, 4}
    one, two, three = (read_tensors(tmp_path / "run" / "checkpoint" / f"step-{step}") for step in (1, 2, 3))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.isfinite(three[name]).all() for name in three)
    assert "[rank1]" in done.stderr, "each rank names its documents, whatever LOG_RANK says"


POISONED = 0


def write_poisoned(folder: Path, poisoned: tuple[int, ...], kind: str = "nan_token", **tables: dict[str, Any]) -> Path:
    """A run over 120 texts, of which some make the loss NaN: those with a mark."""
    marks = ["!" if i in poisoned else "." for i in range(120)]
    texts = [f"text {i:3}{mark} a quick brown fox {7 * i:3}, jumps and jumps{mark}" for i, mark in enumerate(marks)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    training = {
        "on_bad_step": "rewind",
        "steps": 14,
        "seq_len": 64,
        "global_batch_size": 4,
        "local_batch_size": 2,
        **tables.pop("training", {}),
    }
    return write_faulty(
        folder,
        {"kind": kind, "token": ord("!")},
        data={"sources": [{"name": "texts", "path": str(folder / "texts.jsonl")}], "num_streams": 4},
        tokenizer={"name": "byte"},
        training=training,
        lr_scheduler={"warmup_steps": 2, "total_steps": 14},
        checkpoint={"interval": 4, "keep_latest_k": 0},
        metrics={"log_freq": 3, "enable_tensorboard": False},
        **tables,
    )


@pytest.fixture(scope="module")
def rewound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a text that makes the loss of the steps NaN in which it begins and ends."""
    folder = tmp_path_factory.mktemp("rewound")
    assert train_here(write_poisoned(folder, (POISONED,))) == 0
    return folder / "run"


def last_step(run: Path) -> Path:
    return max((run / "checkpoint").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))


def without_guard(step: Path) -> None:
    train = read_json(step, "train")
    train["state"]["guard"] = {}
    (step / "train.json").write_text(json.dumps(train))


def test_a_rewind_trains_as_if_the_bad_batch_had_not_been_there(
    rewound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a run without a fault whose loader leaves that batch out, and the rest of its texts with it."""
    guard = read_json(last_step(rewound), "train")["state"]["guard"]
    (jump,) = guard["jumps"]
    assert guard["rewinds"] == [12] and jump["step"] == 11 and f"texts:{POISONED}" in jump["documents"]
    assert [row["step"] for row in read_rows(rewound)] == [1, 3, 6, 9, 12, 14], "no row twice, none of the bad step"
    assert all(row["loss"] for row in read_rows(rewound))
    next_batch = DataLoader.next_batch

    def without_poison(loader: DataLoader) -> StepBatch | None:
        batch = next_batch(loader)
        while batch and any(int((m.tokens_BL == ord("!")).sum()) for m in batch.micro_batches):
            loader.commit(batch)
            loader.load_state_dict(loader.state_dict())
            loader.drop_begun()
            batch = next_batch(loader)
        return batch

    monkeypatch.setattr(DataLoader, "next_batch", without_poison)
    config = write_poisoned(tmp_path, (POISONED,), kind="none", training={"on_bad_step": "skip"})
    assert train_here(config) == 0
    ours, theirs = read_tensors(last_step(rewound)), read_tensors(last_step(tmp_path / "run"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_rewound_run_resumes_to_the_bit(rewound: Path, tmp_path: Path) -> None:
    """From a step before the bad one, from one whose jump is to come, and from one behind it."""
    config = write_poisoned(tmp_path, (POISONED,))
    for steps in (10, 11, 12, 14):
        assert train_here(config, "--training.steps", str(steps)) == 0
    without = last_step(rewound), last_step(tmp_path / "run")
    assert [read_json(step, "train")["state"]["guard"]["rewinds"] for step in without] == [[12], [12]]
    for step in without:
        without_guard(step)
    assert_same_step(*without)


def test_two_ranks_go_back_as_one_does(rewound: Path, tmp_path: Path) -> None:
    config = write_poisoned(tmp_path, (POISONED,), training={"local_batch_size": 2})
    done = train(config, ranks=2)
    assert done.code == 0, done.stderr
    ours, theirs = last_step(rewound), last_step(tmp_path / "run")
    assert read_json(ours, "data")["token_hash"] == read_json(theirs, "data")["token_hash"]
    (box,) = (tmp_path / "run" / "blackbox").iterdir()
    assert {path.name for path in box.iterdir()} == {"box.json", "config.toml", "rank-0.json", "rank-1.json"}


def test_rewinds_are_bounded_and_the_last_one_leaves_out_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that are bad whatever they read: the replaced batch is bad too."""
    config = write_faulty(
        tmp_path,
        {"kind": "nan_loss", "steps": [5]},
        training={"on_bad_step": "rewind", "max_rewinds": 2},
        checkpoint={"interval": 3, "keep_latest_k": 0},
    )
    assert train_here(config) == 70
    error = capsys.readouterr().err
    assert "Back to" in error and "from step 4 on without all that was read up to step 5" in error
    assert (
        error.strip()
        .splitlines()[-1]
        .startswith("gave up: step 5: loss or gradient is not finite, after training.max_rewinds = 2 times back")
    )
    assert len(list((tmp_path / "run" / "blackbox").iterdir())) == 3
    assert train_here(config, "--fault.kind", "none") == 0, "it goes on from the last saved step"


def test_a_stop_is_70_before_the_bad_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_faulty(
        tmp_path,
        {"kind": "nan_gradient", "steps": [3]},
        training={"on_bad_step": "stop"},
        checkpoint={"interval": 2, "keep_latest_k": 0},
    )
    assert train_here(config) == 70
    assert (
        capsys.readouterr().err.strip().splitlines()[-1].startswith("gave up: step 3: loss or gradient is not finite")
    )
    assert last_step(tmp_path / "run").name == "step-2"
    assert [row["step"] for row in read_rows(tmp_path / "run")] == [1, 2, 3]


def test_skips_count_within_a_window(tmp_path: Path) -> None:
    config = write_faulty(
        tmp_path, {"kind": "nan_loss", "steps": [1, 3, 5]}, training={"max_skipped_steps": 1, "bad_step_window": 2}
    )
    assert train_here(config) == 0
    assert read_rows(tmp_path / "run")[-1]["skipped_steps"] == 3


def test_a_spike_is_a_bad_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_faulty(
        tmp_path,
        {"kind": "spike", "steps": [8]},
        training={"steps": 9, "spike_zscore": 6, "spike_window": 8},
        checkpoint={"interval": 1, "keep_latest_k": 0},
    )
    assert train_here(config) == 0
    assert "step 8: the loss is a spike" in capsys.readouterr().err
    before, bad, after = (read_tensors(tmp_path / "run" / "checkpoint" / f"step-{step}") for step in (7, 8, 9))
    assert all(torch.equal(bad[name], tensor) for name, tensor in before.items())
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    assert read_json(tmp_path / "run" / "checkpoint" / "step-9", "train")["state"]["guard"]["spikes"]["count"] == 8


def test_a_black_box_that_cannot_be_whole_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal ends it after a micro-batch, and the next start does it again; one without memory is not tried again."""
    calls: list[int] = []

    def forward(*arguments: Any) -> Any:
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return pretrain.forward(*arguments)

    config = write_faulty(
        tmp_path,
        {"kind": "nan_loss", "steps": [2]},
        training={"steps": 3, "local_batch_size": 1},
        metrics={"log_freq": 1},
    )
    with monkeypatch.context() as patched:
        patched.setattr("titan_pt.trainers.step_again.forward", forward)
        assert train_here(config) == 75
    assert len(calls) == 1 and "a signal came before its black box was whole" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run")

    def no_memory(*_: Any) -> Any:
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    for number, fix in enumerate([no_memory, no_memory, None], 1):
        calls.clear()
        shutil.rmtree(tmp_path / "run" / "checkpoint", ignore_errors=True)
        if fix is None:
            (tmp_path / "run" / "blackbox").rename(tmp_path / "before")
        with monkeypatch.context() as patched:
            if fix:
                patched.setattr("titan_pt.trainers.step_again.step_again", fix)
            assert train_here(config) == 0
        assert len(calls) == (number == 1)
        (box,) = (tmp_path / "run" / "blackbox").iterdir()
        assert ("weights" in json.loads((box / "box.json").read_text())) == (fix is None)
        assert (box / "again.begun").exists() == (fix is not None)


@pytest.mark.parametrize("part", ["optimizer", "data"])
def test_what_a_start_left_out_is_not_left_out_by_going_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Nothing of the steps that are dropped stays: the first step of the start is there to go back to."""
    config = write_faulty(tmp_path, {}, training={"steps": 3}, checkpoint={"interval": 3})
    assert train_here(config) == 0
    state_of_step = tmp_path / "run" / "checkpoint" / "step-3" / "train.json"
    train = json.loads(state_of_step.read_text())
    jump = {"step": 3, "data": {}, "num_documents": 1, "why": "of the data of then", "documents": []}
    if part == "data":
        state_of_step.write_text(json.dumps({**train, "state": {**train["state"], "guard": {"jumps": [jump]}}}))
        manifest = json.loads((state_of_step.parent / "manifest.json").read_text())
        manifest["files"]["train.json"] = file_entry(state_of_step)
        (state_of_step.parent / "manifest.json").write_text(json.dumps(manifest))
    found = []
    load_newest = resume.load_newest

    def seen(context: Any, *arguments: Any) -> Any:
        resumed = load_newest(context, *arguments)
        counts = {float(moments["step"]) for moments in context.optimizer.state.values()}
        found.append((resumed.state.step, counts, [s["digest"] for s in context.dataloader.state_dict().values()]))
        return resumed

    monkeypatch.setattr(resume, "load_newest", seen)
    flags = ("--training.steps", "8", "--training.on_bad_step", "rewind", "--checkpoint.interval", "9")
    flags = (*flags, "--metrics.log_freq", "2", "--checkpoint.exclude_from_loading", part)
    assert train_here(config, *flags, "--fault.kind", "nan_loss", "--fault.steps", "[6]") == 70
    assert [step for step, *_ in found] == [3, *[4] * (len(found) - 1)] and len(found) > 1
    assert all(later == found[1] for later in found[1:])
    assert found[1][1] == ({1.0} if part == "optimizer" else {4.0}) and found[1][2] != found[0][2]


def test_grpo_goes_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third update is not finite, once: its problems are left out, and the box has prompts and completions."""
    calls = []

    def faulty(model: Any, optimizer: Any, lr: float, max_norm: float, loss: torch.Tensor, spikes: Any) -> Any:
        calls.append(lr)
        return guarded_update(model, optimizer, lr, max_norm, loss * (float("nan") if len(calls) == 3 else 1.0), spikes)

    monkeypatch.setattr("titan_pt.trainers.grpo.policy.guarded_update", faulty)
    tasks = {"prompts_per_step": 2, "dynamic_sampling": "none", "probe": "off", "max_idle_steps": 9}
    config = write_toml(
        tmp_path,
        job={"trainer": "grpo"},
        training={"steps": 4, "global_batch_size": -1, "on_bad_step": "rewind"},
        tokenizer={"name": "byte"},
        rollout={"num_samples": 2, "max_new_tokens": 4, "record_freq": 1},
        grpo={**tasks, "tasks": [{"name": "arithmetic"}]},
        checkpoint={"interval": 2},
    )
    assert train_here(config) == 0
    assert len(calls) == 5
    (jump,) = read_json(last_step(tmp_path / "run"), "train")["state"]["guard"]["jumps"]
    assert jump["step"] == 2 and len(jump["documents"]) == 2
    trained = [
        json.loads(line)["id"] for line in (tmp_path / "run" / "rollouts" / "step-3.jsonl").read_text().splitlines()
    ]
    assert not set(trained) & set(jump["documents"])
    (box,) = (tmp_path / "run" / "blackbox").iterdir()
    rows = json.loads((box / "rank-0.json").read_text())["rows"]
    assert rows[0]["pieces"][0]["text"].startswith("Question: ")
