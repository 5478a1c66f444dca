"""The check of a GPU, in its reduced shapes: it must run where it cannot be tried, on a CPU."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run

SECTIONS = (
    "env",
    "train",
    "plan",
    "attention",
    "rollout",
    "peers",
    "checkpoint",
    "product",
    "grpo",
    "quantized",
    "ideas",
)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="benchmarks/gpu/gpu_check.sh runs the whole check here")
@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_runs_small_and_without_an_error(tmp_path: Path, section: str) -> None:
    places = {"OUT": tmp_path / "out", "WORK": tmp_path, "TORCHINDUCTOR_CACHE_DIR": tmp_path / "inductor"}
    environment = {**os.environ, "SMALL": "1", "TITAN_ROOT": str(ROOT), "PYTHONPATH": str(ROOT)}
    done = run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu" / "gpu_check.py"), section],
        timeout=300,
        env={**environment, **{name: str(place) for name, place in places.items()}},
    )
    assert done.code == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [row for row in rows if row.get("error") or row.get("rc") or row.get("skipped")] == []
    assert len(rows) > 1 and rows[-1]["what"] == "end"
