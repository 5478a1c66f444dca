"""Damaged, partial and hostile checkpoint folders: each ends in a stated decision, none in a silent new start."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import losses, read_rows, train_here, write_toml
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem

from titan_pt.components.checkpoint import checkpointer
from titan_pt.components.checkpoint.manifest import MANIFEST, file_entry, find_damage
from titan_pt.components.checkpoint.reader import SafeReader, TensorOnlyPlanner
from titan_pt.components.checkpoint.steps import REQUIRED, find_step

Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 4 steps with the steps 2 and 4; tests copy it."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_toml(folder, checkpoint={"interval": 2}, training={"steps": 4})
    assert train_here(config) == 0
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "run", tmp_path / "run")
    write_toml(tmp_path, checkpoint={"interval": 2}, training={"steps": 4})
    return tmp_path


def flip_a_byte(step: Path) -> None:
    data = bytearray((step / "tensors" / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (step / "tensors" / "__0_0.distcp").write_bytes(data)


def cut_a_file(step: Path) -> None:
    os.truncate(step / "tensors" / "__0_0.distcp", 1000)


def change_the_data_position(step: Path) -> None:
    text = (step / "data.json").read_text()
    (step / "data.json").write_text(text.replace('"digest": "', '"digest": "0', 1)[: len(text)])


def leave_the_manifest_alone(step: Path) -> None:
    for path in step.iterdir():
        if path.name != MANIFEST:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (step / MANIFEST).write_text(json.dumps({"format": 1, "step": 4, "files": {}}))


def from_the_future(step: Path) -> None:
    manifest = json.loads((step / MANIFEST).read_text())
    (step / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))


def empty_the_folder(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def lead_out(step: Path) -> None:
    (step / "train.json").rename(step.parent / "elsewhere.json")
    (step / "train.json").symlink_to("../elsewhere.json")


def rename_to_a_later_step(step: Path) -> None:
    manifest = json.loads((step / MANIFEST).read_text())
    (step / MANIFEST).write_text(json.dumps({**manifest, "step": 2}))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "flipped byte": (flip_a_byte, "__0_0.distcp has changed"),
    "cut file": (cut_a_file, "__0_0.distcp has 1000 bytes"),
    "changed json": (change_the_data_position, "data.json has changed"),
    "missing file": (lambda step: (step / "train.json").unlink(), "train.json is missing"),
    "missing index": (lambda step: (step / "tensors" / ".metadata").unlink(), ".metadata is missing"),
    "missing manifest": (lambda step: (step / MANIFEST).unlink(), "it has no manifest.json"),
    "garbage manifest": (lambda step: (step / MANIFEST).write_bytes(b"\xff\x00{"), "manifest.json cannot be read"),
    "deep manifest": (lambda step: (step / MANIFEST).write_text("[" * 100_000), "manifest.json cannot be read"),
    "manifest of another shape": (lambda step: (step / MANIFEST).write_text("[1]"), "manifest.json cannot be read"),
    "manifest of nothing": (leave_the_manifest_alone, "manifest.json does not name"),
    "manifest of the future": (
        from_the_future,
        "format 99, and this version of titan_pt reads 1; take the version that made it",
    ),
    "link to another folder": (lead_out, "train.json leads out of the folder"),
    "renamed folder": (rename_to_a_later_step, "manifest.json is of step-2: the folder was renamed"),
    "empty folder": (empty_the_folder, "it has no manifest.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_an_older_step_taken(copy: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    damage, words = DAMAGES[name]
    folder = copy / "run" / "checkpoint"
    damage(folder / "step-4")
    assert words in str(find_damage(folder / "step-4", REQUIRED))
    with caplog.at_level("WARNING", logger="titan_pt"):
        assert find_step(folder) == folder / "step-2"
    assert words in caplog.text and "step-4 is not whole" in caplog.text


def test_a_damaged_step_is_trained_again(copy: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_byte(copy / "run" / "checkpoint" / "step-4")
    assert train_here(copy / "run.toml", "--checkpoint.keep_latest_k", "1") == 0
    error = capsys.readouterr().err
    assert "WARNING" in error and "has changed" in error and "Resumed from" in error
    assert losses(copy / "run") == losses(trained / "run")
    assert [path.name for path in (copy / "run" / "checkpoint").iterdir()] == ["step-4"]
    assert find_damage(copy / "run" / "checkpoint" / "step-4") is None


def test_a_step_of_an_earlier_release_that_is_not_finite_is_passed_over(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were saved unseen."""
    shutil.rmtree(copy / "run" / "checkpoint" / "step-4")
    save = checkpointer.Checkpointer.save

    def poisoned(self: Any, step: int, tensors: dict[str, torch.Tensor], documents: Any) -> None:
        tensors["model.norm.weight"][0] = torch.inf
        save(self, step, tensors, documents)

    with monkeypatch.context() as patch:
        patch.setattr(checkpointer.Checkpointer, "save", poisoned)
        patch.setattr(checkpointer, "first_not_finite", lambda *_arguments, **_options: None)
        assert train_here(copy / "run.toml", "--training.steps", "3") == 0
    assert train_here(copy / "run.toml", "--checkpoint.load_step", "3") == 2
    assert "step-3: model.norm.weight is not finite" in capsys.readouterr().err
    assert train_here(copy / "run.toml") == 0
    error = capsys.readouterr().err
    assert "it is passed over, and named step-3.not-finite" in error and "step-2: step 2," in error
    assert {path.name for path in (copy / "run" / "checkpoint").iterdir()} == {"step-2", "step-3.not-finite", "step-4"}


