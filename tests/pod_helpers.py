"""The objects of k8s/ as a cluster reads them, and what their containers run, here and without a container."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from helpers import ROOT

K8S = ROOT / "k8s"
sys.path.insert(0, str(K8S))

import render  # noqa: E402
import settings  # noqa: E402
import works  # noqa: E402

ENVIRONMENT = {"REGISTRY": "registry.example.com/team", "NAMESPACE": "lab", "TAG": "v1"}
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"

# A job by its name in the tests: its words, and what the environment asks for.
JOBS: dict[str, tuple[list[str], dict[str, str]]] = {
    "pretrain-job": (["pretrain"], {}),
    "sft-job": (["sft"], {}),
    "grpo-job": (["grpo"], {}),
    "pretrain-multinode": (["pretrain"], {"NODES": "2"}),
    "pretrain-jobset": (["pretrain"], {"NODES": "2", "JOBSET": "1"}),
}


def objects(*words: str, **environment: str) -> list[dict[str, Any]]:
    """What `k8s/deploy.sh` would apply for these words in this environment; the Job or JobSet last."""
    with mock.patch.dict("os.environ", {**ENVIRONMENT, **environment}):
        asked = settings.read_settings(render.os.environ)
        jobs = works.read_works(words, asked)
        groups = [*render.shared(asked).values(), *(render.render(job, asked) for job in jobs)]
        return [entry for group in groups for entry in group]


def named(name: str) -> list[dict[str, Any]]:
    """The objects of one of JOBS."""
    words, environment = JOBS[name]
    return objects(*words, **environment)


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [entry for entry in found if entry["kind"] == kind]


def batch_job(owner: dict[str, Any]) -> dict[str, Any]:
    """The spec of a Job, also of the one in a JobSet."""
    return owner["spec"]["replicatedJobs"][0]["template"]["spec"] if owner["kind"] == "JobSet" else owner["spec"]


def job_spec(name: str) -> dict[str, Any]:
    return batch_job(named(name)[-1])


def pod_spec(name: str) -> dict[str, Any]:
    """The pods of the Job."""
    return job_spec(name)["template"]["spec"]


def containers(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By name, init containers too."""
    return {container["name"]: container for container in [*spec.get("initContainers", ()), *spec["containers"]]}


@dataclass(frozen=True)
class Pod:
    """A pod's volumes as folders of this machine, and what the cluster tells it."""

    workspace: Path
    config: Path
    address: str = "127.0.0.1"
    index: int = 0

    def here(self, text: str) -> str:
        """A path of the container as one of this machine."""
        text = re.sub(r"^/workspace\b", str(self.workspace), text)
        return re.sub(r"^/config\b", str(self.config), text)

    def environment(self, container: dict[str, Any]) -> dict[str, str]:
        """Its variables; an optional Secret is not there."""
        told = {INDEX: str(self.index), "status.podIP": self.address}
        found = {}
        for variable in container["env"]:
            if "value" in variable:
                found[variable["name"]] = self.here(variable["value"])
            elif "fieldRef" in variable["valueFrom"]:
                found[variable["name"]] = told[variable["valueFrom"]["fieldRef"]["fieldPath"]]
            else:
                assert variable["valueFrom"]["secretKeyRef"]["optional"] is True
        return found

    def command_line(self, container: dict[str, Any]) -> list[str]:
        """What the container runs, with this interpreter, its $(VARIABLES) replaced."""
        variables = self.environment(container)
        words = [*container["command"], *container["args"]]
        words = [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word) for word in words]
        assert words[0] == "python"
        return [sys.executable, *map(self.here, words[1:])]


def mount_config(found: list[dict[str, Any]], folder: Path) -> Path:
    """The volume `config` of the pods: the files of the ConfigMap that the Job names."""
    spec = batch_job(found[-1])["template"]["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "config"]
    (config_map,) = [o for o in of_kind(found, "ConfigMap") if o["metadata"]["name"] == volume["configMap"]["name"]]
    folder.mkdir(parents=True)
    for key, text in config_map["data"].items():
        (folder / key).write_text(text)
    return folder
