"""Whole matrices from their shards: each goes to one rank, which changes it, and comes back to all.

FSDP2 cuts a matrix by rows over the S ranks of a replica; of R replicas rank r S + s holds shard s. The R S ranks share
the matrices, so that none is computed twice.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from titan_pt.distributed.init import local_part


def local(tensor: torch.Tensor | None) -> torch.Tensor:
    """The part of a tensor that this rank holds."""
    assert tensor is not None, "without a gradient it has no part in a step"
    return local_part(tensor)


def num_ranks(tensor: torch.Tensor) -> int:
    """How many ranks hold a part of a tensor, replicas of it included."""
    return tensor.device_mesh.size() if isinstance(tensor, DTensor) else 1


def change_whole(
    like: torch.Tensor,
    shards_NRC: torch.Tensor,
    change: Callable[[torch.Tensor], torch.Tensor],
    first_owner: int = 0,
) -> torch.Tensor:
    """Apply a function to N matrices of one shape, each whole on one rank. A collective of all ranks.

    Args:
        like: a parameter of their shape, sharded as they are.
        shards_NRC: this rank's rows of each.
        change: takes and returns a batch of whole matrices.
        first_owner: the rank that the first matrix goes to; the second goes to the next one, and so on in a circle.

    Returns:
        This rank's rows of each, changed.
    """
    size = num_ranks(like)
    if not isinstance(like, DTensor) or size == 1:
        return change(shards_NRC)
    assert size == dist.get_world_size(), "ranks are counted as the mesh counts them"
    number, columns, rank, shards = len(shards_NRC), like.shape[1], dist.get_rank(), like.device_mesh.size(-1)
    rows = _shard_rows(like.shape[0], shards)
    firsts = [(owner - first_owner) % size for owner in range(size)]
    counts = [len(range(first, number, size)) for first in firsts]
    near = [other // shards == rank // shards for other in range(size)]  # in this replica

    sent = [shards_NRC[first::size] if is_near else shards_NRC[:0] for first, is_near in zip(firsts, near, strict=True)]
    shapes = [(counts[rank] * is_near, rows[other % shards], columns) for other, is_near in enumerate(near)]
    parts = _all_to_all(sent, shapes)
    whole = torch.cat([part for part, is_near in zip(parts, near, strict=True) if is_near], dim=1)
    by_shard = (change(whole) if counts[rank] else whole).split(rows, dim=1)
    parts = _all_to_all(
        [by_shard[other % shards] for other in range(size)],
        [(count, rows[rank % shards], columns) for count in counts],
    )
    changed = torch.empty_like(shards_NRC)
    for first, part in zip(firsts, parts, strict=True):
        changed[first::size] = part
    return changed


def sum_over_shards(like: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The sum of the values of the ranks that hold different shards, on all of them. A collective of all ranks."""
    if isinstance(like, DTensor) and like.device_mesh.size(-1) > 1:
        dist.all_reduce(values, group=like.device_mesh.get_group(like.device_mesh.ndim - 1))
    return values


def _shard_rows(rows: int, shards: int) -> list[int]:
    """The rows of each shard; the last ones may have fewer, or none."""
    most = -(-rows // shards)
    return [max(0, min(most, rows - shard * most)) for shard in range(shards)]


def _all_to_all(sent: Sequence[torch.Tensor], shapes: Sequence[tuple[int, int, int]]) -> list[torch.Tensor]:
    """Send a tensor to each rank; returns those received, whose shapes are known."""
    sizes = [a * b * c for a, b, c in shapes]
    outgoing = torch.cat([part.reshape(-1) for part in sent])
    incoming = outgoing.new_empty(sum(sizes))
    dist.all_to_all_single(incoming, outgoing, sizes, [part.numel() for part in sent])
    return [part.view(shape) for part, shape in zip(incoming.split(sizes), shapes, strict=True)]
