"""Checkpoints: what is in them, when they are written, what is kept, what a run takes from them."""

import base64
import errno
import json
import math
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import assert_same_step, losses, read_json, read_rows, read_tensors, train, train_here, write_toml

from titan_pt.components.checkpoint import checkpointer as checkpoint
from titan_pt.components.checkpoint import keeping
from titan_pt.components.checkpoint.background import BackgroundWriter
from titan_pt.components.checkpoint.finite import first_not_finite
from titan_pt.components.checkpoint.manifest import find_damage
from titan_pt.components.checkpoint.mismatch import describe
from titan_pt.components.checkpoint.steps import find_initial, find_step, iter_steps
from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Checkpoint as CheckpointSection
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.run_folder import lock_run_folder

INTERVAL = {"interval": 2, "keep_latest_k": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 6 steps with the steps 2, 4 and 6; tests copy it."""
    folder = tmp_path_factory.mktemp("trained")
    assert train_here(write_toml(folder, checkpoint=INTERVAL)) == 0
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """`trained` to change: run.toml and run/."""
    shutil.copytree(trained / "run", tmp_path / "run")
    write_toml(tmp_path, checkpoint=INTERVAL)
    return tmp_path


def steps(folder: Path) -> list[int]:
    return [number for number, _ in iter_steps(folder / "run" / "checkpoint")]


def test_the_manifest_names_every_file_of_a_step(trained: Path) -> None:
    step = trained / "run" / "checkpoint" / "step-6"
    files = {str(path.relative_to(step)) for path in step.rglob("*") if path.is_file()}
    texts = {"manifest.json", "train.json", "data.json", "config.toml"}
    assert files == {*texts, "tensors/.metadata", "tensors/__0_0.distcp"}
    assert (step / "config.toml").read_text() == (trained / "run" / "config.toml").read_text()
    manifest = read_json(step, "manifest")
    assert set(manifest["files"]) == files - {"manifest.json"} and manifest["step"] == 6
    train = read_json(step, "train")
    assert train["state"] == {
        "step": 6,
        "tokens_seen": 6 * 16 * 128,
        "trained_tokens": 6 * 16 * 128,
        "skipped_steps": 0,
        "guard": {},
    }
    assert set(read_json(step, "data")["streams"]) == {str(stream) for stream in range(16)}
    names = set(read_tensors(step))
    assert {name.split(".")[0] for name in names} == {"model", "optimizer"}
    assert not any("output" in name for name in names), "a tied weight is there once"
    assert find_damage(step) is None


def test_only_the_newest_steps_are_kept(copy: Path) -> None:
    assert find_step(copy / "run" / "checkpoint") == copy / "run" / "checkpoint" / "step-6"
    config = write_toml(copy, checkpoint={"interval": 1, "keep_latest_k": 1})
    assert train_here(config, "--training.steps", "8") == 0
    assert steps(copy) == [8]
    assert not list((copy / "run" / "checkpoint").glob("*.tmp-*"))


def test_a_finished_run_continues_with_more_steps(copy: Path) -> None:
    def contents() -> dict[Path, bytes]:
        files = [path for path in (copy / "run").rglob("*") if path.is_file()]
        files = [path for path in files if path.name not in ("config.toml", "log.txt")]
        return {path: path.read_bytes() for path in files}

    before = contents()
    assert train_here(copy / "run.toml") == 0
    assert contents() == before
    assert train_here(copy / "run.toml", "--training.steps", "7") == 0
    assert steps(copy) == [7, 6, 4, 2] and list(losses(copy / "run")) == [1, 2, 3, 4, 5, 6, 7]


def test_pruning_spares_steps_after_load_step(copy: Path) -> None:
    old = read_tensors(copy / "run" / "checkpoint" / "step-6")
    flags = ("--checkpoint.load_step", "2", "--checkpoint.keep_latest_k", "1", "--optimizer.lr", "1e-3")
    assert train_here(copy / "run.toml", *flags, "--training.steps", "3") == 0
    assert steps(copy) == [6, 4, 3, 2], "the later steps of the other branch stay, and load_step itself"
    assert list(losses(copy / "run")) == [1, 2, 3]
    assert train_here(copy / "run.toml", *flags, "--training.steps", "6") == 0, "the same command again"
    new = read_tensors(copy / "run" / "checkpoint" / "step-6")
    assert any(not torch.equal(old[name], new[name]) for name in old), "an old step-6 is replaced"


def test_load_step_applies_once(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the wall clock does: each start finds it a day further back."""
    now = time.time()
    back = ("--checkpoint.load_step", "2", '--checkpoint.exclude_from_loading=["optimizer"]', "--optimizer.lr", "1e-3")
    for last, resumed in ((3, 2), (4, 3), (5, 4)):  # below and above the numbers of the branch that was left
        monkeypatch.setattr(time, "time", lambda last=last: now - 86400.0 * last)
        assert train_here(copy / "run.toml", *back, "--training.steps", str(last)) == 0
        error = capsys.readouterr().err
        assert f"step-{resumed}: step {resumed}," in error
        assert ("load_step = 2 was honoured at an earlier start" in error) == (resumed > 2)
        assert ("optimizer was left out at an earlier start, now loaded" in error) == (resumed > 2)
    assert optimizer_steps(copy / "run" / "checkpoint" / "step-5") == {3.0}, "the optimizer started anew once"
    (copy / "run" / "checkpoint" / "step-5" / "data.json").write_text("{}")
    assert train_here(copy / "run.toml", *back, "--training.steps", "5") == 0
    assert "step-4: step 4," in capsys.readouterr().err, "a damaged one is passed over for the one before"
    other = [flag.replace("2", "4") for flag in back]
    assert train_here(copy / "run.toml", *other, "--training.steps", "5") == 0
    assert optimizer_steps(copy / "run" / "checkpoint" / "step-5") == {1.0}, "another command honours its own"
    assert train_here(copy / "run.toml", *back, "--training.steps", "3") == 0
    assert "step-2: step 2," in capsys.readouterr().err, "a command that was left starts again"


def test_load_only_loads_and_never_saves(copy: Path) -> None:
    assert train_here(copy / "run.toml", "--checkpoint.load_only", "--training.steps", "8") == 0
    assert steps(copy) == [6, 4, 2] and losses(copy / "run").keys() == {*range(1, 9)}


def test_disabled_checkpoints_are_neither_read_nor_written(copy: Path) -> None:
    assert train_here(copy / "run.toml", "--checkpoint.enable=false", "--training.steps", "3") == 0
    assert steps(copy) == [6, 4, 2] and list(losses(copy / "run")) == [1, 2, 3]


def test_the_first_step_is_saved_on_request(tmp_path: Path) -> None:
    config = write_toml(tmp_path, checkpoint={"enable_first_step_checkpoint": True}, training={"steps": 2})
    assert train_here(config) == 0
    assert steps(tmp_path) == [2, 1]


def test_minutes_count_since_the_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now[0]))
    world = SimpleNamespace(device=torch.device("cpu"), any=bool)
    writer = checkpoint.Checkpointer(tmp_path, CheckpointSection(interval=5, interval_minutes=10), world)  # type: ignore[arg-type]
    due = []
    for step in range(1, 9):
        now[0] += 240
        due.append(writer.is_due(step))
        if due[-1]:
            writer._saved_at = now[0]
    assert due == [False, False, True, False, True, False, False, True]


