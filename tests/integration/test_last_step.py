"""A failure costs no finished step whose weights are whole."""

from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same_step, losses, train, train_here, write_faulty, write_toml

from titan_pt.trainers import pretrain

TABLES: dict[str, dict[str, Any]] = {
    "training": {"steps": 7},
    "checkpoint": {"interval": 5},
    "validation": {"enable": True, "freq": 3, "steps": 1, "local_batch_size": 2},
}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    assert train_here(write_faulty(folder, {}, **TABLES)) == 0
    return folder / "run"


def saved(folder: Path) -> set[str]:
    return {path.name for path in (folder / "run" / "checkpoint").iterdir()}


@pytest.mark.parametrize(
    ("fault", "step"),
    [
        ({"steps": [7]}, 6),
        ({"steps": [3], "during_validation": True}, 6),
    ],
    ids=["in a micro-batch", "in the third validation"],
)
def test_a_failure_saves_the_last_finished_step(tmp_path: Path, clean: Path, fault: dict[str, Any], step: int) -> None:
    config = write_faulty(tmp_path, {"kind": "raise", **fault}, **TABLES)
    assert train_here(config) == 1
    assert saved(tmp_path) == {"step-5", f"step-{step}"}
    assert train_here(config, "--fault.kind", "none") == 0
    assert_same_step(clean / "checkpoint" / "step-7", tmp_path / "run" / "checkpoint" / "step-7")
    assert losses(tmp_path / "run") == losses(clean)


def test_a_failure_inside_the_update_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean: Path
) -> None:
    update, calls = pretrain.guarded_update, []

    def fails_at_step_7(*arguments: Any) -> Any:
        updated = update(*arguments)
        calls.append(None)
        if len(calls) == 7:
            raise RuntimeError("inside the update")
        return updated

    config = write_faulty(tmp_path, {}, **TABLES)
    with monkeypatch.context() as patched:
        patched.setattr(pretrain, "guarded_update", fails_at_step_7)
        assert train_here(config) == 1
    assert saved(tmp_path) == {"step-5"}
    assert train_here(config) == 0
    assert_same_step(clean / "checkpoint" / "step-7", tmp_path / "run" / "checkpoint" / "step-7")


# The source of rank 1 fails in its third batch; the other rank is told.
BROKEN_SOURCE = """
import os
from pathlib import Path
from titan_pt.data.stream import loader

collate, calls = loader.collate_step, []

def broken(*arguments):
    calls.append(None)
    if len(calls) == 4 and os.environ["RANK"] == "1":
        raise ValueError("the source broke")
    return collate(*arguments)

loader.collate_step = broken
"""


@pytest.mark.slow
def test_a_source_that_fails_on_one_rank_saves_on_all(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN_SOURCE)
    config = write_toml(tmp_path, training={"steps": 5}, checkpoint={"interval": 2})
    done = train(config, "--experimental.custom_import", "broken", ranks=2, cwd=tmp_path)
    assert done.code == 1 and "rank 1: ValueError: the source broke" in done.last_line, done.stderr
    assert saved(tmp_path) == {"step-2", "step-3"}
