"""Seconds of a GRPO step, and of TRL's GRPOTrainer on the same work. `python -m benchmarks.grpo_step --help`

    python -m benchmarks.grpo_step --make-env /tmp/trl-env      # once: TRL in an environment of its own, over this one
    python -m benchmarks.grpo_step --env /tmp/trl-env
    python -m benchmarks.grpo_step                              # without TRL: ours alone

Both train the same weights (ours, converted to Qwen3ForCausalLM) on the same prompts with as many samples of the same
lengths, no early stop, rewards by the same function, the same loss (DAPO) and AdamW, in float32; one update a step.
Bytes are the tokens of both. Ours is the `GrpoStep` of a run; flags such as `--model.num_layers=8` change its config,
and the model of both. The steps alternate in one process, so that a noisy machine disturbs both alike; medians with
minimum and maximum.
"""

import argparse
import json
import os
import site
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from titan_pt.config.manager import resolve
from titan_pt.generation.engine import build_engine
from titan_pt.models.transformer import Transformer
from titan_pt.protocols.context import TrainContext, TrainState
from titan_pt.protocols.trainer_spec import get_trainer_spec
from titan_pt.tasks.rollouts import RolloutSampler
from titan_pt.tasks.task import Problem, Task, register_task
from titan_pt.train import start_context
from titan_pt.trainers.grpo.spec import grading_options
from titan_pt.trainers.grpo.step import GrpoStep

LEARNING_RATE = 1e-5
WARMUP_STEPS = 2

CONFIG = f"""
job = {{trainer = "grpo"}}
model = {{flavor = "debugmodel", vocab_size = 259}}
tokenizer = {{name = "byte"}}
optimizer = {{lr = {LEARNING_RATE}, weight_decay = 0.0}}
lr_scheduler = {{warmup_steps = 0, min_lr_factor = 1.0}}
training = {{seq_len = 2048, local_batch_size = 8, mixed_precision_param = "float32"}}
activation_checkpoint = {{mode = "none"}}
checkpoint = {{enable = false}}
validation = {{enable = false}}
grpo.probe = "off"
grpo.dynamic_sampling = "none"
grpo.max_idle_steps = 1000

[[grpo.tasks]]
name = "bench"
prompt_template = "{{question}}"
"""


@dataclass(frozen=True)
class Prompts:
    """Problems of one length; a fixed set."""

    texts: tuple[str, ...]
    fingerprint: str = "bench"

    def __len__(self) -> int:
        return len(self.texts)

    def get(self, index: int, visit: int = 0) -> Problem:
        """The problem of that number, the same at every visit."""
        return Problem("bench", str(index), self.texts[index], gold="")


def is_right(completion: str, *_: Any) -> bool:
    """Whether a completion is rewarded: about half of all are."""
    return zlib.crc32(completion.encode("utf-8", errors="replace")) % 2 == 0


def read_options() -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line: the options of this benchmark, and flags of the config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--prompt_tokens", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--short", action="store_true", help="5 pairs")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"], help="cpu: for a CPU shared with others")
    parser.add_argument("--env", type=Path, help="folder that --make-env made")
    parser.add_argument(
        "--make-env", type=Path, metavar="DIR", help="install TRL into a new environment there, and end"
    )
    options, flags = parser.parse_known_args()
    options.pairs = 5 if options.short else options.pairs
    return options, flags


