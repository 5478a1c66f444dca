"""The dry run of `--comm.mode fake_backend`: a run of many ranks on one machine before it is submitted."""

import gc
import os

from titan_pt.components.accelerators import GIB
from titan_pt.components.lr_scheduler import warmup_steps
from titan_pt.config.resolve.checks import model_args
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.distributed.dry_run_world import dry_run_size
from titan_pt.distributed.world import world_size
from titan_pt.planner.dry_run_step import DryRunResult, dry_run_step
from titan_pt.planner.report import FORMULA
from titan_pt.planner.sized_tokenizer import tokenizer_size
from titan_pt.protocols.model_spec import get_model_spec
from titan_pt.run.exit_codes import ExitCode, Preempted
from titan_pt.run.log import logger


def run_dry(config: JobConfig) -> ExitCode:
    """Try the run of NGPU ranks in this process, on tensors without numbers. Returns DONE or TERMINATED."""
    gc.enable()  # off during the imports
    try:
        dry_run(config)
    except Preempted:
        logger.warning("Stopped by a signal; a dry run leaves nothing")
        return ExitCode.TERMINATED
    return ExitCode.DONE


def dry_run(config: JobConfig) -> None:
    """Build the run of NGPU ranks, do one micro-batch and one update without numbers, and log the results.

    Raises:
        ConfigError: the run could not start, or has a trainer that cannot be tried.
        Preempted: the process was asked to stop.
    """
    world_size()  # raises where what another job left over would make this one silent
    if os.environ.get("RANK", "0") != "0":  # plain torchrun started several processes: one plays all ranks
        return
    ranks = dry_run_size()
    logger.info(
        f"Dry run of {ranks:,} ranks in this process: no data, tokenizer or weights are opened, nothing written"
    )
    result = dry_run_step(config, ranks)
    for note in result.notes:
        logger.info(f"Note: {note}")
    for line in report(config, ranks, result):
        logger.info(line)


def report(config: JobConfig, ranks: int, result: DryRunResult) -> list[str]:
    """Lines of the log: mesh, model, batch, steps and memory."""
    run_size, training = result.run_size, config.training
    spec = get_model_spec(config.model.name)
    flops = spec.flops_per_token(model_args(config, spec, tokenizer_size(config)), training.seq_len)
    parts = ", ".join(f"{kind.replace('_', ' ')} {shown(size)}" for kind, size in result.memory.items() if size)
    sampling = f"; {shown(result.sampling_bytes)} while it samples" if result.sampling_bytes else ""
    name = f"{config.model.name} {config.model.from_hf or config.model.flavor}"
    return [
        f"Ranks: {ranks:,}, mesh {result.mesh}",
        f"Model {name}: {result.num_parameters:,} parameters, {flops:.3g} FLOPs a token ({FORMULA})",
        f"Batch: {result.batch}",
        f"Run: {run_size.steps:,} steps, warm-up {warmup_steps(config, run_size.steps):,}",
        f"Memory of a rank at the peak of a step: {shown(result.peak_bytes)} as on CUDA, without its context "
        f"and what the allocator wastes ({parts}{sampling})",
        f"Dry run is done: one micro-batch and the update of trainer {config.job.trainer} ran on rank 0 of {ranks:,} "
        f"in {result.seconds:.1f} s",
    ]


def shown(size: float) -> str:
    """Text such as "1.50 GiB"; in MiB below a tenth of a GiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
