"""Runs of supervised fine-tuning: learn, resume to the last bit, are the same on two ranks, count what they skip."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from helpers import TINY, assert_same_step, losses, read_json, read_rows, read_tensors, train, train_here, write_toml
from hf_helpers import export_here, load_reference, read_weights, write_model
from metric_keys import undocumented

from titan_pt.config import load_config
from titan_pt.hf.model_source import open_model_source

SFT: dict[str, Any] = {
    "training": {"steps": 6, "local_batch_size": 2, "global_batch_size": 4},
    "optimizer": {"lr": 3e-3},
    "lr_scheduler": {"warmup_steps": 2},
    "checkpoint": {"interval": 3, "keep_latest_k": 0},
    "validation": {"enable": True, "freq": 3, "holdout_fraction": 0.1},
}


def write_talks(path: Path) -> str:
    """Conversations, pairs, and one bad record in ten."""
    rows: list[dict[str, Any]] = []
    for i in range(60):
        talk = [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i} {i}"}]
        rows.append({"messages": talk * (1 + i % 2)} if i % 3 else {"prompt": f"Say {i}:", "completion": f" {i}"})
        if i % 10 == 5:
            rows[-1] = {"messages": talk[::-1]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_sft(folder: Path, talks: str, *, on_bad_record: str = "skip", **tables: Any) -> Path:
    sources = [{"name": "arithmetic", "subset": "level-1"}, {"name": "talks", "path": talks}]
    job = {"dump_folder": str(folder / "run"), "trainer": "sft"}
    data = {"sources": sources, **tables.pop("data", {})}
    return write_toml(folder, job=job, sft={"on_bad_record": on_bad_record}, data=data, **{**SFT, **tables})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert train_here(write_sft(folder, write_talks(folder / "talks.jsonl"))) == 0
    return folder


def test_it_learns_and_counts_what_it_learns(whole: Path) -> None:
    rows = read_rows(whole / "run")
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3 and rows[-1]["val_loss"] < rows[0]["val_loss"] - 0.3
    assert all(0 < row["trained_tokens"] < 0.8 * row["tokens_seen"] for row in rows)
    assert not undocumented(rows, "sft")
    trained = [row["trained_tokens"] for row in rows]
    assert trained == sorted(set(trained))
    assert rows[-1]["skipped_documents"] > 0 and {"source/talks/loss", "source/talks/epochs"} <= rows[-1].keys()
    for step in (3, 6):
        saved = read_json(whole / "run" / "checkpoint" / f"step-{step}", "train")["state"]
        assert (saved["trained_tokens"], saved["tokens_seen"]) == (
            rows[step - 1]["trained_tokens"],
            rows[step - 1]["tokens_seen"],
        )


def test_6_is_3_and_3(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint" / "step-6")
    config = write_sft(tmp_path, str(whole / "talks.jsonl"))
    assert train_here(config) == 0
    assert_same_step(*(folder / "run" / "checkpoint" / "step-6" for folder in (whole, tmp_path)))
    drop = ("time", "tokens_per_second", "mfu", "step_seconds", "data_seconds", "save_seconds", "memory_gib", "goodput")
    kept = [
        [{k: v for k, v in row.items() if k not in drop} for row in read_rows(f / "run")] for f in (whole, tmp_path)
    ]
    assert kept[0] == kept[1]


def test_the_resolved_toml_is_the_same_run(whole: Path) -> None:
    file = whole / "run" / "config.toml"
    again, first = (load_config(["--job.config_file", str(path)]) for path in (file, whole / "run.toml"))
    assert again.dump() == first.dump()
    assert again.dump()["sft"] == {"on_bad_record": "skip", "overlong": "error"}
    assert again.data.packing == "best_fit" and again.training.document_mask
    assert [source.formatter for source in again.data.sources] == [None, None]


def test_two_ranks_and_workers_read_and_learn_the_same(whole: Path, tmp_path: Path) -> None:
    talks = str(whole / "talks.jsonl")
    done = train(write_sft(tmp_path, talks, data={"num_workers": 1}), ranks=2)
    assert done.code == 0, done.stderr
    one, two = losses(whole / "run"), losses(tmp_path / "run")
    assert two == pytest.approx(one, rel=1e-4)
    rows = [read_rows(folder / "run")[-1] for folder in (whole, tmp_path)]
    for key in ("tokens_seen", "trained_tokens", "skipped_documents", "source/talks/tokens"):
        assert rows[0][key] == rows[1][key]
    assert rows[0]["val_loss"] == pytest.approx(rows[1]["val_loss"], rel=1e-4)
    states = [read_json(folder / "run" / "checkpoint" / "step-6", "data") for folder in (whole, tmp_path)]
    assert states[0] == states[1]


def test_a_bad_record_ends_a_run_before_its_first_step(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(write_sft(tmp_path, str(whole / "talks.jsonl"), on_bad_record="error")) == 2
    error = capsys.readouterr().err
    assert "talks.jsonl, line 6): the roles are assistant, user" in error and "Traceback" not in error


def test_epochs_are_counted_and_the_learning_rate_ends_with_them(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [
        {"name": "talks", "path": str(whole / "talks.jsonl")},
        {"name": "arithmetic", "subset": "level-1", "max_epochs": 1},
    ]
    schedule = {"decay_type": "cosine", "min_lr_factor": 0.1, "warmup_steps": 2}
    base = write_sft(tmp_path, "", data={"sources": sources}, lr_scheduler=schedule)
    config = tmp_path / "epochs.toml"
    config.write_text(f'extends = "{base.name}"\n[sft]\nepochs = 2\n')
    assert train_here(config) == 0
    last = read_rows(tmp_path / "run")[-1]
    assert last["source/talks/epochs"] == pytest.approx(2.0) and last["source/arithmetic/epochs"] == pytest.approx(1.0)
    assert last["lr"] == pytest.approx(0.1 * SFT["optimizer"]["lr"]), "the last step is the end of the schedule"
    error = capsys.readouterr().err
    assert f" in {last['step']} steps (" in error and "Every data source is spent" not in error
    assert train_here(config, "--training.steps=1", f"--job.dump_folder={tmp_path / 'short'}") == 0
    assert read_rows(tmp_path / "short")[-1]["step"] == 1, "a flag replaces it"


def test_epochs_end_a_run(whole: Path, tmp_path: Path) -> None:
    source = {"name": "talks", "path": str(whole / "talks.jsonl"), "max_epochs": 2.0}
    config = write_sft(tmp_path, "", data={"sources": [source]}, training={**SFT["training"], "steps": 100})
    assert train_here(config) == 0
    last = read_rows(tmp_path / "run")[-1]
    assert last["step"] < 100 and last["source/talks/epochs"] == pytest.approx(2.0)
    assert last["skipped_documents"] == 2 * 6


@pytest.mark.parametrize("form", ["conversations", "prompts"])
def test_a_model_is_asked_in_the_form_it_was_trained_in(whole: Path, tmp_path: Path, form: str) -> None:
    run = whole / "run"
    if form == "prompts":
        source = {"name": "arithmetic", "subset": "level-1"}
        training = {**SFT["training"], "steps": 1}
        config = write_sft(tmp_path, "", data={"sources": [source]}, training=training, checkpoint={"interval": 1})
        assert train_here(config, "--checkpoint.export_hf_interval=1") == 0
        run = tmp_path / "run"
    assert export_here(["--checkpoint", str(run), "--output", str(tmp_path / "out")]) == 0
    folders = [run, tmp_path / "out", *run.glob("hf/step-*")]
    assert {open_model_source(str(folder)).knows_chat for folder in folders} == {form == "conversations"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("apply_chat_template" in card) == (form == "conversations")
    load_reference(tmp_path / "out")


def test_it_starts_from_pretraining_and_goes_on_in_another_folder(whole: Path, tmp_path: Path) -> None:
    talks = str(whole / "talks.jsonl")
    assert train_here(write_toml(tmp_path / "base", training={"steps": 1}, checkpoint={"interval": 1})) == 0
    start = {"checkpoint": {"interval": 1, "initial_load_path": str(tmp_path / "base" / "run")}}
    assert train_here(write_sft(tmp_path / "sft", talks, training={**SFT["training"], "steps": 1}, **start)) == 0
    base, tuned = (read_tensors(tmp_path / name / "run" / "checkpoint" / "step-1") for name in ("base", "sft"))
    moved = max(float((tuned[name] - base[name]).abs().max()) for name in base if name.startswith("model."))
    assert 0 < moved < 0.01, "one small step from there"


@pytest.mark.parametrize("qwen", [True, False], ids=["qwen3", "llama"])
def test_a_hugging_face_model_comes_in_learns_and_leaves(whole: Path, tmp_path: Path, qwen: bool) -> None:
    write_model(tmp_path / "in", qwen=qwen, tied=qwen)
    tables = {
        "job": {"dump_folder": str(tmp_path / "run"), "trainer": "sft"},
        "model": {"from_hf": str(tmp_path / "in")},
        "sft": {"on_bad_record": "skip"},
        "data": {"sources": [{"name": "talks", "path": str(whole / "talks.jsonl")}]},
        "checkpoint": {"initial_load_path": str(tmp_path / "in")},
        "training": {**TINY["training"], **SFT["training"], "steps": 10},
        "optimizer": SFT["optimizer"],
        "lr_scheduler": SFT["lr_scheduler"],
        "metrics": TINY["metrics"],
    }
    (tmp_path / "run.toml").write_text(tomli_w.dumps(tables))
    assert train_here(tmp_path / "run.toml") == 0
    found = losses(tmp_path / "run")
    assert found[10] < found[1] - 0.5
    assert export_here(["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    load_reference(tmp_path / "out")
    before, after = (read_weights(tmp_path / name) for name in ("in", "out"))
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
