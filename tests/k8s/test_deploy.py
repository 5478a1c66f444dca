"""k8s/deploy.sh against executables that stand for docker and kubectl, write down how they are called, and may fail."""

import os
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helpers import ROOT, Result, run

SCRIPT = str(ROOT / "k8s" / "deploy.sh")

# A call a line in calls.log, with what it reads; FAIL is a regular expression of the calls that fail. The conditions
# of a job stand in a file of its name.
STUB = r"""#!/usr/bin/env bash
call="$(basename "$0") $*"
if [[ "$call" == *"--filename -"* || "$call" == *"apply -f -"* ]]; then call+=$'\n'"$(cat)"; fi
printf '%s\n--end--\n' "$call" >>"$STUBS/calls.log"
if [[ -n "${FAIL:-}" && "$call" =~ $FAIL ]]; then echo "the stub fails" >&2; exit 1; fi
case "$call" in
*" get job"*) cat "$STUBS/$5" 2>/dev/null ;;
*"create configmap"*) printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\n' "$5" ;;
*"condition=Failed"*) exit 1 ;;
esac
exit 0
"""


@dataclass
class Cluster:
    """The stubs, and what they were called with."""

    folder: Path
    env: dict[str, str] = field(default_factory=lambda: {"REGISTRY": "registry.example.com/team", "NAMESPACE": "lab"})

    def deploy(self, *arguments: str, **env: str) -> Result:
        variables = {"TAG": "v1", **self.env, **env, "STUBS": str(self.folder)}
        variables["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return run([SCRIPT, *arguments], cwd=self.folder, env=variables, timeout=60)

    def calls(self) -> list[str]:
        log = self.folder / "calls.log"
        return log.read_text().split("\n--end--\n")[:-1] if log.exists() else []

    def applied(self) -> list[dict[str, Any]]:
        """The objects that were applied, in order."""
        texts = [call.split("\n", 1)[1] for call in self.calls() if " apply " in call.split("\n")[0]]
        return [entry for text in texts for entry in yaml.safe_load_all(text)]

    def names(self, *kinds: str) -> list[str]:
        return [entry["metadata"]["name"] for entry in self.applied() if entry["kind"] in kinds]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    (tmp_path / "bin").mkdir()
    for name in ("docker", "kubectl"):
        (tmp_path / "bin" / name).write_text(STUB)
        (tmp_path / "bin" / name).chmod(0o755)
    return Cluster(tmp_path)


def test_from_nothing_to_the_end(cluster: Cluster) -> None:
    done = cluster.deploy()
    assert done.code == 0, done.stderr
    lines = [call.split("\n")[0] for call in cluster.calls()]
    image = "registry.example.com/team/titan-pt:v1"
    build, push = [line for line in lines if line.startswith("docker")]
    assert build.startswith("docker build ") and f"--tag {image} " in build and push == f"docker push {image}"
    assert cluster.names("PersistentVolumeClaim", "ConfigMap", "Deployment", "Service") == [
        "titan-pt", "titan-pt-configs", "titan-pt-presets", "titan-pt-tensorboard", "titan-pt-tensorboard",
    ]  # fmt: skip
    assert cluster.names("Job") == ["titan-pt-pretrain", "titan-pt-sft", "titan-pt-grpo"]
    assert cluster.names("Secret") == [], "none without a token; one that is there stays"
    for entry in cluster.applied():
        assert "${" not in str(entry) and (entry["kind"] == "ConfigMap" or entry["metadata"]["namespace"] == "lab")
        kubernetes_validate.validate(entry, "1.34", strict=True)
        for container in entry.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            assert container["image"] == image
    assert all("--namespace lab" in line or line == "kubectl get namespace lab" for line in lines if "kubectl" in line)
    assert [line.split()[3] for line in lines[-4:]] == ["apply", "wait", "logs", "wait"]


def test_the_jobs_follow_each_other(cluster: Cluster) -> None:
    assert cluster.deploy().code == 0
    order = [call for call in cluster.calls() if "kind: Job" in call or "condition=Complete " in call]
    assert ["wait" if "condition" in call else "apply" for call in order] == ["apply", "wait"] * 3


def test_again_it_passes_over_what_is_done(cluster: Cluster) -> None:
    assert cluster.deploy("pretrain").code == 0
    (cluster.folder / "titan-pt-pretrain").write_text("SuccessCriteriaMet Complete")
    (cluster.folder / "calls.log").unlink()
    done = cluster.deploy("pretrain", "sft")
    assert done.code == 0 and "titan-pt-pretrain is done already" in done.stdout
    assert cluster.names("Job") == ["titan-pt-sft"]
    assert not [call for call in cluster.calls() if " delete " in call]


def test_a_job_that_failed_is_told_and_replaced_on_demand(cluster: Cluster) -> None:
    (cluster.folder / "titan-pt-grpo").write_text("FailureTarget Failed")
    done = cluster.deploy("grpo")
    assert done.code == 1 and "REPLACE=1 starts it again" in done.last_line and cluster.names("Job") == []
    assert [call for call in cluster.calls() if " logs " in call]
    done = cluster.deploy("grpo", REPLACE="1")
    assert done.code == 0 and cluster.names("Job") == ["titan-pt-grpo"]
    deleted = [i for i, call in enumerate(cluster.calls()) if " delete job titan-pt-grpo --ignore-not-found" in call]
    assert len(deleted) == 1 and deleted[0] < next(i for i, call in enumerate(cluster.calls()) if "kind: Job" in call)


def test_a_dry_run_calls_nothing(cluster: Cluster) -> None:
    done = cluster.deploy(DRY_RUN="1", HF_TOKEN="hf_abc", REPLACE="1", STORAGE_CLASS="shared")
    assert done.code == 0, done.stderr
    assert cluster.calls() == []
    assert "+ docker build" in done.stdout and "+ docker push registry.example.com/team/titan-pt:v1" in done.stdout
    for kind in ("Secret", "PersistentVolumeClaim", "Deployment", "Job"):
        assert f"kind: {kind}\n" in done.stdout
    assert "hf_abc" not in done.stdout and 'storageClassName: "shared"' in done.stdout
    assert "delete job titan-pt-sft" in done.stdout
    bare = run([SCRIPT], env={**cluster.env, "DRY_RUN": "1", "PATH": "/usr/bin:/bin"}, cwd=cluster.folder)
    assert bare.code == 0, "not even the tools are needed"


def test_the_token_is_seen_by_the_secret_alone(cluster: Cluster) -> None:
    done = cluster.deploy("sft", HF_TOKEN="hf_abc")
    assert done.code == 0 and "hf_abc" not in done.stdout + done.stderr
    (secret,) = [entry for entry in cluster.applied() if entry["kind"] == "Secret"]
    assert secret["stringData"] == {"token": "hf_abc"}
    assert not [call for call in cluster.calls() if "hf_abc" in call.split("\n")[0]], "other users see arguments"


def test_several_nodes(cluster: Cluster) -> None:
    assert cluster.deploy("pretrain", NODES="4", GPUS="2").code == 0
    (job,) = [entry for entry in cluster.applied() if entry["kind"] == "Job"]
    assert (job["spec"]["completions"], job["spec"]["parallelism"], job["spec"]["backoffLimit"]) == (4, 4, 24)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert {"name": "PET_NNODES", "value": "4"} in container["env"]
    assert (
        container["resources"]["limits"]["nvidia.com/gpu"] == 2 == container["resources"]["requests"]["nvidia.com/gpu"]
    )
    assert [call for call in cluster.calls() if "wait --for jsonpath={.status.ready}=4" in call]
    assert cluster.names("Service") == ["titan-pt-tensorboard", "titan-pt-pretrain"]


def test_a_jobset(cluster: Cluster) -> None:
    done = cluster.deploy("pretrain", NODES="2", JOBSET="1")
    assert done.code == 0 and cluster.names("JobSet") == ["titan-pt-pretrain"] and cluster.names("Job") == []
    assert [call for call in cluster.calls() if "condition=Completed" in call and "jobset/titan-pt-pretrain" in call]


def test_the_manual_way_of_the_readme(cluster: Cluster) -> None:
    text = (ROOT / "README.md").read_text().split("By hand, the same steps:\n\n")[1]
    block = textwrap.dedent(text[: text.index("\n| ")])
    path = f"{cluster.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**cluster.env, "STUBS": str(cluster.folder), "PATH": path}
    done = run(["bash", "-euc", block], cwd=ROOT, env=env)
    assert done.code == 0, done.stderr
    assert [call.split()[:2] for call in cluster.calls()[:2]] == [["docker", "build"], ["docker", "push"]]
    assert "docker push registry.example.com/team/titan-pt:v1" in cluster.calls()
    assert cluster.names("PersistentVolumeClaim", "Job") == ["titan-pt", "titan-pt-pretrain"]
    for entry in cluster.applied():
        assert "${" not in str(entry) and entry["metadata"]["namespace"] == "lab"
        kubernetes_validate.validate(entry, "1.34", strict=True)


WRONG: dict[str, tuple[list[str], dict[str, str], str]] = {
    "no registry": ([], {"REGISTRY": ""}, "REGISTRY is not set"),
    "no namespace": ([], {"NAMESPACE": ""}, "NAMESPACE is not set"),
    "https": ([], {"REGISTRY": "https://registry.example.com"}, "no https://"),
    "slash": ([], {"REGISTRY": "registry.example.com/"}, "no / at the end"),
    "tag in registry": ([], {"REGISTRY": "example.com/titan-pt:v2"}, "REGISTRY = 'example.com/titan-pt:v2'"),
    "namespace": ([], {"NAMESPACE": "My_Lab"}, "NAMESPACE = 'My_Lab': must be lower-case letters"),
    "sed in a tag": ([], {"TAG": "v1/e;d"}, "TAG = 'v1/e;d'"),
    "shell in a namespace": ([], {"NAMESPACE": "$(reboot)"}, "NAMESPACE"),
    "job": (["pretrain", "dpo"], {}, "'dpo': no such job; give one or more of pretrain, sft, grpo"),
    "flag": (["--help"], {}, "'--help': no such job"),
    "no nodes": ([], {"NODES": "0"}, "NODES = '0'"),
    "half a GPU": ([], {"GPUS": "0.5"}, "GPUS = '0.5'"),
    "yes": ([], {"DRY_RUN": "yes"}, "DRY_RUN = 'yes': must be 1, or 0"),
    "set of one": ([], {"JOBSET": "1"}, "JOBSET=1 is for several nodes"),
    "token": ([], {"HF_TOKEN": 'hf_"x'}, "HF_TOKEN: must be"),
    "patience": ([], {"START_MINUTES": "1h"}, "START_MINUTES = '1h'"),
    "platform": ([], {"PLATFORM": "amd64"}, "PLATFORM = 'amd64'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(cluster: Cluster, name: str) -> None:
    arguments, env, words = WRONG[name]
    done = cluster.deploy(*arguments, **env)
    assert (done.code, done.stdout, cluster.calls()) == (2, "", []) and len(done.stderr.splitlines()) == 1
    assert words in done.stderr and 'hf_"x' not in done.stderr


FAILURES: dict[str, tuple[str, str]] = {
    "build": ("^docker build", "docker info"),
    "push": ("^docker push", "docker login registry.example.com"),
    "cluster": ("get namespace", "kubectl create namespace lab"),
    "secret": ("apply.*kind: Secret", "may write Secrets"),
    "volume": ("apply.*kind: PersistentVolumeClaim", "delete pvc titan-pt"),
    "configs": ("create configmap", "ConfigMap holds 1 MiB"),
    "tensorboard": ("apply.*kind: Deployment", "may write Deployments"),
    "state": ("get job", "job titan-pt-pretrain cannot be read"),
    "changed job": ("apply.*kind: Job", "with REPLACE=1 it is deleted"),
    "no pod": (" wait ", "no pod of titan-pt-pretrain ran for 1 minutes; see why"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_says_what_to_do(cluster: Cluster, name: str) -> None:
    pattern, words = FAILURES[name]
    done = cluster.deploy("pretrain", FAIL=pattern, HF_TOKEN="hf_abc", START_MINUTES="1")
    assert done.code == 1 and words in done.last_line, done.stderr
    assert cluster.names("Job") == [] or name in ("changed job", "no pod"), "nothing runs after a failure"


def test_a_delete_that_fails(cluster: Cluster) -> None:
    done = cluster.deploy("pretrain", FAIL=" delete ", REPLACE="1")
    assert done.code == 1 and "could not be deleted" in done.last_line and cluster.names("Job") == []


def test_a_job_that_fails_while_it_is_followed(cluster: Cluster) -> None:
    stub = cluster.folder / "bin" / "kubectl"
    stub.write_text(STUB.replace("condition=Failed", "condition=Complete"))
    done = cluster.deploy("grpo")
    assert done.code == 1 and "titan-pt-grpo failed; its last lines are above" in done.last_line


@pytest.mark.parametrize("missing", ["docker", "kubectl"])
def test_a_tool_that_is_missing(cluster: Cluster, missing: str) -> None:
    (cluster.folder / "bin" / missing).unlink()
    for name in ("bash", "git", "dirname", "sed", "cat", "env"):
        (cluster.folder / "bin" / name).symlink_to(f"/usr/bin/{name}")
    variables = {**cluster.env, "PATH": str(cluster.folder / "bin"), "STUBS": str(cluster.folder)}
    done = run([SCRIPT], env=variables, cwd=cluster.folder)
    assert done.code == 1 and f"{missing} is not installed; install it" in done.last_line
