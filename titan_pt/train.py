"""`python -m titan_pt.train --job.config_file F`: one TOML file is one experiment.

`main` is the list of decisions of a run, top to bottom. torch is imported after the config is known to be right.
"""

import functools
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

from titan_pt.config.errors import ConfigError
from titan_pt.config.manager import load_config
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import START_VARIABLE, ExitCode, GaveUp, Preempted, Stalled, record_exit_code
from titan_pt.run.log import init_logging, logger, print_once, quiet_libraries, terminal_colors
from titan_pt.run.signals import ignore_signals, install_handlers

if TYPE_CHECKING:
    from titan_pt.protocols.context import TrainContext
    from titan_pt.protocols.trainer_spec import TrainerSpec
    from titan_pt.trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    """Train as the arguments say; returns the exit code."""
    started = float(os.environ.get(START_VARIABLE, time.time()))
    # Idle OpenMP threads that spin take the other ranks' and the loader's cores; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    install_handlers()
    init_logging()
    quiet_libraries()
    reason = ""
    try:
        code = run(load_config(argv), started)
    except ConfigError as error:
        code, reason = ExitCode.USAGE, error.report()
    except GaveUp as error:
        code, reason = ExitCode.GAVE_UP, f"gave up: {error}"
    except Stalled as error:
        code, reason = ExitCode.FAILED, f"failed: {error}"
    except Exception as error:
        code = ExitCode.FAILED
        traceback.print_exc()
        print(f"failed: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)  # one line
    ignore_signals()
    told = record_exit_code(code, reason)
    if reason and not told:
        print_once(reason)
    return code


def record_failure(error: Exception) -> None:
    """Tell the launcher the reason: other ranks may print after this one, and fail because it did."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def leave(code: int) -> NoReturn:
    """End the process. A rank that failed does not wait: threads and process groups would, for ranks that are gone."""
    if code in (ExitCode.FAILED, ExitCode.USAGE, ExitCode.GAVE_UP) and not _is_alone():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run(config: JobConfig, started: float) -> ExitCode:
    """Build everything, then train. Returns DONE, PREEMPTED or TERMINATED.

    Args:
        started: when this attempt began, a Unix time.
    """
    if config.comm.mode == "fake_backend":
        return dry_run_here(config)
    from titan_pt.run.run_folder import write_config

    trainer, first_step = None, 0
    try:
        trainer = build_trainer(config, started)
        trainer.load()
        first_step = trainer.state.step
        if trainer.context.world.is_main:  # only now: the config of a refused resume must not replace the run's own
            write_config(config)
        trainer.train()
        code = ExitCode.DONE
    except Preempted as error:
        code = _stopped(config, trainer, error, first_step)
    except Exception as error:
        if not isinstance(error, ConfigError | GaveUp):
            record_failure(error)  # before this rank leaves, which makes the others fail too
        _close(trainer, wait=_is_alone())
        raise
    _close(trainer, wait=True)
    return code


def dry_run_here(config: JobConfig) -> ExitCode:
    """Try the run of NGPU ranks in this process, on tensors without numbers. Returns DONE or TERMINATED."""
    from titan_pt.dry_run import dry_run

    try:
        dry_run(config)
    except Preempted:
        logger.warning("Stopped by a signal; a dry run leaves nothing")
        return ExitCode.TERMINATED
    return ExitCode.DONE


def _stopped(config: JobConfig, trainer: "Trainer | None", error: Preempted, first_step: int) -> ExitCode:
    """How a run ends that was asked to stop, or has no data: by whether there is a checkpoint to go on from.

    Raises:
        GaveUp: several starts in a row finished no step.
        Stalled: there is no data, and no checkpoint.
    """
    from titan_pt.run.run_folder import has_steps

    why = str(error) or "Stopped by a signal"
    began = trainer is not None and trainer.state.step > 0
    if trainer.has_checkpoint if trainer is not None and began else has_steps(config):
        _give_up_without_progress(config, trainer, why, first_step)
        logger.warning(f"{why}; the same command goes on from the checkpoint")
        return ExitCode.PREEMPTED
    if isinstance(error, Stalled):
        record_failure(error)
        _close(trainer, wait=_is_alone())
        raise error
    logger.warning(f"{why} before there was a checkpoint")
    return ExitCode.TERMINATED


def _give_up_without_progress(config: JobConfig, trainer: "Trainer | None", why: str, first_step: int) -> None:
    """Count a start that was stopped; raise GaveUp where several in a row finished no step.

    On all ranks, but for a start that has not met the others yet: then on the main one, whose code the launcher takes.
    """
    from titan_pt.run.idle_starts import count_start
    from titan_pt.run.run_folder import run_folder

    last_step = trainer.state.step if trainer else first_step
    count = functools.partial(count_start, run_folder(config), why, first_step=first_step, last_step=last_step)
    is_main = os.environ.get("RANK", "0") == "0"
    reason = trainer.context.world.on_main(count) if trainer else (count() if is_main else None)
    if reason:
        _close(trainer, wait=trainer is not None or _is_alone())
        raise GaveUp(reason)


def _close(trainer: "Trainer | None", *, wait: bool) -> None:
    """Flush the records; with `wait`, meet the other ranks for the end of a save and of the process groups."""
    from titan_pt.distributed.world import stop_world

    if trainer is not None:
        trainer.close(wait=wait)
    if wait:
        stop_world()


def _is_alone() -> bool:
    return os.environ.get("WORLD_SIZE", "1") == "1"


def build_trainer(config: JobConfig, started: float | None = None) -> "Trainer":
    """The decisions of a run, in order.

    Args:
        started: when this attempt began, a Unix time; None: now.
    """
    import torch

    from titan_pt.components.checkpoint.compatibility import run_identity
    from titan_pt.components.flops import peak_flops
    from titan_pt.config.resolve.checks import model_args
    from titan_pt.protocols.model_spec import get_model_spec
    from titan_pt.protocols.trainer_spec import get_trainer_spec
    from titan_pt.run.run_folder import describe, run_folder
    from titan_pt.trainer import Trainer

    spec, model_spec = get_trainer_spec(config.job.trainer), get_model_spec(config.model.name)
    context = build_context(config, spec)
    world = context.world
    args = model_args(config, model_spec, context.tokenizer.vocab_size)
    flops_per_token = model_spec.flops_per_token(args, config.training.seq_len)
    peak = peak_flops(world.device, getattr(torch, config.training.mixed_precision_param))
    describe(context, args, peak, terminal_colors(config.metrics.disable_color_printing))
    if spec.describe:
        spec.describe(context, flops_per_token, peak)
    step = spec.build_step(context)
    return Trainer(
        context,
        step,
        spec.build_validator(context, step),
        run_folder=run_folder(config),
        identity=run_identity(config, args, context.tokenizer),
        flops_per_token=flops_per_token,
        flops_per_second=peak * world.size if peak else None,
        validates_first=spec.validates_first,
        started=time.time() if started is None else started,
    )


def build_context(config: JobConfig, spec: "TrainerSpec") -> "TrainContext":
    """What the step function is given: checked on this rank alone, then built together with the others."""
    from titan_pt.components.parts import build_train_context
    from titan_pt.data.sources.registry import check_sources
    from titan_pt.distributed.fsdp import materialize
    from titan_pt.distributed.world import find_device, start_world, world_size
    from titan_pt.run.run_folder import prepare_run_folder, set_determinism
    from titan_pt.run.signals import raise_if_preempted

    # What can be wrong without other ranks is checked before there are any.
    check_sources([*config.data.sources, *(config.validation.sources if config.validation.enable else ())])
    run_size = spec.plan_run_size(config, world_size())
    tokenizer = spec.build_tokenizer(config)
    model = spec.build_model(config, tokenizer)
    run_folder = prepare_run_folder(config)
    set_determinism(config.debug, find_device())

    world = start_world(config, run_folder)
    model = spec.parallelize(model, config, world)
    materialize(model, config, world)
    dataloader = spec.build_dataloader(config, tokenizer, world, run_size)
    if spec.adjust_run_size:
        run_size = spec.adjust_run_size(config, world, run_size, dataloader)
    return build_train_context(
        spec,
        config,
        world,
        run_size=run_size,
        tokenizer=tokenizer,
        model=model,
        dataloader=dataloader,
        raise_if_preempted=functools.partial(raise_if_preempted, world),
    )


if __name__ == "__main__":
    leave(main())
