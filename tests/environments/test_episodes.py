"""Runs on tasks in turns: what they record, resume, ranks, and environments that fail."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY, assert_same_step, read_rows, train, train_here, write_toml
from talker import GARBAGE, Talker

from titan_pt.components.tokenizer import ByteTokenizer
from titan_pt.config.schema.grpo import GrpoTask
from titan_pt.environments.episodes import Episodes
from titan_pt.environments.pool import PoolLimits
from titan_pt.environments.worker import checked
from titan_pt.tasks.prompts import Prompt
from titan_pt.tasks.task import Problem, open_task

OPTIONS: dict[str, dict[str, Any]] = {
    "experimental": {"custom_import": "env_plugin"},
    "training": {**TINY["training"], "steps": 2, "seq_len": 256, "global_batch_size": -1},
    "optimizer": {"lr": 1e-3},
    "rollout": {"num_samples": 4, "max_new_tokens": 24, "max_episode_tokens": 150, "max_rows": 16},
    "grpo": {"prompts_per_step": 4, "eval_prompts": 4, "eval_samples": 2, "probe": "off", "dynamic_sampling": "none"},
    "validation": {"freq": 2},
    "checkpoint": {"interval": 1, "keep_latest_k": 0},
}
TASKS = [{"name": "talk", "weight": 3.0}, {"name": "quiet"}]


def write(folder: Path, tasks: list[dict[str, Any]], **rollout: Any) -> Path:
    tables = {**OPTIONS, "rollout": {**OPTIONS["rollout"], **rollout}, "grpo": {**OPTIONS["grpo"], "tasks": tasks}}
    job = {"dump_folder": str(folder / "run"), "trainer": "grpo"}
    return write_toml(folder, job=job, data={"sources": []}, **tables)


def record(folder: Path, step: int) -> list[dict[str, Any]]:
    text = (folder / "run" / "rollouts" / f"step-{step}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("episodes")
    assert train_here(write(folder, TASKS)) == 0
    return folder


def test_episodes_are_recorded_and_trained_on(whole: Path) -> None:
    rows = read_rows(whole / "run")
    for row in rows[1:]:
        assert row["logprob_diff_max"] < 1e-4, "the trainer scores the tokens that were sampled, where they stood"
        assert 1 < row["turns_mean"] <= 3 and row["reward_errors"] == row["reward_timeouts"] == 0
        assert row["task/talk/reward/said"] > 0 and 0 < row["completion_tokens_mean"] < 72
    assert {"eval/talk/accuracy", "eval/talk/pass_at_2", "eval/quiet/pass_at_2"} <= rows[0].keys()
    samples = [sample for sample in record(whole, 1) if sample["task"] == "talk"]
    assert len(samples) == 12 and {sample["rewards"]["said"] for sample in samples} - {0.0}
    assert any("\n\nQuestion: " in sample["completion"] and "<|im_end|>" in sample["completion"] for sample in samples)


def test_a_resume_is_bitwise_and_ranks_sample_the_same(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint" / "step-2")
    assert train_here(write(tmp_path, TASKS)) == 0
    assert_same_step(whole / "run" / "checkpoint" / "step-2", tmp_path / "run" / "checkpoint" / "step-2")
    assert record(tmp_path, 2) == record(whole, 2)
    few = tmp_path / "few"
    assert train_here(write(few, TASKS, max_rows=3, environment_workers=1), "--training.steps", "1") == 0
    assert [each["completion"] for each in record(few, 1)] == [each["completion"] for each in record(whole, 1)]


@pytest.mark.slow
def test_two_ranks_play_the_same_episodes(whole: Path, tmp_path: Path) -> None:
    result = train(write(tmp_path, TASKS), "--training.steps", "1", ranks=2)
    assert result.code == 0, result.stderr
    assert [each["completion"] for each in record(tmp_path, 1)] == [each["completion"] for each in record(whole, 1)]


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("hangs", "timeout", "step took longer than 1.5 s"),
        ("dies", "error", "its process ended with exit code 3"),
        ("raises", "error", "KeyError: 'no such word' ("),
        ("eats", "error", "MemoryError"),
    ],
)
def test_a_failing_environment_costs_its_own_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, kind: str, said: str
) -> None:
    tasks = [{"name": "talk", "options": {"fault": fault, "size": 8}}]
    seconds = 1.5 if fault == "hangs" else 60.0
    config = write(tmp_path, tasks, environment_timeout_seconds=seconds, environment_memory_gib=0.25)
    flags = ("--validation.enable", "false", "--training.steps", "1", "--checkpoint.enable", "false")
    assert train_here(config, *flags) == 0
    row, samples = read_rows(tmp_path / "run")[-1], record(tmp_path, 1)
    failed = [sample for sample in samples if int(sample["gold"]) % 4 == 1]
    output = " ".join(capsys.readouterr().err.split())
    assert 0 < row[f"reward_{kind}s"] <= len(failed) < len(samples)
    assert said in output and "talk/" in output and "'environment'" in output
    assert {sample["reward"] for sample in failed} == {0.0}
    assert any(sample["rewards"]["said"] > 1 for sample in samples if sample not in failed), "others went on"


def test_calls_that_wait_for_what_always_hangs_are_dropped() -> None:
    game = replace(open_task(GrpoTask(name="guess_number"), 0), environment=Talker("hangs"))
    limits = PoolLimits(workers=1, timeout_seconds=0.1)
    episodes = Episodes([game], ByteTokenizer(), limits, max_turns=3, max_tokens=90, stop_requested=lambda: False)
    talk = episodes.begin([Prompt(0, 0, Problem("talk", "talk/1", "?", "1"), "?", (63,))], 40)
    assert talk
    for number in range(40):
        talk.hear(number, [65, 256], ended=True)
    assert talk.answers() == []
    episodes.pool.close()
    failures = [episode.failure for episode in talk.episodes.values()]
    assert all(failure and failure.kind == "timeout" for failure in failures)
    assert sum("not asked again" in failure.message for failure in failures if failure) > 30


@pytest.mark.parametrize("name", sorted(GARBAGE.keys() - {"a lambda"}))
def test_what_is_no_reply_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=r"want|neither"):
        checked(GARBAGE[name])


def test_mistakes_end_a_run_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, TASKS)
    text = config.read_text()
    for change, said in (
        (("max_episode_tokens = 150", ""), "rollout.max_episode_tokens is not set: 'talk' is played in turns"),
        (("max_episode_tokens = 150", "max_episode_tokens = 20"), "must be at least rollout.max_new_tokens = 24"),
        (("max_episode_tokens = 150", 'max_episode_tokens = 150\nengine = "no turns"'), "has no conversations"),
    ):
        assert change[0] in text
        config.write_text(text.replace(*change))
        assert train_here(config) == 2
        assert said in " ".join(capsys.readouterr().err.split())
