"""A skip that nobody allowed fails the session, whichever way it came and in whichever process."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = """
import pytest

def test_runs(): pass

@pytest.mark.skipif(True, reason="needs a CUDA device")
def test_marked(): pass

def test_called(): pytest.skip("needs luck")

def test_imported(): pytest.importorskip("no_such_package")
"""


def test_reasons_that_are_not_listed_fail_the_session(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)

    def session(*listed: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "listed").write_text("\n".join(listed))
        command = [sys.executable, "-m", "pytest", "-p", "skips", "-p", "no:cacheprovider", "-n", "0", str(tmp_path)]
        paths = f"{ROOT / 'tests'}:{ROOT}"
        return subprocess.run(
            [*command, "-c", "/dev/null", "--rootdir", str(tmp_path), "--allowed-skips", "listed"],
            cwd=tmp_path,
            env={"PYTHONPATH": paths, "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )

    some = session("needs a CUDA device  # a comment", "needs", "could .*")
    assert some.returncode == 1, some.stderr
    listed = some.stdout.partition("does not list")[2]
    assert "test_called: needs luck" in listed and "test_imported" not in listed and "test_marked" not in listed
    assert session(".*").returncode == 0
