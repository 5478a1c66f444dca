"""torch.compile, block by block: one graph serves all equal blocks, so that the first step is soon there."""

import os
import shutil

import torch
from torch import nn

from titan_pt.config.errors import ConfigError
from titan_pt.config.job_config import Compile


def compile_blocks(blocks: nn.ModuleList, config: Compile, device: torch.device) -> None:
    """Compile each block in place."""
    check_compiler(config, device)
    for block in blocks:
        block.compile(backend=config.backend, fullgraph=True)


def check_compiler(config: Compile, device: torch.device, switch: str = "compile.enable") -> None:
    """Raise a ConfigError where compile cannot work: an unknown backend, or no C++ compiler on a CPU.

    Args:
        switch: the option that asked for it.
    """
    backends = torch.compiler.list_backends(exclude_tags=())
    if config.backend not in backends:
        raise ConfigError(f"compile.backend = {config.backend!r}: torch has {', '.join(sorted(backends))}")
    compiler = os.environ.get("CXX", "g++")
    found = shutil.which(compiler) or shutil.which("clang++")
    if config.backend == "inductor" and device.type == "cpu" and not found:
        raise ConfigError(
            f"{switch} = true: needs a C++ compiler on a CPU and {compiler} is not on the PATH; "
            f"install one (Debian: apt-get install g++), name it in CXX, or set {switch} = false"
        )
