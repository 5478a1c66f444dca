"""Files of a mirror in an object store, by fsspec: retried, and verified when they were written.

URL/owner.json       who writes here
URL/metrics.jsonl    the run's rows
URL/step-N/          files of a step; the manifest comes last, and without it a step does not count
"""

import functools
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from titan_pt.components.checkpoint.manifest import MANIFEST, find_damage
from titan_pt.components.checkpoint.step_folders import REQUIRED
from titan_pt.config.errors import ConfigError, shown
from titan_pt.run.exit_codes import Preempted
from titan_pt.run.heartbeat import beat
from titan_pt.run.progress import Progress, more
from titan_pt.run.removal import remove_folder

logger = logging.getLogger("titan_pt")

T = TypeVar("T")

DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further try."""
_OWNER = "owner.json"
_BLOCK_BYTES = 8 << 20


class MirrorStore:
    """The object store at an address.

    Args:
        url: `s3://bucket/folder`, `gs://bucket/folder`, or what else fsspec opens.
        gets_on: called with each block that is read or written; what it raises ends a download.

    Raises:
        ConfigError: the library for it is not installed, or it is no such address.
    """

    def __init__(self, url: str, gets_on: Callable[[], None] = beat) -> None:
        self.url, self._gets_on = url.rstrip("/"), gets_on
        try:
            if "://" not in url:
                raise ValueError("it has no kind of store, such as s3://")
            from fsspec.callbacks import Callback
            from fsspec.core import url_to_fs

            self._callback = Callback(hooks={"block": lambda *_: gets_on()})
            self._fs, root = url_to_fs(self.url, skip_instance_cache=True, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"checkpoint.mirror = {shown(url)}: cannot be opened: {error}; s3:// and gs:// need "
                "pip install 'titan-pt[mirror]'"
            ) from None
        self._root = root.rstrip("/")
        protocol = self._fs.protocol
        self._has_folders = "file" in ([protocol] if isinstance(protocol, str) else protocol)

    def steps(self) -> list[int]:
        """Numbers of the whole steps, the highest first."""
        return sorted((number for number in self._folders() if self._exists(f"step-{number}/{MANIFEST}")), reverse=True)

    def put_step(self, number: int, folder: Path) -> None:
        """Upload a step, its manifest last; a file that does not read back as it was is written again.

        Raises:
            OSError, RuntimeError or an error of the library: it cannot be done, after all tries.
        """
        content = (folder / MANIFEST).read_bytes()
        where = f"step-{number}"
        if self._exists(f"{where}/{MANIFEST}"):
            if self._retry(lambda: self._fs.cat_file(self._at(f"{where}/{MANIFEST}"))) == content:
                return
            self._retry(lambda: self._fs.rm_file(self._at(f"{where}/{MANIFEST}")))  # another one of that number
        for name, entry in json.loads(content)["files"].items():
            self._retry(functools.partial(self._put, folder / name, f"{where}/{name}", entry["sha256"]))
        self._retry(lambda: self._put(folder / MANIFEST, f"{where}/{MANIFEST}", hashlib.sha256(content).hexdigest()))

    def put_rows(self, path: Path) -> None:
        """Upload metrics.jsonl, where there is one."""
        if path.is_file():
            self._retry(lambda: self._put(path, path.name, None))

    def get_rows(self, path: Path) -> None:
        """Download metrics.jsonl where there is none here."""
        if not path.exists() and self._exists(path.name):
            temporary = path.with_name(f"{path.name}.tmp")
            self._retry(lambda: self._get(path.name, temporary))
            temporary.rename(path)

    def get_step(self, number: int, folder: Path) -> str | None:
        """Download a step, which appears in the folder of steps when it is whole; returns what is wrong with it."""
        temporary = folder / f"step-{number}.tmp-mirror"
        remove_if_there(temporary)
        (temporary / "tensors").mkdir(parents=True)
        where = f"step-{number}"
        manifest: bytes = self._retry(lambda: self._fs.cat_file(self._at(f"{where}/{MANIFEST}")))
        (temporary / MANIFEST).write_bytes(manifest)
        try:
            files = {str(name): int(entry["size"]) for name, entry in json.loads(manifest)["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"{MANIFEST} cannot be read"
        with Progress(f"Download of {where}", "bytes", sum(files.values())):
            for name in files:
                if not re.fullmatch(r"(tensors/)?[\w.]+", name) or ".." in name:
                    return f"{MANIFEST} names {name!r}"
                self._retry(functools.partial(self._get, f"{where}/{name}", temporary / name))
        damage = find_damage(temporary, REQUIRED)
        if damage is None:
            target = folder / where
            if target.exists():
                remove_folder(target)
            temporary.rename(target)
        return damage

    def remove_step(self, number: int) -> None:
        """Remove a step; from its first moment on it does not count."""
        where = f"step-{number}"
        if self._exists(f"{where}/{MANIFEST}"):
            self._retry(lambda: self._fs.rm_file(self._at(f"{where}/{MANIFEST}")))
        self._retry(lambda: self._fs.rm(self._at(where), recursive=True))

    def owner(self) -> dict[str, Any] | None:
        """The owner object; None where there is none."""
        try:
            text = self._retry(lambda: self._fs.cat_file(self._at(_OWNER)))
        except FileNotFoundError:
            return None
        try:
            owner = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def set_owner(self, owner: dict[str, Any]) -> None:
        """Write the owner object."""
        self._make_parent(_OWNER)
        self._retry(lambda: self._fs.pipe_file(self._at(_OWNER), json.dumps(owner).encode()))

    def _folders(self) -> list[int]:
        try:
            names = self._retry(lambda: self._fs.ls(self._root, detail=False))
        except FileNotFoundError:
            return []
        found = (re.fullmatch(r"step-(\d+)", name.rstrip("/").rpartition("/")[2]) for name in names)
        return [int(match[1]) for match in found if match]

    def _exists(self, name: str) -> bool:
        return bool(self._retry(lambda: self._fs.exists(self._at(name))))

    def _put(self, path: Path, name: str, sha256: str | None) -> None:
        self._make_parent(name)
        self._gets_on()
        self._fs.put_file(str(path), self._at(name), callback=self._callback)
        if sha256 is not None and self._hash(name) != sha256:
            raise RuntimeError(f"{self.url}/{name} reads back as something else")

    def _get(self, name: str, path: Path) -> None:
        with path.open("wb") as target:
            for block in self._read(name):
                target.write(block)
                more(len(block))

    def _hash(self, name: str) -> str:
        digest = hashlib.sha256()
        for block in self._read(name):
            digest.update(block)
        return digest.hexdigest()

    def _read(self, name: str) -> Iterator[bytes]:
        self._gets_on()
        with self._fs.open(self._at(name), "rb", block_size=_BLOCK_BYTES) as file:
            while block := file.read(_BLOCK_BYTES):
                self._gets_on()
                yield block

    def _make_parent(self, name: str) -> None:
        if self._has_folders:  # object stores have none
            self._fs.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _retry(self, action: Callable[[], T]) -> T:
        for delay in DELAYS:
            try:
                return action()
            except (FileNotFoundError, Preempted):
                raise
            except Exception as error:  # each library has its own
                logger.warning(f"{self.url}: {type(error).__name__}: {error}; tried again in {delay:g} s")
                time.sleep(delay)
                self._gets_on()
        return action()


def remove_if_there(folder: Path) -> None:
    """Remove a folder, or what of it can be removed."""
    if folder.exists():
        remove_folder(folder)