def test_damaged_steps_do_not_push_out_whole_ones(copy: Path) -> None:
    folder = copy / "run" / "checkpoint"
    (folder / "step-4").rename(folder / "step-9")
    flip_a_byte(folder / "step-9")
    assert train_here(copy / "run.toml", "--checkpoint.keep_latest_k", "1", "--training.steps", "3") == 0
    assert find_step(folder) == folder / "step-3"


@pytest.mark.parametrize("flags", [[], ["--checkpoint.load_step", "2"]])
def test_no_whole_step_stops_the_run(copy: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    for step in (2, 4):
        flip_a_byte(copy / "run" / "checkpoint" / f"step-{step}")
    assert train_here(copy / "run.toml", *flags) == 2
    error = capsys.readouterr().err
    assert "no step is whole" in error and "step-2: tensors/__0_0.distcp has changed" in error
    assert "Traceback" not in error and len(read_rows(copy / "run")) == 4


def test_a_missing_load_step_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_here(write_toml(tmp_path), "--checkpoint.load_step", "3") == 2
    assert "has no step-3; it has none" in capsys.readouterr().err


def test_leftovers_of_a_killed_save_are_no_steps(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy / "run" / "checkpoint"
    for step in (2, 4):
        (folder / f"step-{step}").rename(folder / f"step-{step}.tmp-0123abcd")
    assert train_here(copy / "run.toml", "--training.steps", "1") == 0
    assert "No checkpoint in the run folder: starting from initial weights" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["step-1"]


# -- pickles -----------------------------------------------------------------------------------------------------------


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("as_start", [False, True], ids=["resume", "initial_load_path"])
def test_a_pickle_in_the_index_is_not_executed(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_start: bool
) -> None:
    proof, step = tmp_path / "executed", copy / "run" / "checkpoint" / "step-4"
    (step / "tensors" / ".metadata").write_bytes(pickle.dumps(Payload(proof)))
    manifest = json.loads((step / MANIFEST).read_text())
    manifest["files"]["tensors/.metadata"] = file_entry(step / "tensors" / ".metadata")
    (step / MANIFEST).write_text(json.dumps(manifest))
    assert find_damage(step) is None, "an attacker writes a manifest that holds"
    config = copy / "run.toml"
    if as_start:
        config = write_toml(tmp_path / "new", checkpoint={"initial_load_path": str(step)})
    assert train_here(config, "--training.steps", "5") == 2
    error = capsys.readouterr().err
    assert "posix.system, which no tensor index needs" in error and "Traceback" not in error
    assert not proof.exists()


@pytest.mark.parametrize(
    "attack",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x05torch\x8c\x0bhub.listdir\x93.",  # a dotted name, which protocol 4 resolves
        b"ctorch\nload\n.",
        b"ctorch.distributed.checkpoint.filesystem\nFileSystemReader\n.",
        b"cpathlib\nos\n.",
        b"cbuiltins\ngetattr\n(ctorch.distributed.checkpoint.metadata\nMetadata\nS'__init__'\ntR.",
        b"cbuiltins\ngetattr\n(ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\nS'__class__'\ntR.",
        b"not a pickle",
        b"",
    ],
)
def test_the_reader_creates_only_index_classes(tmp_path: Path, attack: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(attack)
    with pytest.raises((pickle.UnpicklingError, EOFError)):
        SafeReader(tmp_path).read_metadata()


def test_members_of_enumerations_as_python_3_11_0_writes_them(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = copy / "run" / "checkpoint" / "step-4" / "tensors"
    metadata = SafeReader(tensors).read_metadata()
    monkeypatch.setattr(Enum, "__reduce_ex__", lambda self, _: (getattr, (self.__class__, self.name)))
    (tmp_path / ".metadata").write_bytes(written := pickle.dumps(metadata))
    assert b"getattr" in written
    assert SafeReader(tmp_path).read_metadata().state_dict_metadata == metadata.state_dict_metadata


@pytest.mark.parametrize("kind", ["above", "absolute", "link"])
def test_the_index_does_not_lead_out_of_its_folder(copy: Path, tmp_path: Path, kind: str) -> None:
    tensors, outside = copy / "run" / "checkpoint" / "step-4" / "tensors", tmp_path / "outside.distcp"
    shutil.move(tensors / "__0_0.distcp", outside)
    if kind == "link":
        (tensors / "__0_0.distcp").symlink_to(outside)
    else:
        metadata = pickle.loads((tensors / ".metadata").read_bytes())
        name = str(outside) if kind == "absolute" else os.path.relpath(outside, tensors)
        for info in metadata.storage_data.values():
            info.relative_path = name
        (tensors / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(pickle.UnpicklingError, match="which is outside of its folder"):
        SafeReader(tensors).read_metadata()
    (tmp_path / "link").symlink_to(copy / "run" / "checkpoint" / "step-2")
    assert SafeReader(tmp_path / "link" / "tensors").read_metadata(), "the folder itself may be reached by a link"
    assert find_damage(tmp_path / "link", REQUIRED) is None


def test_a_value_that_is_no_tensor_is_refused() -> None:
    index = MetadataIndex("extra")
    item = ReadItem(LoadItemType.BYTE_IO, index, torch.Size([0]), index, torch.Size([0]), torch.Size([0]))
    with pytest.raises(pickle.UnpicklingError, match="extra is not a tensor"):
        TensorOnlyPlanner().load_bytes(item, io.BytesIO())
