"""Paths as users write them: `~`, `$NAME`, `${NAME}`, `$$`; what stands for nothing is refused."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_pt.config.errors import ConfigError
from titan_pt.run.paths import escape_path, expand_path
from titan_pt.run.tool_files import flag_path


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOME": "/home/me", "RUNS": "/data/runs", "_R2": "b", "EMPTY": "", "TILDE": "~/c"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("~", "/home/me"),
        ("~/runs", "/home/me/runs"),
        ("~root/x", os.path.expanduser("~root/x")),
        ("$RUNS", "/data/runs"),
        ("$RUNS/a-${_R2}c.jsonl", "/data/runs/a-bc.jsonl"),
        ("${RUNS}s/*.parquet", "/data/runss/*.parquet"),
        ("$TILDE/d", "/home/me/c/d"),
        ("a/~/b~", "a/~/b~"),
        ("./~x", "./~x"),
        ("price$$list$$", "price$list$"),
        ("$$RUNS", "$RUNS"),
        ("5$", "5$"),
        ("a$5.txt", "a$5.txt"),
        ("s3-[$]?.txt", "s3-[$]?.txt"),
        ("", ""),
    ],
)
def test_what_is_replaced(written: str, path: str) -> None:
    assert expand_path(written) == path


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("$UNSET/run", "the variable UNSET is not set; set it, or write $$UNSET for"),
        ("a/${UNSET}", "the variable UNSET is not set"),
        ("$EMPTY/run", "the variable EMPTY is not set"),
        ("$RUNS$UNSET", "the variable UNSET is not set"),
        ("${RUNS", "${ begins the name of a variable"),
        ("${RUNS:-x}", "${ begins the name of a variable"),
        ("${}", "${ begins the name of a variable"),
        ("~nobody-of-that-name/x", "there is no user ~nobody-of-that-name; ./~nobody-of-that-name/x is"),
    ],
)
def test_what_is_refused(written: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        expand_path(written)
    assert str(caught.value).startswith(reason)
    with pytest.raises(ConfigError) as told:
        flag_path("--output", written)
    assert str(told.value).startswith(f"--output = {written!r}: {reason}")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(lambda path: path[:1] != "~"))
def test_an_escaped_path_stands_for_itself(path: str) -> None:
    assert expand_path(escape_path(path)) == path


def test_flags_that_name_nothing() -> None:
    assert flag_path("--output", "$RUNS/x") == Path("/data/runs/x")
    for nothing in ("", "a\0b"):
        with pytest.raises(ConfigError, match=r"^--output = .*: must name a file or folder"):
            flag_path("--output", nothing)


def test_a_name_that_the_locale_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> bytes:
        return path.encode("ascii")

    monkeypatch.setattr("titan_pt.run.path_variables.os.fsencode", refuse)
    with pytest.raises(ValueError, match=r"no file has '\\xf6' in its name in this locale \(ascii\); set LC_ALL"):
        expand_path("läufe".replace("ä", "ö"))
