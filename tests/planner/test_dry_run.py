"""comm.mode = "fake_backend": every shipped experiment at its real size, and clusters, in one process."""

import dataclasses
import logging
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, train_here, write_toml

from titan_pt.config import load_config
from titan_pt.config.errors import ConfigError
from titan_pt.distributed.dry_run_world import dry_run_size, dry_run_world
from titan_pt.dry_run import dry_run
from titan_pt.planner.dry_run_step import dry_run_step
from titan_pt.protocols.context import Step, StepMetrics, TrainContext, TrainState
from titan_pt.trainers import pretrain

CONFIGS = ROOT / "train_configs"
FILES = sorted(CONFIGS.glob("**/*.toml"))
# Without the marker `slow`: the small ones. `.ci/run` tries all.
QUICK = ("grpo_debug", "quickstart", "quickstart_grpo", "quickstart_sft")
DRY = ("--comm.mode", "fake_backend")
# With all their layers: a trace takes as long as a model is deep, and the others are those of one of these.
WHOLE = (*QUICK, "debug", "grpo_gsm8k", "medium_3day", "quickstart_chat")


def hardware(file: Path) -> int:
    """The largest number of GPUs that the file's first lines name; 1 on a CPU."""
    named = re.findall(r"(\d+) (?:A100|GPU)", file.read_text().split("\n\n")[0])
    return max([int(count) for count in named] or [1])


