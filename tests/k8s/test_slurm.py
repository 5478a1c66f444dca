"""scripts/train.slurm with executables that stand for Slurm's: one process for each node of the job, here."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, Result, losses, run, write_toml

from titan_pt.config.manager import load_config
from titan_pt.config.schema.job_config import JobConfig

SCRIPT = ROOT / "scripts" / "train.slurm"

# srun: what it is given on each node, and the largest exit code, as Slurm's. ENDS: the codes of the nodes, in place
# of running anything. The others write down how they were called.
STUBS = {
    "srun": """
while [[ "$1" == --* ]]; do printf 'srun %s\\n' "$1" >>"$STUBS/calls.log"; shift; done
largest=0
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    if [[ -n "${ENDS:-}" ]]; then
        read -ra codes <<<"$ENDS"
        (exit "${codes[node]}") & pids[node]=$!
        printf 'node %s: %s\\n' "$node" "${*:5}" >>"$STUBS/calls.log"
    else
        SLURM_NODEID=$node SLURMD_NODENAME=127.0.0.1 "$@" & pids[node]=$!
        echo "${pids[node]}" >>"$STUBS/pids"
    fi
done
for pid in "${pids[@]}"; do wait "$pid"; code=$?; ((code > largest)) && largest=$code; done
exit "$largest"
""",
    "scontrol": """
printf 'scontrol %s\\n' "$*" >>"$STUBS/calls.log"
if [[ "$1 $2" == "show hostnames" ]]; then printf '127.0.0.1\\nother\\n'; fi
if [[ "$1" == "${FAIL:-none}" ]]; then exit 1; fi
""",
    "sbatch": """
printf 'sbatch %s CONFIG_FILE=%s\\n' "$*" "$CONFIG_FILE" >>"$STUBS/calls.log"
if [[ "${FAIL:-none}" == "$CONFIG_FILE" ]]; then echo "no such partition" >&2; exit 1; fi
echo "$((100 + $(grep -c ^sbatch "$STUBS/calls.log")));cluster"
""",
    "apptainer": """
printf 'apptainer %s\\n' "$*" >>"$STUBS/calls.log"
while [[ "$1" != *.sif ]]; do shift; done
exec "${@:2}"
""",
    "squeue": 'printf "squeue %s\\n" "$*" >>"$STUBS/calls.log"; echo "${STATE-RUNNING}"',
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script."""
    (tmp_path / "bin").mkdir()
    for name, text in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    write_toml(tmp_path, training={"steps": 3000, "global_batch_size": 8})
    return {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "STUBS": str(tmp_path),
        "CONFIG_FILE": "run.toml",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": "31234",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
    }


def submit(folder: Path, slurm: dict[str, str], *flags: str, **env: str) -> Result:
    return run([str(SCRIPT), *flags], cwd=folder, env={**slurm, **env})


def calls(folder: Path) -> list[str]:
    log = folder / "calls.log"
    return log.read_text().splitlines() if log.exists() else []


def directives() -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_what_slurm_is_asked_for(tmp_path: Path, slurm: dict[str, str]) -> None:
    asked = directives()
    assert asked["signal"] == "USR1@120", "to the steps; B: would tell this script alone"
    assert "requeue" in asked and asked["open-mode"] == "append" and asked["ntasks-per-node"] == "1"
    assert submit(tmp_path, slurm, "--training.steps", "5", ENDS="0 0").code == 0
    assert asked["mem"] == "0", "all of the node's, not the partition's default"
    launched = [line.split() for line in calls(tmp_path) if " -m titan_pt.launch " in line]
    assert len(launched) == 2 and "srun --kill-on-bad-exit=0" in calls(tmp_path)
    words = launched[0][launched[0].index("titan_pt.train") + 1 :]
    config: JobConfig = load_config([word.replace("run.toml", str(tmp_path / "run.toml")) for word in words])
    assert config.comm.grace_seconds + 10 <= int(asked["signal"].split("@")[1]), "saved before the time is over"
    assert config.parallelism.data_parallel_replicate_degree == 2 and config.training.steps == 5


