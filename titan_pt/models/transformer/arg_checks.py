"""What is wrong with the arguments of a transformer, in words. Imported where something may be."""

from collections.abc import Sequence
from typing import Any


def check(args: Any, scaling: Sequence[str]) -> None:
    """Raise a ValueError where two arguments of a TransformerArgs do not fit together.

    Args:
        scaling: names of those that scale RoPE.
    """
    if args.num_heads % args.num_kv_heads:
        allowed = ", ".join(str(n) for n in range(1, args.num_heads + 1) if args.num_heads % n == 0)
        raise ValueError(
            f"model.num_heads = {args.num_heads}: not a multiple of model.num_kv_heads = {args.num_kv_heads}, "
            f"which may be {allowed}"
        )
    if args.head_dim % 2:
        raise ValueError(
            f"model.head_dim = {args.head_dim}: must be even (RoPE rotates pairs), such as {args.head_dim + 1}"
        )
    if args.num_tokens is not None and args.num_tokens > args.vocab_size:
        raise ValueError(f"model.num_tokens = {args.num_tokens}: above model.vocab_size = {args.vocab_size}")
    if args.qk_norm_placement and not args.qk_norm:
        raise ValueError(
            f"model.qk_norm_placement = {args.qk_norm_placement!r}: needs model.qk_norm = true; leave one of them out"
        )
    unset = [name for name in scaling if getattr(args, name) is None]
    if unset and len(unset) < len(scaling):
        names = ", ".join(f"model.{name}" for name in unset)
        raise ValueError(f"{names}: not set; the scaling of RoPE has all of {', '.join(scaling)}, or none")
    low, high = args.rope_low_freq_factor, args.rope_high_freq_factor
    if low is not None and high is not None and high <= low:
        raise ValueError(f"model.rope_high_freq_factor = {high}: must be above model.rope_low_freq_factor = {low}")
