"""What the pods of a job run: the TOML file, judged here before a queue is waited in, and the flags of the cluster."""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from settings import TOOLS, TRAINERS, Settings

from titan_pt.config.errors import ConfigError, nearest, one_of, shown
from titan_pt.config.manager import load_config
from titan_pt.config.resolve.layers import merge, read_layers
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.outgoing import redact

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {"pretrain": "medium_3day", "sft": "sft_full", "grpo": "grpo_full"}
BEFORE = {"sft": "pretrain", "grpo": "sft"}
GRACE_SECONDS = "120"
"""comm.grace_seconds of the pods, 30 s less than their terminationGracePeriodSeconds."""


@dataclass(frozen=True)
class Work:
    """What the pods of a job run."""

    kind: str
    command: Sequence[str]
    arguments: Sequence[str]
    gpus: int
    """Of each node."""
    nodes: int = 1
    config: str = ""
    """The TOML text of a run."""
    file: str = ""
    """Its name in the pod."""
    waits: bool = False
    """Whether it starts from another run's checkpoint."""
    longest_hours: float = 12
    """A third more than training.max_hours, where that is set."""

    @property
    def container(self) -> str:
        """The name of the main container."""
        return "train" if self.config else self.kind


def read_works(words: Sequence[str], settings: Settings) -> list[Work]:
    """What the jobs run that these words name.

    Raises:
        ConfigError: there is no such job, a TOML file is wrong, or does not fit the kind of job or the number of GPUs.
    """
    jobs, flags = split(words, settings)
    alone = len(jobs) == 1
    return [
        tool_work(kind, settings, flags, alone=alone)
        if kind in TOOLS
        else run_work(kind, settings, flags, nodes=settings.nodes if alone or kind == "pretrain" else 1)
        for kind in jobs
    ]


def split(words: Sequence[str], settings: Settings) -> tuple[list[str], list[str]]:
    """The jobs, and the flags behind "--"."""
    end = words.index("--") if "--" in words else len(words)
    jobs, flags = list(words[:end]) or list(TRAINERS), list(words[end + 1 :])
    known = (*TRAINERS, *TOOLS)
    for job in jobs:
        if job not in known:
            raise ConfigError(
                f"{shown(job)}: no such job{nearest(job, known)}; give one or more of {', '.join(known)}"
                + ("; flags of the run stand behind --" if job.startswith("-") else "")
            )
    if len(set(jobs)) < len(jobs):
        raise ConfigError(
            f"{' '.join(jobs)}: a job is named twice; one experiment has one of each, another NAME its own"
        )
    if len(jobs) > 1:
        for name in ("CONFIG", "START", "CHECKPOINT"):
            if getattr(settings, name.lower()):
                raise ConfigError(f"{name} is for one job: {' '.join(jobs)} are {len(jobs)}; deploy them one by one")
        if flags:
            raise ConfigError(f"{' '.join(flags)}: flags are for one job: {' '.join(jobs)} are {len(jobs)}")
    return jobs, flags


def tool_work(kind: str, settings: Settings, flags: list[str], *, alone: bool) -> Work:
    if settings.config:
        raise ConfigError(f"CONFIG is for a run; {kind} reads a checkpoint: CHECKPOINT={settings.runs}/...")
    if not settings.checkpoint:
        example = f"{settings.runs}/grpo" if settings.name else "outputs/grpo_full"
        raise ConfigError(f"CHECKPOINT is not set; give a run folder on the volume, such as CHECKPOINT={example}")
    if alone and settings.nodes > 1:
        raise ConfigError(f"NODES = {settings.nodes}: {kind} runs on one node; leave it out")
    arguments = ["--checkpoint", settings.checkpoint, *flags]
    if kind == "export":
        arguments += ["--output", export_folder(settings), "--overwrite"]
    elif not flags:
        raise ConfigError("evaluate needs flags of its own: k8s/deploy.sh evaluate -- --tasks gsm8k")
    gpus = 0 if kind == "export" else min(1, 1 if settings.gpus is None else settings.gpus)
    return Work(kind, ["python", "-m", f"titan_pt.tools.{kind}"], arguments, gpus)


def export_folder(settings: Settings) -> str:
    """Beside the run, or in the folder of the experiment: `outputs/exp7/grpo` becomes `outputs/exp7/grpo-hf`."""
    run = re.sub(r"/checkpoint(/step-\d+)?/?$", "", settings.checkpoint.rstrip("/"))
    return f"/workspace/{settings.runs}/{Path(run).name}-hf"