def test_a_step_is_saved_when_its_minutes_are_over(tmp_path: Path) -> None:
    config = write_toml(tmp_path, checkpoint={"interval_minutes": 1e-7}, training={"steps": 3})
    assert train_here(config) == 0
    assert steps(tmp_path) == [3, 2, 1]
    rows = read_rows(tmp_path / "run")
    assert [row["step"] for row in rows if row.get("save_seconds", 0) > 0] == [2, 3], "it is in the row that follows"


def test_every_nth_and_the_best_step_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By any key of metrics.jsonl: the learning rate is the highest at step 3."""
    options = {"interval": 1, "keep_latest_k": 1, "keep_every_n": 5, "keep_best": "lr"}
    config = write_toml(tmp_path, checkpoint=options)
    assert train_here(config, "--training.steps", "7") == 0
    assert steps(tmp_path) == [7, 5, 3]
    best = tmp_path / "run" / "checkpoint" / "best"
    assert best.is_symlink() and best.resolve().name == "step-3"
    assert find_initial(str(best)) == best and find_initial(str(tmp_path / "run")).name == "step-7"
    other = write_toml(tmp_path / "other", checkpoint={"initial_load_path": str(best)}, training={"steps": 1})
    assert train_here(other) == 0
    assert train_here(config, "--training.steps", "8", "--checkpoint.keep_best", "val_los") == 0
    assert steps(tmp_path) == [8, 5]
    assert "keep_best = 'val_los': no saved step has it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "best"),
    [("val_loss", 4), ("val_bpb", 2), ("eval/gsm8k/accuracy", 4), ("eval/x/loss", 2), ("none", None)],
)
def test_the_best_step_is_told_by_its_row(tmp_path: Path, key: str, best: int | None) -> None:
    rows: list[Any] = [
        {"step": 2, "val_loss": 2.0, "val_bpb": 0.5, "eval/gsm8k/accuracy": 0.25, "eval/x/loss": 1},
        {"step": 4, "val_loss": 1.0, "val_bpb": None, "eval/gsm8k/accuracy": 0.5, "eval/x/loss": 2},
        {"step": 5, "val_loss": 0.5},
        [key],
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "val_lo'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert keeping.best_step(tmp_path, key, [6, 4, 2]) == best


@pytest.mark.parametrize(
    ("keep", "coming", "gone"),
    [(2, 0, [4, 3, 1]), (2, 1, [5, 4, 3, 1]), (1, 1, [5, 4, 3, 1]), (0, 1, []), (9, 1, [])],
)
def test_the_steps_that_go(keep: int, coming: int, gone: list[int]) -> None:
    """Of those that are not kept for ever; the newest stays until the next is there."""
    options = CheckpointSection(keep_latest_k=keep, keep_every_n=10)
    assert (
        keeping.surplus([20, 5, 4, 3, 2, 1] if coming == 0 else [6, 5, 4, 3, 2, 1], options, 2, coming=coming) == gone
    )


# -- asynchronous saves ------------------------------------------------------------------------------------------------


def test_async_saves_hold_the_values_of_their_own_step(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.dcp.save

    def slow_save(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.3)  # several training steps
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoint.dcp, "save", slow_save)
    assert train_here(write_toml(tmp_path, checkpoint={**INTERVAL, "async_mode": "async"})) == 0
    for step in (2, 4, 6):
        assert_same_step(*(folder / "run" / "checkpoint" / f"step-{step}" for folder in (trained, tmp_path)))


def test_a_save_in_the_background_is_on_the_ranks_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[Any] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", devices.append)
    device = torch.device("cuda", 3)
    writer = BackgroundWriter(SimpleNamespace(is_main=True, device=device), pinned=False)  # type: ignore[arg-type]
    writer.start({"x": torch.ones(2)}, lambda staged: devices.append(staged["x"].sum().item()))
    writer.join()
    assert devices == [device, 2.0]


@pytest.mark.parametrize(
    ("mode", "device", "waits", "pinned"),
    [
        ("auto", "cpu", True, False),
        ("auto", "cuda", False, True),
        ("async", "cuda", False, False),
        ("async_with_pinned_mem", "cuda", False, True),
        ("async_with_pinned_mem", "cpu", False, False),
        ("disabled", "cuda", True, False),
    ],
)
def test_saves_are_asynchronous_where_the_mode_says(
    tmp_path: Path, mode: Any, device: str, waits: bool, pinned: bool
) -> None:
    world = SimpleNamespace(device=torch.device(device))
    writer = checkpoint.Checkpointer(tmp_path, CheckpointSection(async_mode=mode), world)  # type: ignore[arg-type]
    background = writer._background
    assert (background is None) == waits
    assert (background is not None and background._stager.cache_staged_state_dict) == pinned


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_saves_on_a_card_hold_what_others_do(tmp_path: Path) -> None:
    """Deterministic runs, one of which copies each step to pinned memory and writes it beside the next ones."""
    for mode in ("disabled", "auto"):
        config = write_toml(tmp_path / mode, checkpoint={**INTERVAL, "async_mode": mode}, debug={"deterministic": True})
        done = train(config)
        assert done.code == 0, done.stderr
    for step in (2, 4, 6):
        assert_same_step(*(tmp_path / mode / "run" / "checkpoint" / f"step-{step}" for mode in ("disabled", "auto")))


# -- saves that fail ---------------------------------------------------------------------------------------------------


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Steps at which the disk is full; a test adds to it."""
    full: set[int] = set()

    class Writer(checkpoint._Writer):
        def __init__(self, path: Path, **options: Any) -> None:
            if int(path.parent.name.split("-")[1].split(".")[0]) in full:
                raise OSError(28, "No space left on device")
            super().__init__(path, **options)

    monkeypatch.setattr(checkpoint, "_Writer", Writer)
    return full


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_training_continues_after_a_failed_save(
    tmp_path: Path, full_at: set[int], capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    full_at.update((4, 5))
    config = write_toml(tmp_path, checkpoint={"interval": 1, "keep_latest_k": 1, "async_mode": mode})
    assert train_here(config, "--training.steps", "5") == 1
    error = capsys.readouterr().err
    assert "step 4 could not be saved" in error and "No space left on device" in error
    assert error.strip().splitlines()[-1].startswith("failed: CheckpointError: step 5 could not be saved")
    assert steps(tmp_path) == [3], "an older step is whole"
    assert not list((tmp_path / "run" / "checkpoint").glob("*.tmp-*"))
    full_at.clear()
    assert train_here(config, "--training.steps", "5") == 0
    assert steps(tmp_path) == [5] and list(losses(tmp_path / "run")) == [1, 2, 3, 4, 5]


class SmallDisk:
    """A disk on which a run's checkpoints have room for some bytes.

    `tells`: free space is known; otherwise, as with a quota, an error in the middle of a write alone shows it.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capacity, self.tells, self.error = 10**9, True, errno.ENOSPC
        disk = self

        def used() -> int:
            return sum(path.stat().st_size for path in folder.glob("step-*/**/*") if path.is_file())

        def usage(path: Path) -> SimpleNamespace:
            return SimpleNamespace(total=10**9, free=disk.capacity - used() if disk.tells else 10**9)

        class Writer(checkpoint._Writer):
            def write_data(self, *args: Any) -> Any:
                done = super().write_data(*args)
                if used() > disk.capacity:
                    raise OSError(disk.error, os.strerror(disk.error))
                return done

        monkeypatch.setattr(checkpoint, "_Writer", Writer)
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", usage)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    return SmallDisk(tmp_path / "run" / "checkpoint", monkeypatch)


@pytest.mark.parametrize(
    ("tells", "error", "mode"),
    [(True, errno.ENOSPC, "disabled"), (False, errno.ENOSPC, "async"), (False, errno.EDQUOT, "disabled")],
)
def test_a_superseded_step_makes_room(
    tmp_path: Path, disk: SmallDisk, capsys: pytest.CaptureFixture[str], tells: bool, error: int, mode: str
) -> None:
    disk.capacity, disk.tells, disk.error = 3_500_000, tells, error  # two steps and a half
    config = write_toml(tmp_path, checkpoint={"interval": 1, "keep_latest_k": 2, "async_mode": mode})
    assert train_here(config, "--training.steps", "4") == 0
    assert steps(tmp_path) == [4, 3] and not list((tmp_path / "run" / "checkpoint").glob("*.tmp-*"))
    assert "there is no space for step 4: step-2, which it supersedes, is removed first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keep", "tells", "error", "mode", "told"),
    [
        (0, True, errno.ENOSPC, "disabled", "No space left on device"),
        (1, False, errno.EDQUOT, "async", "Disk quota exceeded"),
        (2, False, errno.EROFS, "disabled", "Read-only file system"),
    ],
)
def test_saves_that_go_on_failing_end_the_run(
    tmp_path: Path,
    disk: SmallDisk,
    capsys: pytest.CaptureFixture[str],
    keep: int,
    tells: bool,
    error: int,
    mode: str,
    told: str,
) -> None:
    """The newest whole step is never removed for one that is not written yet."""
    disk.capacity, disk.tells, disk.error = 2_000_000, tells, error
    options = {"interval": 1, "keep_latest_k": keep, "async_mode": mode, "max_failed_saves": 2}
    config = write_toml(tmp_path, checkpoint=options)
    assert train_here(config, "--training.steps", "9") == 70
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("gave up: checkpoint.max_failed_saves = 2 saves in a row failed; step 3 could not be saved")
    assert told in last and f"the last whole step is {tmp_path}/run/checkpoint/step-1" in last
    assert bool(re.search(r"a step needs 1,\d+,\d+ bytes, [\d,]+ are free", last)) == (error != errno.EROFS)
    assert steps(tmp_path) == [1] and not list((tmp_path / "run" / "checkpoint").glob("*.tmp-*"))
    disk.capacity = 10**9
    assert train_here(config, "--training.steps", "3") == 0
    assert list(losses(tmp_path / "run")) == [1, 2, 3]


def stale(*_: Any) -> None:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def test_a_run_without_room_for_a_step_does_not_start(
    tmp_path: Path, disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_toml(tmp_path, checkpoint={"interval": 1, "keep_latest_k": 1})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint.Checkpointer, "_check_space", stale)
        assert train_here(config, "--training.steps", "2") == 1, "such an error passes"
    assert "failed: no step can be saved: " in capsys.readouterr().err
    disk.capacity = 1_000_000
    assert train_here(config, "--training.steps", "2") == 70
    error = capsys.readouterr().err
    assert "gave up: no step can be saved: " in error and "bytes, 1,000,000 are free)" in error
    assert "the last whole step is none" in error and not (tmp_path / "run" / "metrics.jsonl").exists()
    disk.capacity = 10**9
    assert train_here(config, "--training.steps", "2") == 0
    disk.capacity = 1_500_000
    assert train_here(config, "--training.steps", "2") == 0, "a finished run has nothing to save"
    assert train_here(config, "--training.steps", "3") == 70
    assert "checkpoint/step-2" in capsys.readouterr().err.strip().splitlines()[-1] and steps(tmp_path) == [2]


def test_what_follows_a_save_cannot_fail_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error in metrics.jsonl, where the best step is looked for; any error of what prunes."""
    for number, (name, error) in enumerate([("_values", OSError(errno.EIO, "I/O")), ("prune", RuntimeError("odd"))], 1):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(f"titan_pt.components.checkpoint.keeping.{name}", fail)
            config = write_toml(tmp_path, checkpoint={"interval": 1, "keep_best": "val_loss", "max_failed_saves": 1})
            assert train_here(config, "--training.steps", str(number)) == 0
        assert steps(tmp_path)[0] == number and str(error) in capsys.readouterr().err


# -- weights that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "own", "bad"),
    [
        ("model.x", math.inf, False, True),
        ("model.x", math.nan, True, True),
        ("optimizer.x.exp_avg", -math.inf, False, True),
        ("optimizer.x.exp_avg", math.nan, True, True),
        ("optimizer.x.least", math.inf, True, False),  # "none yet", of a plugin's optimizer
        ("step.reference", math.nan, False, True),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_first_tensor_that_is_not_finite_is_found(
    name: str, value: float, own: bool, bad: bool, dtype: torch.dtype
) -> None:
    tensors = {
        "model.w": torch.full((3, 3), torch.finfo(dtype).max, dtype=dtype),
        "model.none": torch.empty(0),
        "model.codes": torch.full((4,), 255, dtype=torch.uint8),
        "optimizer.x.best": torch.tensor(math.inf),
        name: torch.tensor([[1.0, value], [2.0, 3.0]], dtype=dtype),
        "model.y": torch.full((2,), math.nan),
    }
    assert first_not_finite(tensors, own_optimizer=own) == (name if bad else "model.y")
    del tensors[name], tensors["model.y"]
    assert first_not_finite(tensors) is None


@pytest.mark.parametrize("mode", ["disabled", "async"])
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_a_step_that_is_not_finite_replaces_no_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str, mode: str
) -> None:
    save = checkpoint.Checkpointer.save

    def poisoned(self: Any, step: int, tensors: dict[str, torch.Tensor], documents: Any) -> None:
        if step == 3:
            name = next(
                name for name in tensors if name.endswith(".exp_avg" if where == "moment" else "up_proj.weight")
            )
            tensors[name].view(-1)[7] = math.nan if where == "moment" else math.inf
        save(self, step, tensors, documents)

    monkeypatch.setattr(checkpoint.Checkpointer, "save", poisoned)
    config = write_toml(tmp_path, checkpoint={"interval": 1, "keep_latest_k": 2, "async_mode": mode})
    assert train_here(config) == 70
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("gave up: step 3 is not saved: ") and "is not finite; the last step that is good: " in last
    assert ("optimizer." in last) == (where == "moment") and last.endswith("checkpoint/step-2")
    assert steps(tmp_path) == [2, 1]
    assert first_not_finite(read_tensors(tmp_path / "run" / "checkpoint" / "step-2")) is None


# -- what a resume accepts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.num_layers", "3"], "model.num_layers is 2 there and 3 here"),
        (["--model.tie_embeddings", "false"], "model.tie_embeddings"),
        (["--model.rope_theta", "5e5"], "model.rope_theta is 10000.0 there and 500000.0 here"),
        (["--model.norm_eps", "1e-5"], "model.norm_eps"),
        (["--tokenizer.name", "TOKENIZER"], "tokenizer.name is 'byte' there and"),
        (["--debug.seed", "7"], "debug.seed is 42 there and 7 here"),
        (["--training.seq_len", "64"], "training.seq_len is 128 there and 64 here"),
        (["--data.num_streams", "4"], "data.num_streams is"),
        (
            ['--data.sources=[{name="arithmetic"}, {name="python_stdlib"}]'],
            "data.sources[1].name is 'python_stdlib' here alone",
        ),
        (
            ['--data.sources=[{name="arithmetic", weight=2.0}]'],
            "data.sources[0].weight ('arithmetic') is 1.0 there and 2.0 here",
        ),
        (["--checkpoint.load_step", "5"], "no step-5; it has 2, 4, 6"),
    ],
)
def test_a_resume_of_another_run_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    write_rank_file(copy / "other.tiktoken")
    saved = (copy / "run" / "config.toml").read_text()
    flags = [flag.replace("TOKENIZER", str(copy / "other.tiktoken")) for flag in flags]
    assert train_here(copy / "run.toml", *flags, "--training.steps", "8") == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert error.strip().splitlines()[-1].startswith("config error: ")
    assert (copy / "run" / "config.toml").read_text() == saved, "a refused run leaves the folder as it was"
    assert steps(copy) == [6, 4, 2] and len(read_rows(copy / "run")) == 6


