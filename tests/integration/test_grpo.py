"""GRPO runs: on one and two ranks, resumed bitwise, stopped while sampling, with rewards that fail."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import TINY, Result, assert_same_step, read_json, read_rows, read_tensors, train, train_here
from metric_keys import undocumented

from titan_pt.config import load_config
from titan_pt.evaluation.task_evaluator import EvalResult, TaskEvaluator
from titan_pt.run.exit_codes import GaveUp
from titan_pt.trainers.grpo import step as step_module

STEPS = 6
GRPO: dict[str, dict[str, Any]] = {
    **TINY,
    "experimental": {"custom_import": "rl_plugin"},
    "training": {**TINY["training"], "steps": STEPS},
    "optimizer": {"lr": 1e-3},
    "rollout": {"num_samples": 4, "max_new_tokens": 8, "max_rows": 16},
    "grpo": {
        "prompts_per_step": 4,
        "eval_prompts": 6,
        "eval_samples": 2,
        "probe_prompts": 4,
        # A random model never ends its answers: none of them may be worth less for that.
        "overlong": "penalty",
        "overlong_buffer": 1,
        "overlong_penalty": 0.0,
        "tasks": [{"name": "coin", "weight": 3.0}, {"name": "second_coin"}],
    },
    "validation": {"freq": 3},
    "checkpoint": {"interval": 3, "keep_latest_k": 0},
}
del GRPO["data"], GRPO["training"]["global_batch_size"]


def write(folder: Path, **tables: dict[str, Any]) -> Path:
    """`folder/run.toml`: GRPO with these keys on top."""
    folder.mkdir(parents=True, exist_ok=True)
    merged: dict[str, dict[str, Any]] = {"job": {"dump_folder": str(folder / "run"), "trainer": "grpo"}, **GRPO}
    for name, table in tables.items():
        merged[name] = {**merged.get(name, {}), **table}
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(merged))
    return path


def rollouts(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The record of each step."""
    files = sorted((folder / "run" / "rollouts").glob("step-*.jsonl"))
    return {int(file.stem[5:]): [json.loads(line) for line in file.read_text().splitlines()] for file in files}


def cut_after(folder: Path, target: Path, step: int) -> Path:
    """A copy of a run folder as a kill between this step's checkpoint and the next one's leaves it."""
    shutil.copytree(folder / "run", target / "run")
    for path in (target / "run" / "checkpoint").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    text = (folder / "run.toml").read_text()
    (target / "run.toml").write_text(text.replace(str(folder), str(target)))
    return target / "run.toml"


