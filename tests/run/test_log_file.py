"""log.txt: all that is printed, over all starts; a failing disk costs nothing."""

import io
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from titan_pt.run.log import init_logging, logger
from titan_pt.run.log_file import LOG_FILE, keep_log, open_log


def log_to_memory(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to the console from now on."""
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    monkeypatch.setattr(logger, "handlers", logger.handlers)
    monkeypatch.setattr(logger, "propagate", True)
    init_logging()
    return told


def test_all_that_is_printed_is_in_the_log_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = log_to_memory(monkeypatch)
    (tmp_path / LOG_FILE).write_text("an earlier start\n")
    keep_log()
    logger.info("before the folder is known")
    assert not (tmp_path / "run").exists()
    open_log(tmp_path)
    logger.warning("from then on")
    print("a traceback", file=sys.stderr)
    kept = (tmp_path / LOG_FILE).read_text()
    assert kept == "an earlier start\n" + console.getvalue() and "before the folder" in kept and "a traceback" in kept


def test_a_stream_of_another_library_around_stderr_costs_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = log_to_memory(monkeypatch)
    keep_log()
    logger.info("before")
    inner = sys.stderr
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=lambda text: inner.write(text.upper())))
    open_log(tmp_path)
    logger.info("of the run")
    print("of the library", file=sys.stderr)
    assert (tmp_path / LOG_FILE).read_text() == console.getvalue() == "before\nof the run\nOF THE LIBRARY\n"


def test_a_full_disk_costs_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = log_to_memory(monkeypatch)
    keep_log()
    open_log(tmp_path)
    write = os.write

    def fails_half_way(file: int, content: Any) -> int:
        if len(content) > 3:
            return write(file, content[:3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "write", fails_half_way)
        logger.info("one")
        logger.info("two")
    logger.info("three")
    lines = (tmp_path / LOG_FILE).read_text().splitlines()
    assert [line for line in lines if line in ("one", "two", "three")] == ["one", "two", "three"]
    told = console.getvalue().split()
    assert "space" in told and console.getvalue().count("could not be written") == 1
    assert sorted(set(console.getvalue().splitlines()) - {"three"}) == sorted(set(lines) - {"three"} - {""}), lines
