"""Progress of long actions: when it speaks, its rate, and the time that is left."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from titan_pt.run import progress
from titan_pt.run.log import tracked
from titan_pt.run.progress import Progress, reached

Clock = Callable[[float], None]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Lets seconds pass."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_line_after_5_seconds_and_then_ever_fewer(passes: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "titan_pt"):
        for _ in tracked(range(600), "Prepare", "documents", 600):
            passes(1.0)
    lines = caplog.messages
    assert lines[0] == "Prepare: 6 of 600 documents (1%), 1 documents/s, eta 09:54"
    assert 10 <= len(lines) <= 14 and "eta 00:" in lines[-1]


def test_what_is_short_says_nothing(passes: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "titan_pt"):
        assert list(tracked("abcd", "Validation", "batches", 4)) == list("abcd")
        passes(4.9)
    assert not caplog.messages


def test_bytes_are_megabytes_and_an_unknown_end_has_no_eta(passes: Clock, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "titan_pt"), Progress("--text", "bytes") as counter:
        passes(10)
        counter.add(25e6)
    assert caplog.messages == ["--text: 25 MB, 2.5 MB/s"]


def test_an_engine_counts_for_who_asked_it(passes: Clock, caplog: pytest.LogCaptureFixture) -> None:
    reached(3)  # nobody asked
    with caplog.at_level("INFO", "titan_pt"), Progress("gsm8k, answers", "answers", 8):
        passes(6)
        reached(0)
        passes(20)
        reached(2)
    assert caplog.messages[0].endswith("eta ?") and "2 of 8 answers (25%)" in caplog.messages[1]


def test_what_a_library_downloads_is_seen_in_its_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
    (tmp_path / "before").write_bytes(bytes(9_000_000))
    with caplog.at_level("INFO", "titan_pt"), progress.growing("Download of a/b", tmp_path):
        (tmp_path / "blobs").mkdir()
        (tmp_path / "blobs" / "x.incomplete").write_bytes(bytes(3_000_000))
        deadline = time.monotonic() + 20
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.05)
    assert caplog.messages[0].startswith("Download of a/b: 3 MB, ")
