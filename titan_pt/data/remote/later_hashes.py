"""Hashes of files that are too large to be hashed at the start: computed beside the training, then compared."""

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence

from titan_pt.config.errors import ConfigError
from titan_pt.data.sources.identity import KnownFiles, content_hash, same_content
from titan_pt.run.exit_codes import Preempted

logger = logging.getLogger("titan_pt")

_BYTES_PER_SECOND = 200e6  # the training reads from the same disk


class LaterHashes:
    """A thread that hashes files one by one, remembers the hashes, and compares them with those of a checkpoint.

    Args:
        wanted: hash of each file's content that a checkpoint holds; empty where it knew none.
    """

    def __init__(self, files: Sequence[str], wanted: Mapping[str, str], cache_dir: str | None, where: str) -> None:
        self.found: dict[str, str] = {}
        self._changed = ""
        self._files, self._wanted, self._where = files, wanted, where
        self._known = KnownFiles(cache_dir)  # of its own: another thread has the other one
        threading.Thread(target=self._run, name="later hashes", daemon=True).start()

    def check(self) -> None:
        """Raise a ConfigError once a file turned out to be another one than that of the checkpoint."""
        if self._changed:
            raise ConfigError(
                f"{self._where}: {self._changed} is not what the checkpoint was trained on; restore it, or start the "
                'data anew with checkpoint.exclude_from_loading = ["data"]'
            )

    def _run(self) -> None:
        with contextlib.suppress(Preempted):
            for path in self._files:
                try:
                    (found,) = self._known.facts([path], "content", _slow_hash)
                except (OSError, ConfigError) as error:  # the training reads it too, and fails where it cannot
                    logger.warning(f"{self._where}: {path} cannot be hashed: {error}")
                    continue
                self.found[path] = found
                if not same_content(found, self._wanted.get(path, "")):
                    self._changed = path
                    logger.error(f"{self._where}: {path} is not what the checkpoint was trained on")
                    return


def _slow_hash(path: str) -> str:
    return content_hash(path, _BYTES_PER_SECOND)