@pytest.mark.parametrize(
    ("ends", "env", "code", "requeued", "words"),
    [
        ("75 75", {}, 75, True, ""),
        ("75 75", {"SLURM_RESTART_COUNT": "49"}, 75, True, ""),
        ("75 75", {"SLURM_RESTART_COUNT": "50"}, 75, False, "queued again 50 times already (MAX_REQUEUES)"),
        ("75 75", {"MAX_REQUEUES": "0"}, 75, False, "submit it again to go on"),
        ("75 75", {"STATE": "COMPLETING"}, 75, False, "the job is COMPLETING and is not queued again"),
        ("75 75", {"STATE": ""}, 75, False, "the job is gone"),
        ("75 75", {"FAIL": "requeue"}, 75, True, "could not be queued again; submit it again"),
        ("0 0", {}, 0, False, ""),
        ("1 1", {}, 1, False, ""),
        ("2 0", {}, 2, False, ""),
        ("70 70", {}, 70, False, ""),
    ],
)
def test_it_queues_itself_again_after_75_alone(
    tmp_path: Path, slurm: dict[str, str], ends: str, env: dict[str, str], code: int, requeued: bool, words: str
) -> None:
    done = submit(tmp_path, slurm, ENDS=ends, **env)
    assert (done.code, "scontrol requeue 31234" in calls(tmp_path)) == (code, requeued), done.stderr
    assert words in done.stderr and bool(words) == bool(done.stderr)


@pytest.mark.parametrize(
    ("env", "code", "words"),
    [
        ({"SLURM_JOB_ID": ""}, 2, "this is for Slurm: sbatch"),
        ({"CONFIG_FILE": "nowhere.toml"}, 2, "CONFIG_FILE = 'nowhere.toml': no such file"),
        ({"MAX_REQUEUES": "-1"}, 2, "MAX_REQUEUES = '-1'"),
        ({"FAIL": "show", "PATH": "/usr/bin:/bin"}, 1, "the job's nodes are not known"),
        ({"PYTHON": "/usr/bin/python3", "PYTHONPATH": ""}, 2, "cannot import titan_pt (ModuleNotFoundError: No module"),
        ({"PYTHON": "/usr/bin/python3", "PYTHONPATH": str(ROOT)}, 2, "cannot import titan_pt (no torch, no pydantic"),
        ({"PYTHON": "/nowhere/python"}, 2, "PYTHON = '/nowhere/python': cannot import titan_pt"),
        ({"CONTAINER": "titan.sif"}, 2, "CONTAINER = 'titan.sif': no such file"),
        ({"MOUNTS": "/data"}, 2, "MOUNTS = '/data': is for a CONTAINER"),
    ],
)
def test_wrong_input(tmp_path: Path, slurm: dict[str, str], env: dict[str, str], code: int, words: str) -> None:
    done = submit(tmp_path, slurm, **env)
    assert done.code == code and words in done.stderr and not [line for line in calls(tmp_path) if "srun" in line]


def test_containers(tmp_path: Path, slurm: dict[str, str]) -> None:
    (tmp_path / "titan.sif").touch()
    done = submit(tmp_path, slurm, CONTAINER="titan.sif", MOUNTS="/data", ENDS="0 0")
    assert done.code == 0, done.stderr
    inside = f"apptainer exec --nv --pwd {tmp_path} --bind {tmp_path},/data titan.sif {sys.executable}"
    assert f"{inside} -c import titan_pt" in "\n".join(calls(tmp_path)), "looked for before srun"
    assert f"node 1: {inside} -m titan_pt.launch" in "\n".join(calls(tmp_path))
    (tmp_path / "calls.log").unlink()
    done = submit(tmp_path, slurm, CONTAINER="registry#team/titan-pt:v1", PYTHON="python", ENDS="0 0")
    assert done.code == 0, "pyxis: what is in the image is seen inside srun alone"
    assert "srun --container-image=registry#team/titan-pt:v1" in calls(tmp_path)
    assert f"srun --container-mounts={tmp_path}:{tmp_path}" in calls(tmp_path)
    assert "node 1: python -m titan_pt.launch" in "\n".join(calls(tmp_path))


def chain(folder: Path, slurm: dict[str, str], *arguments: str, **env: str) -> Result:
    return run([str(ROOT / "scripts" / "slurm_chain.sh"), *arguments], cwd=folder, env={**slurm, **env})


