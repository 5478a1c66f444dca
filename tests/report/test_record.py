"""Run folders as they lie there: whole, torn, damaged, empty, still growing."""

import base64
import gzip
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_helpers import write_lines, write_run

from titan_pt.config.errors import ConfigError
from titan_pt.report.charts import charts, points
from titan_pt.report.figures import FIGURES, differing_keys, duration, evaluations, short, training_hours
from titan_pt.report.record import read_run, read_runs, short_names
from titan_pt.report.rollouts import _TEXTS, read_rollouts


def unpacked(part: str) -> Iterator[dict[str, Any]]:
    """The texts of a part, as the page reads them."""
    for row in json.loads(gzip.decompress(base64.b64decode(part))):
        yield dict(zip(_TEXTS, row, strict=True))


def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", 40, 100))
    assert (run.state, run.total_steps, len(run.rows), run.notes) == ("finished", 40, 40, [])
    assert [(event.kind, event.step) for event in run.events] == [
        ("start", 0),
        ("bad step", 20),
        ("restart", 20),
        ("skipped", 20),
        ("end", 40),
    ]
    figures = {figure.name: figure.value(run) for figure in FIGURES}
    assert (
        figures["steps"] == 40 and figures["tokens"] == 40 * 4096 and figures["time in training"] == pytest.approx(24)
    )
    assert figures["best val loss"] == min(row["val_loss"] for row in run.rows if "val_loss" in row)
    (found,) = evaluations(run)
    assert (found.task, found.name, found.problems, found.step) == ("arithmetic", "accuracy", 200, 40)
    low, high = found.interval or (0, 0)
    assert low < found.value == 0.9 < high and high - low == pytest.approx(0.083, abs=0.01)


