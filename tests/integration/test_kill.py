"""kill -9 at random moments: whatever is lost, the tokens that were trained on in the end are the same."""

import random
import time
from pathlib import Path

import pytest
from helpers import read_json, start, train, write_toml
from hub_server import write_shards
from row_group_helpers import TEXTS

KILLS = 20
STEPS = 400


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills(tmp_path: Path) -> None:
    write_shards(tmp_path / "web", TEXTS, 4, 5)
    sources = [
        {"name": "web", "path": str(tmp_path / "web" / "*.parquet"), "weight": 0.7},
        {"name": "arithmetic", "weight": 0.3},
    ]
    data = {"sources": sources, "num_streams": 4, "cache_dir": str(tmp_path / "cache")}
    model = {"num_layers": 1, "hidden_size": 32, "intermediate_size": 64}
    training = {"steps": STEPS, "global_batch_size": 8, "seq_len": 64}
    checkpoint = {"interval": 5, "keep_latest_k": 3}
    hashes = []
    for name in ("clean", "killed"):
        tables = {"data": data, "model": model, "training": training, "checkpoint": checkpoint}
        config = write_toml(tmp_path / name, metrics={"log_freq": 50}, **tables)
        run_folder = tmp_path / name / "run"
        rng, resumed = random.Random(1), set()
        for kill in range(KILLS if name == "killed" else 0):
            kill_at_random(config, rng, further=kill % 2 == 1)
            resumed.add(newest(run_folder))
        done = train(config, timeout=600)
        assert done.code == 0, done.stderr
        if name == "killed":
            assert len(resumed) > KILLS // 2, f"they had gone on: {sorted(resumed)}"
        saved = read_json(run_folder / "checkpoint" / f"step-{STEPS}", "data")
        hashes.append((saved["token_hash"], saved["streams"]))
    assert hashes[0] == hashes[1]


def kill_at_random(config: Path, rng: random.Random, *, further: bool) -> None:
    """Start the run, and kill it within 0.3 s of its first step; `further`: of its first new checkpoint."""
    log, before = config.parent / "log", newest(config.parent / "run")
    log.unlink(missing_ok=True)
    process = start(["--job.config_file", str(config)], log)
    while not log.exists() or "Training starts" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    while further and newest(config.parent / "run") == before:
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 0.3))
    process.kill()
    process.wait()


def newest(run_folder: Path) -> int:
    steps = [path.name for path in (run_folder / "checkpoint").glob("step-*") if path.name[5:].isdigit()]
    return max((int(name[5:]) for name in steps), default=0)
