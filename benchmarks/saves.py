"""How long training stands still for a save of a model with AdamW's moments, by checkpoint.async_mode.

    python benchmarks/saves.py [--flavor small] [--repeat 3] [--folder DIR]

Prints the seconds until `save` returns (the stall), until the step is whole on disk, and of the check that all tensors
are finite, which is part of the stall.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from titan_pt.components.checkpoint.checkpointer import CheckpointDocuments, Checkpointer, step_bytes
from titan_pt.components.checkpoint.finite import first_not_finite
from titan_pt.config.schema.checkpoint import Checkpoint
from titan_pt.distributed.world import lone_world
from titan_pt.models.transformer import FLAVORS, Transformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flavor", default="small", choices=list(FLAVORS))
    parser.add_argument("--vocab_size", type=int, default=50304)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", help="on the disk to measure (default: a temporary one)")
    flags = parser.parse_args()
    with lone_world() as world, tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        args = FLAVORS[flags.flavor].model_copy(update={"vocab_size": flags.vocab_size, "num_tokens": flags.vocab_size})
        weights = Transformer(args).to(world.device).state_dict()
        tensors = {f"model.{name}": tensor.detach() for name, tensor in weights.items()}
        for name, tensor in weights.items():
            tensors |= {f"optimizer.{name}.{key}": torch.rand_like(tensor) for key in ("exp_avg", "exp_avg_sq")}
        print(f"{flags.flavor}: {step_bytes(tensors) / 1e9:.2f} GB a step, on {world.device.type}")
        start = time.perf_counter()
        first_not_finite(tensors)
        print(f"finite      {time.perf_counter() - start:8.3f} s")
        modes = ["disabled", "async", *(["async_with_pinned_mem"] if world.device.type == "cuda" else [])]
        for mode in modes:
            saver = Checkpointer(Path(folder) / mode, Checkpoint(async_mode=mode, keep_latest_k=1), world)  # type: ignore[arg-type]
            for step in range(1, flags.repeat + 1):
                start = time.perf_counter()
                saver.save(step, tensors, CheckpointDocuments({}, {}, ""))
                stall = time.perf_counter() - start
                saver.close()
                print(f"{mode:22} {stall:8.3f} s stall, {time.perf_counter() - start:8.3f} s until it is whole")


if __name__ == "__main__":
    main()