@pytest.mark.parametrize(
    ("name", "content", "rows", "note"),
    [
        ("metrics.jsonl", None, 0, "no metrics.jsonl"),
        ("metrics.jsonl", b"", 0, "has no step yet"),
        ("metrics.jsonl", b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo', 1, "its last line is not whole yet"),
        (
            "metrics.jsonl",
            b'\xff\xfe\n[1]\n{"step": 3, "loss": 1.0}\n',
            1,
            "2 lines are damaged and left out, the first is",
        ),
        (
            "metrics.jsonl",
            b'{"step": "x"}\n{"step": 4, "loss": NaN, "lr": 1e400, "a": true, "b": 5}\n',
            1,
            "loss was not finite",
        ),
        ("metrics.jsonl", b"[" * 100_000 + b'\n{"step": 5, "loss": 1}\n', 1, "a line is damaged"),
        ("config.toml", None, 20, "no config.toml"),
        ("config.toml", b"[training\n", 20, "config.toml is damaged"),
        ("config.toml", b"\xff", 20, "config.toml is damaged"),
        ("goodput.jsonl", None, 20, "no goodput.jsonl"),
        ("goodput.jsonl", b'{"step": 1}\nnot json\n{"seconds"', 20, "goodput.jsonl: a line is damaged"),
        ("blackbox/step-10-0a1b2c3d/box.json", b"{", 20, ""),
    ],
)
def test_what_is_missing_or_damaged_is_noted(
    tmp_path: Path, name: str, content: bytes | None, rows: int, note: str
) -> None:
    """Nothing of it is fatal, and the rest of the folder is still told."""
    folder = write_run(tmp_path / "a", 20)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    run = read_run(folder)
    assert (len(run.rows) == rows and any(note in told for told in run.notes)) or not note
    assert all(figure.value(run) is None or figure.text(figure.value(run) or 0.0) for figure in FIGURES)
    assert all(isinstance(value, int | float) for row in run.rows for value in row.values())


def test_a_loss_that_is_not_finite_is_no_figure(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", 20)
    lost = [{"step": step, "loss": loss} for step, loss in ((5, math.nan), (20, None), (7, math.inf), (7, 1.5))]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in lost)
    run = read_run(folder)
    assert "loss was not finite at 2 steps, the first is step 5" in run.notes
    figures = {figure.name: figure.value(run) for figure in FIGURES}
    assert figures["loss"] is None and figures["val loss"] and figures["steps"] == 20


@pytest.mark.parametrize(
    ("held", "age", "done", "state"),
    [
        (True, 1, False, "running"),
        (True, 9000, False, "stopped"),
        (False, 1, False, "stopped"),
        (False, 1, True, "finished"),
    ],
)
def test_a_run_that_still_goes(tmp_path: Path, held: bool, age: float, done: bool, state: str) -> None:
    folder = write_run(tmp_path / "a", 20, done=done)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("steps = 20", "steps = 50"))
    if held:
        (folder / ".lock").write_text("process 1 on here\n")
    for path in folder.iterdir():
        os.utime(path, (time.time() - age,) * 2)
    run = read_run(folder)
    assert run.state == state
    assert any("still going" in note for note in run.notes) == (state == "running")
    assert any("hung or killed" in note for note in run.notes) == (held and state == "stopped")


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    assert short_names([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    folder = write_run(tmp_path / "a", 20)
    for wrong, message in (
        ([tmp_path / "none"], "no such folder; train it first"),
        ([tmp_path / "A"], "did you mean .*a\\?"),
        ([tmp_path], f"is no run folder.* give a run: {folder}"),
        ([folder / "blackbox"], "is no run folder.* give a run: "),
        ([folder, tmp_path / "b" / ".." / "a"], "given twice"),
    ):
        (tmp_path / "b").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=message):
            read_runs(wrong)


def test_only_the_keys_that_differ(tmp_path: Path) -> None:
    """A key that one lacks too; the rows of data.sources by their names; no folder names."""
    runs = read_runs([write_run(tmp_path / "a", 20), write_run(tmp_path / "b", 20, lr=3e-3)])
    assert differing_keys(runs) == {"optimizer.lr": [0.001, 0.003]}
    config = tmp_path / "b" / "config.toml"
    config.write_text(
        config.read_text().replace("0.75", "0.5").replace('name = "AdamW"', "") + "[extra]\nkey = true\nb = 1\n"
    )
    runs = read_runs([tmp_path / "a", tmp_path / "b"])
    assert differing_keys(runs) == {
        "optimizer.name": ["AdamW", None],
        "optimizer.lr": [0.001, 0.003],
        "data.sources.wiki.weight": [0.75, 0.5],
        "extra.*": [None, "2 keys"],
    }


def test_points_of_curves(tmp_path: Path) -> None:
    """Thinned to means, never to fewer kinds; every number of the rows is in one chart, once."""
    run = read_run(write_run(tmp_path / "a", 100))
    drawn = charts([run])
    keys = [key for chart in drawn for key in chart.keys]
    assert len(keys) == len(set(keys)) and {"step", "time", "tokens_seen"} | set(keys) == {
        k for r in run.rows for k in r
    }
    assert [chart.title for chart in drawn][:5] == [
        "Reward",
        "Accuracy in training",
        "Accuracy of evaluations",
        "Loss",
        "Loss by source",
    ]
    all_points, few = points(run, keys, 1000), points(run, keys, 10)
    assert len(all_points["loss"]) == 100 and all_points["hours"] == pytest.approx(training_hours(run), rel=1e-5)
    assert len(few["loss"]) == 10 and few["step"] == list(range(10, 101, 10))
    assert few["loss"][0] == pytest.approx(sum(row["loss"] for row in run.rows[:10]) / 10, rel=1e-5)
    assert all(value is not None for value in few["val_loss"]) and all_points["val_loss"].count(None) == 90


def test_rollouts_are_packed(tmp_path: Path) -> None:
    """All of them in parts; of too many, whole steps spread evenly with the last one, which is told."""
    folder = write_run(tmp_path / "a", 100, 500)
    (folder / "rollouts" / "step-7.jsonl").write_text(
        '{"reward": NaN, "rewards": {"x": Infinity}, "completion": "\\ud800\\u202ex\\u2028"}\n{"tor'
    )
    (folder / "rollouts" / "notes.txt").write_text("not a step")
    run = read_run(folder)
    found = read_rollouts([run], 10_000)
    assert len(found) == 501 and len(found.parts) == 3 and "step-7.jsonl: its last line is not whole" in found.notes[0]
    json.dumps(found.index, allow_nan=False)
    texts = [text for part in found.parts for text in unpacked(part)]
    assert len(texts) == 501 and found.index["reward"].count(None) == 1
    lone = texts[found.index["step"].index(7)]
    assert lone["completion"] == r"?\u202ex\u2028" and lone["rewards"] == {"x": "inf"}
    place = next(n for n, name in enumerate(found.index["id"]) if name == "problem-3")
    assert texts[place]["completion"].startswith("Let me think about number 15.") and texts[place]["turns"] is None
    few = read_rollouts([run], 150)
    assert (
        50 <= len(few) <= 201 and max(few.index["step"]) == max(found.index["step"]) and "spread evenly" in few.notes[0]
    )
    assert len(read_rollouts([read_run(write_run(tmp_path / "none", 5))], 100)) == 0


def test_secrets_do_not_leave(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", 5)
    token = "hf_" + "A1b2C3d4E5f6G7h8I9j0"
    with (folder / "config.toml").open("a") as file:
        file.write(f'[mirror]\nurl = "{token}"\n')
    told = [{"role": "tool", "content": f"is it {token}?"}, "no turn", {"role": 5}]
    write_lines(folder / "rollouts" / "step-1.jsonl", [{"completion": f"my key is {token}", "turns": told}])
    run = read_run(folder)
    (text,) = unpacked(read_rollouts([run], 10).parts[0])
    assert (
        token not in run.config_text + json.dumps(run.config) + text["completion"]
        and "my key is ***" in text["completion"]
    )
    assert text["turns"] == [["tool", "is it ***?"], ["5", ""]]


def test_numbers_for_people() -> None:
    assert [short(v) for v in (0.69314, 7000, 12_345, 4.56e9)] == ["0.6931", "7000", "12.35K", "4.56B"]
    assert [duration(v) for v in (7.06, 60, 245, 11_520, 183_600)] == [
        "7.1 s",
        "1 min",
        "4 min 5 s",
        "3 h 12 min",
        "2 d 3 h",
    ]
