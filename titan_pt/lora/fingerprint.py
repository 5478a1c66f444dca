"""Knows weights again, whatever files and types they are in."""

import hashlib
from collections.abc import Iterable, Mapping

import torch

from titan_pt.hf.transformer import LAYOUT


def fingerprint(weights: Iterable[tuple[str, torch.Tensor]], num_tokens: int) -> dict[str, str]:
    """Hashes of whole weights by the type that they are rounded to; a tied weight comes once.

    Rows that only pad the vocabulary are left out. A model that is held in bfloat16 knows no hash of float32.
    """
    hashes = {"bfloat16": hashlib.blake2b(digest_size=16), "float32": hashlib.blake2b(digest_size=16)}
    for name, tensor in weights:
        rows = tensor[:num_tokens] if name in LAYOUT.vocabulary else tensor
        if rows.dtype.itemsize < 4:
            hashes.pop("float32", None)
        for kind, digest in hashes.items():
            digest.update(name.encode())
            plain = rows.detach().to("cpu", getattr(torch, kind)).contiguous()
            digest.update(plain.view(torch.uint8).numpy().tobytes())
    return {kind: found.hexdigest() for kind, found in hashes.items()}


def agree(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two fingerprints are of the same weights, by the types that both have."""
    return all(one[kind] == other[kind] for kind in one.keys() & other.keys())
