"""Peak floating-point rates, for the model's FLOPs utilisation (MFU)."""

import time

import torch


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second of one device: from the table, measured on a CPU, or None where it is not known.

    Only bfloat16 is looked up: in float32 a GPU's rate depends on its TF32 settings, so there it is not known. A CPU
    without bfloat16 units emulates it: its float32 rate bounds what it can do.
    """
    if device.type == "cpu":
        return max(measure_matmul(device, kind) for kind in {dtype, torch.float32})
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    from titan_pt.components.accelerators import named_device

    known = named_device(torch.cuda.get_device_name(device))
    return known.flops.get("bfloat16") if known else None


def measure_matmul(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.25) -> float:
    """Best rate of a square matrix product over a short time."""
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    best, end = 0.0, time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        a @ b
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best
