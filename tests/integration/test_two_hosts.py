"""Two machines on one: network namespaces joined by a cable, each running a pod's command with the pod's variables.

The addresses are of 192.0.2.0/24, which is for documentation and leads nowhere; a namespace sees nothing else.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import ROOT, losses, train, write_toml
from pod_helpers import Pod, containers, pod_spec

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")]

ADDRESSES = ("192.0.2.1", "192.0.2.2")
STEPS = 60


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str
    address: str

    def start(self, arguments: list[str], log: Path, env: dict[str, str]) -> "subprocess.Popen[bytes]":
        everything = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", **env}
        with log.open("ab") as file:
            return subprocess.Popen(["ip", "netns", "exec", self.name, *arguments], stderr=file, env=everything)

    def lose_power(self) -> None:
        """Kill all that runs there, the launcher and its workers, at once."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True).stdout
        for pid in map(int, pids.split()):
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
    container = containers(pod_spec(manifest))["train"]
    config = tiny(folder)
    processes = []
    for i, host in enumerate(hosts):
        pod = Pod(folder, folder, host.address, i, len(hosts))
        flags = ["--job.config_file", str(config), "--job.dump_folder", str(folder / "run")]
        processes.append(
            host.start([*pod.command_line(container), *flags], folder / f"log-{i}", pod.environment(container))
        )
    return processes


def logs(folder: Path) -> str:
    return "\n".join((folder / f"log-{i}").read_text() for i in (0, 1))


def wait_for_steps(folder: Path, steps: int, processes: "list[subprocess.Popen[bytes]]") -> None:
    deadline = time.monotonic() + 120
    rows = folder / "run" / "metrics.jsonl"
    while not rows.exists() or len(rows.read_text().splitlines()) < steps:
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes), logs(folder)
        time.sleep(0.02)


@pytest.mark.parametrize(("manifest", "victim"), [("pretrain-multinode", 1), ("pretrain-jobset", 0)])
def test_a_node_is_lost_and_comes_back(
    tmp_path: Path, hosts: list[Host], alone: dict[int, float], manifest: str, victim: int
) -> None:
    processes = start(hosts, tmp_path, manifest)
    wait_for_steps(tmp_path, 7, processes)
    hosts[victim].lose_power()
    assert processes[victim].wait(10) == -signal.SIGKILL
    assert processes[1 - victim].wait(60) == 1, "the survivor leaves, so that its pod can be replaced"
    assert max(losses(tmp_path / "run")) < STEPS
    again = start(hosts, tmp_path, manifest)
    assert [process.wait(120) for process in again] == [0, 0], logs(tmp_path)
    assert "Resumed from" in logs(tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-4)


def test_a_node_that_is_drained_stops_both_with_a_checkpoint(
    tmp_path: Path, hosts: list[Host], alone: dict[int, float]
) -> None:
    processes = start(hosts, tmp_path, "pretrain-multinode")
    wait_for_steps(tmp_path, 7, processes)
    processes[1].send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in processes] == [75, 75], logs(tmp_path)
    done = max(losses(tmp_path / "run"))
    assert done < STEPS and (tmp_path / "run" / "checkpoint" / f"step-{done}").is_dir()
    again = start(hosts, tmp_path, "pretrain-multinode")
    assert [process.wait(120) for process in again] == [0, 0], logs(tmp_path)
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-4)
