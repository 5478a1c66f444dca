"""`compile.cache_dir`: what torch.compile made, kept over restarts, and thrown away where it is not what was written.

torch does not look at most of its files before it loads them, compiled code least of all. So they are listed with their
hashes while they come, and a start that is alone with the folder compares them.

    CACHE_DIR/<torch and machine>/inductor/    torch's files
    CACHE_DIR/<torch and machine>/files.json   size and sha256 of each
    CACHE_DIR/<torch and machine>/.lock        held by all that use the folder, so that nobody cleans under them
"""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import torch

from titan_pt.run.files import make_writable, write_atomic
from titan_pt.run.own_json import read_own

logger = logging.getLogger("titan_pt")

_LIST = "files.json"
_INDUCTOR = "inductor"
_LISTING_SECONDS = 30.0
_SETTLED_SECONDS = 2.0
"""Age of a file that is taken for whole."""


@functools.cache
def use_cache(cache_dir: str, device_type: str) -> Path:
    """Let torch.compile read and write a folder for this torch and kind of machine, and list its files by a thread.

    Raises:
        ConfigError: it cannot be written to.
    """
    folder = Path(cache_dir).absolute() / _machine(device_type)
    make_writable(folder, f"compile.cache_dir = {cache_dir!r}")
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)  # held until the process ends
    with contextlib.suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            throw_away_damage(folder)
        except BlockingIOError:  # another process uses it, and has looked
            pass
        fcntl.flock(lock, fcntl.LOCK_SH)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / _INDUCTOR)
    if os.environ.get("RANK", "0") == "0":
        listing = CacheListing(folder)
        threading.Thread(target=listing.go_on, name="compile cache", daemon=True).start()
        atexit.register(listing.write)
    return folder


def throw_away_damage(folder: Path) -> None:
    """Remove all files where one is not as it was listed, and else those that were not listed, which may be cut."""
    for leftover in folder.glob(f"{_LIST}-*"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    listed, files = read_own(folder / _LIST), _files(folder / _INDUCTOR)
    damaged = [name for name, entry in listed.items() if name not in files or _entry(files[name]) != entry]
    if damaged or (files and not listed):
        if damaged:
            told = f"{damaged[0]} and {len(damaged) - 1} others are" if len(damaged) > 1 else f"{damaged[0]} is"
            logger.warning(f"compile.cache_dir: {folder}: {told} damaged; it is thrown away, and all is compiled again")
        shutil.rmtree(folder / _INDUCTOR, ignore_errors=True)
        (folder / _LIST).unlink(missing_ok=True)
        return
    for name in files.keys() - listed.keys():
        files[name].unlink(missing_ok=True)


class CacheListing:
    """The list of a folder's files, hashed once each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mark = f"-{uuid.uuid4().hex[:8]}"  # other runs that use the folder write the list too
        self._known = read_own(folder / _LIST)
        self._lock = threading.Lock()

    def go_on(self) -> None:
        """Write the list again and again, as a thread."""
        while True:
            time.sleep(_LISTING_SECONDS)
            self.write()

    def write(self, settled_seconds: float = _SETTLED_SECONDS) -> None:
        """Add the files that have come, but for the newest, which may still be written."""
        with self._lock:
            new = {name: path for name, path in _files(self._folder / _INDUCTOR).items() if name not in self._known}
            try:
                for name, path in new.items():
                    if time.time() - path.stat().st_mtime >= settled_seconds:
                        self._known[name] = _entry(path)
                if new:
                    write_atomic(self._folder / _LIST, json.dumps(self._known), self._mark)
            except OSError as error:
                logger.warning(f"compile.cache_dir: {self._folder / _LIST} cannot be written: {error}")


def _files(folder: Path) -> dict[str, Path]:
    """Files by name; torch's locks and what it renames later are none."""
    return {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*")
        if path.is_file() and not (path.suffix in (".lock", ".tmp") or path.parent.name == "locks")
    }


def _entry(path: Path) -> list[Any]:
    try:
        content = path.read_bytes()
    except OSError:
        return []
    return [len(content), hashlib.sha256(content).hexdigest()]


def _machine(device_type: str) -> str:
    """Name of what compiled code depends on: torch, Python, and the device or the CPU's instructions."""
    if device_type == "cuda":
        kind = torch.cuda.get_device_name()
    else:
        cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
        flags = re.search(r"^(flags|Features)\s*:.*$", cpu, re.MULTILINE)
        kind = f"{platform.machine()}-{hashlib.sha256((flags[0] if flags else cpu).encode()).hexdigest()[:8]}"
    return re.sub(r"[^\w.+-]+", "-", f"torch-{torch.__version__}-py{platform.python_version()}-{kind}")
