"""`pytest --allowed-skips=FILE`: a test that is skipped for a reason that is not in the file fails the session.

Each line of the file is a regular expression of reasons; # begins a comment.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--allowed-skips", metavar="FILE", help="reasons for which tests may be skipped, one a line")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Called where the results of all workers are; the session's own exit code says the rest."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    file = session.config.getoption("--allowed-skips")
    if not file or reporter is None or hasattr(session.config, "workerinput"):
        return
    unlisted = sorted(set(other_reasons(reporter.stats.get("skipped", []), Path(file).read_text())))
    if unlisted:
        reporter.section(f"skipped for reasons that {file} does not list", red=True)
        for line in unlisted:
            reporter.line(line)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def other_reasons(reports: Iterable[Any], listed: str) -> Iterator[str]:
    """Test and reason of each report whose reason is not listed."""
    lines = (line.split("#")[0].strip() for line in listed.splitlines())
    allowed = [re.compile(line) for line in lines if line]
    for report in reports:
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not any(pattern.fullmatch(reason) for pattern in allowed):
            yield f"{report.nodeid}: {reason}"
