"""Checkpoints: what is in them, when they are written, what is kept, what a run takes from them."""

import base64
import json
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
from titan_pt.components.checkpoint.manifest import find_damage
from titan_pt.components.checkpoint.mismatch import describe
from titan_pt.components.checkpoint.steps import find_initial, find_step, iter_steps
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
        files = [path for path in (copy / "run").rglob("*") if path.is_file() and path.name != "config.toml"]
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


def test_load_step_applies_once(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    back = ("--checkpoint.load_step", "2", '--checkpoint.exclude_from_loading=["optimizer"]', "--optimizer.lr", "1e-3")
    for last, resumed in ((3, 2), (4, 3), (5, 4)):  # below and above the numbers of the branch that was left
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


def test_a_save_in_the_background_is_on_the_ranks_own_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", devices.append)
    device = torch.device("cuda", 3)
    world = SimpleNamespace(rank=0, is_main=True, device=device, background=None, broadcast=lambda x: x)
    writer = checkpoint.Checkpointer.__new__(checkpoint.Checkpointer)
    writer._world = world
    monkeypatch.setattr(writer, "_write", lambda: devices.append("written"), raising=False)
    writer._write_in_background()
    assert devices == [device, "written"]


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
    assert (writer._waits, writer._stager.cache_staged_state_dict) == (waits, pinned)


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
            "rises from 0 at step 6 to 0.0004444 at step 7: training.steps is 6 there and 12",
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


@pytest.fixture(autouse=True)
def no_leftover_threads() -> Iterator[None]:
    """No test may leave a save under way."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
