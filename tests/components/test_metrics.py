"""metrics.jsonl and TensorBoard: what is written, when, and that a restart neither repeats nor loses a step."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, read_rows, train_here, write_toml
from metric_keys import documented_keys, undocumented
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from titan_pt.components.checkpoint.manifest import file_entry
from titan_pt.components.earlier_rows import rows_up_to
from titan_pt.components.late_validation import complete
from titan_pt.components.metrics import FILE, MetricsWriter, format_seconds
from titan_pt.components.tensorboard import plotted
from titan_pt.config.schema.job_config import Metrics
from titan_pt.protocols.trainer_spec import register_trainer_spec
from titan_pt.run.files import write_atomic
from titan_pt.trainers import pretrain

KEYS = [
    *("step", "loss", "grad_norm", "lr", "tokens_seen", "tokens_per_second", "mfu", "step_seconds", "data_seconds"),
    *("memory_gib", "skipped_steps", "goodput", "time"),
    *("source/arithmetic/loss", "source/arithmetic/tokens", "source/arithmetic/epochs"),
]
VALIDATION = ["val_loss", "val_perplexity", "val_bpb"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 steps, logged at 1, 3, 6, 7 and validated at 1, 2, 4, 6, 7; checkpoints at 2, 4, 6 and 7."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_toml(
        folder,
        training={"steps": 7},
        metrics={"log_freq": 3, "enable_tensorboard": True},
        validation={"enable": True, "freq": 2, "steps": 1},
        checkpoint={"interval": 2, "keep_latest_k": 0},
    )
    assert train_here(config) == 0
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """The trained folder to change; its run.toml points to the copy."""
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run.toml").write_text((trained / "run.toml").read_text().replace(str(trained), str(tmp_path)))
    return tmp_path


def curve(run_folder: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(run_folder / "tb"), size_guidance={"scalars": 0})
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def keep_rows(path: Path, step: int) -> None:
    path.write_bytes(rows_up_to(path, step))


def write_rows(path: Path, steps: list[int], end: str = "") -> None:
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in steps) + end)


def test_rows_have_the_documented_keys_at_the_documented_steps(trained: Path) -> None:
    rows = read_rows(trained / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 6, 7]
    for row in rows:
        validated = row["step"] != 3
        assert set(row) - {"save_seconds"} == {*KEYS, *(VALIDATION if validated else [])}, row["step"]
        assert row["tokens_seen"] == row["step"] * 16 * 128
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    assert not undocumented(rows, "pretrain")


def test_documented_keys_exist_and_are_plotted_by_the_documented_name() -> None:
    """That runs write no other ones is told where their rows are read."""
    source = "\n".join(path.read_text() for path in (ROOT / "titan_pt").rglob("*.py"))
    in_a_loop = {"reward_errors", "reward_timeouts", "reward_nans"}
    entries = documented_keys()
    assert len(entries) > 50
    for entry in entries:
        literal = re.split(r"<\w+>|/", entry.key)
        last = [part for part in literal if part][-1]
        assert last in in_a_loop or re.search(rf'["/]{last}["/{{]', source), entry.key
        if entry.key != "loss":  # which brings the names that TensorBoard alone has
            assert list(plotted({entry.key: 0.5}, 1)) == ([] if entry.tag == "-" else [entry.tag]), entry.key


def test_tensorboard_has_the_names_of_torchtitan(trained: Path) -> None:
    board = EventAccumulator(str(trained / "run" / "tb"))
    board.Reload()
    wanted = {"loss_metrics/global_avg_loss", "throughput(tps)", "grad_norm", "lr", "memory/max_active(GiB)"}
    assert wanted | {"validation_metrics/loss", "n_tokens_seen", "mfu(%)"} <= set(board.Tags()["scalars"])
    rows = read_rows(trained / "run")
    logged = curve(trained / "run", "loss_metrics/global_avg_loss")
    assert [step for step, _ in logged] == [row["step"] for row in rows]
    assert [value for _, value in logged] == pytest.approx([row["loss"] for row in rows])


@pytest.mark.parametrize("resume_at", [4, 6])
def test_a_restart_goes_on_with_one_record(copy: Path, trained: Path, resume_at: int) -> None:
    """Killed some time after step `resume_at` was saved: the later rows are trained again."""
    for step in (6, 7):
        if step > resume_at:
            shutil.rmtree(copy / "run" / "checkpoint" / f"step-{step}")
    assert train_here(copy / "run.toml") == 0
    before, after = read_rows(trained / "run"), read_rows(copy / "run")
    assert [(row["step"], row["loss"], row.get("val_loss")) for row in after] == [
        (row["step"], row["loss"], row.get("val_loss")) for row in before
    ]
    assert len(list((copy / "run" / "tb").iterdir())) == 1
    for tag in ("loss_metrics/global_avg_loss", "validation_metrics/loss"):
        assert curve(copy / "run", tag) == curve(trained / "run", tag), tag


def without_validation(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("val_")}


def test_a_start_validates_a_due_row_without_values(copy: Path, trained: Path) -> None:
    rows = read_rows(trained / "run")
    lines = [json.dumps(row) for row in (*rows[:-1], without_validation(rows[-1]))]
    (copy / "run" / FILE).write_text("\n".join(lines) + "\n")
    assert train_here(copy / "run.toml") == 0
    after = read_rows(copy / "run")
    assert after[:-1] == rows[:-1] and {**after[-1], "time": 0} == {**rows[-1], "time": 0}


def test_a_lost_row_is_not_made_up(copy: Path, trained: Path) -> None:
    keep_rows(copy / "run" / FILE, 4)
    assert train_here(copy / "run.toml") == 0
    assert [row["step"] for row in read_rows(copy / "run")] == [1, 2, 3, 4]


def test_a_completion_that_fails_is_made_up_for_before_the_next_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    writer = MetricsWriter(tmp_path, Metrics(enable_tensorboard=False), 0, 1)
    writer.write(ROW, 10)
    with monkeypatch.context() as patch, caplog.at_level("ERROR", logger="titan_pt"):
        patch.setattr("titan_pt.components.earlier_rows.write_atomic", full)
        complete(writer, 1, {"val_loss": 1.0, "val_perplexity": 2.0, "val_bpb": 3.0}, 10, {})
    assert "the validation of step 1 could not be written" in caplog.text
    writer.write({**ROW, "step": 2}, 10)
    writer.close()
    assert [(row["step"], row.get("val_loss")) for row in read_rows(tmp_path)] == [(1, 1.0), (2, None)]


def test_a_crash_at_a_completion_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept rows and the completed one come by one rename: there is no moment without the row."""
    writer = MetricsWriter(tmp_path, Metrics(enable_tensorboard=False), 0, 1)
    writer.write(ROW, 10)
    seen: list[list[dict[str, Any]]] = []

    def replace(path: Path, text: str) -> None:
        seen.append(read_rows(tmp_path))
        write_atomic(path, text)
        seen.append(read_rows(tmp_path))

    monkeypatch.setattr("titan_pt.components.earlier_rows.write_atomic", replace)
    complete(writer, 1, {"val_loss": 1.0, "val_perplexity": 2.0, "val_bpb": 3.0}, 10, {})
    assert [["val_loss" in row for row in rows] for rows in seen] == [[False], [True]]
    writer.write({**ROW, "step": 2}, 10)
    writer.close()
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2]


