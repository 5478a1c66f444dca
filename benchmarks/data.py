"""Tokens/s of the data alone: local parquet with 0 and 2 workers, token shards. `python benchmarks/data.py [FILES]`

Default files: text/fineweb/train-*.parquet of the folder named by TITAN_PT_TEST_DATA. They are written again with row
groups of 100 rows, several times over, so that there are enough units for streaming. Then the cost of a resume.
"""

import glob
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from titan_pt.components.tokenizer import Tokenizer, build_tokenizer
from titan_pt.config.run_size import plan_run_size
from titan_pt.config.schema.job_config import Data, Job, JobConfig, Source, TokenizerSection, Training, Validation
from titan_pt.data.stream.loader import DataLoader, build_dataloader
from titan_pt.distributed.world import World, start_world, stop_world
from titan_pt.tools.prepare import prepare

SEQ_LEN, ROWS, STREAMS, COPIES, GROUP_ROWS = 2048, 64, 8, 4, 100
GPU_TOKENS_PER_SECOND = 61_000
SECONDS = 15.0


def config_of(folder: Path, path: str, num_workers: int = 0) -> JobConfig:
    """A config with one source."""
    return JobConfig(
        job=Job(dump_folder=str(folder / "run")),
        tokenizer=TokenizerSection(name="gpt2"),
        training=Training(seq_len=SEQ_LEN, global_batch_size=ROWS, local_batch_size=8),
        data=Data(
            sources=[Source(name="web", path=path)],
            num_streams=STREAMS,
            num_workers=num_workers,
            cache_dir=str(folder / "cache"),
        ),
        validation=Validation(holdout_fraction=0.0),
    )


def build(config: JobConfig, tokenizer: Tokenizer, world: World) -> DataLoader:
    """The loader of one rank."""
    return build_dataloader(config, tokenizer, world, plan_run_size(config, 1))


def measure(config: JobConfig, tokenizer: Tokenizer, world: World) -> tuple[float, dict[str, Any]]:
    """Tokens/s over some seconds, after a first batch; and the loader's state."""
    data = build(config, tokenizer, world)
    batch = data.next_batch()
    tokens, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        batch = data.next_batch()
        assert batch is not None
        data.commit(batch)
        tokens += batch.num_targets
    rate = tokens / (time.perf_counter() - started)
    state = json.loads(json.dumps(data.state_dict()))
    data.close()
    return rate, state


def resume_seconds(config: JobConfig, tokenizer: Tokenizer, world: World, state: dict[str, Any]) -> float:
    """Seconds from a new loader's start to its first batch after a resume."""
    data = build(config, tokenizer, world)
    started = time.perf_counter()
    data.load_state_dict(state)
    data.next_batch()
    seconds = time.perf_counter() - started
    data.close()
    return seconds


def write_shards(files: Sequence[str], folder: Path) -> str:
    """The files again, with smaller row groups and several times; returns their glob."""
    texts = pa.concat_tables([pq.read_table(file, columns=["text"]) for file in files])
    for copy in range(COPIES):
        pq.write_table(texts, folder / f"{copy}.parquet", row_group_size=GROUP_ROWS, compression="zstd")
    return str(folder / "*.parquet")


def main(argv: list[str]) -> None:
    """Print a Markdown table."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    default = os.path.join(os.environ.get("TITAN_PT_TEST_DATA", ""), "text/fineweb/train-*.parquet")
    files = argv or sorted(glob.glob(default))
    if not files:
        sys.exit("no parquet files; name some, or set TITAN_PT_TEST_DATA")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_shards(files, folder)
        config = config_of(folder, path)
        world = start_world(config, folder)
        tokenizer = build_tokenizer(config.tokenizer)
        texts = pq.read_table(files[0], columns=["text"])["text"].to_pylist()
        started = time.perf_counter()
        count = sum(len(tokenizer.encode(text)) for text in texts)
        alone = count / (time.perf_counter() - started)
        prepare(config, "web", folder / "tokens")
        rates = {"tokenizer alone": alone}
        rates["parquet, 0 workers"], state = measure(config, tokenizer, world)
        resume = resume_seconds(config, tokenizer, world, state)
        rates["parquet, 2 workers"], _ = measure(config_of(folder, path, 2), tokenizer, world)
        rates["token shards, 0 workers"], _ = measure(config_of(folder, str(folder / "tokens")), tokenizer, world)
        load = os.getloadavg()[0]
        print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, torch {torch.__version__}\n")
        print(f"| what | tokens/s | share of a step at {GPU_TOKENS_PER_SECOND:,} tokens/s, if nothing overlapped |")
        print("|---|---|---|")
        for what, rate in rates.items():
            print(f"| {what} | {rate:,.0f} | {GPU_TOKENS_PER_SECOND / rate:.1%} |")
        print(f"\nResume of {STREAMS} streams, to the first batch: {resume:.2f} s")
        stop_world()


if __name__ == "__main__":
    main(sys.argv[1:])