def run_work(kind: str, settings: Settings, flags: list[str], *, nodes: int) -> Work:
    if settings.checkpoint:
        raise ConfigError(f"CHECKPOINT is for {one_of(TOOLS)}; a run starts from START={settings.checkpoint}")
    path = find_config(settings.config, kind)
    tables = merge(read_layers(str(path)), JobConfig.PAIRS, []).tables
    config = judged(path, tables, flags)
    if (trainer := config.job.trainer) in TRAINERS and trainer != kind:
        raise ConfigError(f"CONFIG = {str(path)!r}: its job.trainer is {trainer}; deploy it as k8s/deploy.sh {trainer}")
    text = f"# {path.name} with what it extends.\n{tomli_w.dumps(tables)}"
    if secret := next((line for line in [*text.splitlines(), *flags] if redact(line) != line), None):
        key = shown(secret.partition("?")[0].strip())
        raise ConfigError(
            f"CONFIG = {str(path)!r}: {key} holds what looks like a secret, and all who read ConfigMaps or Jobs would "
            "see it: keep it in the Secret titan-pt-env, whose entries are variables of the pods; a path may have $NAME"
        )
    file = re.sub(r"[^-._a-zA-Z0-9]", "-", path.name)
    folder = f"{settings.runs}/{kind if settings.name else Path(config.job.dump_folder).name}"
    own = ["--job.dump_folder", f"/workspace/{folder}", "--comm.grace_seconds", GRACE_SECONDS]
    if settings.metrics_port:
        own += ["--metrics.prometheus_port", str(settings.metrics_port), "--metrics.prometheus_host", "0.0.0.0"]
    if nodes > 1:
        # HSDP: a copy of the model on each node, sharded inside; only gradients cross the network.
        own += ["--parallelism.data_parallel_replicate_degree", str(nodes)]
    start = settings.start or config.checkpoint.initial_load_path or ""
    if settings.name and not settings.start and kind in BEFORE and start.startswith("outputs/"):
        start = f"{settings.runs}/{BEFORE[kind]}"  # the experiment's own
    if start != (config.checkpoint.initial_load_path or ""):
        own += ["--checkpoint.initial_load_path", start]
    gpus = 8 if settings.gpus is None else settings.gpus
    config = judged(path, tables, [*own, *flags])
    if config.job.trainer != "grpo":  # its batch is of prompts
        check_batch(config, nodes, gpus)
    return Work(
        kind,
        ["python", "-m", "titan_pt.launch", *(["--standalone"] if nodes == 1 else []), "-m", "titan_pt.train"],
        ["--job.config_file", f"/config/{file}", *own, *flags],
        gpus,
        nodes,
        text,
        file,
        waits=bool(start),
        longest_hours=(config.training.max_hours or 72) * 4 / 3,
    )


def find_config(given: str, kind: str) -> Path:
    """The TOML file: a path, from the current folder or the repository's, or the name of a shipped one.

    Raises:
        ConfigError: there is none.
    """
    shipped = ROOT / "train_configs"
    name = given or SHIPPED[kind]
    for path in (Path(name).expanduser(), ROOT / name, shipped / f"{name}.toml"):
        if path.is_file():
            return path
    known = [path.stem for path in shipped.glob("*.toml") if not path.stem.startswith("base_")]
    raise ConfigError(
        f"CONFIG = {given!r}: no such file in {Path.cwd()} or {ROOT}{nearest(Path(given).stem, known)}; give a "
        f"TOML file, or one of {one_of(known)}"
    )


def judged(path: Path, tables: dict[str, Any], flags: list[str]) -> JobConfig:
    """The config as the pods will see it. A folder of model.from_hf is on the volume, and is not looked at.

    Raises:
        ConfigError: every mistake in it.
    """
    if "from_hf" not in tables.get("model", {}):
        return load_config(["--job.config_file", str(path), *flags])
    model = {key: value for key, value in tables["model"].items() if key != "from_hf"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        file.write_text(tomli_w.dumps({**tables, "model": model}))
        return load_config(["--job.config_file", str(file), *flags])


def check_batch(config: JobConfig, nodes: int, gpus: int) -> None:
    """See that the GPUs can share the batch.

    Raises:
        ConfigError: they cannot.
    """
    try:
        plan_run_size(config, nodes * max(1, gpus))
    except ConfigError as error:
        raise ConfigError(*(f"GPUS = {gpus}, NODES = {nodes}: {problem}" for problem in error.problems)) from None
