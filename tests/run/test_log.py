"""The console: the standard streams in any locale, plain lines, objects of JSON, panels and the live line."""

import io
import json
import logging
import os
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
from data_helpers import mixture_of, texts

from titan_pt.config.errors import ConfigError
from titan_pt.data.sources.opening import MixtureSource
from titan_pt.run import terminal
from titan_pt.run.failure import tell
from titan_pt.run.log import init_logging, logger, open_console, say
from titan_pt.trainers.summary import _describe_sources


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_text_is_utf8_in_files_and_escaped_on_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    file, terminal = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", Terminal(terminal, encoding="ascii"))
    monkeypatch.setenv("TERM", "dumb")
    open_console()
    for stream in (sys.stdout, sys.stderr):
        print("größe \udcff", file=stream, flush=True)
    assert file.getvalue() == "größe \\udcff\n".encode()
    assert terminal.getvalue() == b"gr\\xf6\\xdfe \\udcff\n"


def test_arguments_are_utf8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    monkeypatch.setattr(sys, "argv", ["x", "gr\udcc3\udcb6\udcc3\udc9fe", "plain"])
    open_console()
    assert sys.argv == ["x", "größe", "plain"]


def test_a_closed_stream_takes_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    open_console()
    print("to nowhere", file=sys.stderr, flush=True)
    print("größe", flush=True)
    assert sys.stdin.read() == ""


