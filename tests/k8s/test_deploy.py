"""k8s/deploy.sh against executables that stand for docker and kubectl, write down how they are called, and may fail."""

import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helpers import ROOT, Result, run
from pod_helpers import objects

from titan_pt.config.errors import ConfigError

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
*" get localqueues"*) [[ "$call" != *" research "* ]] || echo localqueue.kueue.x-k8s.io/research ;;
*" get priorityclasses"*) printf 'priorityclass.scheduling.k8s.io/%s\n' high low ;;
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
        variables["PYTHON"] = sys.executable
        variables["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return run([SCRIPT, *arguments], cwd=self.folder, env=variables, timeout=60)

    def calls(self) -> list[str]:
        log = self.folder / "calls.log"
        return log.read_text().split("\n--end--\n")[:-1] if log.exists() else []

    def applied(self) -> list[dict[str, Any]]:
        """The objects that were applied, in order."""
        texts = [call.split("\n", 1)[1] for call in self.calls() if " apply " in call.split("\n")[0]]
        return [entry for text in texts for entry in yaml.safe_load_all(text)]

    def remember(self, job: str, conditions: str) -> None:
        """Let the cluster have the job that was applied last, with these conditions."""
        manifest = self.applied()[-1]["metadata"]["annotations"]["titan-pt/manifest"]
        (self.folder / job).write_text(f"{manifest} {conditions}")

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
    assert cluster.names("PersistentVolumeClaim", "Deployment", "Service") == [
        "titan-pt",
        *2 * ["titan-pt-tensorboard"],
    ]
    assert [name[:-11] for name in cluster.names("ConfigMap")] == cluster.names("Job")
    assert cluster.names("Job") == ["titan-pt-pretrain", "titan-pt-sft", "titan-pt-grpo"]
    assert cluster.names("Secret") == [], "none without a token; one that is there stays"
    for entry in cluster.applied():
        assert "${" not in str(entry) and entry["metadata"]["namespace"] == "lab"
        kubernetes_validate.validate(entry, "1.34", strict=True)
        for container in entry.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            assert container["image"] == image
    assert all("--namespace lab" in line or line == "kubectl get namespace lab" for line in lines if "kubectl" in line)
    assert [line.split()[3] for line in lines[-4:]] == ["apply", "wait", "logs", "wait"]
    order = [call for call in cluster.calls() if "kind: Job" in call or "condition=Complete " in call]
    assert ["wait" if "condition" in call else "apply" for call in order] == ["apply", "wait"] * 3, "one after another"


def test_again_it_passes_over_what_is_done(cluster: Cluster) -> None:
    assert cluster.deploy("pretrain").code == 0
    cluster.remember("titan-pt-pretrain", "SuccessCriteriaMet Complete")
    (cluster.folder / "calls.log").unlink()
    done = cluster.deploy("pretrain", "sft")
    assert done.code == 0 and "titan-pt-pretrain is done already" in done.stdout
    assert cluster.names("Job") == ["titan-pt-sft"]
    assert not [call for call in cluster.calls() if " delete " in call]


def test_again_it_follows_what_runs(cluster: Cluster) -> None:
    """Without applying it: Kueue has changed the job since, and a job with other settings is another one."""
    assert cluster.deploy("pretrain", QUEUE="research").code == 0
    cluster.remember("titan-pt-pretrain", "")
    (cluster.folder / "calls.log").unlink()
    assert cluster.deploy("pretrain", QUEUE="research").code == 0
    assert cluster.names("Job") == [] and [call for call in cluster.calls() if " logs " in call]
    done = cluster.deploy("pretrain", QUEUE="research", GPUS="4")
    assert done.code == 1 and "is there with other settings" in done.last_line and cluster.names("Job") == []


def test_a_job_that_failed_is_told_and_replaced_on_demand(cluster: Cluster) -> None:
    (cluster.folder / "titan-pt-grpo").write_text("0123 FailureTarget Failed")
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
    assert "hf_abc" not in done.stdout and "storageClassName: shared" in done.stdout
    assert "delete job titan-pt-sft" in done.stdout
    env = {**cluster.env, "DRY_RUN": "1", "PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    assert run([SCRIPT], env=env, cwd=cluster.folder).code == 0, "not even the tools are needed"


def test_it_prints_what_it_would_apply(cluster: Cluster) -> None:
    """YAML alone, for git and `kubectl diff`; no token."""
    printed = cluster.deploy("--print", "pretrain", NAME="exp7", HF_TOKEN="hf_abc")
    assert printed.code == 0 and cluster.calls() == [] and "hf_abc" not in printed.stdout + printed.stderr
    found = list(yaml.safe_load_all(printed.stdout))
    assert cluster.deploy("pretrain", NAME="exp7").code == 0
    assert found == cluster.applied()


def test_a_queue_and_a_priority(cluster: Cluster) -> None:
    done = cluster.deploy("pretrain", QUEUE="research", PRIORITY="high", START_MINUTES="1")
    assert done.code == 0 and cluster.applied()[-1]["spec"]["suspend"] is True
    for env, words in (
        ({"QUEUE": "reserch"}, "QUEUE = 'reserch': no such queue in lab"),
        ({"PRIORITY": "urgent"}, "PRIORITY = 'urgent': no such priority class; give one of high low"),
    ):
        (cluster.folder / "calls.log").unlink()
        done = cluster.deploy("pretrain", **env)
        assert (done.code, cluster.applied()) == (2, []) and words in done.last_line
    done = cluster.deploy("pretrain", PRIORITY="urgent", FAIL="get priorityclasses")
    assert done.code == 0, "who may not read the classes is not kept from using one"


def test_evaluate_and_export(cluster: Cluster) -> None:
    done = cluster.deploy("evaluate", "--", "--tasks", "gsm8k", NAME="exp7", CHECKPOINT="outputs/exp7/grpo")
    assert done.code == 0 and cluster.names("Job") == ["titan-pt-exp7-evaluate"]
    assert [call for call in cluster.calls() if " --container evaluate " in call]


def test_the_recipe_to_copy_a_model_out() -> None:
    """The pod of docs/kubernetes.md is one that a cluster takes."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    (overrides,) = re.findall(r"--overrides='(\{.*?\})'", text, re.DOTALL)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "titan-pt-reader"}, **json.loads(overrides)}
    kubernetes_validate.validate(pod, "1.34", strict=True)
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] is True


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


WRONG: dict[str, tuple[list[str], dict[str, str], str]] = {
    "no registry": ([], {"REGISTRY": ""}, "REGISTRY is not set"),
    "no namespace": ([], {"NAMESPACE": ""}, "NAMESPACE is not set"),
    "https": ([], {"REGISTRY": "https://registry.example.com"}, "no https://"),
    "slash": ([], {"REGISTRY": "registry.example.com/"}, "no / at the end"),
    "tag in registry": ([], {"REGISTRY": "example.com/titan-pt:v2"}, "REGISTRY = 'example.com/titan-pt:v2'"),
    "namespace": ([], {"NAMESPACE": "My_Lab"}, "NAMESPACE = 'My_Lab': must be lower-case letters"),
    "sed in a tag": ([], {"TAG": "v1/e;d"}, "TAG = 'v1/e;d'"),
    "shell in a namespace": ([], {"NAMESPACE": "$(reboot)"}, "NAMESPACE"),
    "job": (["pretrain", "dpo"], {}, "'dpo': no such job; give one or more of pretrain, sft, grpo, evaluate, export"),
    "almost a job": (["evalute"], {}, "did you mean evaluate?"),
    "flag": (["--training.steps", "5"], {}, "flags of the run stand behind --"),
    "name": ([], {"NAME": "Exp_7"}, "NAME = 'Exp_7': must be lower-case letters, digits and -, at most 30"),
    "long name": ([], {"NAME": "x" * 31}, "at most 30"),
    "memory without unit": ([], {"MEMORY": "64"}, "MEMORY = '64': must be a number with its unit, such as 64Gi"),
    "memory of the wrong unit": ([], {"MEMORY": "64GB"}, "did you mean 64Gi?"),
    "cores": ([], {"CPUS": "four"}, "CPUS = 'four'"),
    "no file": (["pretrain"], {"CONFIG": "nowhere/mine.toml"}, "CONFIG = 'nowhere/mine.toml': no such file in "),
    "no shipped name": (["pretrain"], {"CONFIG": "medium_1dya"}, "did you mean medium_1day?"),
    "another trainer": (["pretrain"], {"CONFIG": "sft_full"}, "its job.trainer is sft; deploy it as k8s/deploy.sh sft"),
    "a file for all": ([], {"CONFIG": "medium_1day"}, "CONFIG is for one job: pretrain sft grpo are 3"),
    "a wrong key": (["pretrain", "--", "--optimizer.lrr", "1"], {}, "optimizer.lrr"),
    "a batch that does not divide": (["pretrain"], {"GPUS": "3"}, "GPUS = 3, NODES = 1: training.global_batch_tokens"),
    "a secret in a flag": (["pretrain", "--", "--checkpoint.mirror", "s3://b/x?token=abcdefgh12"], {}, "a secret"),
    "access": ([], {"ACCESS_MODE": "readwriteonce"}, "did you mean ReadWriteOnce?"),
    "nodes of one node's volume": (["pretrain"], {"ACCESS_MODE": "ReadWriteOnce", "NODES": "2"}, "is one node's"),
    "a deadline that counts the wait": ([], {"DEADLINE_HOURS": "30"}, "DEADLINE_HOURS needs QUEUE"),
    "selector": ([], {"NODE_SELECTOR": "a100"}, "NODE_SELECTOR = 'a100': 'a100' is no label=value"),
    "selector twice": ([], {"NODE_SELECTOR": "pool=a,pool=b"}, "pool is given twice"),
    "annotation twice": ([], {"ANNOTATIONS": "cost=1,cost=2"}, "cost is given twice"),
    "no name": (["pretrain"], {"CONFIG": "日本.toml"}, "has no letter or digit for a name; give NAME"),
    "toleration": ([], {"TOLERATIONS": "spot:NoShedule"}, "did you mean NoSchedule?"),
    "annotation": ([], {"ANNOTATIONS": "cost"}, "'cost' is no key=value"),
    "no checkpoint": (["export"], {"NAME": "exp7"}, "CHECKPOINT is not set; give a run folder"),
    "nothing to evaluate": (["evaluate"], {"CHECKPOINT": "outputs/x"}, "evaluate -- --tasks gsm8k"),
    "extras": ([], {"EXTRAS": "reasonning"}, "reasonning has no file in k8s/locks; did you mean reasoning?"),
    "RDMA": ([], {"RDMA": "yes"}, "RDMA = 'yes'"),
    "log": ([], {"LOG_FORMAT": "xml"}, "LOG_FORMAT = 'xml': must be one of json, long, plain"),
    "no nodes": ([], {"NODES": "0"}, "NODES = '0'"),
    "half a GPU": ([], {"GPUS": "0.5"}, "GPUS = '0.5'"),
    "yes": ([], {"DRY_RUN": "yes"}, "DRY_RUN = 'yes': must be 1, or 0"),
    "set of one": ([], {"JOBSET": "1"}, "JOBSET=1 is for several nodes"),
    "token": ([], {"HF_TOKEN": 'hf_"x'}, "HF_TOKEN: must be"),
    "patience": ([], {"START_MINUTES": "1h"}, "START_MINUTES = '1h'"),
    "platform": ([], {"PLATFORM": "amd64"}, "PLATFORM = 'amd64'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name: str) -> None:
    arguments, env, words = WRONG[name]
    with pytest.raises(ConfigError) as error:
        objects(*arguments, **env)
    (problem,) = error.value.problems
    assert words in problem and 'hf_"x' not in problem and "abcdefgh12" not in problem


def test_wrong_input_is_told_before_anything_is_done(cluster: Cluster) -> None:
    for arguments in ((), ("--print",)):
        done = cluster.deploy(*arguments, NAME="Exp7", MEMORY="64", HF_TOKEN='hf_"x')
        assert (done.code, done.stdout, cluster.calls()) == (2, "", [])
        assert done.stderr.startswith("deploy.sh: 3 problems\n") and 'hf_"x' not in done.stderr
    done = cluster.deploy("--help")
    assert (done.code, done.stderr, cluster.calls()) == (0, "", []) and "REGISTRY       where the image" in done.stdout
    done = cluster.deploy("pretrain", "--", "--optimizer.lrr", "1")
    assert (done.code, done.stdout, cluster.calls()) == (2, "", []) and len(done.stderr.splitlines()) == 1


FAILURES: dict[str, tuple[str, str]] = {
    "build": ("^docker build", "docker info"),
    "push": ("^docker push", "docker login registry.example.com"),
    "cluster": ("get namespace", "kubectl create namespace lab"),
    "secret": ("apply.*kind: Secret", "may write Secrets"),
    "volume": ("apply.*kind: PersistentVolumeClaim", "get pvc --selector"),
    "tensorboard": ("apply.*kind: Deployment", "may write Deployments"),
    "state": ("get job", "job titan-pt-pretrain cannot be read"),
    "job": ("apply.*kind: Job", "may write Jobs and ConfigMaps"),
    "no pod": (" wait ", "no pod of titan-pt-pretrain ran for 1 minutes; see why"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_says_what_to_do(cluster: Cluster, name: str) -> None:
    pattern, words = FAILURES[name]
    done = cluster.deploy("pretrain", FAIL=pattern, HF_TOKEN="hf_abc", START_MINUTES="1")
    assert done.code == 1 and words in done.last_line, done.stderr
    assert cluster.names("Job") == [] or name in ("job", "no pod"), "nothing runs after a failure"


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
    for name in ("bash", "git", "dirname", "sed", "cat", "env", "mktemp", "rm"):
        (cluster.folder / "bin" / name).symlink_to(f"/usr/bin/{name}")
    variables = {**cluster.env, "PATH": str(cluster.folder / "bin"), "STUBS": str(cluster.folder)}
    variables["PYTHON"] = sys.executable
    done = run([SCRIPT], env=variables, cwd=cluster.folder)
    assert done.code == 1 and f"{missing} is not installed; install it" in done.last_line


def test_an_interpreter_without_the_package(cluster: Cluster) -> None:
    done = run([SCRIPT], env={**cluster.env, "PYTHON": "/bin/false"}, cwd=cluster.folder)
    assert (
        done.code == 2 and "/bin/false lacks titan_pt's packages" in done.last_line and "pip install -e" in done.stderr
    )
