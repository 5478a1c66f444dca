"""Before the first step: the run folder, determinism, and the derived numbers that tell what a run will cost."""

import fcntl
import logging
import os
from pathlib import Path
from typing import IO, Any

import torch

import titan_pt
from titan_pt.components.checkpoint.steps import iter_steps
from titan_pt.components.lr_scheduler import warn_of_short_warmup
from titan_pt.components.metrics import FILE as METRICS_FILE
from titan_pt.config.errors import ConfigError
from titan_pt.config.schema.job_config import Debug, JobConfig
from titan_pt.protocols.context import TrainContext
from titan_pt.run.files import make_writable
from titan_pt.run.log import Color

logger = logging.getLogger("titan_pt")

CONFIG_FILE, LOCK_FILE = "config.toml", ".lock"


def prepare_run_folder(config: JobConfig) -> Path:
    """Make job.dump_folder and its checkpoint folder.

    Raises:
        ConfigError: one of them cannot be written to, or holds a folder where a file belongs or the reverse.
    """
    options = config.checkpoint
    folder = run_folder(config)
    make_writable(folder, f"job.dump_folder = {config.job.dump_folder!r}")
    if options.enable and not options.load_only:
        make_writable(folder / options.folder, f"checkpoint.folder = {options.folder!r}")
    events = folder / config.metrics.save_tb_folder
    if config.metrics.enable_tensorboard and events.exists() and not events.is_dir():
        raise ConfigError(
            f"metrics.save_tb_folder = {config.metrics.save_tb_folder!r}: {events} is a file; move it away"
        )
    for name in (METRICS_FILE, CONFIG_FILE, LOCK_FILE):
        if (folder / name).is_dir():
            raise ConfigError(f"job.dump_folder = {config.job.dump_folder!r}: its {name} is a folder; move it away")
    return folder


def run_folder(config: JobConfig) -> Path:
    """job.dump_folder as a path."""
    return Path(config.job.dump_folder).expanduser()


def has_steps(config: JobConfig) -> bool:
    """Whether the run folder holds steps to resume from."""
    options = config.checkpoint
    return options.enable and any(iter_steps(run_folder(config) / options.folder))


def lock_run_folder(folder: Path) -> IO[str]:
    """Hold the run folder until the file is closed: a second run in it would drop the first one's rows and saves.

    Raises:
        RuntimeError: another process holds it.
    """
    file = (folder / LOCK_FILE).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RuntimeError(f"job.dump_folder: {folder} is in use by another run; stop it or wait") from None
    except OSError as error:
        logger.warning(f"job.dump_folder: its file system has no locks ({error}); see that no other run uses it")
    return file


def write_config(config: JobConfig) -> None:
    """Write the resolved config into the run folder; at no time is it half there."""
    path = run_folder(config) / CONFIG_FILE
    temporary = path.with_suffix(".toml.tmp")
    temporary.write_text(config.to_toml())
    os.replace(temporary, path)


def set_determinism(options: Debug, device: torch.device) -> None:
    """Seed torch and choose its kernels as `[debug]` says."""
    torch.manual_seed(options.seed)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=options.deterministic_warn_only)
        if device.type == "cuda":
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def describe(context: TrainContext, args: Any, peak: float | None, color: Color) -> None:
    """Log what runs: versions, device, model, tokenizer."""
    config, world = context.config, context.world
    logger.info(f"titan_pt {titan_pt.__version__}, torch {torch.__version__}: {config.job.description}")
    if config.job.print_config:
        logger.info(f"Config:\n{config.to_toml()}")
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    measured = " (measured)" if world.device.type == "cpu" else ""
    logger.info(
        f"Device: {world.size} x {name}, "
        + (
            f"peak {peak / 1e12:.2f} TFLOP/s{measured} in {config.training.mixed_precision_param} each"
            if peak
            else "peak FLOP/s not known, so no MFU"
        )
    )
    total = sum(parameter.numel() for parameter in context.model.parameters())
    embedding = getattr(args, "num_embedding_parameters", 0)
    logger.info(
        f"{color.cyan}Model {config.model.name} {config.model.from_hf or config.model.flavor}: {total:,} parameters, "
        f"{total - embedding:,} without the embedding{color.reset}"
    )
    logger.info(f"Tokenizer {config.tokenizer.name}: {context.tokenizer.vocab_size:,} tokens")
    warn_of_short_warmup(config, context.run_size.steps)