def values(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    clock = ("time", "seconds", "per_second", "memory", "mfu", "goodput")
    rows = read_rows(folder / "run")
    return [{key: value for key, value in row.items() if not any(word in key for word in clock)} for row in rows]


# A reference that is renewed at step 4, several updates a step, and a half-filled buffer of prompts.
FULL: dict[str, dict[str, Any]] = {
    "grpo": {
        **GRPO["grpo"],
        "kl_coef": 0.01,
        "reference_reset": "interval",
        "reference_reset_interval": 3,
        "reset_optimizer": True,
        "num_minibatches": 2,
        "num_iterations": 2,
        "oversample": 2.0,
    }
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grpo") / "whole"
    assert train_here(write(folder, **FULL)) == 0
    return folder


def test_a_run_writes_metrics_records_and_evaluations(whole: Path) -> None:
    rows = read_rows(whole / "run")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    for row in rows[1:]:
        for key in (
            "loss", "grad_norm", "lr", "tokens_seen", "tokens_per_second", "step_seconds", "data_seconds", "memory_gib",
            "reward_mean", "reward_std", "accuracy_strict", "accuracy_lenient", "zero_std_fraction", "entropy",
            "completion_tokens_mean", "truncated_fraction", "clip_fraction", "kl", "logprob_diff_max",
            "rollout_tokens_per_second", "seconds/rollout", "seconds/reward", "seconds/train", "seconds/sync",
            "task/coin/reward_mean", "source/coin/tokens", "source/second_coin/epochs",
        ):  # fmt: skip
            assert isinstance(row[key], int | float), key
        assert row["logprob_diff_max"] < 1e-4, "sampler and trainer are one model"
        assert 0 < row["entropy"] < 6 and 0.2 < row["reward_mean"] < 0.8
    evaluated = [row["step"] for row in rows if "eval/coin/accuracy" in row]
    assert evaluated == [0, 1, 3, 6]
    assert not undocumented(rows, "grpo")
    assert {"eval/coin/pass_at_1", "eval/coin/pass_at_2", "eval/second_coin/accuracy_official"} <= rows[0].keys()
    assert rows[1]["kl"] > 0 and rows[4]["clip_fraction"] >= 0
    record = rollouts(whole)
    assert sorted(record) == [0, 1, 2, 3, 4, 5, 6], "0 is the probe's"
    assert len(record.pop(0)) == 16
    for step, samples in record.items():
        assert len(samples) % 4 == 0 and len(samples) >= 16, step
        assert {"prompt", "gold", "completion", "num_tokens", "finish_reason", "rewards", "advantage"} <= samples[
            0
        ].keys()
        assert samples[0]["prompt"].startswith("Question: Say something about")
        trained = [sample for sample in samples if sample["advantage"] is not None]
        assert len(trained) == 16 and abs(sum(sample["advantage"] for sample in trained)) < 1e-6
        assert {sample["rewards"]["correct"] for sample in samples} == {0.0, 1.0}


def test_resume_is_bitwise(whole: Path, tmp_path: Path) -> None:
    assert train_here(cut_after(whole, tmp_path, 3)) == 0
    assert_same_step(whole / "run" / "checkpoint" / "step-6", tmp_path / "run" / "checkpoint" / "step-6")
    assert rollouts(tmp_path) == rollouts(whole)
    assert values(tmp_path) == values(whole)
    assert read_json(whole / "run" / "checkpoint" / "step-3", "data")["streams"]["prompts"]["carry"], "half-filled"
    tensors = read_tensors(whole / "run" / "checkpoint" / "step-6")
    assert any(name.startswith("step.reference.") for name in tensors)


def test_a_teacher_teaches_where_all_rewards_are_equal(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed bitwise, without a refill or a probe; another teacher is refused."""
    teacher = whole / "run" / "checkpoint" / "step-6"
    grpo = {**GRPO["grpo"], "loss": "distill", "tasks": [{"name": "hopeless"}], "num_minibatches": 2}
    config = write(tmp_path / "one", grpo=grpo, teacher={"path": str(teacher)}, validation={"enable": False})
    assert train_here(config) == 0
    rows = read_rows(tmp_path / "one" / "run")
    assert [row["groups_trained"] for row in rows] == [row["groups_sampled"] for row in rows] == [4.0] * STEPS
    assert rows[-1]["teacher_kl"] < 0.9 * rows[0]["teacher_kl"] and not undocumented(rows, "grpo")
    (tmp_path / "two").mkdir()
    resumed = cut_after(tmp_path / "one", tmp_path / "two", 3)
    assert train_here(resumed, f"--teacher.path={teacher.with_name('step-3')}") == 2
    assert "was taught by other weights" in capsys.readouterr().err
    assert train_here(resumed) == 0
    assert values(tmp_path / "two") == values(tmp_path / "one")
    assert_same_step(*(tmp_path / name / "run" / "checkpoint" / "step-6" for name in ("one", "two")))
    assert not any("teacher" in name for name in read_tensors(tmp_path / "one" / "run" / "checkpoint" / "step-6"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "stopping"], ids=["in a reward", "while sampling"])
def test_a_signal_drops_the_unfinished_step(whole: Path, tmp_path: Path, engine: str) -> None:
    golds = [{sample["gold"] for sample in rollouts(whole)[step]} for step in range(3)]
    gold = min(golds[2] - golds[1] - golds[0])
    tasks = [{**task, "rewards": {"correct": 1.0, "stops": 0.0}} for task in GRPO["grpo"]["tasks"]]
    config = write(
        tmp_path,
        grpo={**FULL["grpo"], **({"tasks": tasks} if engine == "native" else {})},
        rollout={"engine": engine},
    )
    env = {"RL_PLUGIN_MARKER": str(tmp_path / "marker"), "RL_PLUGIN_GOLD": gold}
    first = train(config, env=env)
    assert first.code == 75, first.stderr
    assert read_rows(tmp_path / "run")[-1]["step"] == 1
    again = train(config, env=env)
    assert again.code == 0, again.stderr
    ours, theirs = (read_tensors(path / "run" / "checkpoint" / "step-6") for path in (tmp_path, whole))
    assert all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.slow
def test_two_ranks_sample_and_learn_the_same(whole: Path, tmp_path: Path) -> None:
    result = train(write(tmp_path, **FULL), ranks=2)
    assert result.code == 0, result.stderr
    one, two = rollouts(whole)[1], rollouts(tmp_path)[1]
    assert [sample["completion"] for sample in one] == [sample["completion"] for sample in two]
    assert [sample["advantage"] for sample in one] == [sample["advantage"] for sample in two]
    for ours, theirs in zip(read_rows(tmp_path / "run")[:2], read_rows(whole / "run")[:2], strict=True):
        for key in ("loss", "grad_norm", "entropy", "kl", "reward_mean", "eval/coin/accuracy", "source/coin/tokens"):
            if key in theirs:
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-6), key
    final = [read_rows(folder / "run")[-1]["reward_mean"] for folder in (whole, tmp_path)]
    assert final[0] == pytest.approx(final[1], abs=0.2)


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "gspo", "cispo", "reinforce"])
def test_every_loss_runs(tmp_path: Path, loss: str) -> None:
    clips = {"clip_low": 3e-4, "clip_high": 4e-4} if loss == "gspo" else {}
    grpo = {**GRPO["grpo"], "loss": loss, "num_minibatches": 2, "probe": "off", **clips}
    config = write(tmp_path, grpo=grpo, training={"steps": 2}, validation={"enable": False})
    assert train_here(config) == 0
    last = read_rows(tmp_path / "run")[-1]
    assert last["grad_norm"] > 0 and "eval/coin/accuracy" not in last


def failing(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[int, str]:
    """A run with a reward that fails beside one that does not; its exit code and log."""
    task = {"name": "coin", "rewards": {"correct": 1.0, name: 1.0}}
    grpo = {**GRPO["grpo"], "tasks": [task], "probe": "off", "reward_timeout_seconds": 0.2, **options}
    config = write(tmp_path, grpo=grpo, training={"steps": 2}, validation={"enable": False})
    result: Result = train(config)
    return result.code, result.stderr


@pytest.mark.parametrize(("name", "kind"), [("fails", "error"), ("nan", "nan"), ("hangs", "timeout")])
def test_a_failed_reward_is_counted_and_named(
    tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, log = failing(tmp_path, name, capsys)
    assert code == 0, log
    rows = read_rows(tmp_path / "run")
    assert sum(row[f"reward_{kind}s"] for row in rows) > 0
    assert f"the first is {name!r} on coin/" in log and "count as 0" in log
    if name == "fails":
        assert "no such thing" in log


def test_a_failed_reward_can_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, log = failing(tmp_path, "fails", capsys, on_reward_error="stop")
    assert code == 70 and "gave up:" in log.splitlines()[-1] and "'fails' on coin/" in log


@pytest.mark.parametrize("task", ["hopeless", "solved"])
@pytest.mark.parametrize("how", ["probe", "refill", "filter", "none"])
def test_without_signal_the_run_stops_with_advice(
    tmp_path: Path, task: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "probe": "stop" if how == "probe" else "off",
        "dynamic_sampling": how if how != "probe" else "refill",
        "max_gen_batches": 2,
        "max_idle_steps": 2,
    }
    config = write(tmp_path, grpo={**GRPO["grpo"], "tasks": [{"name": task}], **options}, validation={"enable": False})
    assert train_here(config) == 70
    told = capsys.readouterr().err
    assert "over-generation" not in told, "there is no such number"
    last = told.strip().splitlines()[-1]
    assert last.startswith("gave up: ")
    assert ("harder" if task == "solved" else "supervised fine-tuning") in last
    where = {"probe": "readiness probe: 0.00%", "refill": "none of 12 groups"}
    assert where.get(how, "2 steps in a row") in last
    steps = [path.name for path in (tmp_path / "run").glob("checkpoint/step-*")]
    assert steps == (["step-1"] if how in ("filter", "none") else []), "what is finished is saved"
    assert rollouts(tmp_path), "a person can read what was answered"


def test_advice_names_the_truncated_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A masked completion trains nothing, whatever its reward."""
    for overlong in ("mask", "zero"):
        options = {"overlong": overlong, "probe": "off", "dynamic_sampling": "none", "max_idle_steps": 1}
        grpo = {**GRPO["grpo"], **options, "tasks": [{"name": "coin"}]}
        config = write(tmp_path / overlong, grpo=grpo, rollout={"max_new_tokens": 2}, validation={"enable": False})
        assert train_here(config) == 70
        assert "cut off 100.00%" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_plateau_renews_the_reference_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grpo = {**GRPO["grpo"], "kl_coef": 0.01, "reference_reset": "plateau", "plateau_evals": 2, "reset_optimizer": True}
    config = write(tmp_path / "whole", grpo=grpo, validation={"freq": 1}, optimizer={"lr": 1e-9})
    assert train_here(config) == 0
    log = capsys.readouterr().err
    assert "step 3: the reference is now the policy of step 2; the optimizer starts anew" in log
    assert log.count("the reference is now") == 2, "counted anew after each: at steps 3 and 5"
    (tmp_path / "parts").mkdir()
    assert train_here(cut_after(tmp_path / "whole", tmp_path / "parts", 3)) == 0
    ends = [tmp_path / name / "run" / "checkpoint" / "step-6" for name in ("whole", "parts")]
    assert_same_step(*ends)


@pytest.mark.parametrize("answer", ["rewind", "stop", "warn"])
def test_a_collapse_is_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """Held-out accuracy falls twice in a row: back to the best saved step, at a lower rate; or the end; or a line."""
    scripted = iter([0.5, 0.5, 0.9, 0.8, 0.1, 0.1, 0.9, 0.8, 0.85, 0.9])
    monkeypatch.setattr(TaskEvaluator, "__call__", lambda *_: EvalResult(400, {"accuracy": next(scripted)}, {}))
    grpo = {**GRPO["grpo"], "tasks": [{"name": "coin"}], "on_collapse": answer, "forecast": False}
    checkpoint = {"interval": 1, "keep_latest_k": 2, "keep_best": "eval/coin/accuracy"}
    config = write(tmp_path, grpo=grpo, checkpoint=checkpoint, validation={"freq": 1}, lr_scheduler={"warmup_steps": 0})
    assert train_here(config) == {"rewind": 0, "stop": 70, "warn": 0}[answer]
    logged = capsys.readouterr().err
    assert logged.count("step 5: held-out accuracy 0.100 and 0.100, twice in a row below 0.675; its best was 0.9") >= 1
    rows = {row["step"]: row for row in read_rows(tmp_path / "run")}
    assert len(rows) == {"rewind": 7, "stop": 6, "warn": 7}[answer]
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoint").iterdir())
    if answer == "rewind":
        assert "Back to" in logged and rows[6]["eval/coin/accuracy"] == 0.9
        assert kept == ["best", "step-4.collapsed", "step-5", "step-5.collapsed", "step-6"]
        assert [rows[step].get("collapses", 0) for step in (2, 3, 6)] == [0, 1, 1]
        state = read_json(tmp_path / "run" / "checkpoint" / "step-6", "train")
        assert state["rate"] == pytest.approx(rows[6]["lr"] / 0.3), "the rate is lower from then on"
    else:
        assert kept == ["best", *(["step-2", "step-4", "step-5"] if answer == "stop" else ["step-5", "step-6"])]
        assert ("checkpoint.load_step" in logged) == (answer == "stop")


@pytest.mark.parametrize("answer", ["rewind", "stop"])
def test_the_last_evaluation_is_answered_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    scripted = iter([0.5, 0.9, 0.1, 0.1])
    monkeypatch.setattr(TaskEvaluator, "__call__", lambda *_: EvalResult(400, {"accuracy": next(scripted)}, {}))
    grpo = {**GRPO["grpo"], "tasks": [{"name": "coin"}], "on_collapse": answer, "probe": "off"}
    checkpoint = {"interval": 1, "keep_best": "eval/coin/accuracy"}
    config = write(tmp_path, grpo=grpo, checkpoint=checkpoint, validation={"freq": 1}, training={"steps": 3})
    assert train_here(config) == {"rewind": 0, "stop": 70}[answer]
    logged = " ".join(capsys.readouterr().err.split())
    assert logged.count("twice in a row below 0.675") == 1 and "Back to" not in logged
    assert ("checkpoint/best" in logged) == (answer == "rewind")
    assert read_rows(tmp_path / "run")[-1]["eval/coin/accuracy"] == 0.1, "its row is whole"
    assert train_here(config) == {"rewind": 0, "stop": 70}[answer], "the same command says the same"


def test_a_kill_behind_a_way_back_does_not_forget_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = iter([0.5, 0.9, 0.1, 0.1, 0.9, 0.9])
    monkeypatch.setattr(TaskEvaluator, "__call__", lambda *_: EvalResult(400, {"accuracy": next(scripted)}, {}))
    sampled, collect = [], step_module.collect

    def collect_until_killed(*arguments: Any) -> Any:
        sampled.append(arguments)
        if len(sampled) == 4:
            raise GaveUp("killed")
        return collect(*arguments)

    monkeypatch.setattr(step_module, "collect", collect_until_killed)
    grpo = {**GRPO["grpo"], "tasks": [{"name": "coin"}], "on_collapse": "rewind", "probe": "off"}
    checkpoint = {"interval": 1, "keep_best": "eval/coin/accuracy"}
    config = write(tmp_path, grpo=grpo, checkpoint=checkpoint, validation={"freq": 1}, training={"steps": 4})
    assert train_here(config) == 70
    guard = read_json(tmp_path / "run" / "checkpoint" / "step-1", "train")["state"]["guard"]
    assert guard["rate_factor"] == 0.3 and guard["collapses"] == [3]
    assert not (tmp_path / "run" / "checkpoint" / "step-2").exists()


def test_a_failed_grading_in_evaluation_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grpo = {**GRPO["grpo"], "tasks": [{"name": "unsure"}], "probe": "off"}
    assert train_here(write(tmp_path, grpo=grpo, training={"steps": 1})) == 0
    assert "'grade (official)'" in capsys.readouterr().err
    assert read_rows(tmp_path / "run")[0]["eval/unsure/accuracy_official"] == 0


def test_guessed_letters_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grpo = {**GRPO["grpo"], "tasks": [{"name": "letters"}], "probe_min_signal": 0.0}
    assert train_here(write(tmp_path, grpo=grpo)) == 70
    assert "log-likelihood accuracy" in capsys.readouterr().err.strip().splitlines()[-1]
    row = read_rows(tmp_path / "run")[0]
    assert row["step"] == 0 and "eval/letters/accuracy_loglikelihood" in row
    assert row["eval/letters/constant_letter_baseline"] > 0 and "eval/letters/answered_A" in row
    assert row["eval/letters/problems"] > 0, "from which tools.report has the interval"


def test_a_missing_start_names_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write(tmp_path, checkpoint={"initial_load_path": "outputs/quickstart"})
    assert train_here(config) == 2
    error = capsys.readouterr().err
    assert "make it with titan-pt train quickstart, or correct the path" in error


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"grpo": {"tasks": []}}, "grpo.tasks: empty"),
        ({"grpo": {"tasks": [{"name": "gsm9k"}]}}, "did you mean gsm8k?"),
        ({"grpo": {"num_minibatches": 3}}, "must divide grpo.prompts_per_step"),
        ({"grpo": {"tasks": [{"name": "coin"}, {"name": "coin"}]}}, "two tasks are named 'coin'"),
        ({"grpo": {"loss": "gspo"}}, "never acts"),
        ({"grpo": {"loss": "distill"}}, "needs a teacher; set teacher.path"),
        ({"teacher": {"path": "outputs/large"}}, 'set grpo.loss = "distill"'),
        ({"grpo": {"loss": "distill"}, "teacher": {"path": "outputs/nowhere"}}, "teacher.path = 'outputs/nowhere'"),
        ({"grpo": {"reference_reset": "interval"}}, "there is no reference without grpo.kl_coef"),
        ({"rollout": {"num_samples": 1}}, "rollout.num_samples"),
        ({"rollout": {"max_new_tokens": 128}}, "must be below training.seq_len"),
        ({"rollout": {"temperature": 0.0}}, "rollout.temperature"),
        ({"rollout": {"engine": "vllm"}}, "rollout.engine"),
        ({"grpo": {"tasks": [{"name": "coin", "stop": ["two tokens"]}]}}, "must be one token"),
        ({"grpo": {"tasks": [{"name": "coin", "stop": ["x"]}, {"name": "second_coin"}]}}, "stop differs between tasks"),
        ({"grpo": {"tasks": [{"name": "coin", "options": {"size": "many"}}]}}, "its factory failed: ValueError"),
        ({"grpo": {"tasks": [{"name": "coin", "rewards": {"corect": 1.0}}]}}, "corect"),
        ({"grpo": {"tasks": [{"name": "coin", "prompt_template": "no place"}]}}, "{question}"),
        ({"training": {"tokens": "1M", "steps": None}}, "training.tokens: grpo counts steps"),
    ],
)
def test_config_mistakes_are_named(
    tmp_path: Path, tables: dict[str, dict[str, Any]], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = {
        name: {key: value for key, value in {**GRPO.get(name, {}), **table}.items() if value is not None}
        for name, table in tables.items()
    }
    merged = {"job": {"dump_folder": str(tmp_path / "run"), "trainer": "grpo"}, **GRPO, **tables}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(merged))
    assert train_here(tmp_path / "run.toml") == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "run" / "checkpoint").exists() or not os.listdir(tmp_path / "run" / "checkpoint")


