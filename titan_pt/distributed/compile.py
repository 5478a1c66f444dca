"""torch.compile, block by block: one graph serves all equal blocks, so the first step compiles faster."""

import os
import shutil

import torch
import torch._dynamo.config
import torch._inductor.config
from torch import nn

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Compile

_GRAPHS = 64


def compile_blocks(blocks: nn.ModuleList, config: Compile, device: torch.device) -> None:
    """Compile each block in place."""
    check_compiler(config, device)
    # All blocks share their graphs: of shapes, with gradients and without. Rows of RL have many shapes.
    torch._dynamo.config.recompile_limit = max(_GRAPHS, torch._dynamo.config.recompile_limit)
    for block in blocks:
        block.compile(backend=config.backend, fullgraph=True)


def check_compiler(config: Compile, device: torch.device, switch: str = "compile.enable") -> None:
    """Check that torch.compile can work on this device; on a CPU, choose inductor's C++ compiler.

    Args:
        switch: the option that asked for it.

    Raises:
        ConfigError: compile cannot work: the backend is unknown, or there is no compiler.
    """
    backends = torch.compiler.list_backends(exclude_tags=())
    if config.backend not in backends:
        raise ConfigError(f"compile.backend = {config.backend!r}: torch has {', '.join(sorted(backends))}")
    if config.cache_dir:
        from titan_pt.distributed.compile_cache import use_cache

        use_cache(config.cache_dir, device.type)
    if config.backend != "inductor" or device.type != "cpu":
        return
    names = _compilers()
    found = next(filter(shutil.which, names), None)
    if found is None:
        raise ConfigError(
            f"{switch} = true: needs a C++ compiler on a CPU and {names[0]} is not on the PATH; "
            f"install one (Debian: apt-get install g++), name it in CXX, or set {switch} = false"
        )
    torch._inductor.config.cpp.cxx = (None, found)  # it takes CXX for one word, and looks for no other


def _compilers() -> list[str]:
    """Names of C++ compilers to try: the last word of CXX that is no option ("ccache g++"), then the usual."""
    words = [word for word in os.environ.get("CXX", "").split() if not word.startswith("-")]
    return [*words[-1:], "g++", "clang++"]
