"""What the trainer adds to a bare step, and what a save costs a run. `python benchmarks/loop_overhead.py [--short]`

The bare loop is forward, backward, clipping and AdamW on a fixed batch; the trainer's step has data, records, signals
and the guard too. Both train the same model in turns of ten steps. A save is timed as training waits for it.
"""

import argparse
import contextlib
import logging
import sys
import tempfile
import time
from collections.abc import Iterator

import torch
from common import alternate, cell, environment, report, spread, timed

from titan_pt.config import load_config
from titan_pt.distributed.world import stop_world
from titan_pt.train import build_trainer
from titan_pt.trainer import Trainer

STEPS = 10


@contextlib.contextmanager
def trainer(folder: str, *flags: str) -> Iterator[Trainer]:
    """A trainer of a small model on generated documents."""
    config = load_config(
        [
            f"--job.dump_folder={folder}",
            "--model.flavor=debugmodel",
            "--tokenizer.name=byte",
            "--model.vocab_size=8192",
            "--training.local_batch_size=4",
            "--training.seq_len=256",
            "--training.mixed_precision_param=float32",
            "--training.steps=100000",
            '--data.sources=[{name="arithmetic"}]',
            "--activation_checkpoint.mode=none",
            "--checkpoint.interval=100000",
            *flags,
        ]
    )
    made = build_trainer(config)
    made.load()
    yield made
    made.close()
    stop_world()


def bare_loop(trained: Trainer) -> None:
    """Ten steps without a trainer."""
    context = trained.context
    model, optimizer = context.model, context.optimizer
    rows, length = context.config.training.local_batch_size, context.config.training.seq_len
    tokens = torch.zeros(rows, length, dtype=torch.long).random_(0, 256)
    from titan_pt.components.loss import ChunkedCrossEntropy

    for _ in range(STEPS):
        losses = model(tokens, None, ChunkedCrossEntropy().head(tokens))
        (losses.total / tokens.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def whole_loop(trained: Trainer) -> None:
    """Ten steps of the trainer."""
    for _ in range(STEPS):
        trained._one_step()


def saves(mode: str, repetitions: int) -> list[float]:
    """Seconds that training waits for each save, with steps between them."""
    with tempfile.TemporaryDirectory() as folder, trainer(folder, f"--checkpoint.async_mode={mode}") as trained:
        found = []
        for _ in range(repetitions + 1):
            for _ in range(STEPS):
                trained._one_step()
            start = time.perf_counter()
            trained._save(required=False)
            found.append(time.perf_counter() - start)
            assert trained._checkpointer is not None
            trained._checkpointer.wait()
        return found[1:]


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--short", action="store_true", help="three repetitions")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    repetitions = 3 if options.short else options.repetitions
    print("| what | seconds | against | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, trainer(folder, "--checkpoint.enable=false") as trained:
        sides = {"bare": timed(lambda: bare_loop(trained)), "trainer": timed(lambda: whole_loop(trained))}
        seconds = alternate(sides, repetitions)
    factor = [whole / bare for bare, whole in zip(seconds["bare"], seconds["trainer"], strict=True)]
    found = {"seconds_of_10_steps": {name: spread(values) for name, values in seconds.items()}, "ratio": spread(factor)}
    cells = f"{cell(seconds['trainer'])} | {cell(seconds['bare'])} | {cell(factor)}"
    report("loop_overhead", {**found, **environment()}, f"| ten steps of the trainer : bare | {cells} |")
    stalls = {mode: saves(mode, repetitions) for mode in ("async", "disabled")}
    share = [a / b for a, b in zip(stalls["async"], stalls["disabled"], strict=True)]
    found = {"stall_seconds": {name: spread(values, 4) for name, values in stalls.items()}, "ratio": spread(share)}
    cells = f"{cell(stalls['async'], 3)} | {cell(stalls['disabled'], 3)} | {cell(share)}"
    report(
        "save_stall", {**found, **environment()}, f"| what training waits for a save: asynchronous : not | {cells} |"
    )


if __name__ == "__main__":
    sys.exit(main())
