"""Peak floating-point rates, for the model's FLOPs utilisation (MFU)."""

import re
import time

import torch

FORMULA = "6 N + 12 layers heads head_dim seq_len per token, tied output layer counted once, attention not halved"

# Dense bf16 operations a second, from the makers' data sheets. The first name found in the device's name counts.
PEAK_FLOPS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second of one device: from the table, measured on a CPU, or None where it is not known.

    The table is for bfloat16; in float32 a GPU's rate depends on its TF32 settings, so there it is not known. A CPU
    without bfloat16 units emulates it: its float32 rate bounds what it can do.
    """
    if device.type == "cpu":
        return max(measure_matmul(device, kind) for kind in {dtype, torch.float32})
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device).replace("-", " ").lower()
    # Whole words: an RTX A4000 is not an A40.
    return next((rate for key, rate in PEAK_FLOPS.items() if re.search(rf"\b{key.lower()}\b", name)), None)


def measure_matmul(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.25) -> float:
    """Best rate of a square matrix product over a short time."""
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    best, end = 0.0, time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        a @ b
        best = max(best, 2.0 * size**3 / (time.perf_counter() - start))
    return best
