"""The frame that all tools share: wrong flags, a reader that is gone, Ctrl-C."""

import importlib
import io
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from tool_helpers import tool_here

import titan_pt.tools
from titan_pt.config.errors import ConfigError
from titan_pt.config.manager import load_config
from titan_pt.run.exit_codes import ExitCode, Stalled
from titan_pt.tools.command import run_tool

FRAME = {"arguments", "command", "model", "explain", "run_text", "texts", "usage"}
TOOLS = sorted({module.name for module in pkgutil.iter_modules(titan_pt.tools.__path__)} - FRAME)
NEEDED = {
    "evaluate": ["--checkpoint", "none", "--tasks", "arithmetic"],
    "export": ["--checkpoint", "none", "--output", "out"],
    "generate": ["--checkpoint", "none", "--prompt", "x"],
    "harness": ["--checkpoint", "none", "--tasks", "x"],
    "prepare": ["--source", "a", "--output", "out"],
}
"""Flags that a tool cannot do without."""
CONFIG_TOOLS = ("await_start", "data", "plan", "prepare")
RUN = ["--data.sources=[{name='arithmetic'}]"]
VALUES = [
    "-1",
    "0",
    "-99999999999999999999",
    "9" * 400,
    "9" * 5000,
    "",
    " ",
    "1.5",
    "abc",
    "nan",
    "inf",
    "1e400",
    "$UNSET",
    "a\0b",
]


