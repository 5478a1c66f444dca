"""Shared by all tests: quiet threads, no network, and the folder of real data."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from skips import pytest_addoption, pytest_sessionfinish

__all__ = ["pytest_addoption", "pytest_sessionfinish"]

# Before torch is loaded: idle OpenMP threads must not spin beside other workers.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LOG_WIDTH"] = "0"  # a message is one line, in which a test finds its words
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
for _variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NGPU", "CONFIG_FILE", "LOG_RANK", "LOG_FORMAT"):
    os.environ.pop(_variable, None)


LONGEST = ("test_from_raw_text_to_an_answer", "test_commands_run", "test_twenty_kills")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests come first: at the end one would leave the other workers idle for minutes."""
    items.sort(key=lambda item: LONGEST.index(item.name) if item.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Each run collects garbage when it starts: what was imported and collected so far is none, and much to look at."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the faults of integration/test_chaos.py cost; the tests may have run in other processes."""
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, [])]
    verdicts = [value for report in reports for key, value in report.user_properties if key == "chaos"]
    if verdicts:
        from chaos.table import table

        terminalreporter.section("faults")
        terminalreporter.line(table(verdicts))


@pytest.fixture(autouse=True)
def _close_loaders() -> Iterator[None]:
    """The threads of loaders that a test left open would slow down all tests after it."""
    module = sys.modules.get("titan_pt.data.stream.loader")
    if module is None:
        yield
        return
    opened: list[Any] = []
    original = module.DataLoader.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        opened.append(self)

    module.DataLoader.__init__ = init  # type: ignore[attr-defined]
    yield
    module.DataLoader.__init__ = original  # type: ignore[attr-defined]
    for loader in opened:
        loader.close()


@pytest.fixture(autouse=True)
def _restore_log() -> Iterator[None]:
    """A run or a tool in a test's own process takes the log for itself, and so do tests that read it."""
    log = logging.getLogger("titan_pt")
    before = list(log.handlers), log.level, log.propagate
    yield
    log.handlers, log.level, log.propagate = before


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real data, or a skip that says why."""
    folder = os.environ.get("TITAN_PT_TEST_DATA")
    if not folder:
        pytest.skip("TITAN_PT_TEST_DATA is not set")
    assert Path(folder).is_dir(), f"TITAN_PT_TEST_DATA = {folder}: no such folder"
    return Path(folder)
