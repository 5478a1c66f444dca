"""distributed.agreement: whether all ranks failed at the same point, with the same answer on all."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from titan_pt.distributed import agreement


def test_ranks_agree_whether_all_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes after another one gave up does not begin what nobody joins."""
    store, world = dist.HashStore(), SimpleNamespace(size=3)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    barrier = threading.Barrier(3)

    def ask(world: Any) -> bool:
        barrier.wait()
        return agreement.all_are_here(world, 1)

    with ThreadPoolExecutor(3) as ranks:
        assert list(ranks.map(ask, [world] * 3)) == [True] * 3
    monkeypatch.setattr(agreement, "_PATIENCE_SECONDS", 0.0)
    assert [agreement.all_are_here(world, 2) for _ in range(3)] == [False] * 3  # type: ignore[arg-type]


def test_nobody_waits_for_a_rank_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    context: Any = None  # not looked at
    agreement.save_together(
        context, 3, lambda: pytest.fail("it saves"), RuntimeError("Connection closed by peer [10.0.0.2]")
    )
