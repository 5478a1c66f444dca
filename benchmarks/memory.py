"""Peak memory of real steps on this CPU against a dry run: `python benchmarks/memory.py [--flavor tiny] [--compiled]`

A row for each way of activation checkpointing and each optimizer. The real peak is that of torch's CPU allocator, by
its profiler, over two steps of a run that is built in its own process: every tensor counts, also those inside of
kernels. Beside it stands what the steps add to the resident memory, which has the allocator's noise. With `--compiled`
the real steps are those of torch.compile, which the dry run does not trace.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

MODES = {
    "none": ("--activation_checkpoint.mode=none",),
    "selective op": ("--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=op"),
    "selective 2": ("--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=2"),
    "full": ("--activation_checkpoint.mode=full",),
}
OPTIMIZERS = ("AdamW", "AdamW8bit")
FLAGS = (
    "--tokenizer.name=gpt2",
    "--training.seq_len=512",
    "--training.local_batch_size=4",
    "--training.mixed_precision_param=float32",
    "--checkpoint.enable=false",
    '--data.sources=[{name="arithmetic"}]',
)
# Of a short run: seconds a row.
SMALL = (
    "--tokenizer.name=byte",
    "--model.vocab_size=2048",
    "--model.num_layers=3",
    "--model.hidden_size=256",
    "--model.num_heads=8",
    "--model.num_kv_heads=4",
    "--model.head_dim=32",
    "--model.intermediate_size=512",
    "--training.seq_len=256",
)


def measure(*flags: str) -> dict[str, float]:
    """Bytes of two real steps at their peak, and the operations of a third."""
    from torch.profiler import ProfilerActivity, profile

    from titan_pt.build import build_context
    from titan_pt.config import load_config
    from titan_pt.distributed.init import materialize
    from titan_pt.distributed.world import start_world, stop_world
    from titan_pt.planner.operations import KernelLog
    from titan_pt.planner.sized_tokenizer import SizedTokenizer, tokenizer_size
    from titan_pt.planner.trace import StepTrace
    from titan_pt.protocols.context import TrainState
    from titan_pt.protocols.trainer_spec import get_trainer_spec
    from titan_pt.run.run_folder import run_folder

    config = load_config(list(flags))
    spec = get_trainer_spec(config.job.trainer)
    assert spec.build_dry_run is not None
    run_size, tokenizer = spec.plan_run_size(config, 1), SizedTokenizer(tokenizer_size(config))
    world = start_world(config, run_folder(config))
    before = resident("VmRSS")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        context = build_context(
            spec,
            config,
            world,
            tokenizer,
            spec.build_model(config, tokenizer),
            run_size,
            materialize=materialize,
            raise_if_preempted=lambda: None,
            reads_data=False,
        )
        step = spec.build_dry_run(spec, context).step
        for number in range(2):
            step(TrainState(step=number))
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    log = KernelLog()
    eager = not config.compile.enable and config.optimizer.name == "AdamW"
    if eager:  # compiled kernels are not seen one by one
        with StepTrace(context.model, context.optimizer, log):
            step(TrainState(step=2))
    stop_world()
    flops = log.operations().flops if eager else float("nan")
    return {"bytes": allocated_peak(profiler), "resident": added, "flops": flops}


def allocated_peak(profiler: Any) -> int:
    """The most bytes that the CPU's allocator had given out at a time while it was profiled."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def resident(key: str) -> int:
    """Bytes of this process by a key of /proc/self/status."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{key}:"))


def predict(*flags: str) -> dict[str, float]:
    """Bytes and operations of the same step by a dry run, and its operations by the formula of the MFU."""
    from titan_pt.components.accelerators import ACCELERATORS
    from titan_pt.config import load_config
    from titan_pt.config.resolve.checks import model_args
    from titan_pt.planner.dry_run_step import dry_run_step
    from titan_pt.planner.plan import Target, memory_of
    from titan_pt.planner.sized_tokenizer import tokenizer_size
    from titan_pt.protocols.model_spec import get_model_spec

    config = load_config(list(flags))
    spec = get_model_spec(config.model.name)
    args = model_args(config, spec, tokenizer_size(config))
    dry_run = dry_run_step(config, 1, "cpu", counts=True)
    assert dry_run.operations is not None
    tokens = config.training.local_batch_size * config.training.seq_len
    return {
        "bytes": memory_of(config, Target(ACCELERATORS[0], 1), dry_run).peak_bytes,
        "flops": dry_run.operations.flops,
        "formula_flops": spec.flops_per_token(args, config.training.seq_len) * tokens,
    }


def in_process(what: str, *flags: str) -> dict[str, float]:
    """Run `measure` or `predict` in its own process."""
    # Large blocks come from the system and go back to it, as on a device whose allocator is asked for the peak.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, what, *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(flavor: str, more: Sequence[str], *, compiled: bool) -> Iterator[dict[str, Any]]:
    """Measured and predicted bytes for all ways of activation checkpointing and optimizers."""
    for mode, mode_flags in MODES.items():
        for optimizer in OPTIMIZERS:
            flags = [*FLAGS, f"--model.flavor={flavor}", *more, *mode_flags, f"--optimizer.name={optimizer}"]
            real = in_process("measure", *flags, f"--compile.enable={str(compiled).lower()}")
            plan = in_process("predict", *flags)
            share = plan["bytes"] / real["bytes"]
            yield {"mode": mode, "optimizer": optimizer, "real": real, "predicted": plan, "share": share}


def main(arguments: list[str]) -> None:
    """Print a Markdown table."""
    if arguments[:1] in (["measure"], ["predict"]):
        print(json.dumps({"measure": measure, "predict": predict}[arguments[0]](*arguments[1:])))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flavor", default="tiny")
    parser.add_argument("--compiled", action="store_true", help="real steps by torch.compile")
    parser.add_argument("--small", action="store_true", help="a small model instead: seconds a row")
    own = parser.parse_args(arguments)
    print(
        "| checkpointing | optimizer | predicted, MiB | real | predicted / real | resident | FLOPs, real / predicted |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in compare(own.flavor, SMALL if own.small else (), compiled=own.compiled):
        real, plan = row["real"], row["predicted"]
        print(
            f"| {row['mode']} | {row['optimizer']} | {plan['bytes'] / 2**20:,.1f} | {real['bytes'] / 2**20:,.1f} "
            f"| {row['share']:.3f} | {real['resident'] / 2**20:,.1f} | {real['flops'] / plan['flops']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
