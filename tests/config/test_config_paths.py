"""Every key that names a file or folder takes `~`, `$NAME` and `${NAME}`, and is refused by its name."""

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from config_helpers import SOURCE, config_of, problem_of, write
from pydantic import AfterValidator

from titan_pt.config import ConfigError, JobConfig, load_config
from titan_pt.config.manager import config_class, dump_toml, resolve
from titan_pt.config.resolve.fields import keys, rows_of
from titan_pt.config.resolve.printing import explain
from titan_pt.run.paths import expand_path

# What a trainer needs beside the key that is tried.
NEEDED: dict[str, dict[str, Any]] = {
    "pretrain": {"data": {"sources": [{"name": "a"}]}},
    "sft": {"data": {"sources": [{"name": "a"}]}},
    "grpo": {"grpo": {"tasks": [{"name": "gsm8k"}]}},
}


def is_path(annotation: Any, metadata: Any) -> bool:
    """Whether a field's type is one of the two for paths."""
    own = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is typing.Annotated else ()
    entries = [*metadata, *own]
    if any(isinstance(entry, AfterValidator) and entry.func is expand_path for entry in entries):
        return True
    return any(is_path(argument, ()) for argument in typing.get_args(annotation))


def texts(trainer: str) -> Iterator[tuple[str, str | None, Any]]:
    """(key, key in a row of it or None, field) of every key of a trainer that holds a text."""
    for name, info in keys(config_class(trainer, "transformer")[0]).items():
        rows = rows_of(info.annotation)
        for key, row in rows.model_fields.items() if rows else ():
            yield name, key, row
        if not rows:
            yield name, None, info


PATHS = [
    (trainer, name, key)
    for trainer in NEEDED
    for name, key, info in texts(trainer)
    if is_path(info.annotation, info.metadata)
    and name not in ("job.config_file", "model.from_hf")
    and (trainer, name) != ("grpo", "validation.tasks")  # it has tasks of its own
]


def tables(trainer: str, name: str, key: str | None, value: str) -> dict[str, Any]:
    """The TOML of a run with this value of the key."""
    tree: dict[str, Any] = {"job": {"trainer": trainer}, **{k: dict(v) for k, v in NEEDED[trainer].items()}}
    section, field = name.split(".")
    row = {"name": "gsm8k" if "tasks" in name else "a", key: value} if key else None
    tree.setdefault(section, {})[field] = [row] if key else value
    if name.startswith("validation."):
        tree["validation"]["enable"] = True
    if name == "lora.path":
        tree["lora"]["enable"] = True
        tree.setdefault("checkpoint", {})["initial_load_path"] = "outputs/base"
    if name == "teacher.path":
        tree.setdefault("grpo", {})["loss"] = "distill"
    return tree


def value_of(config: JobConfig, name: str, key: str | None) -> str:
    section, field = name.split(".")
    value = getattr(getattr(config, section), field)
    return getattr(value[0], key) if key else value


@pytest.mark.parametrize(("trainer", "name", "key"), PATHS)
def test_a_path_is_replaced_and_the_resolved_config_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: str, name: str, key: str | None
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUNS", "/data/runs")
    monkeypatch.delenv("UNSET", raising=False)
    for written, path in (("~/$$a", "/home/me/$a"), ("${RUNS}/b", "/data/runs/b")):
        config = config_of(tmp_path, tomli_w.dumps(tables(trainer, name, key, written)))
        assert value_of(config, name, key) == path
        assert config_of(tmp_path, dump_toml(config)) == config
    problem = problem_of(tmp_path, tomli_w.dumps(tables(trainer, name, key, "$UNSET/c")))
    where = f"{name}[0].{key}" if key else name
    assert problem.startswith(f"{where} = '$UNSET/c' (x.toml): the variable UNSET is not set; set it, or write $$UNSET")


def test_what_is_named_as_a_path_has_the_type_of_one() -> None:
    found = set()
    for trainer in NEEDED:
        for name, key, info in texts(trainer):
            words = set((key or name.split(".")[1]).split("_"))
            named = words & {"path", "folder", "dir", "file", "dataset", "hf"} and "str" in str(info.annotation)
            if named and not is_path(info.annotation, info.metadata):
                found.add(key or name)
    assert not found


def test_flags_and_the_files_that_a_config_is_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHARED", str(tmp_path / "shared"))
    monkeypatch.delenv("UNSET", raising=False)
    write(tmp_path, f'{SOURCE}[job]\ndescription = "base"', "shared/base.toml")
    write(tmp_path, 'extends = "$SHARED/base.toml"\n', "one.toml")
    write(tmp_path, 'extends = ["~/shared/base.toml"]\n', "two.toml")
    for file in ("~/one.toml", "${HOME}/two.toml"):
        config = load_config(["--job.config_file", file, "--job.dump_folder=~/runs/$$1"])
        assert (config.job.description, config.job.dump_folder) == ("base", f"{tmp_path}/runs/$1")
    said = explain(resolve(["--job.config_file=~/one.toml", "--job.dump_folder=~/$$1"]))
    assert f'job.dump_folder = "{tmp_path}/$$1"  # command line' in said
    for flags, said in (
        (["--job.config_file=$UNSET/x.toml"], "'$UNSET/x.toml' (--job.config_file): the variable UNSET is not set"),
        (["--job.config_file=~/one.toml", "--model.from_hf=$UNSET"], "model.from_hf = '$UNSET' (command line): the va"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(flags)
        assert caught.value.problems[0].startswith(said)
    path = write(tmp_path, 'extends = "~nobody-of-that-name/x"', "three.toml")
    with pytest.raises(ConfigError, match=rf"\(extends of {path}\): there is no user ~nobody-of-that-name"):
        load_config(["--job.config_file", str(path)])


def test_a_hugging_face_folder_with_a_dollar_sign(tmp_path: Path) -> None:
    problem = problem_of(tmp_path, '[model]\nfrom_hf = "$$none"')
    assert problem.startswith("model.from_hf = '$$none' (x.toml): $none: no such folder")
