"""Sweeps: their points, what runs and what does not run again, signals, and wrong keys before anything starts."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers import read_rows, write_toml
from tool_helpers import tool_here

from titan_pt.config.errors import ConfigError
from titan_pt.sweeps import runs
from titan_pt.sweeps.grid import read_grid
from titan_pt.sweeps.runs import share_of
from titan_pt.tools.sweep import main

# A run that ends as `codes.json` beside the sweep says, by its learning rate; it writes a row, and counts its starts.
FAKE = """
import json, os, signal, sys, time, tomllib
from pathlib import Path
config = tomllib.loads(Path(sys.argv[-1]).read_text())
folder = Path(config["job"]["dump_folder"])
rate = config["optimizer"]["lr"]
with (folder / "starts").open("a") as file:
    file.write("x")
(folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 10 * rate}) + "\\n")
(folder / "config.toml").write_text(Path(sys.argv[-1]).read_text())
code = json.loads((folder.parents[1] / "codes.json").read_text()).get(str(rate), 0)
if code == "waits":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    (folder / "waits").touch()
    time.sleep(60)
if code < 0:
    os.kill(os.getpid(), -code)
print("the last line of", rate)
sys.exit(code)
"""


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TOML file whose runs are FAKE."""
    monkeypatch.setattr(runs, "LAUNCH", ["-c", FAKE])
    write_codes(tmp_path, {})
    return write_toml(tmp_path)


def write_codes(folder: Path, codes: dict[str, int | str]) -> None:
    (folder / "codes.json").write_text(json.dumps(codes))


def starts(folder: Path) -> dict[str, int]:
    """How often each point was started, by its name."""
    return {path.parent.name: len(path.read_text()) for path in folder.glob("run_sweep/*/starts")}