def flags_of(tool: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The tool's own flags, as its help lists them."""
    assert tool_here(importlib.import_module(f"titan_pt.tools.{tool}").main, "--help") == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    return sorted({word for word in words if word.startswith("--") and word[2:].isidentifier()} - {"--help"})


def test_a_missing_or_unknown_flag_brings_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/mine/checkpoint/step-3").mkdir(parents=True)
    for tool, flags, said in (
        (
            "generate",
            [],
            "MODEL: missing: a run folder (its newest whole step), its checkpoint folder, one step-N",
        ),
        ("generate", [], "Hugging Face folder; --checkpoint MODEL is the same; here are outputs/mine; --help lists"),
        ("export", [], "2. --output: missing: the folder to write; --help lists the flags"),
        ("prepare", ["--output", "x"], "--source: missing: name of one of the config's data sources"),
        ("generate", ["--checkpoint", "x", "--temprature", "1"], "did you mean --temperature?; --help lists the flags"),
        (
            "generate",
            ["--checkpoint", "outputs/mien"],
            "no such folder; did you mean outputs/mine?; train it first, by",
        ),
        ("generate", ["--checkpoint", "mine"], "no such folder; did you mean outputs/mine?; train it first, by"),
        (
            "evaluate",
            ["--checkpoint", "me/model-1B", "--text", "x"],
            "hf download me/model-1B --local-dir models/model-1B",
        ),
        ("generate", ["--checkpoint", "outputs/quickstart"], "; make it with titan-pt train "),
        ("export", ["outputs/mien", "--output", "x"], "'outputs/mien': no such folder; did you mean outputs/mine?"),
        (
            "evaluate",
            ["quickstart", "--text", "x"],
            "experiment: titan-pt train quickstart makes its run folder, outputs",
        ),
        ("harness", ["a", "--tasks", "x", "--checkpoint", "b"], "--checkpoint: not allowed with argument MODEL"),
        (
            "generate",
            ["outputs/mine", "--prompt", "one", "two"],
            "arguments: two; a text of several words needs quotes",
        ),
        ("chat", ["--model=a b", "--raw"], "unrecognized arguments: --model; MODEL has no flag: "),
        ("chat", ["--model=a b", "--raw"], "tools.chat 'a b' --raw\n"),
        ("report", ["--checkpoint", "outputs/mine"], "RUN has no flag: python -m titan_pt.tools.report outputs/mine\n"),
        ("compare", ["outputs/mine/checkpoint"], "has neither metrics.jsonl nor config.toml; give"),
        ("report", ["outputs/mien"], "no such folder; did you mean outputs/mine?"),
        (
            "generate",
            ["--chekpoint", "x"],
            "config error: unrecognized arguments: --chekpoint; did you mean --checkpoint?",
        ),
    ):
        assert tool_here(importlib.import_module(f"titan_pt.tools.{tool}").main, *flags) == ExitCode.USAGE
        assert said in capsys.readouterr().err, (tool, flags)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("word", ["--hlp", "--halp=1", "-help"])
def test_help_that_is_mistyped_is_the_only_mistake(tool: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool_here(importlib.import_module(f"titan_pt.tools.{tool}").main, word) == ExitCode.USAGE
    assert capsys.readouterr().err.endswith(f"{word.partition('=')[0]}; did you mean --help?\n")


def test_a_flag_of_a_tool_beside_those_of_keys_is_told_from_them(capsys: pytest.CaptureFixture[str]) -> None:
    for tool, words, said in (
        ("plan", ["quickstart", "--jsn"], "unrecognized arguments: --jsn; did you mean --json?"),
        ("plan", ["quickstart", "--steps", "5"], "did you mean training.steps?"),
        ("sweep", ["quickstart", "--sed", "3"], "did you mean --seeds?"),
        ("prepare", ["quickstart", "--sorce", "a", "--output", "x"], "config error: unrecognized arguments: --sorce"),
    ):
        assert tool_here(importlib.import_module(f"titan_pt.tools.{tool}").main, *words) == ExitCode.USAGE
        assert said in capsys.readouterr().err, (tool, words)
    for words in (["--hlp"], ["quickstart", "--halp"], ["-help"]):
        with pytest.raises(ConfigError, match=r"^--?[a-z]+ .*: unknown flag; did you mean --help\?$"):
            load_config(words)


@pytest.mark.parametrize(("name", "meant"), [("generat", "; did you mean generate?"), ("talk", "")])
def test_an_unknown_tool_lists_the_known_ones(name: str, meant: str) -> None:
    done = subprocess.run([sys.executable, "-m", f"titan_pt.tools.{name}"], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.USAGE
    assert f"{name!r}: unknown tool{meant}\nthe tools are " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_no_value_of_a_flag_ends_in_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    """Each flag of each tool: negative, huge, empty, of a wrong kind. No model is there, so none is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNSET", raising=False)
    main = importlib.import_module(f"titan_pt.tools.{tool}").main
    needed = NEEDED.get(tool, []) + (RUN if tool in CONFIG_TOOLS else [])
    for flag in flags_of(tool, capsys):
        if (tool, flag) == ("data", "--num_documents"):
            values = [value for value in VALUES if not value.isdigit()]
        else:
            values = VALUES
        for value in values:
            code = tool_here(main, *needed, f"{flag}={value}")
            error = capsys.readouterr().err
            assert code in (0, 1, 2) and "Traceback" not in error, (flag, value, error)
            assert code == 0 or error.strip().splitlines()[-1].startswith(("config error: ", "failed: ", "  ")), error
    assert not list(tmp_path.glob("*$*")) and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "words", [["--no_such_flag", "1"], ["--k", "a\udce9"], ["stray"], ["--seed"], ["--limit", "x"]]
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    main = importlib.import_module("titan_pt.tools.evaluate").main
    assert tool_here(main, "--checkpoint", "none", "--tasks", "gsm8k", *words) == ExitCode.USAGE
    out, error = capsys.readouterr()
    assert not out and error.startswith("config error: ") and error.count("\n") == 1


def test_a_reader_that_is_gone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(os.fdopen(writer, "wb", buffering=0), write_through=True))
    assert run_tool(lambda: print("x" * 100_000)) == ExitCode.DONE
    assert run_tool(lambda: print("more")) == ExitCode.DONE
    assert not capsys.readouterr().err


def test_a_broken_pipe_of_something_else_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    assert run_tool(fail) == ExitCode.FAILED
    assert capsys.readouterr().err == "failed: BrokenPipeError: [Errno 32] Broken pipe\n"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 143), (MemoryError("a"), 1), (Stalled("b"), 1)])
def test_other_ends_are_one_line(capsys: pytest.CaptureFixture[str], error: BaseException, code: int) -> None:
    def fail() -> None:
        raise error

    assert run_tool(fail) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_head_and_ctrl_c_in_a_shell(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {i} " * 99}) + "\n" for i in range(500)))
    source = f'--data.sources=[{{name = "a", path = "{tmp_path}/a.jsonl"}}]'
    command = [sys.executable, "-m", "titan_pt.tools.data", source, "--num_documents=400"]
    options: dict[str, Any] = {
        "env": {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path)},
        "cwd": tmp_path,
        "stderr": subprocess.PIPE,
        "text": True,
        "preexec_fn": lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests are run by `... &`
    }
    interrupted = subprocess.Popen(command, stdout=subprocess.PIPE, **options)  # which it fills, and cannot end before
    while "pyarrow" not in Path(f"/proc/{interrupted.pid}/maps").read_text():  # it imports
        time.sleep(0.05)
    interrupted.send_signal(signal.SIGINT)
    _, error = interrupted.communicate(timeout=60)
    assert interrupted.returncode == ExitCode.TERMINATED and "Traceback" not in error, error
    shell = ["bash", "-c", '"$@" | head -1; exit ${PIPESTATUS[0]}', "bash", *command]
    cut = subprocess.run(shell, stdout=subprocess.PIPE, timeout=120, check=False, **options)
    assert cut.returncode == ExitCode.DONE and cut.stdout.startswith("--- row 0"), cut
    assert "Traceback" not in cut.stderr and "BrokenPipe" not in cut.stderr and "Exception ignored" not in cut.stderr