def make_environment(folder: Path) -> None:
    """An environment with TRL whose other packages are this one's."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    ask = [str(python), "-c", "import site; print(site.getsitepackages()[0])"]
    own = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    (Path(own) / "base.pth").write_text("\n".join(site.getsitepackages()))
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "trl"], check=True)


def build_ours(
    options: argparse.Namespace, flags: list[str], texts: tuple[str, ...], folder: Path
) -> tuple[TrainContext[Any], GrpoStep]:
    """The context of a run, and its step, without tokens that stop a completion."""

    def task(row: Any, _seed: int) -> Task:
        return Task(
            name=row.name,
            train=Prompts(texts),
            evaluation=Prompts(("?",)),
            grade=lambda text, *_: is_right(text),
            open_ended=True,
        )

    register_task("bench", task)
    config_file = folder / "bench.toml"
    config_file.write_text(CONFIG)
    sizes = {
        "job.dump_folder": folder / "run",
        "grpo.prompts_per_step": options.prompts,
        "rollout.num_samples": options.samples,
        "rollout.max_new_tokens": options.new_tokens,
    }
    shape = [f"--{name}={value}" for name, value in sizes.items()]
    config = resolve(["--job.config_file", str(config_file), *shape, *flags]).config
    context: TrainContext[Any] = start_context(config, get_trainer_spec("grpo"))
    engine = build_engine(config, context.tokenizer, context.world, [])
    sampler = RolloutSampler(
        engine,
        context.tokenizer,
        context.dataloader.tasks,
        context.world,
        grading_options(config.grpo),
        stop_requested=lambda: False,
        raise_if_preempted=lambda: None,
    )
    return context, GrpoStep(context, engine, sampler, None)


class OurSteps:
    """Runs our steps and keeps their times."""

    def __init__(self, step: GrpoStep, now: Callable[[], float]) -> None:
        self._step, self._now = step, now
        self._number = 0
        self.seconds: list[dict[str, float]] = []

    def __call__(self) -> None:
        """Run one step."""
        start = self._now()
        metrics = self._step(TrainState(step=self._number))
        float(metrics.loss)
        parts = {name.removeprefix("seconds/"): v for name, v in metrics.extra.items() if name.startswith("seconds/")}
        self.seconds.append({"step": self._now() - start, **{name: float(v) for name, v in parts.items()}})
        self._number += 1


def build_theirs(
    options: argparse.Namespace,
    model: Transformer,
    texts: tuple[str, ...],
    folder: Path,
    before_step: Callable[[], None],
    now: Callable[[], float],
) -> tuple[Any, list[float]]:
    """(TRL's trainer, the list of its steps' seconds); `before_step` runs before each and is not counted."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.rollout import convert

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            before_step()
            self.start = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(now() - self.start)

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(is_right(text)) for text in completions]

    rows = options.prompts * options.samples
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        max_steps=options.pairs + WARMUP_STEPS,
        per_device_train_batch_size=rows,
        num_generations=options.samples,
        max_completion_length=options.new_tokens,
        generation_kwargs={"min_new_tokens": options.new_tokens},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = GRPOTrainer(
        convert(model).train(),
        reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": list(texts)}),
        processing_class=byte_tokenizer(),
        callbacks=[Clock()],
    )
    return trainer, seconds


def byte_tokenizer() -> Any:
    """The tokenizer of bytes for transformers, with the ids of ours."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|im_start|>", padding_side="left"
    )


def make_prompts(count: int, tokens: int) -> tuple[str, ...]:
    """Different texts of so many letters, a token each."""
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 123, (count, tokens), generator=generator).tolist()
    return tuple(bytes(row).decode() for row in letters)


def spread(values: list[float], digits: int = 2) -> str:
    """Median with minimum and maximum."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def report(options: argparse.Namespace, model: Transformer, ours: OurSteps, theirs: list[float]) -> None:
    """Print the JSON line and the row of the table."""
    own = ours.seconds[WARMUP_STEPS:]
    steps, peer = [each["step"] for each in own], theirs[WARMUP_STEPS:]
    split = {name: round(statistics.median(each[name] for each in own), 3) for name in ("rollout", "reward", "train")}
    ratios = [b / a for a, b in zip(steps, peer, strict=True)] if peer else []
    versions = {name: _version(name) for name in ("torch", "transformers", "trl")}
    work = f"{options.prompts} x {options.samples} x {options.new_tokens}, prompts of {options.prompt_tokens}"
    size = f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}M"
    print(
        json.dumps(
            {
                "benchmark": "grpo_step", "parameters": size, "work": work, "dtype": "float32",
                "threads": torch.get_num_threads(), "clock": options.clock, "versions": versions, "pairs": len(steps),
                "seconds": round(statistics.median(steps), 3), "split_seconds": split,
                "trl_seconds": round(statistics.median(peer), 3) if peer else None,
                "ratio": round(statistics.median(ratios), 2) if ratios else None,
                "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)] if ratios else None,
            }
        )
    )  # fmt: skip
    shares = ", ".join(f"{name} {value:.2f}" for name, value in split.items())
    against = f"{spread(peer)} | {spread(ratios)}" if peer else "not installed | -"
    print(f"| grpo_step | {size}, {work} | {spread(steps)} s ({shares}) | {against} |")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Measure and print."""
    options, flags = read_options()
    if options.make_env:
        make_environment(options.make_env)
        return
    if options.env and Path(sys.prefix).resolve() != options.env.resolve():
        python = str(options.env / "bin" / "python")
        os.execv(python, [python, "-m", "benchmarks.grpo_step", *sys.argv[1:]])
    texts = make_prompts(options.prompts, options.prompt_tokens)
    with tempfile.TemporaryDirectory() as name:
        context, step = build_ours(options, flags, texts, Path(name))
        # The same numbers, unsharded: weights depend on seed and name alone.
        model = Transformer(context.args)
        model.init_weights(context.config.debug.seed)
        now = time.perf_counter if options.clock == "wall" else time.process_time
        ours = OurSteps(step, now)
        theirs: list[float] = []
        if _version("trl"):
            trainer, theirs = build_theirs(options, model, texts, Path(name), ours, now)
            trainer.train()
        else:
            print("TRL is not installed here: ours alone (--make-env, then --env)", file=sys.stderr)
            for _ in range(options.pairs + WARMUP_STEPS):
                ours()
        report(options, model, ours, theirs)


if __name__ == "__main__":
    main()