def test_a_row_kept_by_an_earlier_release_is_written(copy: Path, trained: Path) -> None:
    """They saved the row of a validation that a signal ended in the checkpoint, and wrote it at the next start."""
    rows = read_rows(trained / "run")
    shutil.rmtree(copy / "run" / "checkpoint" / "step-7")
    step = copy / "run" / "checkpoint" / "step-6"
    train = json.loads((step / "train.json").read_text())
    (step / "train.json").write_text(json.dumps({**train, "owed_row": without_validation(rows[-2])}))
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["files"]["train.json"] = file_entry(step / "train.json")
    (step / "manifest.json").write_text(json.dumps(manifest))
    keep_rows(copy / "run" / FILE, 4)
    assert train_here(copy / "run.toml") == 0
    assert [(row["step"], row["loss"], row.get("val_loss")) for row in read_rows(copy / "run")] == [
        (row["step"], row["loss"], row.get("val_loss")) for row in rows
    ]


def test_a_start_from_nothing_drops_the_old_record(copy: Path) -> None:
    shutil.rmtree(copy / "run" / "checkpoint")
    assert train_here(copy / "run.toml", "--training.steps", "2") == 0
    assert [row["step"] for row in read_rows(copy / "run")] == [1, 2]
    assert [step for step, _ in curve(copy / "run", "lr")] == [1, 2]