def test_what_ended_well_is_not_repeated_and_a_changed_grid_adds_points(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_codes(tmp_path, {"0.1": 75, "0.2": 1, "0.3": -9, "0.4": 70, "0.5": 2})
    assert tool_here(main, toml, "--grid", "optimizer.lr=0.1,0.2,0.3,0.4,0.5,0.6", "--jobs", "3") == 1
    out = capsys.readouterr()
    assert "optimizer.lr=0.2: failed" in out.err and "the last line of 0.2" in out.err
    assert out.out.splitlines()[0].split()[0] == "run" and "optimizer.lr=0.4: gave up" in out.out.splitlines()
    assert "optimizer.lr=0.6:" not in out.out, "it finished"
    write_codes(tmp_path, {"0.4": 70})
    assert tool_here(main, toml, "--grid", "optimizer.lr=6e-1,0.1,0.2,0.3,0.4,0.5,0.7") == 70
    counts = starts(tmp_path)
    again = {f"optimizer.lr={rate}": 2 for rate in (0.1, 0.2, 0.3, 0.5)}
    assert counts == {**again, "optimizer.lr=0.4": 1, "optimizer.lr=0.6": 1, "optimizer.lr=0.7": 1}
    assert tool_here(main, toml, "--grid", "optimizer.lr=0.1,0.7") == 0
    assert starts(tmp_path) == counts
    assert "the last line of 0.7" in (tmp_path / "run_sweep" / "optimizer.lr=0.7" / "output.txt").read_text()


def test_a_longer_run_goes_on_and_other_changes_are_told(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("--grid", "optimizer.lr=0.1,0.2")
    assert tool_here(main, toml, *grid) == 0
    assert tool_here(main, toml, *grid, "--metrics.log_freq=3") == 0
    assert set(starts(tmp_path).values()) == {1}
    assert tool_here(main, toml, *grid, "--training.steps=9") == 0
    assert set(starts(tmp_path).values()) == {2}
    capsys.readouterr()
    assert tool_here(main, toml, *grid, "--training.steps=9", "--optimizer.beta1=0.5") == 2
    assert "was started with other values of optimizer.beta1; name another folder" in capsys.readouterr().err


def test_a_signal_stops_all_with_75(toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_codes(tmp_path, {"0.1": "waits", "0.2": "waits", "0.3": "waits"})
    folder = tmp_path / "run_sweep"

    def stop() -> None:
        end = time.monotonic() + 60
        while len(list(folder.glob("*/waits"))) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    handler = signal.getsignal(signal.SIGTERM)
    command = (toml, "--grid", "optimizer.lr=0.1,0.2,0.3", "--jobs", "2")
    assert tool_here(main, *command) == 75
    assert signal.getsignal(signal.SIGTERM) is handler
    assert starts(tmp_path) == {"optimizer.lr=0.1": 1, "optimizer.lr=0.2": 1}
    assert tool_here(main, *command, "--print") == 0
    assert [line.rpartition("#")[2].strip() for line in capsys.readouterr().out.splitlines()[-3:]] == [
        *("stopped", "stopped", "new")
    ]
    write_codes(tmp_path, {})
    assert tool_here(main, *command) == 0
    assert starts(tmp_path) == {"optimizer.lr=0.1": 2, "optimizer.lr=0.2": 2, "optimizer.lr=0.3": 1}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--grid", "optimizer.lrr=1,2"], "unknown key; did you mean optimizer.lr?"),
        (["--grid", "optimizer.lr=0.1,high"], "optimizer.lr = 'high'"),
        (["--grid", "optimizer.lr=0.1", "--grid", "tokenizer.name=byte,none.json"], "tokenizer.name = 'none.json'"),
        (["--grid", "data.sources=[{name='arithmetic'}],[{name='aritmetic'}]"], "did you mean arithmetic?"),
        (["--grid", "training.global_batch_size=16,13"], "training.global_batch_size"),
        (["--grid", "optimizer.lr=1e-3,0.001"], "optimizer.lr=0.001 comes twice"),
        (["--grid", "optimizer.lr"], "must be KEY=VALUE,VALUE"),
        (["--grid", "optimizer.lr=0.1,"], "must be KEY=VALUE,VALUE"),
        (["--grid", "optimizer.lr=1", "--grid", "optimizer.lr=2"], "given twice"),
        (["--grid", "job.dump_folder=a,b"], "a run folder of its own"),
        (["--grid", "debug.seed=1,2", "--seeds", "2"], "--seeds and --grid debug.seed: give one"),
        (["--seeds", "0"], "--seeds = 0: must be at least 1"),
        (["--seeds", "2", "--jobs", "none"], "--jobs = 'none': must be an integer"),
        (["another.toml", "--seeds", "2"], "'another.toml': a second TOML file"),
        ([], "--grid: missing"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert tool_here(main, toml, *flags) == 2
    assert said in capsys.readouterr().err
    assert not starts(tmp_path)


def test_seeds_and_the_printed_commands(toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool_here(main, toml, "--grid", "model.num_layers=1,2", "--seeds", "3", "--print") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and not (tmp_path / "run_sweep").exists()
    folder = tmp_path / "run_sweep" / "debug.seed=43,model.num_layers=1"
    wanted = f"--job.config_file={toml} --model.num_layers=1 --debug.seed=43 --job.dump_folder={folder}  # new"
    assert lines[1].endswith(wanted)


def test_names_are_plain_and_differ(toml: Path, tmp_path: Path) -> None:
    sources = "[{name = 'arithmetic', weight = 1}],[{name = 'arithmetic', weight = 2}]"
    assert tool_here(main, toml, "--grid", f"data.sources={sources}", "--grid", "job.description=a/b,a b") == 0
    names = sorted(starts(tmp_path))
    assert len(names) == 4 and all(len(name) < 120 and "/" not in name and " " not in name for name in names)
    assert any(name.startswith("data.sources=-name-arithmetic") for name in names), "as TOML writes it"
    assert read_grid(["a.b=[1, 2],{c = 'd,e'}", "c=it's"]) == {"a.b": ["[1, 2]", "{c = 'd,e'}"], "c": ["it's"]}
    for text, opened in (("a=it's,b", "' holds the commas"), ("a=[1,2", "a bracket holds the commas")):
        with pytest.raises(ConfigError, match=opened):
            read_grid([text])


def test_runs_at_a_time_share_the_machine() -> None:
    four = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "OMP_NUM_THREADS": "1"}
    assert [share_of(slot, 2, four)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["0,1", "2,3"]
    assert [share_of(slot, 8, four)["CUDA_VISIBLE_DEVICES"] for slot in (0, 3, 4)] == ["0", "3", "0"]
    assert share_of(0, 1, {}) == {} and int(share_of(0, 2, {"CUDA_VISIBLE_DEVICES": ""})["OMP_NUM_THREADS"]) >= 1


def test_a_real_point_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = write_toml(tmp_path, training={"steps": 1})
    assert tool_here(main, toml, "--seeds", "1") == 0
    folder = tmp_path / "run_sweep" / "debug.seed=42"
    assert [row["step"] for row in read_rows(folder)] == [1]
    assert "debug.seed=42" in capsys.readouterr().out and "step 1/1" in (folder / "output.txt").read_text()
