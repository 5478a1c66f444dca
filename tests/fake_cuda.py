"""Whole steps on a CUDA device without numbers: what would wait for it raises. A process of its own: see `main`."""

import ctypes
import dataclasses
import functools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

OPERATORS: Counter[str] = Counter()
COPIES: Counter[str] = Counter()
"""Copies between devices that the host waits for."""


def torch_libraries() -> Path:
    """The folder of torch's own libraries."""
    import torch

    return Path(torch.__file__).parent / "lib"


def build(folder: Path) -> Path:
    """Compile the device that does nothing."""
    from torch.utils.cpp_extension import include_paths

    library = folder / "fake_cuda.so"
    includes = [f"-I{path}" for path in include_paths()]
    options = ["-shared", "-fPIC", "-std=c++20", f"-L{torch_libraries()}", "-lc10", "-ltorch_cpu"]
    subprocess.run(
        ["g++", *includes, str(Path(__file__).with_suffix(".cpp")), "-o", str(library), *options],
        check=True,
        capture_output=True,
    )
    return library


def load(library: str, torch_libraries: str) -> None:
    """Register the device; torch looks for it once, when it is imported."""
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(f"{torch_libraries}/{name}", mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(library)


def main() -> None:
    """Do the steps of the configs that stdin gives as JSON; print what was compiled and copied in each."""
    load(*sys.argv[1:])
    patch()
    print(json.dumps([step(**job) for job in json.load(sys.stdin)]))


def patch() -> None:
    """Let a dry run of one rank be on the device, compiled."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention.flex_attention import create_block_mask

    from titan_pt.components import loss
    from titan_pt.data.stream.batch import MicroBatch
    from titan_pt.distributed import dry_run_world
    from titan_pt.models.transformer import flex, kernels
    from titan_pt.planner import dry_run_step

    watch(FakeTensorMode)
    world = dry_run_world.DryRunWorld
    dry_run_world.DryRunWorld = lambda **fields: world(**{**fields, "device": torch.device("cuda")})  # type: ignore
    dry_run_world.FakeTensorMode = functools.partial(FakeTensorMode, allow_non_fake_inputs=True)  # type: ignore
    dry_run_step.for_dry_run = lambda config: (config, ())
    dry_run_step.allocate_without_numbers = allocate
    dry_run_step._trace_step = two_steps
    loss.device_memory = lambda _device: 80 * 2**30
    kernels.activate_flash = lambda _device: None
    # By the default backend it would be computed on a real device.
    flex.compiled_block_mask = lambda: torch.compile(create_block_mask, backend="eager", fullgraph=True)
    to = MicroBatch.to

    def counted(batch: MicroBatch, device: torch.device) -> MicroBatch:
        """A copy on the device, which comes from the host's numbers: there are none here."""
        moved = to(dataclasses.replace(batch, positions_BL=batch.positions_BL.to(device, non_blocking=True)), device)
        moved.positions_BL.num_documents = 2 * len(batch.positions_BL)  # type: ignore[attr-defined]
        return moved

    MicroBatch.to = counted  # type: ignore[method-assign]


def two_steps(_context: Any, dry_run: Any, _log: Any) -> dict[str, int]:
    """Do a step and another; memory is not asked for."""
    from titan_pt.protocols.context import TrainState

    OPERATORS.clear()
    COPIES.clear()
    for number in range(2):
        dry_run.step(TrainState(step=number))
    return {}


def watch(mode: Any) -> None:
    """Have torch's mode of fake tensors count; a subclass would not know FlexAttention."""
    import torch

    aten, dispatch = torch.ops.aten, mode.dispatch

    def counting(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = dispatch(self, func, types, args, kwargs)
        OPERATORS[str(func)] += 1
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[func is aten.copy_.default]
            asynchronous = (kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2])
            if source.device.type != out.device.type and not asynchronous:
                COPIES[f"{source.device.type} to {out.device.type}"] += 1
        return out

    mode.dispatch = counting


def allocate(model: Any, _config: Any, world: Any) -> None:
    """Move a model to the device; to_empty cannot swap fake tensors of two devices."""
    import torch
    from torch import nn

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device=world.device)))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty_like(buffer, device=world.device))


def step(flags: list[str], varlen: bool = False) -> dict[str, Any]:
    """Do a step, and a second one in which nothing may be compiled anew."""
    import torch
    from torch._dynamo.utils import counters

    from titan_pt.config import load_config
    from titan_pt.models.transformer import kernels
    from titan_pt.models.transformer import varlen as varlen_module
    from titan_pt.planner import dry_run_step

    kernels.knows_varlen = varlen_module.knows_varlen if varlen else lambda *_arguments: False
    torch._dynamo.reset()
    counters.clear()
    graphs: list[int] = []
    build = dry_run_step._build_dry_run

    def watched(spec: Any, context: Any) -> Any:
        dry_run = build(spec, context)

        def step(state: Any) -> Any:
            metrics = dry_run.step(state)
            graphs.append(counters["stats"]["unique_graphs"])
            return metrics

        return dataclasses.replace(dry_run, step=step)

    dry_run_step._build_dry_run = watched
    try:
        dry_run_step.dry_run_step(load_config(flags), 1, "cpu")
    finally:
        dry_run_step._build_dry_run = build
    return {
        "graphs": graphs,
        "breaks": dict(counters["graph_break"]),
        "copies": dict(COPIES),
        "attention": sorted(name for name in OPERATORS if "attn" in name or "attention" in name),
    }


if __name__ == "__main__":
    main()