def test_a_resume_keeps_the_streams_of_its_checkpoint(tmp_path: Path) -> None:
    """Such as those that an earlier release chose; a key that is set says otherwise."""
    config = write_toml(tmp_path)
    assert train_here(config, "--data.num_streams", "4", "--training.steps", "2") == 0
    assert train_here(config, "--training.steps", "3") == 0
    assert read_json(tmp_path / "run" / "checkpoint" / "step-3", "data")["identity"]["num_streams"] == 4
    assert train_here(config, "--data.num_streams", "8") == 2


@pytest.mark.parametrize(
    ("local", "there", "here", "go_on", "new"),
    [
        (1, 1, 2, ("= 1", "= 1 on 1 rank,"), ("= 2", "= 2 fits")),  # 1 rank, then 2
        (2, 2, 8, ("= 2", "= 4 on 1 or 2 ranks,"), ("= 8", "= 16 fits")),  # 1 rank, then 4
        (2, 8, 2, ("= 8", "= 16 on 1, 2, 4 or 8 ranks,"), ("= 8", "= 16 fits")),  # 4 ranks, then 1
    ],
)
def test_other_streams_are_refused_with_values_that_fit(
    local: int, there: int, here: int, go_on: tuple[str, str], new: tuple[str, str]
) -> None:
    config = JobConfig.model_validate({"training": {"local_batch_size": local}})
    (told,) = describe({"data.num_streams": (there, here)}, config.to_toml(), config, None)
    for streams, rows in (go_on, new):
        assert f"data.num_streams {streams} and training.global_batch_size {rows}" in told
    assert 'checkpoint.exclude_from_loading = ["data"]' in told


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        (["--training.steps", "7"], "The learning rate stays at 0 at step 7: training.steps is 6 there and 7 here"),
        (
            ["--training.steps", "12"],
            "rises from 0 at step 6 to 0.0004444 at step 7: training.steps is 6 there and 12 here; "
            "the schedule is planned again to the new end, step "
            r"12 by training.steps: at step 6 it was 0 and is 0.0005333",
        ),
        (
            ["--checkpoint.load_step", "4", "--optimizer.lr", "1e-5"],
            "falls from .* optimizer.lr is 0.0008 there and 1e-05",
        ),
        (
            ["--checkpoint.load_step", "4", "--lr_scheduler.warmup_steps", "5"],
            "lr_scheduler.warmup_steps is 3 there and 5",
        ),
        (
            ["--checkpoint.load_step", "4", "--lr_scheduler.decay_type", "cosine"],
            "decay_type is 'linear' there and 'cos",
        ),
        (["--checkpoint.load_step", "4"], ""),
        (["--training.steps", "6", "--optimizer.lr", "1e-5"], ""),
    ],
)
def test_a_resume_tells_where_the_learning_rate_jumps(
    copy: Path, capsys: pytest.CaptureFixture[str], flags: list[str], warning: str
) -> None:
    assert train_here(copy / "run.toml", *flags) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "The learning rate" in line]
    assert len(lines) == bool(warning)
    assert not warning or re.search(warning, lines[0]), lines


