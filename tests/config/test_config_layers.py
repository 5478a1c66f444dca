"""Layers: command line > TOML file > what it extends > default, with the origin of every value."""

from pathlib import Path

import pytest
from config_helpers import SOURCE, problem_of, problems_of, resolve_text, write

from titan_pt.config import ConfigError, load_config
from titan_pt.config.manager import resolve
from titan_pt.config.resolve.printing import explain
from titan_pt.config.schema.job_config import JobConfig

BASE = f"""
[job]
description = "base"
[training]
steps = 100
local_batch_size = 4
[optimizer]
lr = 1e-3
{SOURCE}
[[data.sources]]
name = "arithmetic"
weight = 3
"""


def origins(*argv: str) -> dict[str, str]:
    """What --explain says, as {name: origin}."""
    lines = explain(resolve(list(argv))).splitlines()
    return {line.split(" = ")[0]: line.rsplit("  # ", 1)[1] for line in lines}


def test_a_child_with_two_keys_is_its_base_and_two_changes(tmp_path: Path) -> None:
    """pytorch/torchtitan#1415."""
    base = write(tmp_path, BASE, "base.toml")
    child = write(tmp_path, 'extends = "base.toml"\n[training]\nsteps = 7\n[optimizer]\nlr = 5e-4\n', "child.toml")
    tables = load_config(["--job.config_file", str(base)]).dump()
    tables["training"]["steps"] = 7
    tables["optimizer"]["lr"] = 5e-4
    assert load_config(["--job.config_file", str(child)]).dump() == tables


def test_explain_names_the_origin_of_every_value(tmp_path: Path) -> None:
    base = write(tmp_path, BASE, "base.toml")
    child = write(tmp_path, 'extends = "base.toml"\n[training]\nsteps = 7\n', "child.toml")
    said = origins("--job.config_file", str(child), "--optimizer.lr", "2e-3")
    assert said["training.steps"] == str(child)
    assert said["training.local_batch_size"] == str(base)
    assert said["optimizer.lr"] == "command line"
    assert said["optimizer.beta1"] == "default"
    assert said["data.sources[1].weight"] == str(base)
    assert said["data.sources[0].weight"] == "default"
    values = load_config(["--job.config_file", str(child)]).dump()
    assert {name.split(".")[0] for name in said} == values.keys(), "every table of the resolved TOML is explained"


def test_explain_keeps_each_value_on_its_line(tmp_path: Path) -> None:
    resolved = resolve_text(tmp_path, '[compile]\ncomponents = ["loss", "model"]\n[job]\ndescription = "a\\nb"')
    lines = explain(resolved).splitlines()
    assert f'compile.components = ["loss", "model"]  # {tmp_path}/x.toml' in lines
    assert f'job.description = "a\\nb"  # {tmp_path}/x.toml' in lines


def test_arrays_are_replaced_whole_and_tables_merge(tmp_path: Path) -> None:
    write(tmp_path, BASE, "base.toml")
    config = resolve_text(tmp_path, 'extends = "base.toml"\n[[data.sources]]\nname = "c"\npath = "c.txt"').config
    assert [source.name for source in config.data.sources] == ["c"]
    assert config.job.description == "base"


def test_of_several_parents_the_last_wins_and_the_child_over_them(tmp_path: Path) -> None:
    write(tmp_path, f'{SOURCE}[job]\ndescription = "a"\n[training]\nsteps = 1\nseq_len = 1', "a.toml")
    write(tmp_path, '[job]\ndescription = "b"\n[training]\nsteps = 2', "b.toml")
    config = resolve_text(tmp_path, 'extends = ["a.toml", "b.toml"]\n[job]\ndescription = "child"').config
    assert (config.job.description, config.training.steps, config.training.seq_len) == ("child", 2, 1)


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, BASE, "shared/base.toml")
    write(tmp_path, 'extends = "../shared/base.toml"', "runs/middle.toml")
    write(tmp_path, 'extends = "runs/middle.toml"\n[tokenizer]\nname = "some/folder"', "child.toml")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load_config(["--job.config_file", "../child.toml"])
    assert config.job.description == "base"
    assert config.tokenizer.name == "some/folder", "a key's path stays as it is: relative to the current folder"