@pytest.mark.parametrize(
    "file", [pytest.param(f, marks=[pytest.mark.slow] if f.stem not in QUICK else [], id=f.stem) for f in FILES]
)
def test_every_shipped_experiment(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NGPU", str(hardware(file)))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    layers = () if file.stem in WHOLE else ("--model.num_layers", "2")
    code, said = train_here(file, *DRY, *layers), capsys.readouterr().err
    if "[teacher]" in file.read_text():  # nobody knows its size before it is there
        assert code == 2 and "make it with titan-pt train quickstart_teacher" in said
        return
    assert code == 0, said
    assert f"on rank 0 of {hardware(file)} " in said and "Traceback" not in said
    assert not list(tmp_path.iterdir()), "nothing may be written"


@pytest.mark.parametrize(("replicate", "rows", "local"), [(8, 256, 2), (64, 1024, 2)])
def test_hsdp_over_nodes_of_8(replicate: int, rows: int, local: int) -> None:
    flags = [
        f"--training.global_batch_size={rows}",
        f"--training.local_batch_size={local}",
        f"--data.num_streams={min(rows, 8 * replicate)}",
        f"--parallelism.data_parallel_replicate_degree={replicate}",
    ]
    config = load_config(["--job.config_file", str(CONFIGS / "quickstart.toml"), *flags])
    result = dry_run_step(config, 8 * replicate, counts=True)
    assert result.operations
    assert result.mesh == f"{replicate} replicate x 8 shard"
    assert result.run_size.rows_per_rank == rows // (8 * replicate)
    # 4 bytes of each parameter in an eighth of the model, and RoPE's tables.
    assert result.memory["parameters"] == pytest.approx(4 * result.num_parameters / 8 + 4 * 32768 * 16, rel=0.01)
    ranks = {kernel.sides for kernel in result.operations.kernels if kernel.kind == "collective"}
    assert {(8, 1), (replicate, replicate)} < ranks, "shards within a node, copies between nodes"


def test_a_model_that_is_not_sharded_is_traced_as_it_is() -> None:
    result = dry_run_step(load_config(["--job.config_file", str(CONFIGS / "quickstart.toml")]), 1, counts=True)
    assert result.memory["parameters"] == pytest.approx(4 * result.num_parameters + 4 * 32768 * 16, rel=0.01)
    assert result.memory["communication"] == 0 and result.operations
    assert not [kernel for kernel in result.operations.kernels if kernel.kind == "collective"]


def test_the_launcher_starts_one_process(tmp_path: Path) -> None:
    env = {**os.environ, "NGPU": "8", "PET_NNODES": "2", "PET_NODE_RANK": "1"}
    command = [str(ROOT / "run_train.sh"), *DRY]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Dry run of 16 ranks") == 1 and "mesh 16 shard" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_config_that_the_ranks_cannot_share_ends_with_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGPU", "7")
    assert train_here(write_toml(tmp_path), *DRY) == 2


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "5000", "9" * 30])
def test_wrong_numbers_of_ranks(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("NGPU", text)
    with pytest.raises(ConfigError, match=r"NGPU = .*an integer from 1 to 4096"):
        dry_run_size()


def test_under_plain_torchrun_one_process_plays_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert dry_run_size() == 4
    dry_run(load_config(["--comm.mode=fake_backend", '--data.sources=[{name="arithmetic"}]']))
    assert not torch.distributed.is_initialized()


def test_a_tokenizer_of_unknown_size_is_a_clear_mistake(tmp_path: Path) -> None:
    config = load_config(["--job.config_file", str(write_toml(tmp_path)), "--tokenizer.name=missing/tokenizer.json"])
    with pytest.raises(ConfigError, match=r"its size is not known .* set model\.vocab_size"):
        dry_run_step(config, 1)
    known = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": 320})})
    assert dry_run_step(known, 2).num_parameters > 0


@pytest.mark.parametrize(
    ("file", "flag", "reason"),
    [
        ("quickstart", '--data.sources=[{name="pyton_stdlib"}]', "did you mean python_stdlib"),
        ("grpo_debug", '--grpo.tasks=[{name="arithmetics"}]', "did you mean arithmetic"),
    ],
)
def test_names_that_are_not_known_are_told(file: str, flag: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        dry_run_step(load_config(["--job.config_file", str(CONFIGS / f"{file}.toml"), flag]), 2)


@pytest.mark.parametrize("task", ["guess_number", "verifiers:any"])
def test_tasks_in_turns_need_a_length_of_their_episodes(task: str) -> None:
    """As the run does, which would tell it only when it starts."""
    argv = ["--job.config_file", str(CONFIGS / "grpo_debug.toml"), f'--grpo.tasks=[{{name="{task}"}}]']
    with pytest.raises(ConfigError, match=rf"rollout\.max_episode_tokens is not set: '{task}' is played in turns"):
        dry_run_step(load_config(argv), 2)
    assert dry_run_step(load_config([*argv, "--rollout.max_episode_tokens=200"]), 2).num_parameters > 0


def test_torchtitans_other_mode_is_named() -> None:
    with pytest.raises(ConfigError, match='no "local_tensor"; "fake_backend" is its dry run'):
        load_config(["--comm.mode=local_tensor", '--data.sources=[{name="arithmetic"}]'])


def _reader(context: TrainContext) -> Step:
    inner = pretrain.build_step(context)

    def step(state: TrainState) -> StepMetrics | None:
        metrics = inner(state)
        assert metrics
        float(metrics.loss)
        return metrics

    return step


def _asker(context: TrainContext) -> Step:
    context.dataloader.mixture  # type: ignore[attr-defined]  # noqa: B018  # the run's own data has it
    return pretrain.build_step(context)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"build_step": _reader}, "reads the numbers of a tensor"),
        ({"build_step": _asker}, "asks its data for"),
        ({"build_dry_run": None}, "has no build_dry_run"),
    ],
)
def test_a_trainer_that_cannot_be_tried_is_told(
    changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = dataclasses.replace(pretrain.SPEC, **changes)
    monkeypatch.setattr("titan_pt.planner.dry_run_step.get_trainer_spec", lambda _: spec)
    with pytest.raises(ConfigError, match=reason):
        dry_run_step(load_config(["--job.config_file", str(CONFIGS / "quickstart.toml")]), 1)


def test_settings_that_need_numbers_or_a_device_are_replaced_with_a_note(tmp_path: Path) -> None:
    flags = ["--optimizer.implementation=foreach", "--compile.enable", "--model.sdpa_backend=cudnn"]
    flags += ["--model.converters=quantize.linear.float8"]
    config = load_config(["--job.config_file", str(write_toml(tmp_path)), *flags])
    notes = " ".join(dry_run_step(config, 1).notes)
    assert "foreach" in notes and "compile.enable" in notes and "cudnn" in notes and "quantize.linear.float8" in notes


def test_the_world_is_gone_afterwards() -> None:
    config = load_config(['--data.sources=[{name="arithmetic"}]'])
    level = logging.getLogger("torch.distributed").level
    with dry_run_world(config, 4) as world:
        assert world.add(1, 2) == [4, 8] and world.gather("a") == ["a"] * 4 and world.broadcast(3) == 3
        assert world.sum(torch.ones(2)).shape == (2,)
    assert not torch.distributed.is_initialized() and logging.getLogger("torch.distributed").level == level
