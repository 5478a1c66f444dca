"""Runs whose data stalls: the collectives' time-out is not tripped, exit code 75, and the same tokens in the end."""

from pathlib import Path
from typing import Any

import pytest
from data_helpers import texts
from helpers import losses, read_json, read_rows, train, train_here, write_toml
from hub_server import serving, write_shards

from titan_pt.run.exit_codes import ExitCode

STREAMED: dict[str, Any] = {"prefetch_steps": 1, "num_streams": 2, "request_timeout_seconds": 0.5}


@pytest.mark.slow
def test_a_stall_longer_than_the_time_out_of_collectives(tmp_path: Path) -> None:
    """Rank 1 has no data for 8 s, a collective may take 4 s; the other rank is told and does not start one."""
    results = []
    for name, seconds in (("clean", "0"), ("stalled", "8")):
        config = write_toml(
            tmp_path / name,
            data={"sources": [{"name": "slow"}], "prefetch_steps": 0, "num_streams": 4},
            training={"steps": 20, "seq_len": 64},
            experimental={"custom_import": "slow_source"},
            comm={"train_timeout_seconds": 4},
        )
        done = train(config, ranks=2, env={"SLOW_SECONDS": seconds})
        assert done.code == 0, done.stderr
        results.append(losses(tmp_path / name / "run"))
    assert results[0] == results[1]
    rows = read_rows(tmp_path / "stalled" / "run")
    assert max(row["data_seconds"] for row in rows) > 6, "booked as waiting for data"


def test_a_run_without_data_saves_and_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "files", list(texts(*[200] * 400, name="d")), 2, 10)
    with serving(tmp_path / "files") as server:
        path = f"{server.url}/{{000..001}}_00000.parquet"
        monkeypatch.setattr("titan_pt.data.remote.block_order.BLOCK_ROWS", 10)
        results = []
        for name in ("clean", "stalled"):
            data = {**STREAMED, "sources": [{"name": "web", "path": path}], "cache_dir": str(tmp_path / name)}
            config = write_toml(tmp_path / name, data=data, training={"steps": 8}, checkpoint={"interval": 100})
            if name == "stalled":
                first = server.requests["file"]
                server.fault = lambda _path, count, first=first: "reset" if count > first + 9 else ""
                assert train_here(config, "--data.max_stall_seconds", "3") == ExitCode.PREEMPTED
                steps = [int(step.name[5:]) for step in (tmp_path / name / "run" / "checkpoint").iterdir()]
                assert len(steps) == 1 and 0 < steps[0] < 8
                server.fault = lambda _path, _count: ""
            assert train_here(config) == ExitCode.DONE
            results.append(read_json(tmp_path / name / "run" / "checkpoint" / "step-8", "data")["streams"])
        assert results[0] == results[1]


def test_three_starts_without_data_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "files", list(texts(*[200] * 400, name="d")), 2, 10)
    with serving(tmp_path / "files") as server:
        monkeypatch.setattr("titan_pt.data.remote.block_order.BLOCK_ROWS", 10)
        sources = [{"name": "web", "path": f"{server.url}/{{000..001}}_00000.parquet"}]
        data = {**STREAMED, "sources": sources, "cache_dir": str(tmp_path / "cache"), "max_stall_seconds": 1}
        config = write_toml(tmp_path, data=data, training={"steps": 8}, checkpoint={"interval": 100})
        first = server.requests["file"]
        server.fault = lambda _path, count: "reset" if count > first + 9 else ""
        assert [train_here(config) for _ in range(4)] == [75, 75, 75, 70], "the first start has finished steps"
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("gave up: 3 starts in a row") and "the last one: no data for 1 s" in last
        server.fault = lambda _path, _count: ""
        assert train_here(config) == ExitCode.DONE, "when the cause is gone"


def test_a_start_without_data_is_75_where_there_is_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "files", list(texts(*[200] * 400, name="d")), 2, 10)
    with serving(tmp_path / "files") as server:
        path = f"{server.url}/{{000..001}}_00000.parquet"
        data = {**STREAMED, "sources": [{"name": "web", "path": path}], "cache_dir": str(tmp_path / "cache")}
        config = write_toml(tmp_path, data=data, training={"steps": 4})
        flags = ["--data.max_stall_seconds", "2"]
        server.fault = lambda _path, _count: "reset"
        assert train_here(config, *flags) == ExitCode.FAILED
        told = capsys.readouterr().err
        assert "nothing of use for" in told.splitlines()[-1] and "Traceback" not in told
        server.fault = lambda _path, _count: ""
        assert train_here(config, *flags) == ExitCode.DONE
        server.fault = lambda _path, _count: "reset"
        (tmp_path / "cache").rename(tmp_path / "before")  # readers that were closed may still be about to write there
        more = [*flags, "--training.steps", "8"]
        codes = [train_here(config, *more) for _ in range(3)]
        assert codes == [ExitCode.PREEMPTED, ExitCode.PREEMPTED, ExitCode.GAVE_UP]
        server.fault = lambda _path, _count: ""
        assert train_here(config, *more) == ExitCode.DONE
