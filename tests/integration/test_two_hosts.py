"""Two machines on one: network namespaces joined by a cable, each running a pod's command with the pod's variables.

The addresses are of 192.0.2.0/24, which is for documentation and leads nowhere; a namespace sees nothing else.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import forked
import pytest
from helpers import environment, losses, train, write_faulty, write_toml
from pod_helpers import Pod, containers, job_spec, pod_spec

from titan_pt.run.exit_codes import ExitCode

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")]

ADDRESSES = ("192.0.2.1", "192.0.2.2")
STEPS = 60


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str
    address: str

    def start(self, arguments: list[str], log: Path, env: dict[str, str]) -> "subprocess.Popen[bytes]":
        with log.open("ab") as file:
            return forked.Popen([*self.enter, *arguments], stderr=file, env=environment(**env))

    @property
    def enter(self) -> list[str]:
        """The command that begins a command that runs there."""
        return ["ip", "netns", "exec", self.name]

    def lose_power(self, *spared: int) -> None:
        """Kill all that runs there, the launcher and its workers, at once."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True).stdout
        for pid in {*map(int, pids.split())} - {*spared}:
            os.kill(pid, signal.SIGKILL)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    """Two hosts with an eth0 each, that know the pods of both manifests by the names that the cluster gives them."""
    found = [Host(f"titan-pt-{os.getpid()}-{i}", address) for i, address in enumerate(ADDRESSES)]
    service = "titan-pt-pretrain"
    names = [f"{service}-{i}.{service} {service}-node-0-{i}.{service}" for i in (0, 1)]
    lines = [f"{host.address} {aliases}\n" for host, aliases in zip(found, names, strict=True)]
    folders = [Path("/etc/netns") / host.name for host in found]  # `ip netns exec` puts these over /etc
    try:
        for host, folder in zip(found, folders, strict=True):
            ip("netns", "add", host.name)
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{''.join(lines)}")
        one, other = (host.name for host in found)
        ip("link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", other)
        for host in found:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host.name, "link", "set", device, "up")
        yield found
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        pytest.skip(f"network namespaces cannot be made here: {reason.strip()}")
    finally:
        for host, folder in zip(found, folders, strict=True):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):  # what a test that failed left running
                host.lose_power()
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, check=False)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """The losses of the same TOML on two ranks of one machine."""
    folder = tmp_path_factory.mktemp("alone")
    done = train(tiny(folder), ranks=2)
    assert done.code == 0, done.stderr
    return losses(folder / "run")


def tiny(folder: Path) -> Path:
    return write_toml(folder, training={"steps": STEPS, "global_batch_size": 8}, checkpoint={"interval": 5})


def start(hosts: list[Host], folder: Path, manifest: str) -> "list[subprocess.Popen[bytes]]":
    """What the pods of the manifest run; only the experiment is another, and a small one."""
    tiny(folder)
    return [start_pod(hosts, i, folder, manifest) for i in range(len(hosts))]


def start_pod(hosts: list[Host], index: int, folder: Path, manifest: str) -> "subprocess.Popen[bytes]":
    container = containers(pod_spec(manifest))["train"]
    pod = Pod(folder, folder, hosts[index].address, index)
    flags = ["--job.config_file", str(folder / "run.toml"), "--job.dump_folder", str(folder / "run")]
    arguments = [*pod.command_line(container), *flags]
    return hosts[index].start(arguments, folder / f"log-{index}", pod.environment(container))


def replace_pods(
    hosts: list[Host], folder: Path, manifest: str, processes: "list[subprocess.Popen[bytes]]"
) -> list[int]:
    """As an Indexed Job does: another pod for each that failed, until all are done. Returns the codes that count."""
    counted, deadline = [], time.monotonic() + 480
    while any(process.poll() != 0 for process in processes):
        assert time.monotonic() < deadline, logs(folder)
        for i, process in enumerate(processes):
            if process.poll():
                counted += [process.returncode] * (process.returncode != ExitCode.PREEMPTED)
                processes[i] = start_pod(hosts, i, folder, manifest)
        time.sleep(0.1)
    return counted


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("log-*")))


def wait_for_steps(folder: Path, steps: int, processes: "list[subprocess.Popen[bytes]]") -> None:
    deadline = time.monotonic() + 120
    rows = folder / "run" / "metrics.jsonl"
    while not rows.exists() or len(rows.read_text().splitlines()) < steps:
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), logs(folder)
        time.sleep(0.02)


def test_a_lost_node_of_an_indexed_job(tmp_path: Path, hosts: list[Host], alone: dict[int, float]) -> None:
    """Each pod is replaced when it has failed: the lost one at once, the other one when it has noticed."""
    processes = start(hosts, tmp_path, "pretrain-multinode")
    wait_for_steps(tmp_path, 7, processes)
    hosts[1].lose_power(forked.server(*hosts[1].enter).pid)
    counted = replace_pods(hosts, tmp_path, "pretrain-multinode", processes)
    assert counted[0] == -signal.SIGKILL and set(counted[1:]) == {ExitCode.FAILED}
    assert len(counted) <= job_spec("pretrain-multinode")["backoffLimit"] / 6, "six such losses are allowed"
    assert "Resumed from" in logs(tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-4)