def write_rank_file(path: Path) -> None:
    path.write_text("".join(f"{base64.b64encode(bytes([b])).decode()} {b}\n" for b in range(256)))


def test_data_and_optimizer_can_be_excluded(copy: Path) -> None:
    flags = ("--debug.seed", "7", '--checkpoint.exclude_from_loading=["data", "optimizer"]', "--training.steps", "7")
    assert train_here(copy / "run.toml", *flags) == 0
    last = copy / "run" / "checkpoint" / "step-7"
    assert optimizer_steps(last) == {1.0}, "the optimizer started anew"
    assert {sum(stream["tokens"]) for stream in read_json(last, "data")["streams"].values()} == {129}
    assert train_here(copy / "run.toml", *flags[:-1], "8") == 0
    last = copy / "run" / "checkpoint" / "step-8"
    assert optimizer_steps(last) == {2.0}, "the same command goes on"
    assert {sum(stream["tokens"]) for stream in read_json(last, "data")["streams"].values()} == {258}
    assert train_here(copy / "run.toml", "--debug.seed", "8", *flags[2:-1], "9") == 0
    last = copy / "run" / "checkpoint" / "step-9"
    assert optimizer_steps(last) == {3.0}, "only the data have changed once more"
    assert {sum(stream["tokens"]) for stream in read_json(last, "data")["streams"].values()} == {129}


