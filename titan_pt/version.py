"""Which titan_pt this is: its version, and the git commit of its checkout or of the one that a wheel was built from."""

import functools
import subprocess
from pathlib import Path

from titan_pt import __version__

COMMIT_FILE = Path(__file__).resolve().with_name("commit.txt")
"""What `setup.py` writes into a wheel; a checkout has none."""


def made_by() -> str:
    """As `titan_pt 0.1.0, commit 1a2b3c4`; the commit is left out where it is not known, -dirty marks changed files."""
    return f"titan_pt {__version__}" + (f", commit {found}" if (found := commit()) else "")


def stamped(toml: str) -> str:
    """A resolved config under the line that says what made it."""
    return f"# {made_by()}\n\n{toml}"


@functools.cache  # what is committed while it runs did not make it
def commit() -> str:
    """The git commit, or nothing."""
    root = COMMIT_FILE.parents[1]
    describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    git = ["git", "-c", "safe.directory=*", "-C", f"{root}", *describe]
    try:
        if not (root / ".git").exists():  # one above it is somebody else's
            return COMMIT_FILE.read_text("utf-8").strip()
        return subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError, ValueError):
        return ""
