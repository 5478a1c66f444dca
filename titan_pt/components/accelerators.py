"""Memory, bandwidth and peak rates of accelerators, from the makers' data sheets; for the planner and the MFU.

No torch here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from titan_pt.config.errors import ConfigError, nearest, one_of

GIB = 2**30


@dataclass(frozen=True)
class Accelerator:
    """One kind of device."""

    name: str
    """Name for `--gpu`."""
    device_name: str
    """Pattern of the name that the driver gives the device."""
    memory_gib: float
    """Memory that a program can use, a little less than the device's name says."""
    bandwidth: float
    """Bytes a second between memory and processors."""
    flops: Mapping[str, float]
    """Dense operations a second by data type; types that are missing are not supported."""


def _gpu(
    name: str, device_name: str, memory_gib: float, terabytes: float, bfloat16: float | None, float32: float
) -> Accelerator:
    """One entry: bandwidth in TB/s, rates in TFLOP/s; float32 without TF32, which torch does not use by default."""
    rates = {"bfloat16": bfloat16, "float32": float32}
    flops = {dtype: rate * 1e12 for dtype, rate in rates.items() if rate is not None}
    return Accelerator(name, device_name, memory_gib, terabytes * 1e12, flops)


# The first entry whose words are in a device's name counts.
ACCELERATORS = (
    _gpu("gb200", "GB200", 184.0, 8.0, 2500, 80),
    _gpu("b200", "B200", 178.0, 8.0, 2250, 75),
    _gpu("gh200", "GH200", 94.5, 4.0, 989, 67),
    _gpu("h200", "H200", 139.8, 4.8, 989, 67),
    _gpu("h100-nvl", "H100 NVL", 93.1, 3.9, 835, 60),
    _gpu("h100-pcie", "H100 PCIe", 79.1, 2.0, 756, 51),
    _gpu("h100-80gb", "H100", 79.1, 3.35, 989, 67),
    _gpu("h800", "H800", 79.1, 3.35, 989, 67),
    _gpu("a100-40gb", r"A100 (\w+ )?40GB", 39.4, 1.555, 312, 19.5),
    _gpu("a100-80gb", "A100", 79.1, 2.039, 312, 19.5),
    _gpu("a800", "A800", 79.1, 2.039, 312, 19.5),
    _gpu("a40", "A40", 44.4, 0.696, 149.7, 37.4),
    _gpu("a30", "A30", 23.6, 0.933, 165, 10.3),
    _gpu("a10g", "A10G", 22.0, 0.6, 70, 35),
    _gpu("a10", "A10", 22.0, 0.6, 125, 31.2),
    _gpu("l40s", "L40S", 44.4, 0.864, 362, 91.6),
    _gpu("l4", "L4", 22.0, 0.3, 121, 30.3),
    _gpu("rtx-6000-ada", "RTX 6000 Ada", 47.4, 0.96, 364, 91.1),
    _gpu("5090", "RTX 5090", 31.4, 1.79, 209.5, 104.8),
    _gpu("4090", "RTX 4090", 23.5, 1.008, 165.2, 82.6),
    _gpu("3090", "RTX 3090", 23.6, 0.936, 71, 35.6),
    _gpu("v100-32gb", "V100 SXM2 32GB", 31.7, 0.9, None, 15.7),
    _gpu("v100-16gb", "V100", 15.8, 0.9, None, 15.7),
    _gpu("t4", "T4", 14.6, 0.32, None, 8.1),
)

# Names for `--gpu` without a size.
_SHORT = {"a100": "a100-80gb", "h100": "h100-80gb", "v100": "v100-16gb"}


def find_accelerator(name: str) -> Accelerator:
    """The accelerator that `--gpu` names; a100, h100 and v100 alone are the usual ones.

    Raises:
        ConfigError: the name is not known.
    """
    known = {accelerator.name: accelerator for accelerator in ACCELERATORS}
    wanted = name.lower().replace("_", "-")
    wanted = _SHORT.get(wanted, wanted)
    if wanted not in known:
        raise ConfigError(f"--gpu {name!r}: unknown; known are {one_of(known)}{nearest(name, known)}")
    return known[wanted]


def named_device(device_name: str) -> Accelerator | None:
    """The accelerator of a driver's device name, such as "NVIDIA A100-SXM4-80GB"; None if it is not in the table."""
    name = device_name.replace("-", " ")
    # Whole words: an RTX A4000 is not an A40.
    return next((gpu for gpu in ACCELERATORS if re.search(rf"\b{gpu.device_name}\b", name, re.IGNORECASE)), None)
