"""Saves beside training: tensors are copied, and a thread writes the copies.

Imported where `checkpoint.async_mode` asks for it.
"""

import logging
import threading
from collections.abc import Callable, Mapping

import torch
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from titan_pt.distributed.world import World

logger = logging.getLogger("titan_pt")


class BackgroundWriter:
    """One save at a time in a thread.

    Args:
        pinned: copy to pinned memory, which is made once.
    """

    def __init__(self, world: World, *, pinned: bool) -> None:
        self._world = world
        self._stager = BlockingAsyncStager(cache_staged_state_dict=pinned)
        self._staged: set[str] = set()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, tensors: Mapping[str, torch.Tensor], write: Callable[[Mapping[str, torch.Tensor]], None]) -> None:
        """Copy the tensors, then let the thread write the copies."""
        self._error = None
        if tensors.keys() != self._staged:  # pinned memory is made once, for tensors that stay the same
            self._stager.state_dict_cache, self._staged = None, set(tensors)
        staged = self._stager.stage(dict(tensors))
        self._thread = threading.Thread(target=self._run, args=(lambda: write(staged),), name="checkpoint")
        self._thread.start()

    def join(self) -> None:
        """Wait for the save in progress."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def raise_error(self, kind: type[Exception]) -> None:
        """Raise the last save's error, once, where it is of this kind."""
        if isinstance(self._error, kind):
            error, self._error = self._error, None
            raise error

    def _run(self, write: Callable[[], None]) -> None:
        try:
            if self._world.device.index is not None:  # a thread begins on device 0, whatever the rank's is
                torch.accelerator.set_device_index(self._world.device)
            write()
        except Exception as error:
            self._error = error
            if self._world.is_main:  # now: the next save or the end of the run may be hours away
                logger.error(f"{error}")
