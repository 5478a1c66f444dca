"""torch.compile, block by block: one graph serves all equal blocks, so the first step compiles faster."""

import contextlib
import functools
import os
import shutil

import torch
import torch._dynamo.callback
import torch._dynamo.config
import torch._inductor.config
from torch import nn

from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Compile
from titan_pt.run.heartbeat import phase

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
    _tell_watchers()
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


@functools.cache
def _tell_watchers() -> None:
    """Each compilation is a phase, whenever it comes: nothing beats in it."""
    compilation = contextlib.ExitStack()
    handler = torch._dynamo.callback.callback_handler
    handler.register_start_callback(lambda *_: compilation.enter_context(phase("a compilation", "compile")))
    handler.register_end_callback(lambda *_: compilation.close())


def _compilers() -> list[str]:
    """Names of C++ compilers to try: the last word of CXX that is no option ("ccache g++"), then the usual."""
    words = [word for word in os.environ.get("CXX", "").split() if not word.startswith("-")]
    return [*words[-1:], "g++", "clang++"]