def test_a_lost_node_of_a_jobset(tmp_path: Path, hosts: list[Host], alone: dict[int, float]) -> None:
    """Both are started again together. This time it is the node that holds the rendezvous."""
    processes = start(hosts, tmp_path, "pretrain-jobset")
    wait_for_steps(tmp_path, 7, processes)
    hosts[0].lose_power(forked.server(*hosts[0].enter).pid)
    assert processes[0].wait(10) == -signal.SIGKILL
    assert processes[1].wait(60) == ExitCode.FAILED, "the survivor leaves"
    assert max(losses(tmp_path / "run")) < STEPS
    again = start(hosts, tmp_path, "pretrain-jobset")
    assert [process.wait(120) for process in again] == [0, 0], logs(tmp_path)
    assert "Resumed from" in logs(tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-4)


def test_a_node_that_is_drained_stops_both_with_a_checkpoint(
    tmp_path: Path, hosts: list[Host], alone: dict[int, float]
) -> None:
    processes = start(hosts, tmp_path, "pretrain-multinode")
    wait_for_steps(tmp_path, 7, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in processes] == [ExitCode.PREEMPTED] * 2, logs(tmp_path)
    done = max(losses(tmp_path / "run"))
    assert done < STEPS and (tmp_path / "run" / "checkpoint" / f"step-{done}").is_dir()
    assert replace_pods(hosts, tmp_path, "pretrain-multinode", processes) == [], "nothing counts as a failure"
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-4)


def start_node(host: Host, folder: Path, name: str) -> "subprocess.Popen[bytes]":
    """One of one to three nodes, of one rank; what they wait for is shortened."""
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:29500", "--rdzv_id", "elastic"]
    waits = ["--rdzv_conf", "keep_alive_interval=1,keep_alive_max_attempt=3,last_call_timeout=2"]
    node = ["--nnodes", "1:3", "--nproc_per_node", "1", "--node_rank", str(int(name != "host")), "--local_addr"]
    address = host.address if name != "spare" else "spare"  # ranks go by it
    launch = [sys.executable, "-m", "titan_pt.launch", *rendezvous, *waits, *node, address, "-m", "titan_pt.train"]
    arguments = [*launch, "--job.config_file", str(folder / "run.toml")]
    return host.start(arguments, folder / f"log-{name}", {"GLOO_SOCKET_IFNAME": "eth0"})


def wait_for(folder: Path, text: str, processes: "list[subprocess.Popen[bytes]]") -> None:
    """Until the node that holds the rendezvous, which is the first, has written it."""
    deadline = time.monotonic() + 120
    while text not in (log := (folder / "log-host").read_text()):
        assert time.monotonic() < deadline and processes[0].poll() is None, log
        time.sleep(0.05)


def test_an_elastic_job_shrinks_grows_and_stops(tmp_path: Path, hosts: list[Host], alone: dict[int, float]) -> None:
    """Two nodes, one, three of which one is idle, none. The job sleeps in its step 12 until the nodes change."""
    write_faulty(
        tmp_path,
        {"kind": "sleep", "steps": [12]},
        training={"steps": STEPS, "global_batch_size": 8, "local_batch_size": 2},
        checkpoint={"interval": 5},
    )
    nodes = [start_node(hosts[0], tmp_path, "host"), start_node(hosts[1], tmp_path, "other")]
    wait_for(tmp_path, "2 of 1:3 nodes: 2 ranks", nodes)
    wait_for_steps(tmp_path, 7, nodes)
    hosts[1].lose_power(forked.server(*hosts[1].enter).pid)
    wait_for(tmp_path, "1 of 1:3 nodes: 1 ranks", nodes)
    wait_for_steps(tmp_path, 11, nodes[:1])
    nodes[1:] = [start_node(hosts[1], tmp_path, "other"), start_node(hosts[0], tmp_path, "spare")]
    wait_for(tmp_path, "3 of 1:3 nodes: 2 of 3 ranks train, for the batch and the streams do not", nodes)
    while "Training starts at step 12" not in (tmp_path / "log-host").read_text().rpartition("3 of 1:3 nodes")[2]:
        assert all(node.poll() is None for node in nodes), (tmp_path / "log-host").read_text()
        time.sleep(0.05)
    nodes[2].send_signal(signal.SIGTERM)  # to the idle one
    assert [node.wait(60) for node in nodes] == [ExitCode.PREEMPTED] * 3, (tmp_path / "log-host").read_text()
    found = losses(tmp_path / "run")
    assert max(found) == 11 and found == pytest.approx({step: alone[step] for step in found}, rel=1e-4)
    log, spare = ((tmp_path / f"log-{name}").read_text() for name in ("host", "spare"))
    assert "step-5: step 5," in log and "step-11: step 11," in log, "a loss costs what was not saved, a joining none"
    assert "this node waits" in spare
    starts = [json.loads(line) for line in (tmp_path / "run" / "goodput.jsonl").read_text().splitlines()]
    assert ["restart" in line["seconds"] for line in starts if line.get("begins")][:3] == [False, True, True]
