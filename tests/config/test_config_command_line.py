"""Flags: the forms a user types, text that becomes values, and the help."""

import re
from pathlib import Path
from typing import Any

import pytest
from config_helpers import config_of, problem_of, problems_of

from titan_pt.config import load_config
from titan_pt.config.manager import config_class
from titan_pt.config.resolve.fields import keys
from titan_pt.config.resolve.flags import from_text
from titan_pt.config.resolve.help import help_text


def test_the_three_ways_to_write_a_flag(tmp_path: Path) -> None:
    for flags in (("--training.steps", "7"), ("--training.steps=7",)):
        assert config_of(tmp_path, "", *flags).training.steps == 7
    for flags in (("--compile.enable",), ("--compile.enable=true",), ("--compile.enable", "True")):
        assert config_of(tmp_path, "", *flags).compile.enable is True
    for flags in (("--compile.enable=false",), ("--compile.enable", "false"), ("--compile.enable=FALSE",)):
        assert config_of(tmp_path, "[compile]\nenable = true", *flags).compile.enable is False


def test_a_bare_boolean_leaves_the_next_flag_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, "", "--compile.enable", "--training.steps", "7", "--model.qk_norm")
    assert (config.compile.enable, config.training.steps) == (True, 7)
    assert config.model.qk_norm is True  # type: ignore[attr-defined]


def test_of_a_repeated_flag_the_last_wins(tmp_path: Path) -> None:
    flags = ("--training.steps", "7", "--training.steps=8", "--training.steps", "9")
    assert config_of(tmp_path, "", *flags).training.steps == 9


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int, "5", 5),
        (int, "-5", -5),
        (int, "1_000", 1000),
        (float, "1e-3", 1e-3),
        (float, "-1E9", -1e9),
        (float, ".5", 0.5),
        (float, "3", 3),
        (float | None, "2.5", 2.5),
        (bool | None, "TRUE", True),
        (str, "5", "5"),
        (str, "true", "true"),
        (str, '"quoted"', '"quoted"'),
        (str, "[1, 2]", "[1, 2]"),
        (str, "", ""),
        (str | None, "None", "None"),
        (list[str], '["a, b", "c"]', ["a, b", "c"]),
        (list[str], "a, b", ["a", "b"]),
        (list[str], "a", ["a"]),
        (list[str], "5,true", ["5", "true"]),
        (list[str], "", []),
        (list[int], "[1, 2]", [1, 2]),
        (None, "1", 1),
        (None, "1F1B", "1F1B"),
    ],
)
def test_text_becomes_what_the_field_can_hold(annotation: Any, text: str, value: Any) -> None:
    read = from_text(annotation, text)
    assert read == value
    assert type(read) is type(value)


def test_a_size_a_time_and_negative_numbers_as_flags(tmp_path: Path) -> None:
    flags = (
        "--training.tokens",
        "0.5B",
        "--comm.grace_seconds",
        "2m",
        "--checkpoint.load_step",
        "-1",
        "--debug.seed=-3",
    )
    config = config_of(tmp_path, "", *flags)
    assert (config.training.tokens, config.comm.grace_seconds) == (500_000_000, 120.0)
    assert (config.checkpoint.load_step, config.debug.seed) == (-1, -3)


def test_a_value_may_start_with_a_dash(tmp_path: Path) -> None:
    assert config_of(tmp_path, "", "--job.description", "-dash").job.description == "-dash"
    assert config_of(tmp_path, "", "--job.description=--dashes=2").job.description == "--dashes=2"


def test_sources_can_be_given_whole(tmp_path: Path) -> None:
    config = config_of(tmp_path, "", "--data.sources", '[{name = "a", path = "b"}, {name = "arithmetic"}]')
    assert [source.name for source in config.data.sources] == ["a", "arithmetic"]
    assert "array of tables" in problem_of(tmp_path, "", "--data.sources", "a,b")
    assert "did you mean name?" in problems_of(tmp_path, "", "--data.sources", '[{nam = "a"}]')[1]
    problem = problem_of(tmp_path, "", "--data.sources.name", "a")
    assert problem.startswith("--data.sources.name (command line): not a flag; write the rows in the file")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--training.stpes", "5"), "--training.stpes (command line): unknown key; did you mean training.steps?"),
        (("--stpes=5",), "--stpes (command line): unknown table or key; did you mean training.steps?"),
        (
            ("--TRAINING.Steps", "5"),
            "--TRAINING.Steps (command line): unknown table or key; did you mean training.steps?",
        ),
        (("--training", "5"), "--training (command line): not a key; the keys of [training] are"),
        (("--training.steps.a", "5"), "--training.steps.a (command line): not a key; the keys of [training] are"),
        (("--training.steps",), "--training.steps (command line): needs a value"),
        (("--training.steps", "--compile.enable"), "--training.steps (command line): needs a value"),
        (("--training.steps", "5", "6"), "'6' (command line): belongs to no flag"),
        (("-x",), "'-x' (command line): belongs to no flag"),
        (("--", "5"), "'5' (command line): belongs to no flag"),
        (("--training.steps", "-5"), "training.steps = -5 (command line): must be an integer above 0 (default 10000)"),
        (("--training.tokens", "-3"), "training.tokens = -3 (command line): must be an integer above 0"),
        (("--optimizer.lr", "1e"), "optimizer.lr = '1e' (command line): must be a number above 0 (default 0.0008)"),
        (("--compile.enable", "maybe"), "compile.enable = 'maybe' (command line): must be true, false or \"auto\""),
        (("--compile.components", "modl"), "compile.components[0] = 'modl' (command line): must be \"model\" or"),
        (("--job.description", "\udcff"), "job.description = '\\udcff' (command line): must be UTF-8"),
        (("--training.steps", "[" * 5000), "training.steps = '[[["),
    ],
)
def test_a_wrong_flag_is_named(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    assert problem_of(tmp_path, "", *flags).startswith(message)


def test_help_lists_every_key_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(["--help"])
    assert caught.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for name, info in keys(config_class("pretrain", "transformer")[0]).items():
        assert f"--{name} " in text
        assert info.description, f"{name} has no help text"
        assert re.sub(r"\s+", " ", info.description) in text
    assert "Optimizer steps of the run; a pair with `tokens`: give one. (int; default 10000)" in text
    assert "(bool; default False)" in text
    assert "(linear | sqrt | cosine; default 'linear')" in text
    assert "[[data.sources]]" in text
    assert "(str; required)" in text


def test_help_comes_before_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config(["--training.stpes", "5", "-h"])
    assert "--training.steps" in capsys.readouterr().out


def test_help_of_every_table_is_one_line_in_the_title() -> None:
    text = help_text(config_class("pretrain", "transformer")[0])
    assert "[training] batch, length of the run, precision:" in text.splitlines()
