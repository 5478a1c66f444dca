"""Peak memory of real steps on this CPU against a dry run: `python benchmarks/memory.py [flavor ...]`

Each in its own process: the peak of resident memory during three steps less that before the model was built, so
that libraries and caches do not count. glibc is told to give freed memory back, else its own pools are measured too.
"""

import json
import os
import resource
import subprocess
import sys
from typing import Any

FLAVORS = ("tiny", "small")
FLAGS = (
    "--tokenizer.name=gpt2",
    "--training.seq_len=1024",
    "--training.local_batch_size=4",
    "--training.mixed_precision_param=float32",
    "--activation_checkpoint.mode=none",
    '--data.sources=[{name="arithmetic"}]',
)


def flags(flavor: str) -> list[str]:
    """Flags of the run that is measured."""
    return [f"--model.flavor={flavor}", *FLAGS]


def measure(flavor: str, *more: str) -> dict[str, float]:
    """Bytes that three real steps add to the peak of this process, and the operations of one of them."""
    from titan_pt.build import build_context
    from titan_pt.config import load_config
    from titan_pt.config.resolve.checks import tokenizer_size
    from titan_pt.distributed.init import materialize
    from titan_pt.distributed.world import start_world, stop_world
    from titan_pt.planner.operations import count_flops
    from titan_pt.planner.sized_tokenizer import SizedTokenizer
    from titan_pt.protocols.context import TrainState
    from titan_pt.protocols.trainer_spec import get_trainer_spec
    from titan_pt.run.run_folder import run_folder

    config = load_config([*flags(flavor), *more])
    spec = get_trainer_spec(config.job.trainer)
    assert spec.build_dry_run is not None
    run_size, tokenizer = spec.plan_run_size(config, 1), SizedTokenizer(tokenizer_size(config))
    world = start_world(config, run_folder(config))
    before = resident("VmRSS")
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
    flops = count_flops(lambda: step(TrainState(step=2)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    stop_world()
    return {"bytes": peak - before, "flops": flops}


def resident(key: str) -> int:
    """Bytes of this process by a key of /proc/self/status."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{key}:"))


def predict(flavor: str, *more: str) -> dict[str, float]:
    """Bytes and operations of the same step by a dry run, and its operations by the formula of the MFU."""
    from titan_pt.config import load_config
    from titan_pt.config.resolve.checks import model_args, tokenizer_size
    from titan_pt.planner.dry_run_step import dry_run_step
    from titan_pt.protocols.model_spec import get_model_spec

    config = load_config([*flags(flavor), *more])
    spec = get_model_spec(config.model.name)
    args = model_args(config, spec, tokenizer_size(config))
    dry_run = dry_run_step(config, 1, "cpu", counts=True)
    assert dry_run.operations is not None
    tokens = config.training.local_batch_size * config.training.seq_len
    return {
        "traced": dry_run.peak_bytes,
        "flops": dry_run.operations.flops,
        "formula_flops": spec.flops_per_token(args, config.training.seq_len) * tokens,
    }


def in_process(what: str, flavor: str, *more: str) -> Any:
    """Run `measure` or `predict` in its own process."""
    # Large blocks come from the system and go back to it, as on a device whose allocator is asked for the peak.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, what, flavor, *more], capture_output=True, text=True, env=env, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str]) -> None:
    """Print a Markdown table."""
    if arguments[:1] in (["measure"], ["predict"]):
        print(json.dumps({"measure": measure, "predict": predict}[arguments[0]](*arguments[1:])))
        return
    print("| model | peak MiB, measured | traced | traced / measured | FLOPs, measured | traced | formula |")
    print("|---|---|---|---|---|---|---|")
    for flavor in arguments or FLAVORS:
        measured, predicted = in_process("measure", flavor), in_process("predict", flavor)
        traced, real = predicted["traced"], measured["bytes"]
        flops, counted, formula = measured["flops"], predicted["flops"], predicted["formula_flops"]
        print(
            f"| {flavor} | {real / 2**20:,.0f} | {traced / 2**20:,.0f} | {traced / real:.3f} "
            f"| {flops:.4g} | {counted:.4g} | {formula:.4g} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
