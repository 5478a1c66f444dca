"""`python -m titan_pt.train --job.config_file F`: one TOML file is one experiment.

The decisions of a run, top to bottom; `run/ending.py` holds how it ends. torch is imported after the config is known
to be right.
"""

import functools
import gc
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from titan_pt.run.signals import install_handlers

if __name__ == "__main__":
    install_handlers()  # before imports of a second or two
    gc.disable()  # nothing of them is garbage, and looking takes a tenth of the start

from titan_pt.config.manager import load_config
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.ending import RunEnding, exit_code_of
from titan_pt.run.exit_codes import START_VARIABLE, ExitCode, Preempted
from titan_pt.run.heartbeat import enter, phase
from titan_pt.run.log import open_console, quiet_libraries
from titan_pt.run.log_file import keep_log, open_log

if TYPE_CHECKING:
    from titan_pt.protocols.context import TrainContext
    from titan_pt.protocols.trainer_spec import TrainerSpec
    from titan_pt.trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    """Train as the arguments say; returns the exit code."""
    started = float(os.environ.get(START_VARIABLE, time.monotonic()))
    # Idle OpenMP threads that spin take the other ranks' and the loader's cores; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if __name__ != "__main__":
        install_handlers()
    open_console()
    keep_log()
    quiet_libraries()
    return exit_code_of(lambda: run(load_config(argv), started))


def run(config: JobConfig, started: float) -> ExitCode:
    """Build everything, then train; `started` is when this attempt began. Returns DONE, PREEMPTED or TERMINATED."""
    if config.comm.mode == "fake_backend":
        from titan_pt.dry_run import run_dry

        return run_dry(config)
    from titan_pt.run.run_folder import run_folder, write_config

    check_files(config)
    ending = RunEnding(config)
    try:
        trainer = ending.trainer = build_trainer(config, started)
        with phase("the resume", "save"):
            trainer.load()
        ending.first_step = trainer.state.step
        open_log(run_folder(config))
        if trainer.context.world.is_main:  # only now: the config of a refused resume must not replace the run's own
            write_config(config)
        trainer.train()
    except Preempted as error:
        from titan_pt.run.stopped import close_stopped

        return close_stopped(ending, config, error)
    except (Exception, GeneratorExit) as error:
        ending.failed(error)
        raise
    enter("the end", "save")
    ending.close(wait=True)
    if trainer.context.world.is_main and (config.job.leaderboard or hasattr(sys.stderr, "end_live")):  # a terminal
        from titan_pt.trainers.end_panel import tell_end

        tell_end(config, time.monotonic() - started, trainer.goodput)
    return ExitCode.DONE


def build_trainer(config: JobConfig, started: float | None = None) -> "Trainer":
    """Build a run that began at `started`, now by default: context, step function, validator, loop."""
    import torch

    from titan_pt.components.flops import peak_flops
    from titan_pt.protocols.trainer_spec import get_trainer_spec
    from titan_pt.trainer import Trainer
    from titan_pt.trainers.summary import describe_start

    spec = get_trainer_spec(config.job.trainer)
    context = start_context(config, spec)
    gc.enable()
    peak = peak_flops(context.world.device, getattr(torch, config.training.mixed_precision_param))
    describe_start(context, peak)
    if spec.describe:
        spec.describe(context, context.flops_per_token, peak)
    step = spec.build_step(context)
    validator, started = spec.build_validator(context, step), time.monotonic() if started is None else started
    return Trainer(context, step, validator, peak_flops=peak, validates_first=spec.validates_first, started=started)


def check_files(config: JobConfig) -> None:
    """Check, before torch takes its seconds, that packages, local sources and starting weights are there."""
    from titan_pt.components.checkpoint.step_folders import has_steps
    from titan_pt.data.sources.registry import check_sources

    config.check_packages()
    check_sources([*config.data.sources, *(config.validation.sources if config.validation.enable else ())])
    if (initial := config.checkpoint.initial_load_path) and not os.path.isdir(initial) and not has_steps(config):
        from titan_pt.components.checkpoint.steps import find_initial

        find_initial(initial)


def start_context(config: JobConfig, spec: "TrainerSpec[Any]") -> "TrainContext[Any]":
    """Check on this rank alone all that can be checked there, then join the other ranks and build with them."""
    from titan_pt.build import build_context, set_determinism
    from titan_pt.components.checkpoint.step_folders import has_steps
    from titan_pt.distributed.init import materialize
    from titan_pt.distributed.world import find_device, start_world, world_size
    from titan_pt.protocols.registry import import_attribute
    from titan_pt.run.run_folder import prepare_run_folder
    from titan_pt.run.signals import raise_if_preempted

    run_size = spec.plan_run_size(config, world_size())
    tokenizer = spec.build_tokenizer(config)
    model = spec.build_model(config, tokenizer)
    run_folder = prepare_run_folder(config)
    if config.metrics.used_sinks - {"tensorboard"}:
        import_attribute("titan_pt.sinks.opening:check_sinks")(config)
    set_determinism(config.debug, find_device())

    world = start_world(config, run_folder)
    if config.checkpoint.enable and config.checkpoint.mirror:
        from titan_pt.components.checkpoint.mirror import fetch

        world.on_main(lambda: fetch(run_folder, config.checkpoint))
    if has_steps(config):
        from titan_pt.components.checkpoint.steps import saved_streams
        from titan_pt.config.saved_streams import with_saved_streams

        run_size = with_saved_streams(config, run_size, world_size(), saved_streams(config))
    stops = functools.partial(raise_if_preempted, world)
    return build_context(
        spec, config, world, tokenizer, model, run_size, materialize=materialize, raise_if_preempted=stops
    )


if __name__ == "__main__":
    from titan_pt.run.leaving import leave

    leave(main())