@pytest.mark.parametrize(
    "end",
    [
        '{"step": 4, "lo',
        '{"step": 4}',
        "123\n",
        "[]\n",
        '{"loss": 1.0}\n',
        "\x00\x00\x00",
        "\n\n",
        "[" * 100_000 + "\n",
        '{"step": 1e999}\n',
    ],
    ids=["cut", "without a line end", "number", "list", "no step", "zeros", "empty lines", "deep", "infinite"],
)
def test_what_is_no_whole_row_of_an_earlier_step_is_dropped(tmp_path: Path, end: str) -> None:
    write_rows(tmp_path / FILE, [0, 1, 2, 3], end)
    keep_rows(tmp_path / FILE, 2)
    assert [row["step"] for row in read_rows(tmp_path)] == [0, 1, 2]


def test_a_deep_line_costs_no_start_and_is_told(copy: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (copy / "run" / FILE).read_text()
    (copy / "run" / FILE).write_text("[" * 100_000 + "\n" + whole)
    assert train_here(copy / "run.toml") == 0
    assert f"{FILE}, line 1: damaged" in capsys.readouterr().err
    assert (copy / "run" / FILE).read_text() == whole


def test_bytes_that_are_no_text_are_dropped(tmp_path: Path) -> None:
    write_rows(tmp_path / FILE, [1])
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes() + b"\xff\xfe\x00")
    keep_rows(tmp_path / FILE, 5)
    assert [row["step"] for row in read_rows(tmp_path)] == [1]


ROW = {
    "step": 1,
    "loss": float("nan"),
    "grad_norm": float("inf"),
    "lr": 0.1,
    "tokens_seen": 5,
    "mfu": None,
    "tokens_per_second": 1.0,
    "step_seconds": 1.0,
    "data_seconds": 0.0,
    "memory_gib": 0.1,
}


