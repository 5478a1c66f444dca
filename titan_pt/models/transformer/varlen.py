"""Documents kept apart by the flash kernel for sequences of different lengths, on CUDA devices that have it.

It reads no mask: all rows are laid end to end, and each document is a sequence. FlexAttention, which does the same for
any device and type, takes half as long again (an estimate).

Legend: B batch, L sequence, T tokens (B x L, flat), S slots for documents, N query heads, K key heads, H head dim.
"""

import functools
import inspect
from typing import NamedTuple

import torch

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # a torch of before
    varlen_attn = None  # type: ignore[assignment]

# The kernel's backward keeps 128 rows of scratch for every slot, and its forward visits every slot's blocks: where
# documents are shorter than this on average, FlexAttention takes less of both.
SHORTEST_MEAN = 128


class DocumentBounds(NamedTuple):
    """Where each document begins, for `attend`."""

    starts_S1: torch.Tensor
    """First tokens of the documents of all rows, then T in every slot that is left; int32."""
    longest: int
    """Tokens that the longest document may have."""

    def attend(self, q_BNLH: torch.Tensor, k_BKLH: torch.Tensor, v_BKLH: torch.Tensor) -> torch.Tensor:
        """Compute attention output_BNLH of each document to itself."""
        q_TNH, k_TKH, v_TKH = (x.transpose(1, 2).flatten(0, 1) for x in (q_BNLH, k_BKLH, v_BKLH))
        starts, longest = self.starts_S1, self.longest
        out_TNH: torch.Tensor = varlen_attn(  # type: ignore[assignment]
            q_TNH, k_TKH, v_TKH, starts, starts, longest, longest, window_size=(-1, 0), enable_gqa=True
        )
        return out_TNH.unflatten(0, (q_BNLH.shape[0], -1)).transpose(1, 2)


def document_bounds(positions_BL: torch.Tensor) -> DocumentBounds | None:
    """Find where the documents of packed rows begin, without waiting for the device.

    None where the tensor has no attribute `num_documents`, the most documents that there can be, or they are too many
    for the kernel. The slots are the next power of two: few sizes.
    """
    slots = 1 << (getattr(positions_BL, "num_documents", positions_BL.numel()) - 1).bit_length()
    if slots * SHORTEST_MEAN > positions_BL.numel():
        return None
    starts_BL = positions_BL == 0
    first_L = torch.arange(positions_BL.shape[1], device=positions_BL.device) == 0
    number_T = (starts_BL | first_L).flatten().cumsum(dim=0) - 1  # of each token's document
    slots_S1 = torch.arange(slots + 1, device=positions_BL.device)
    starts_S1 = torch.searchsorted(number_T, slots_S1, out_int32=True)
    if not torch.compiler.is_compiling():
        torch._dynamo.maybe_mark_dynamic(starts_S1, 0)  # one graph for all numbers of slots
    return DocumentBounds(starts_S1, positions_BL.shape[1])


@functools.cache
def knows_varlen(device_type: str, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernel runs a forward and a backward on this device, found by trying."""
    if device_type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or varlen_attn is None:
        return False
    if not {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
        return False
    q = torch.zeros(1, 2, 256, head_dim, device=device_type, dtype=dtype, requires_grad=True)
    kv = torch.zeros(1, 1, 256, head_dim, device=device_type, dtype=dtype)
    starts_S1 = torch.tensor([0, 100, 256], device=device_type, dtype=torch.int32)
    try:
        DocumentBounds(starts_S1, 256).attend(q, kv, kv).sum().backward()
    except RuntimeError:
        return False
    return True
