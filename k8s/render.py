"""Write the objects that k8s/deploy.sh applies: python render.py FOLDER JOB... [-- FLAG ...], or --print JOB... .

The environment says what is asked for (`settings.py`), the TOML file what the run needs; job.yaml, nodes.yaml, pvc.yaml
and tensorboard.yaml are the objects. In FOLDER: `volume.yaml`, `tensorboard.yaml`, `secret.yaml` where there is a
token, a `JOB.yaml` each, and `jobs`, a line each: kind of job, kind of object, its name, the name of the pods' Job,
pods, container, hash. With --print all objects but the Secret
go to the standard output, for `kubectl apply --filename -` and `kubectl diff`.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import yaml
from settings import Settings, read_settings
from works import Work, read_works

from titan_pt.config.errors import ConfigError

HERE = Path(__file__).resolve().parent
MANIFEST = "titan-pt/manifest"
"""Annotation: a hash of all that was asked for, by which deploy.sh sees that a job is the same."""

Object = dict[str, Any]


def main(target: str, *words: str) -> int:
    """Render as the arguments say; returns the exit code."""
    try:
        settings = read_settings(os.environ)
        works = read_works(words, settings)
    except ConfigError as error:
        print(error.report().replace("config error", "deploy.sh", 1), file=sys.stderr)
        return 2
    objects = {work.kind: list(render(work, settings)) for work in works}
    groups = shared(settings) | objects
    if target == "--print":
        yaml.dump_all([entry for group in groups.values() for entry in group], sys.stdout, **STYLE)
        return 0
    for name, group in groups.items():
        (Path(target) / f"{name}.yaml").write_text(yaml.dump_all(group, **STYLE))
    if token := os.environ.get("HF_TOKEN"):
        secret = filled("secrets.yaml.template", settings, HF_TOKEN=token)
        (Path(target) / "secret.yaml").write_text(yaml.dump_all(secret, **STYLE))
    lines = [" ".join(facts(work, objects[work.kind][-1])) for work in works]
    (Path(target) / "jobs").write_text("".join(f"{line}\n" for line in lines))
    return 0


def facts(work: Work, owner: Object) -> list[str]:
    """What deploy.sh asks the cluster by."""
    kind, metadata = owner["kind"].lower(), owner["metadata"]
    pods = f"{metadata['name']}-node-0" if kind == "jobset" else metadata["name"]
    manifest = metadata["annotations"][MANIFEST]
    return [work.kind, kind, metadata["name"], pods, str(work.nodes), work.container, manifest]


class Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and what two objects share in each."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, _text)
STYLE: dict[str, Any] = {
    "Dumper": Dumper,
    "sort_keys": False,
    "explicit_start": True,
    "width": 120,
    "default_flow_style": False,
}


def render(work: Work, settings: Settings) -> Iterator[Object]:
    """The objects of a job, the Job or JobSet last."""
    name = "-".join(filter(None, ("titan-pt", settings.name, work.kind)))
    values = {"JOB": name, "KIND": work.kind, "NODES": str(work.nodes), "CONFIG_MAP": name}
    if work.config:
        config_map = config_map_of(work, settings, name)
        values["CONFIG_MAP"] = config_map["metadata"]["name"]
        yield config_map
    (job,) = filled("job.yaml", settings, **values)
    pods = job["spec"]["template"]
    fill_pod(pods["spec"], work, settings)
    if settings.annotations:
        pods["metadata"]["annotations"] |= settings.annotations
    if settings.metrics_port and work.config:
        expose_metrics(pods, settings.metrics_port)
    if settings.queue:  # the clock of a suspended Job stands still; that of one that waits for GPUs does not
        job["spec"]["activeDeadlineSeconds"] = int(3600 * (settings.deadline_hours or work.longest_hours))
    owner = job
    if work.nodes > 1:
        owner = yield from over_nodes(job, work, settings, values)
    owner["metadata"]["annotations"] |= settings.annotations
    if settings.queue:
        owner["metadata"]["labels"] = {**owner["metadata"]["labels"], "kueue.x-k8s.io/queue-name": settings.queue}
        owner["spec"]["suspend"] = True
    digest = hashlib.sha256(json.dumps(owner, sort_keys=True).encode()).hexdigest()
    owner["metadata"]["annotations"][MANIFEST] = digest[:16]
    yield owner


def over_nodes(job: Object, work: Work, settings: Settings, values: dict[str, str]) -> Generator[Object, None, Object]:
    """Make the Job one of a pod a node; yields its Service, and returns the Job, or the JobSet around it."""
    name = values["JOB"]
    values |= {"FIRST_POD": f"{name}-node-0-0" if settings.jobset else f"{name}-0", "INTERFACE": settings.interface}
    service, several, jobset = filled("nodes.yaml", settings, **values)
    spec = job["spec"]
    # Where one pod fails all do, and each counts. A JobSet starts the whole Job anew instead.
    spec |= {"completionMode": "Indexed", "completions": work.nodes, "parallelism": work.nodes}
    spec["backoffLimit"] = 0 if settings.jobset else 6 * work.nodes
    spec["template"]["spec"]["containers"][0]["env"] += several["env"]
    if not settings.jobset:
        spec["template"]["spec"]["subdomain"] = name
        yield service
        return job
    del spec["ttlSecondsAfterFinished"]  # the set's
    jobset["metadata"]["labels"] = job["metadata"]["labels"]
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"] = spec
    return jobset


def config_map_of(work: Work, settings: Settings, name: str) -> Object:
    """The TOML file, in a ConfigMap that cannot change: another text has another name."""
    data = {work.file: work.config}
    digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:10]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{name}-{digest}",
            "namespace": settings.namespace,
            "labels": labels(work.kind, settings),
        },
        "immutable": True,
        "data": data,
    }


def labels(kind: str, settings: Settings) -> dict[str, str]:
    names = {"name": "titan-pt", "instance": settings.name or "titan-pt", "component": kind}
    return {f"app.kubernetes.io/{key}": value for key, value in names.items()}


def fill_pod(pod: Object, work: Work, settings: Settings) -> None:
    """What the pods run, where, and with how much."""
    folders, await_start = pod["initContainers"]
    (main,) = pod["containers"]
    main |= {"name": work.container, "command": list(work.command), "args": list(work.arguments)}
    main["env"] += [{"name": "LOG_FORMAT", "value": settings.log_format}]
    main["resources"] = resources(work, settings)
    await_start["args"] = list(work.arguments)
    pod["initContainers"] = [folders, await_start] if work.waits else [folders]
    if not work.config:
        pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "config"]
        main["volumeMounts"] = [mount for mount in main["volumeMounts"] if mount["name"] != "config"]
    if settings.rdma and work.config:
        main["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]  # memory that the network card reads itself
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")
    shm["emptyDir"]["sizeLimit"] = f"{2 * max(1, work.gpus)}Gi"
    if work.gpus:  # GPU nodes are often kept free of other pods
        gpu_taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        pod["tolerations"] = [gpu_taint, *settings.tolerations]
    elif settings.tolerations:
        pod["tolerations"] = settings.tolerations
    if settings.node_selector:
        pod["nodeSelector"] = settings.node_selector
    if settings.priority:
        pod["priorityClassName"] = settings.priority


def resources(work: Work, settings: Settings) -> Object:
    """Two cores and 16 GiB a GPU, if nothing else is asked for; no limit of cores, which would only slow it down."""
    devices = {"nvidia.com/gpu": work.gpus} if work.gpus else {}
    devices |= settings.rdma if work.config else {}
    memory = settings.memory or f"{16 * max(1, work.gpus)}Gi"
    return {
        "requests": {"cpu": settings.cpus or str(2 * max(1, work.gpus)), "memory": memory, **devices},
        "limits": {"memory": memory, **devices},
    }


def expose_metrics(pods: Object, port: int) -> None:
    """Tell Prometheus where the numbers of a run are."""
    scrape = {"scrape": "true", "port": str(port), "path": "/metrics"}
    pods["metadata"]["annotations"] |= {f"prometheus.io/{key}": value for key, value in scrape.items()}
    pods["spec"]["containers"][0]["ports"] = [{"name": "metrics", "containerPort": port}]


def shared(settings: Settings) -> dict[str, list[Object]]:
    """The volume, and TensorBoard where that does not hold the volume on its own node."""
    (claim,) = filled("pvc.yaml", settings)
    claim["spec"]["accessModes"] = [settings.access_mode]
    claim["spec"]["resources"]["requests"]["storage"] = settings.storage
    if settings.storage_class:
        claim["spec"]["storageClassName"] = settings.storage_class
    many = settings.access_mode == "ReadWriteMany"
    return {"volume": [claim], **({"tensorboard": filled("tensorboard.yaml", settings)} if many else {})}


def filled(name: str, settings: Settings, **values: str) -> list[Object]:
    """The objects of a file with every ${NAME} in their texts replaced."""
    values = {
        "NAMESPACE": settings.namespace,
        "IMAGE": settings.image,
        "INSTANCE": settings.name or "titan-pt",
        "RUNS": settings.runs,
        "CLAIM": settings.claim,
        **values,
    }

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner) for inner in value]
        return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], value) if isinstance(value, str) else value

    return [fill(entry) for entry in yaml.safe_load_all((HERE / name).read_text())]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