def test_a_row_is_there_when_written_and_is_json_to_every_parser(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, Metrics(enable_tensorboard=False), 0, 1)
    writer.write(ROW, 10)
    row = json.loads((tmp_path / FILE).read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (row["loss"], row["grad_norm"], row["mfu"]) == (None, None, None)
    writer.close()


def test_a_rate_above_the_peak_is_no_utilisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titan_pt.components.flops.measure_matmul", lambda *_arguments: 1.0)
    assert train_here(write_toml(tmp_path, training={"steps": 1})) == 0
    assert read_rows(tmp_path / "run")[0]["mfu"] is None


def test_the_start_tells_the_warm_up_that_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_here(write_toml(tmp_path, training={"steps": 2}, lr_scheduler={"warmup_steps": 30})) == 0
    assert "in 2 steps (1 of warm-up)" in capsys.readouterr().err


FAULTS = {"full": 28, "read-only": 30, "broken": 5, "without descriptors": 24}


@pytest.mark.parametrize("fault", [*FAULTS, "folder deleted", "files removed"])
def test_a_failing_disk_costs_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """Of metrics.jsonl and TensorBoard; a row whose flush failed is in the file already, and is there once."""
    folder = tmp_path / "run"
    folder.mkdir()
    writer = MetricsWriter(folder, Metrics(), 0, 1)
    writer.write(ROW, 10)
    if fault in FAULTS:
        with monkeypatch.context() as patch:
            for name in ("fsync", "open") if fault == "broken" else ("open",):
                patch.setattr(f"titan_pt.run.records.os.{name}", failing(FAULTS[fault]))
                for step in (2, 3) if name == "fsync" else (4, 5):
                    writer.write({**ROW, "step": step}, 10)
                    writer.write_texts({"sample": f"text {step}"}, step)
                patch.undo()
    elif fault == "folder deleted":
        shutil.rmtree(folder)
    else:
        for path in (folder / FILE, *(folder / "tb").iterdir()):
            path.unlink()
    writer.write({**ROW, "step": 6}, 10)
    writer.close()
    kept = {"folder deleted": [6], "files removed": [6], "broken": [1, 2, 3, 4, 5, 6]}.get(fault, [1, 4, 5, 6])
    assert [row["step"] for row in read_rows(folder)] == kept
    assert [step for step, _ in curve(folder, "lr")] == kept
    if fault in FAULTS:
        assert caplog.text.count("could not be written") == 2, "of each record, once"
        assert f"{FILE}: written again, with {4 if fault == 'broken' else 2} that were kept" in caplog.text


def failing(number: int) -> Any:
    def call(*_arguments: Any, **_options: Any) -> int:
        raise OSError(number, "a fault")

    return call


def test_what_stays_unwritten_is_told_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("titan_pt.run.kept_writes.KEPT_BYTES", 1000)
    monkeypatch.setattr("titan_pt.run.records.os.open", failing(28))
    writer = MetricsWriter(tmp_path, Metrics(enable_tensorboard=False), 0, 1)
    for step in range(1, 20):
        writer.write({**ROW, "step": step}, 20)
    assert len(writer.rows._kept._kept) < 6
    writer.close()
    told = "could not be written up to the end; lost: the row of step 1, ... (19 in all) ..., the row of step 19"
    assert told in caplog.text


def test_a_cut_or_damaged_event_file_is_gone_on_from(tmp_path: Path) -> None:
    """A kill cuts the last event: it is dropped. What is damaged further on stays as it is, and another file begins."""
    for end, files in ((b"", 1), (b"\x07\0\0", 1), (b"\0" * 40, 2)):
        writer = MetricsWriter(tmp_path, Metrics(), 0, 1)
        writer.write(ROW, 10)
        writer.close()
        newest = sorted((tmp_path / "tb").iterdir())[-1]
        newest.write_bytes(newest.read_bytes() + end)
        writer = MetricsWriter(tmp_path, Metrics(), 1, 1)
        writer.write({**ROW, "step": 2}, 10)
        writer.close()
        assert len(list((tmp_path / "tb").iterdir())) == files
        assert [step for step, _ in curve(tmp_path, "lr")] == [1, 2]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00"), (61.4, "01:01"), (3723, "01:02:03"), (93784, "1d 02:03:04"), (float("inf"), "?")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_the_last_step_is_validated_where_the_data_end_early(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i} " + "abcdefgh " * 40}) for i in range(32)]
    (tmp_path / "few.jsonl").write_text("\n".join(lines))
    config = write_toml(
        tmp_path,
        data={"sources": [{"name": "few", "path": str(tmp_path / "few.jsonl"), "max_epochs": 1}], "num_streams": 1},
        metrics={"enable_tensorboard": True},
        validation={"enable": True, "freq": 100, "steps": 1, "holdout_fraction": 0.2},
        training={"steps": 50, "global_batch_size": 4},
    )
    assert train_here(config) == 0
    rows = read_rows(tmp_path / "run")
    steps = [row["step"] for row in rows]
    assert steps == list(range(1, steps[-1] + 1)) and 2 < steps[-1] < 50
    assert ["val_loss" in row for row in rows] == [True, *[False] * (len(rows) - 2), True]
    assert [step for step, _ in curve(tmp_path / "run", "lr")] == steps
    assert (tmp_path / "run" / "checkpoint" / f"step-{steps[-1]}").is_dir()
    assert train_here(config) == 0, "nothing is left to do"
    assert read_rows(tmp_path / "run") == rows


def test_data_without_one_step_are_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = dataclasses.replace(pretrain.SPEC, name="without_data", build_step=lambda parts: lambda state: None)
    register_trainer_spec(spec)
    assert train_here(write_toml(tmp_path, job={"trainer": "without_data"})) == 2
    assert "data.sources: spent before the first step" in capsys.readouterr().err
