"""The standard streams: any text in any locale, and closed ones."""

import io
import os
import sys

import pytest

from titan_pt.run.log import open_console, terminal_colors


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_text_is_utf8_in_files_and_escaped_on_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    file, terminal = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", Terminal(terminal, encoding="ascii"))
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
    assert not terminal_colors(disabled=False).red