def test_the_file_overrides_grpos_defaults(tmp_path: Path) -> None:
    config = load_config(["--job.config_file", str(write(tmp_path))])
    assert config.optimizer.lr == 1e-3 and config.optimizer.weight_decay == 0.0
    assert config.validation.enable and config.metrics.log_freq == 1


def test_a_refused_resume_names_the_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sums = tmp_path / "sums.jsonl"
    sums.write_text("".join(json.dumps({"question": f"{i} + 1", "answer": f"#### {i + 1}"}) + "\n" for i in range(40)))
    tasks = [{"name": "gsm8k", "path": str(sums), "holdout_fraction": 0.3}, {"name": "coin"}]
    config = write(tmp_path, grpo={"tasks": tasks, "max_idle_steps": 99}, training={"steps": 1})
    assert train_here(config) == 0
    wanted = {
        ("--grpo.kl_coef", "0.1"): "grpo.kl_coef is 0 there and 0.1 here",
        ("--rollout.max_new_tokens", "9"): "rollout.max_new_tokens is 8 there and 9 here",
        ("--rollout.overlong_prompts", "skip"): "rollout.overlong_prompts is 'error' there and 'skip' here",
        ("--debug.seed", "7"): "debug.seed is 42 there and 7 here",
    }
    for flags, words in wanted.items():
        capsys.readouterr()
        assert train_here(config, *flags) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert words in error and " in exclude" not in error and "hash" not in error, error
    config.write_text(config.read_text().replace("holdout_fraction = 0.3", "holdout_fraction = 0.4"))
    assert train_here(config) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "grpo.tasks[0].holdout_fraction ('gsm8k') is 0.3 there and 0.4 here; set the config back" in error
    assert 'exclude_from_loading = ["data"]' in error


@pytest.mark.parametrize("reward", ["fails", "leaves"])
@pytest.mark.parametrize("probe", ["stop", "warn"])
def test_a_reward_that_always_fails_is_named_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reward: str, probe: str
) -> None:
    grpo = {"tasks": [{"name": "coin", "rewards": {reward: 1.0}}], "probe": probe, "max_gen_batches": 1}
    assert train_here(write(tmp_path, grpo=grpo, validation={"enable": False}, training={"steps": 1})) == 70
    end = capsys.readouterr().err.splitlines()[-1]
    count = 16 if probe == "stop" else 24
    said = f"reward '{reward}' failed on {count} of {count} completions, the first time on coin/[0-9]+: error: "
    error = "KeyError: 'no such thing'" if reward == "fails" else "(GeneratorExit|KeyboardInterrupt|BaseException)"
    assert re.search(rf"{said}{error} \(rl_plugin.py:[0-9]+\)", end), end
    assert "fine-tuning" not in end and "easier" not in end
