"""kill -9 at random moments: whatever is lost, the tokens that were trained on in the end are the same."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import ROOT, command, read_json, train, write_toml
from hub_server import write_shards
from row_group_helpers import TEXTS

KILLS = 20


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills(tmp_path: Path) -> None:
    write_shards(tmp_path / "web", TEXTS, 4, 5)
    sources = [
        {"name": "web", "path": str(tmp_path / "web" / "*.parquet"), "weight": 0.7},
        {"name": "arithmetic", "weight": 0.3},
    ]
    data = {"sources": sources, "num_streams": 4, "cache_dir": str(tmp_path / "cache")}
    model = {"num_layers": 1, "hidden_size": 32, "intermediate_size": 64}
    training = {"steps": 1500, "global_batch_size": 8, "seq_len": 64}
    checkpoint = {"interval": 5, "keep_latest_k": 3}
    hashes = []
    for name in ("clean", "killed"):
        tables = {"data": data, "model": model, "training": training, "checkpoint": checkpoint}
        config = write_toml(tmp_path / name, metrics={"log_freq": 50}, **tables)
        run_folder = tmp_path / name / "run"
        rng, resumed = random.Random(1), set()
        for _ in range(KILLS if name == "killed" else 0):
            kill_at_random(config, rng)
            resumed.add(newest(run_folder))
        done = train(config, timeout=600)
        assert done.code == 0, done.stderr
        if name == "killed":
            # On a busy machine a second and a half may not be one checkpoint further.
            assert len(resumed) > KILLS // 5, f"they had gone on: {sorted(resumed)}"
        saved = read_json(run_folder / "checkpoint" / "step-1500", "data")
        hashes.append((saved["token_hash"], saved["streams"]))
    assert hashes[0] == hashes[1]


def kill_at_random(config: Path, rng: random.Random) -> None:
    """Start the run, and kill it up to a second and a half after it began to train."""
    process = subprocess.Popen(command(config), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr
    for line in process.stderr:
        if "Training starts" in line:
            break
    time.sleep(rng.uniform(0.0, 1.5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


def newest(run_folder: Path) -> int:
    steps = [path.name for path in (run_folder / "checkpoint").glob("step-*") if path.name[5:].isdigit()]
    return max((int(name[5:]) for name in steps), default=0)