def test_what_two_parents_share_counts_once(tmp_path: Path) -> None:
    """base <- a, base <- b: reading base again before b would undo what a changed."""
    write(tmp_path, BASE, "base.toml")
    write(tmp_path, 'extends = "base.toml"\n[training]\nsteps = 7', "a.toml")
    write(tmp_path, 'extends = "base.toml"\n[optimizer]\nlr = 0.5', "b.toml")
    config = resolve_text(tmp_path, 'extends = ["a.toml", "b.toml"]').config
    assert (config.training.steps, config.optimizer.lr) == (7, 0.5)


def test_files_that_extend_each_other(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "x.toml"', "y.toml")
    problem = problem_of(tmp_path, 'extends = "y.toml"')
    assert "circle" in problem
    assert "x.toml -> y.toml -> x.toml" in problem
    assert "circle" in problem_of(tmp_path, 'extends = "./x.toml"')


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"no.toml"', r"no\.toml \(extends of .*x\.toml\): no such file"),
        ('"."', "a folder; give a TOML file"),
        ('""', "a folder; give a TOML file"),
        ('"a\\u0000b"', "cannot be read"),
        ("3", r"extends = 3 .*must be a file name or a list of file names"),
        ('["base.toml", 3]', r"extends = \[\.\.\.\] .*must be a file name or a list"),
    ],
)
def test_a_bad_extends_names_the_file_that_says_it(tmp_path: Path, value: str, message: str) -> None:
    write(tmp_path, BASE, "base.toml")
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_text(tmp_path, f"extends = {value}")
    assert "x.toml" in str(caught.value)


def test_extends_below_a_table_is_pointed_at(tmp_path: Path) -> None:
    problem = problem_of(tmp_path, '[training]\nextends = "base.toml"')
    assert (
        problem == "training.extends (x.toml): unknown key; extends stands at the top of a file, before its first table"
    )


def test_config_file_is_a_flag_and_no_key(tmp_path: Path) -> None:
    assert problem_of(tmp_path, '[job]\nconfig_file = "y.toml"').startswith(
        "job.config_file (x.toml): a flag, not a key"
    )


@pytest.mark.parametrize(
    ("low", "high", "kept", "dropped"),
    [
        ("steps = 100", ("tokens", '"1M"'), "tokens", "steps"),
        ('tokens = "1M"', ("steps", "100"), "steps", "tokens"),
        ("global_batch_size = 16", ("global_batch_tokens", "16384"), "global_batch_tokens", "global_batch_size"),
        ("global_batch_tokens = 16384", ("global_batch_size", "16"), "global_batch_size", "global_batch_tokens"),
    ],
)
def test_of_a_pair_the_higher_layer_wins(
    tmp_path: Path, low: str, high: tuple[str, str], kept: str, dropped: str
) -> None:
    write(tmp_path, f"[training]\n{low}", "base.toml")
    key, value = high
    by_file = resolve_text(tmp_path, f'extends = "base.toml"\n[training]\n{key} = {value}').config
    by_flag = resolve_text(tmp_path, f"[training]\n{low}", f"--training.{key}={value}").config
    for config in (by_file, by_flag):
        assert kept in config.dump()["training"]
        assert dropped not in config.dump()["training"]
        assert getattr(config.training, dropped) == JobConfig().training.model_dump()[dropped]


def test_both_of_a_pair_in_one_layer_is_an_error(tmp_path: Path) -> None:
    both = "[training]\nsteps = 5\ntokens = 5\nglobal_batch_size = 8\nglobal_batch_tokens = 16384"
    assert problems_of(tmp_path, both) == [
        "training.tokens and training.steps (x.toml): a pair; give one of them",
        "training.global_batch_tokens and training.global_batch_size (x.toml): a pair; give one of them",
    ]
    flags = ("--training.steps", "5", "--training.tokens", "5M")
    assert (
        problem_of(tmp_path, "", *flags)
        == "training.tokens and training.steps (command line): a pair; give one of them"
    )


def test_a_value_hidden_by_a_table_of_a_higher_layer_is_seen(tmp_path: Path) -> None:
    """The flag --training.steps makes a table [training]; the file's mistake must not vanish under it."""
    assert problem_of(tmp_path, "training = 3", "--training.steps", "5") == (
        "training = 3 (x.toml): must be a table, [training]"
    )
    write(tmp_path, "training = 3", "base.toml")
    assert problem_of(tmp_path, 'extends = "base.toml"\n[training]\nsteps = 3').startswith("training = 3 (base.toml)")
