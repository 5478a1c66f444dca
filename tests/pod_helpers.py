"""The manifests of k8s/ as a cluster reads them, and what their containers run, here and without a container."""

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from helpers import ROOT

K8S = ROOT / "k8s"
MANIFESTS = sorted(K8S.glob("*.yaml"))
JOBS = ("pretrain-job", "sft-job", "grpo-job", "pretrain-multinode", "pretrain-jobset")
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def read(name: str) -> list[dict[str, Any]]:
    """The objects of a manifest."""
    return list(yaml.safe_load_all((K8S / name).read_text()))


def job_spec(name: str) -> dict[str, Any]:
    """The spec of the batch/v1 Job in a manifest, also of the one in a JobSet."""
    (found,) = [entry for entry in read(f"{name}.yaml") if entry["kind"] in ("Job", "JobSet")]
    if found["kind"] == "JobSet":
        (replicated,) = found["spec"]["replicatedJobs"]
        found = replicated["template"]
    return found["spec"]


def pod_spec(name: str) -> dict[str, Any]:
    """The pods of a manifest's Job."""
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
    nodes: int = 2

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
                found[variable["name"]] = self.here(variable["value"].replace("${NODES}", str(self.nodes)))
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


def mount_configs(spec: dict[str, Any], folder: Path) -> Path:
    """The pod's volume `config`, laid as kubelet lays it: the files in a folder of their own, links beside it."""
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "config"]
    data = folder / "..2026_01_01"
    for source in volume["projected"]["sources"]:
        config_map = source["configMap"]
        of = {"titan-pt-configs": "train_configs", "titan-pt-presets": "train_configs/presets"}[config_map["name"]]
        keys = {path.name: path for path in (ROOT / of).iterdir() if path.is_file()}
        for item in config_map.get("items", [{"key": key, "path": key} for key in keys]):
            (data / item["path"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(keys[item["key"]], data / item["path"])
    (folder / "..data").symlink_to(data.name)
    for path in data.iterdir():
        (folder / path.name).symlink_to(f"..data/{path.name}")
    return folder
