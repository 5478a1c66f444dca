"""`JobConfig`: the tables of a run's TOML file, typed. A field's docstring is its help text.

Names follow TorchTitan's where the thing is the same. A trainer spec may bring a subclass with tables of its own
(`config_type`), and a model spec adds its architecture fields to `[model]` (see `manager.config_class`).
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import tomli_w

from titan_pt.config.schema.checkpoint import Checkpoint
from titan_pt.config.schema.data import Data, Source
from titan_pt.config.schema.job import Comm, Debug, Experimental, Job, Model, TokenizerSection
from titan_pt.config.schema.metrics import Metrics, Profiling
from titan_pt.config.schema.section import Section
from titan_pt.config.schema.training import (
    ActivationCheckpoint,
    Compile,
    Float8,
    LrScheduler,
    Optimizer,
    Parallelism,
    Quantize,
    Training,
)
from titan_pt.config.schema.validation import Validation, ValidationTask
from titan_pt.run.outgoing import redacted

BrokenRule = tuple[list[str], str]
"""(the fields that a rule speaks of, what is wrong with them)"""


class JobConfig(Section):
    """One run. Built by `load_config`; immutable.

    A subclass is the config of one kind of training: it adds its tables as fields, and may change DEFAULTS, PAIRS and
    `broken_rules`.
    """

    DEFAULTS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Keys of the common tables whose default differs in this kind of training, by table."""
    PAIRS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("training.tokens", "training.steps"),
        ("training.global_batch_tokens", "training.global_batch_size"),
    )
    """(the key that holds when both have a value, the other): a higher layer's one replaces the lower layer's other."""

    job: Job = Job()
    model: Model = Model()
    tokenizer: TokenizerSection = TokenizerSection()
    data: Data = Data()
    training: Training = Training()
    optimizer: Optimizer = Optimizer()
    lr_scheduler: LrScheduler = LrScheduler()
    parallelism: Parallelism = Parallelism()
    activation_checkpoint: ActivationCheckpoint = ActivationCheckpoint()
    compile: Compile = Compile()
    quantize: Quantize = Quantize()
    checkpoint: Checkpoint = Checkpoint()
    validation: Validation = Validation()
    metrics: Metrics = Metrics()
    profiling: Profiling = Profiling()
    comm: Comm = Comm()
    debug: Debug = Debug()
    experimental: Experimental = Experimental()

    def broken_rules(self) -> Iterator[BrokenRule]:
        """Yield the broken rules between fields that this kind of training adds to the common ones."""
        yield from ()

    def check_packages(self) -> None:
        """Raise a ConfigError that says how to install what this run needs and this machine lacks; plans need none."""

    def written_folders(self) -> Iterator[tuple[str, str]]:
        """Yield (key, folder, inside the run folder unless it is absolute) of all that this run will write to."""
        saves, metrics, prof = self.checkpoint, self.metrics, self.profiling
        folders = (
            (saves.enable and not saves.load_only, "checkpoint.folder", saves.folder),
            ("tensorboard" in metrics.used_sinks, "metrics.save_tb_folder", metrics.save_tb_folder),
            (prof.enable_profiling, "profiling.save_traces_folder", prof.save_traces_folder),
            (prof.enable_memory_snapshot, "profiling.save_memory_snapshot_folder", prof.save_memory_snapshot_folder),
            (saves.export_hf_interval, "checkpoint.export_hf_interval", "hf"),
        )
        yield from ((key, folder) for is_written, key, folder in folders if is_written)

    def dump(self) -> dict[str, dict[str, Any]]:
        """The config as TOML tables: no unset values, secrets or config_file, and of each pair the one that holds."""
        values = self.model_dump(exclude_none=True, exclude={"job": {"config_file"}})
        tables: dict[str, dict[str, Any]] = redacted(values)
        if self.quantize.linear.float8 is None:
            del tables["quantize"]
        for used, other in self.PAIRS:
            section, key = used.split(".")
            if key in tables.get(section, {}):
                section, key = other.split(".")
                tables[section].pop(key, None)
        return {name: table for name, table in tables.items() if table}

    def to_toml(self) -> str:
        """The resolved config; loading it again gives an equal one, or asks for the secrets of addresses."""
        return tomli_w.dumps(self.dump())


__all__ = ["ActivationCheckpoint", "BrokenRule", "Checkpoint", "Comm", "Compile", "Data", "Debug", "Experimental"]
__all__ += ["Float8", "Job", "JobConfig", "LrScheduler", "Metrics", "Model", "Optimizer", "Parallelism", "Profiling"]
__all__ += ["Quantize", "Section", "Source", "TokenizerSection", "Training", "Validation", "ValidationTask"]