class Screen(io.StringIO):
    """A terminal of 60 columns."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def log_to(monkeypatch: pytest.MonkeyPatch, stream: Any, **environment: str) -> Any:
    """Begin to log to a stream, as a process does with this environment; returns the stream."""
    for name in ("LOG_FORMAT", "LOG_RANK", "LOG_WIDTH", "RANK", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logger, "handlers", logger.handlers)
    monkeypatch.setattr(logger, "propagate", True)
    init_logging()
    return stream


def test_plain_lines_have_100_columns_and_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    told = log_to(monkeypatch, io.StringIO())
    logger.info("short")
    logger.warning("many words " * 30)
    path = "/a" * 60
    logger.error(f"{path}: a path stays whole")
    logger.info(f"samples:\nstep 1/2  forged\n{'x' * 250}")
    lines = told.getvalue().splitlines()
    assert lines[0] == "short" and lines[1].startswith("WARNING: many words")
    assert any(path in line for line in lines)
    assert all(len(line) <= 100 for line in lines if path not in line)
    assert "  step 1/2  forged" in lines, "what a text says is indented: it passes for no line of the log"


def test_a_secret_is_hidden_before_its_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    told = log_to(monkeypatch, io.StringIO())
    logger.info("texts:\n" + "a " * 40 + "hf_" + "S3CRET" * 40)
    assert "S3CRET" not in told.getvalue() and "***" in told.getvalue()


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"RANK": "3", "LOG_RANK": "0,3"}, "[rank3] said"),
        ({"LOG_RANK": "0,3"}, "[rank0] said"),
        ({"LOG_FORMAT": "plain"}, "said"),
    ],
)
def test_ranks_are_named_where_several_speak(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], line: str
) -> None:
    told = log_to(monkeypatch, io.StringIO(), **environment)
    logger.info("said")
    assert told.getvalue() == f"{line}\n"


def test_time_and_rank_on_request_and_no_other_format(monkeypatch: pytest.MonkeyPatch) -> None:
    told = log_to(monkeypatch, io.StringIO(), LOG_FORMAT="long")
    logger.info("said")
    date, time, rest = told.getvalue().split(" ", 2)
    assert (len(date), len(time), rest) == (10, 8, "[rank0] said\n")
    with pytest.raises(ConfigError, match=r"LOG_FORMAT = 'jsn': must be plain, long, json; did you mean json\?"):
        log_to(monkeypatch, io.StringIO(), LOG_FORMAT="jsn")


def test_json_is_an_object_a_line_also_of_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    told = log_to(monkeypatch, io.StringIO(), LOG_FORMAT="json")
    logger.info("step 1/2", extra={"row": {"step": 1, "loss": float("nan")}, "live": True})
    logger.warning("two\nlines, https://h/?sig=S3CRET")
    print("Traceback:\n  line", "\x1b[2J", "-----BEGIN PRIVATE KEY-----", file=sys.stderr)
    try:
        raise ValueError("odd")
    except ValueError as error:
        tell(error)
    rows = [json.loads(line) for line in told.getvalue().splitlines()]
    assert rows[-2]["message"].startswith("Traceback") and rows[-2]["message"].endswith("\nValueError: odd")
    assert [row["message"] for row in rows[:3]] == ["step 1/2", "two\nlines, https://h/?***", "Traceback:"]
    assert rows[0]["loss"] is None and rows[0]["step"] == 1 and rows[0]["rank"] == 0 and rows[0]["level"] == "INFO"
    assert rows[3]["message"] == "  line \x1b[2J ***" and "\x1b" not in told.getvalue()


def test_a_terminal_has_panels_and_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = log_to(monkeypatch, Screen(), NO_COLOR="1")
    say("Model", "tiny")
    say("Folder", "outputs")
    logger.info("it begins")
    logger.info("step 10/20  loss 1.0", extra={"live": True})
    monkeypatch.setattr(terminal, "current_phase", lambda: "step 12")
    logger.info("step 11/20  loss 0.9", extra={"live": True})
    logger.warning("beware " * 20)
    print("a library's own words", file=sys.stderr)
    monkeypatch.setattr(terminal, "current_phase", lambda: "")
    logger.info("step 20/20  loss 0.5", extra={"live": True})
    logger.info("done", extra={"live": False})
    written = screen.getvalue().replace("\r\033[K", "\r").replace("\033[K", "")
    shown = [line.rpartition("\r")[2] for line in written.split("\n")]
    assert shown[:3] == ["╭─ Model     tiny " + "─" * 62, "│ Folder    outputs", "╰" + "─" * 79]
    assert shown[3] == "it begins" and "\rstep 12/20  loss 0.9\r" in written
    assert shown[4].startswith("WARNING: beware") and "a library's own words" in shown
    assert shown[-2:] == ["done", ""] and "loss 0.5" in written and "\033[3" not in written


def test_a_narrow_terminal_has_the_shares_of_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = log_to(monkeypatch, Screen(), NO_COLOR="1")
    monkeypatch.setattr(terminal, "width_of", lambda _: 32)
    sources = (MixtureSource("web", texts(*[99] * 1000), 0.8), MixtureSource("small", texts(*[49] * 10), 0.2))
    run_size, loader = SimpleNamespace(tokens=9_999, num_streams=1), SimpleNamespace(mixture=mixture_of(*sources))
    context = SimpleNamespace(run_size=run_size, dataloader=loader, raise_if_preempted=lambda: None)
    say("Model", "tiny")
    _describe_sources(cast(Any, context), warns=False)
    rows = screen.getvalue().replace("\033[K", "").splitlines()[-3:]
    assert rows == ["│   source   share  epochs", "│   web     80.00%    0.08", "│   small   20.00%       4"]


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"LOG_FORMAT": "plain", "TERM": "dumb"}])
def test_a_simple_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    screen = log_to(monkeypatch, Screen(), **environment)
    say("Model", "tiny")
    logger.info("step 10/20", extra={"live": True})
    assert screen.getvalue() == "Model     tiny\nstep 10/20\n"


@pytest.mark.parametrize(("environment", "code"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_can_be_turned_off(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], code: bool) -> None:
    screen = log_to(monkeypatch, Screen(), **environment)
    logger.warning("beware")
    assert ("\033[33m" in screen.getvalue()) == code


def test_handlers_of_data_workers_speak_for_their_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = log_to(monkeypatch, Screen(), RANK="2")
    logger.error("lost")
    logger.info("not asked to speak")
    assert "[rank2] ERROR: lost" in screen.getvalue() and "asked" not in screen.getvalue()
    assert logger.level == logging.ERROR
