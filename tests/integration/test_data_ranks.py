"""A streamed mixture on 4, 2 and 1 processes, one after another: the same tokens as on one all the way."""

from pathlib import Path

import pytest
from helpers import read_json, train, write_toml
from hub_server import serving, write_shards
from row_group_helpers import TEXTS


@pytest.mark.slow
def test_four_two_and_one_processes(tmp_path: Path) -> None:
    write_shards(tmp_path / "files", TEXTS, 3, 10)
    with serving(tmp_path / "files") as server:
        path = f"{server.url}/{{000..002}}_00000.parquet"
        sources = [{"name": "web", "path": path, "weight": 0.6}, {"name": "arithmetic", "weight": 0.4}]
        saved = []
        for name, stages in (("alone", [(12, 1)]), ("changing", [(4, 4), (8, 2), (12, 1)])):
            data = {"sources": sources, "num_streams": 4, "cache_dir": str(tmp_path / name), "num_workers": 1}
            training = {"seq_len": 64, "local_batch_size": 1, "global_batch_size": 8}
            config = write_toml(tmp_path / name, data=data, training=training)
            for steps, ranks in stages:
                done = train(config, "--training.steps", str(steps), ranks=ranks, timeout=300)
                assert done.code == 0, done.stderr
            saved.append(read_json(tmp_path / name / "run" / "checkpoint" / "step-12", "data"))
    assert saved[0]["streams"] == saved[1]["streams"]
    assert saved[0]["token_hash"] == saved[1]["token_hash"]
    assert sum(sum(state["draws"]) for state in saved[0]["streams"].values()) > 100
