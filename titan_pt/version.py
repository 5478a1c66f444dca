"""Which titan_pt this is: its version, and the git commit of the checkout, or of that which a wheel was built from."""

import contextlib
import functools
import subprocess
from pathlib import Path

from titan_pt import __version__

COMMIT_FILE = Path(__file__).resolve().with_name("commit.txt")  # in a wheel, by setup.py
_GIT = ("git", "-c", "safe.directory=*", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def stamped(toml: str) -> str:
    """A resolved config under a line that says what made it."""
    return f"# {made_by()}\n\n{toml}"


@functools.cache  # what is committed later did not make it
def made_by() -> str:
    """As `titan_pt 0.1.0, commit 1a2b3c4`; -dirty marks changed files, and a commit that is not known is left out."""
    root, commit = COMMIT_FILE.parents[1], ""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        if (root / ".git").exists():  # one above it is somebody else's
            commit = subprocess.run(_GIT, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout
        else:
            commit = COMMIT_FILE.read_text("utf-8")
    return f"titan_pt {__version__}" + (f", commit {commit.strip()}" if commit.strip() else "")
