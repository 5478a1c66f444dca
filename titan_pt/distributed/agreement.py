"""A save after a failure: of the last finished step, where all ranks are at the same point."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from titan_pt.distributed.world import World
from titan_pt.run.failure import is_of_another_rank

if TYPE_CHECKING:
    from titan_pt.protocols.context import TrainContext

logger = logging.getLogger("titan_pt")

_PATIENCE_SECONDS = 5.0


def save_together(context: "TrainContext[Any]", step: int, save: Callable[[], None], error: Exception) -> None:
    """Save the last finished step on all ranks, if all come; that it fails is logged, as the run fails already.

    Args:
        error: what this rank fails with; where it is that another one is gone nobody is waited for.
    """
    if not step or is_of_another_rank(error):
        return
    try:
        here = all_are_here(context.world, step)
    except Exception:  # the process that held the store is gone
        here = False
    if not here:
        logger.error(f"step {step} is not saved: other ranks did not fail where this one did, and wait for it")
        return
    context.optimizer.zero_grad(set_to_none=True)  # of the unfinished step
    try:
        save()
    except Exception as problem:
        logger.error(f"step {step} could not be saved: {problem}")


def all_are_here(world: World, step: int) -> bool:
    """Whether every rank calls this within a few seconds, with the same step; the same answer on all that do.

    It goes through the store and not through a collective: a rank that does not come may be waiting in one. The first
    answer holds: a rank that comes after another one gave up does not begin what that one takes no part in.
    """
    if world.size == 1:
        return True
    store, key = dist.distributed_c10d._get_default_store(), f"failed after step {step}"
    answer, last = f"{key}: all are here", store.add(key, 1) == world.size
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not last and not store.check([answer]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(store.compare_set(answer, "", "yes" if last else "no") == b"yes")
