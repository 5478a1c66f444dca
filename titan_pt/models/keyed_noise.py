"""Random numbers as a function of a key: no generator, no state, the same on every device and in every order."""

import torch

MASK = 0xFFFFFFFF


def mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of MurmurHash3 on 32-bit values held in int64."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B & MASK
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & MASK
    return x ^ (x >> 16)


def row_key(seed: int, step: int, prompt: int = 0, sample: int = 0) -> int:
    """The 63-bit key of the noise of one completion, or of a training step."""
    key = 0x9E3779B97F4A7C15
    for part in (seed, step, prompt, sample):
        key = ((key ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        key ^= key >> 29
    return key >> 1