def test_a_chain(tmp_path: Path, slurm: dict[str, str]) -> None:
    files = [f"{ROOT}/train_configs/{name}.toml" for name in ("medium_3day", "sft_full", "grpo_full")]
    done = chain(tmp_path, slurm, "--nodes=1", *files)
    assert done.code == 0 and "sft_full: job 102, after 101\n" in done.stdout, done.stderr
    first, second, third = calls(tmp_path)
    assert f"--job-name=medium_3day --nodes=1 {SCRIPT} CONFIG_FILE={files[0]}" in first and "--dependency" not in first
    for earlier, call in ((101, second), (102, third)):
        assert f" --dependency=afterok:{earlier} --kill-on-invalid-dep=yes " in call


@pytest.mark.parametrize(
    ("arguments", "env", "code", "words"),
    [
        (["sft"], {}, 2, "a chain is two TOML files or more"),
        (["3day", "nowhere.toml"], {}, 2, "'nowhere.toml': no such file"),
        (["1day", "sft"], {}, 2, "'outputs/medium_3day' is not the run before"),
        (["wrong.toml", "sft"], {}, 2, "training.stepps"),
        (["3day", "sft"], {"PYTHONPATH": "", "PYTHON": "/usr/bin/python3"}, 2, "import"),
        (["3day", "sft"], {"FAIL": "sft"}, 1, "scancel 101"),
    ],
)
def test_a_wrong_chain(
    tmp_path: Path, slurm: dict[str, str], arguments: list[str], env: dict[str, str], code: int, words: str
) -> None:
    (tmp_path / "wrong.toml").write_text("[training]\nstepps = 3\n")
    names = {"1day": "medium_1day", "3day": "medium_3day", "sft": "sft_full"}
    shipped = {short: f"{ROOT}/train_configs/{name}.toml" for short, name in names.items()}
    arguments = [shipped.get(word, word) for word in arguments]
    done = chain(tmp_path, slurm, *arguments, **{name: shipped.get(value, value) for name, value in env.items()})
    assert done.code == code and words in done.stderr, done.stderr
    assert code == 1 or calls(tmp_path) == []


def start(folder: Path, slurm: dict[str, str], **env: str) -> "subprocess.Popen[Any]":
    """A job that has begun to train."""
    everything = {**os.environ, "PYTHONPATH": str(ROOT), **slurm, **env}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([str(SCRIPT)], cwd=folder, env=everything, stdout=log, stderr=log)
    deadline, rows = time.monotonic() + 120, folder / "run" / "metrics.jsonl"
    before = len(rows.read_text().splitlines()) if rows.exists() else 0
    while not rows.exists() or len(rows.read_text().splitlines()) < before + 3:
        assert time.monotonic() < deadline and process.poll() is None, (folder / "log").read_text()
        time.sleep(0.05)
    return process


def end_of(process: "subprocess.Popen[Any]", folder: Path) -> int:
    """The exit code; where none comes in a minute, the launchers and workers write their stacks to the log."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(60)
    for pid in (folder / "pids").read_text().split():
        for target in [*children_of(pid), pid]:
            with contextlib.suppress(OSError):
                os.kill(int(target), signal.SIGABRT)
    return process.wait(60)


def children_of(pid: str) -> list[str]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return children.read_text().split() if children.exists() else []


@pytest.mark.slow
def test_the_time_limit_comes_and_the_job_goes_on(tmp_path: Path, slurm: dict[str, str]) -> None:
    """Two launchers with a rank each; Slurm's warning goes to both, and to their workers, all at once."""
    process = start(tmp_path, slurm, PYTHONFAULTHANDLER="1")
    for pid in (tmp_path / "pids").read_text().split():
        for target in [pid, *children_of(pid)]:
            os.kill(int(target), signal.SIGUSR1)
    assert end_of(process, tmp_path) == 75, (tmp_path / "log").read_text()
    assert calls(tmp_path)[-2:] == ["squeue --noheader --jobs 31234 --format %T", "scontrol requeue 31234"]
    done = max(losses(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoint" / f"step-{done}").is_dir()
    again = start(tmp_path, slurm, SLURM_RESTART_COUNT="1")
    again.send_signal(signal.SIGTERM)  # to the script alone, as when it is cancelled
    for pid in (tmp_path / "pids").read_text().split()[2:]:
        os.kill(int(pid), signal.SIGTERM)
    again.wait(60)
    assert f"Resumed from {tmp_path / 'run' / 'checkpoint' / f'step-{done}'}" in (tmp_path / "log").read_text()
