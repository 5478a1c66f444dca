"""`python -m titan_pt.train --job.config_file F`: one TOML file is one experiment.

`main` is the list of decisions of a run, top to bottom. torch is imported after the config is known to be right.
"""

import os
import sys
import traceback
from typing import TYPE_CHECKING

from titan_pt.components.log import init_logging, logger, quiet_libraries, terminal_colors
from titan_pt.components.preemption import ignore_signals, install_handlers
from titan_pt.config.errors import ConfigError
from titan_pt.config.job_config import JobConfig
from titan_pt.config.manager import load_config
from titan_pt.launch import record_exit_code
from titan_pt.outcome import ExitCode, GaveUp, Preempted, Stalled

if TYPE_CHECKING:
    from titan_pt.trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    """Train as the arguments say; returns the exit code."""
    # Idle OpenMP threads that spin take the other ranks' and the loader's cores; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    install_handlers()
    init_logging()
    quiet_libraries()
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # of what all ranks have to report alike
    try:
        code = run(load_config(argv))
    except ConfigError as error:
        code = ExitCode.USAGE
        if speaks:
            print(error.report(), file=sys.stderr)
    except GaveUp as error:
        code = ExitCode.GAVE_UP
        if speaks:
            print(f"gave up: {error}", file=sys.stderr)
    except Exception as error:
        code = ExitCode.FAILED
        traceback.print_exc()
        print(f"failed: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)  # one line
    ignore_signals()
    record_exit_code(code)
    return code


def record_failure(error: Exception) -> None:
    """Tell the launcher the reason: other ranks may print after this one, and fail because it did."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def run(config: JobConfig) -> ExitCode:
    """Build everything, then train. Returns DONE, PREEMPTED or TERMINATED."""
    from titan_pt.components.startup import write_config
    from titan_pt.distributed.world import stop_world

    trainer = None
    try:
        trainer = build_trainer(config)
        trainer.load()
        if trainer.parts.world.is_main:  # only now: the config of a refused resume must not replace the run's own
            write_config(config)
        trainer.train()
        return ExitCode.DONE
    except Stalled as error:
        if trainer is None or not trainer.has_checkpoint:
            record_failure(error)
            raise
        logger.error(f"{error}; the same command goes on from the checkpoint")
        return ExitCode.PREEMPTED
    except Preempted:
        if trainer is not None and trainer.has_checkpoint:
            logger.warning("Stopped by a signal; the same command goes on from the checkpoint")
            return ExitCode.PREEMPTED
        logger.warning("Stopped by a signal before there was a checkpoint")
        return ExitCode.TERMINATED
    except (ConfigError, GaveUp):
        raise
    except Exception as error:
        record_failure(error)  # before this rank leaves, which makes the others fail too
        raise
    finally:
        if trainer is not None:
            trainer.close()
        stop_world()


def build_trainer(config: JobConfig) -> "Trainer":
    """The decisions of a run, in order."""
    import functools

    import torch

    from titan_pt.components.flops import peak_flops
    from titan_pt.components.identity import run_identity
    from titan_pt.components.preemption import raise_if_preempted
    from titan_pt.components.startup import describe, prepare_run_folder, set_determinism
    from titan_pt.config.budget import plan_budget
    from titan_pt.config.checks import model_args
    from titan_pt.distributed.fsdp import offloads
    from titan_pt.distributed.world import find_device, start_world, world_size
    from titan_pt.protocols.model_spec import get_model_spec
    from titan_pt.protocols.step import StepParts
    from titan_pt.protocols.trainer_spec import get_trainer_spec
    from titan_pt.trainer import Trainer

    # What can be wrong without other ranks is checked before there are any.
    spec, model_spec = get_trainer_spec(config.job.trainer), get_model_spec(config.model.name)
    budget = plan_budget(config, world_size())
    tokenizer = spec.build_tokenizer(config)
    model = spec.build_model(config, tokenizer)
    run_folder = prepare_run_folder(config)
    set_determinism(config.debug, find_device())

    world = start_world(config, run_folder)
    model = spec.parallelize(model, config, world)
    model.to_empty(device="cpu" if offloads(config, world) else world.device)
    for module in model.modules():  # FSDP offloads parameters; buffers are used where the computing is
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(world.device))
    model.init_weights(config.debug.seed)  # type: ignore[operator]
    model.train()
    optimizer = spec.build_optimizers(model, config)
    parts = StepParts(
        config=config,
        world=world,
        budget=budget,
        tokenizer=tokenizer,
        model=model,
        optimizer=optimizer,
        schedule=spec.build_lr_schedulers(config, budget.steps),
        dataloader=spec.build_dataloader(config, tokenizer, world),
        raise_if_preempted=functools.partial(raise_if_preempted, world),
    )
    args = model_args(config, model_spec, tokenizer.vocab_size)
    flops_per_token = model_spec.flops_per_token(args, config.training.seq_len)
    peak = peak_flops(world.device, getattr(torch, config.training.mixed_precision_param))
    describe(parts, args, flops_per_token, peak, terminal_colors(config.metrics.disable_color_printing))
    return Trainer(
        parts,
        spec.build_step(parts),
        spec.build_validator(parts),
        run_folder=run_folder,
        identity=run_identity(config, args, tokenizer),
        flops_per_token=flops_per_token,
        flops_per_second=peak * world.size if peak else None,
    )


if __name__ == "__main__":
    sys.exit(main())