def test_a_resume_on_corrected_files_is_refused_or_starts_the_data_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files keep names, sizes and times: only what they hold is another thing."""
    path = tmp_path / "a.jsonl"

    def correct(word: str) -> None:
        path.write_text("".join(json.dumps({"text": f"{i:03d} {word} " + "and so on" * 9}) + "\n" for i in range(200)))
        os.utime(path, ns=(10**18, 10**18))

    correct("apple")
    source = {"name": "mine", "path": str(path)}
    config = write_toml(tmp_path, checkpoint=INTERVAL, data={"sources": [source], "cache_dir": str(tmp_path / "cache")})
    assert train_here(config, "--training.steps", "2") == 0
    anew = '--checkpoint.exclude_from_loading=["data"]'
    for word, flags, step, code in (
        ("apple", (), 3, 0),
        ("peach", (), 4, 2),
        ("peach", (anew,), 4, 0),
        ("peach", (anew,), 5, 0),
        ("peach", (), 6, 0),
        ("cherr", (anew,), 7, 0),
        ("cherr", (), 8, 0),
        ("lemon", ('--checkpoint.allow_mismatch=["data.sources"]',), 9, 2),  # the rows before come out otherwise
    ):
        correct(word)
        assert train_here(config, "--training.steps", str(step), *flags) == code
        told = capsys.readouterr().err
        assert ("data source 'mine': " in told and "a.jsonl is not what the checkpoint" in told) == (code == 2)
        assert ("data was left out at an earlier start, now loaded" in told) == (bool(flags) and step == 5)


def optimizer_steps(step: Path) -> set[float]:
    return {float(value) for name, value in read_tensors(step).items() if name.endswith(".step")}


def test_harmless_settings_may_change_on_resume(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--optimizer.lr", "1e-4", "--training.local_batch_size", "8", "--training.steps", "7")
    more = ("--validation.enable", "--validation.steps", "1", '--checkpoint.exclude_from_loading=["lr_scheduler"]')
    model = ("--model.init_std", "0.1", "--model.max_seq_len", "4096")
    assert train_here(copy / "run.toml", *flags, *more, *model) == 0
    notice = "have no effect in titan_pt: 'lr_scheduler' in checkpoint.exclude_from_loading (command line)"
    error = capsys.readouterr().err
    assert notice in error and "model.max_seq_len is 32768 there and 4096 here; the weights fit" in error


@pytest.mark.parametrize(
    ("flags", "name", "told"),
    [
        (["--model.rope_theta", "5e5"], "model.rope_theta", "model.rope_theta is 10000.0 there and 500000.0 here"),
        (["--validation.holdout_fraction", "0.001"], "validation.holdout_fraction", "data.holdout_fraction is"),
        (["--tokenizer.name", "TOKENIZER"], "tokenizer", "tokenizer.fingerprint is"),
        (['--data.sources=[{name="arithmetic", weight=2.0}]'], "data.sources", "weight ('arithmetic') is 1.0 there"),
        (["--model.norm_eps", "1e-5"], "model.rope_theta", ""),
        (["--debug.seed", "7"], "data.sources", ""),
    ],
)
def test_a_mismatch_that_is_allowed_is_a_warning(
    copy: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    name: str,
    told: str,
) -> None:
    if "TOKENIZER" in flags:  # the same tokenizer with another hash
        flags = []
        monkeypatch.setattr(ByteTokenizer, "fingerprint", "another")
    flags = [*flags, "--training.steps", "7"]
    assert train_here(copy / "run.toml", *flags) == 2
    assert (f'checkpoint.allow_mismatch = ["{name}"]' in capsys.readouterr().err) == bool(told)
    code = train_here(copy / "run.toml", *flags, f'--checkpoint.allow_mismatch=["{name}"]')
    assert code == (0 if told else 2)
    assert f"{told}" in capsys.readouterr().err and steps(copy)[0] == (7 if told else 6)


def test_a_run_folder_has_one_run_at_a_time(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leftover = copy / "run" / "checkpoint" / "step-8.tmp-0123abcd"
    leftover.mkdir()
    with lock_run_folder(copy / "run"):
        assert train_here(copy / "run.toml", "--training.steps", "8") == 1
        error = capsys.readouterr().err
        by = f"is in use by another run, process {os.getpid()} on {socket.gethostname()}; stop it or wait"
        assert error.strip().splitlines()[-1] == f"failed: job.dump_folder: {copy / 'run'} {by}"
        assert "Traceback" not in error
        assert leftover.exists() and len(read_rows(copy / "run")) == 6, "the other one's save and rows"
    assert train_here(copy / "run.toml", "--training.steps", "8") == 0


# -- starting weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["run", "run/checkpoint", "run/checkpoint/step-4"])
def test_runs_start_from_weights_of_others(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    config = write_toml(tmp_path, checkpoint={"initial_load_path": str(trained / path)}, debug={"seed": 5})
    assert train_here(config, "--training.steps", "1", "--optimizer.lr", "1e-12") == 0
    assert "Starting weights from" in capsys.readouterr().err
    source = read_tensors(trained / "run" / "checkpoint" / ("step-4" if path.endswith("4") else "step-6"))
    mine = read_tensors(tmp_path / "run" / "checkpoint" / "step-1")
    for name in source:
        if name.startswith("model."):
            torch.testing.assert_close(mine[name], source[name], rtol=0, atol=1e-9)
    assert read_json(tmp_path / "run" / "checkpoint" / "step-1", "train")["state"]["step"] == 1
    assert train_here(config, "--training.steps", "2") == 0
    assert "Resumed from" in capsys.readouterr().err, "its own checkpoint comes before the starting weights"


@pytest.mark.parametrize(
    ("path", "flags", "words"),
    [
        ("nowhere", [], "no such folder"),
        ("run/tb", [], "holds neither a step-N nor a config.json"),
        ("run/checkpoint/step-6", ["--model.vocab_size", "512"], "model.vocab_size is 320 there and 512 here"),
        ("run/checkpoint/step-2", [], "not a whole checkpoint"),
    ],
)
def test_starting_weights_must_fit(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, flags: list[str], words: str
) -> None:
    (copy / "run" / "tb").mkdir(exist_ok=True)
    (copy / "run" / "checkpoint" / "step-2" / "data.json").unlink()
    config = write_toml(tmp_path / "new", checkpoint={"initial_load_path": str(copy / path)})
    assert train_here(config, *flags) == 2
    assert words in capsys.readouterr().err


def test_starting_weights_warn_of_other_arithmetic(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_toml(tmp_path, checkpoint={"initial_load_path": str(trained / "run")}, training={"steps": 1})
    model = ("--model.rope_theta", "5e5", "--model.max_seq_len", "256", "--model.norm_eps", "1e-5")
    assert train_here(config, *model, "--model.init_std", "0.1") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "the weights fit, but results may" in line]
    assert len(warnings) == 3
    assert {"rope_theta", "norm_eps", "max_seq_len"} == {line.split("model.")[1].split()[0] for line in warnings}


def test_find_initial_names_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.initial_load_path = .*train it first"):
        find_initial(str(tmp_path / "nowhere"))


def test_a_missing_run_brings_the_command_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.toml").write_text('[job]\ndump_folder = "outputs/first"')
    (tmp_path / "broken.toml").write_text("[job")
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\n[training]\nsteps = 1')
    (tmp_path / "other.toml").write_text('extends = "base.toml"\n[job]\ndump_folder = "outputs/other"')
    for path, said in (
        ("outputs/first", "make it with titan-pt train mine.toml, or"),
        (str(tmp_path / "outputs/other/checkpoint"), "make it with titan-pt train other.toml, or"),
        ("outputs/quickstart_sft", "make it with titan-pt train quickstart_sft, or"),
        ("outputs/nothing", "train it first, by titan-pt train FILE.toml --job.dump_folder outputs/nothing, or"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            find_initial(path)


@pytest.fixture(autouse=True)
def no_leftover_threads() -> Iterator[None]:
    """No test may leave a save under way."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
