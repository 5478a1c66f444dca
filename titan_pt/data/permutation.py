"""Keyed permutations and hashes: the order of documents as a function, with no state to save."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

_ROUNDS = 4


def keyed_hash(key: bytes, text: bytes) -> int:
    """Hash of 64 bits that depends on key and text alone, on every machine."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=key).digest(), "little")


def digest(parts: Sequence[Any]) -> str:
    """Fingerprint of JSON values: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def permute(index: int, size: int, key: bytes) -> int:
    """The image of `index` under a pseudo-random bijection of 0..size-1.

    A balanced Feistel network over the next even number of bits, walked until it falls inside the range
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): constant memory, no table to shuffle.

    Args:
        index: in 0..size-1.
        size: of the range.
        key: at most 64 bytes.
    """
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(_ROUNDS):
            mixed = keyed_hash(key, bytes([number]) + right.to_bytes(8, "little"))
            left, right = right, left ^ (mixed & mask)
        index = (left << half) | right
        if index < size:
            return index
