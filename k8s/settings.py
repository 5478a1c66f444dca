"""What the environment asks of k8s/deploy.sh, judged before anything is done."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from titan_pt.config.errors import ConfigError, nearest, one_of

TRAINERS = ("pretrain", "sft", "grpo")
TOOLS = ("evaluate", "export")
ACCESS_MODES = ("ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")

_NAME = r"[a-z0-9]([a-z0-9-]{0,%d}[a-z0-9])?"
_DNS = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"
_KEY = rf"({_DNS}/)?[A-Za-z0-9]([A-Za-z0-9._-]{{0,61}}[A-Za-z0-9])?"
_LABEL = r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"

# Name in the environment: (default, what it must match, what that is).
_FORMS: dict[str, tuple[str, str, str]] = {
    "REGISTRY": (
        "",
        r"[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*",
        "a host and a path in lower case, no https://, no / at the end",
    ),
    "NAMESPACE": ("", _NAME % 61, "lower-case letters, digits and -, at most 63"),
    "TAG": ("latest", r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", "letters, digits, _ . -, at most 128"),
    "PLATFORM": ("linux/amd64", r"linux/[a-z0-9/]+", "a platform such as linux/arm64"),
    "EXTRAS": ("", r"([a-z]+(,[a-z]+)*)?", "extras of pyproject.toml, such as reasoning,mirror"),
    "CONFIG": ("", r"[^\n]*", "a TOML file, or the name of a shipped one"),
    "NAME": ("", rf"({_NAME % 28})?", "lower-case letters, digits and -, at most 30, as in exp7"),
    "NODES": ("1", r"[1-9][0-9]{0,3}", "a number of nodes, 1 or more"),
    "GPUS": ("", r"([0-9]|[1-9][0-9])?", "GPUS of each node, 0 to 99"),
    "CPUS": ("", r"([1-9][0-9]{0,3}(\.[0-9])?|[1-9][0-9]{1,5}m)?", "cores of each node, such as 4, 0.5 as 500m"),
    "MEMORY": ("", r"([1-9][0-9]{0,5}(Mi|Gi|Ti))?", "a number with its unit, such as 64Gi (or 512Mi, 1Ti)"),
    "RDMA": ("0", r"[0-9]{1,2}", "the number of RDMA devices of each node, 0 or more"),
    "RDMA_RESOURCE": ("rdma/rdma_shared_device_a", _KEY, "a resource of the nodes: kubectl describe nodes"),
    "INTERFACE": ("eth0", r"[a-z0-9=^,._-]{1,60}", "a network interface of the pods, such as eth0"),
    "QUEUE": ("", rf"({_DNS})?", "the name of a LocalQueue of Kueue: kubectl get localqueues"),
    "PRIORITY": ("", rf"({_DNS})?", "the name of a priority class: kubectl get priorityclasses"),
    "DEADLINE_HOURS": ("", r"([1-9][0-9]{0,3})?", "hours, 1 to 9999"),
    "ACCESS_MODE": ("ReadWriteMany", "|".join(ACCESS_MODES), f"one of {one_of(ACCESS_MODES)}"),
    "STORAGE_CLASS": ("", rf"({_DNS})?", "the name of a storage class: kubectl get storageclass"),
    "STORAGE": ("200Gi", r"[1-9][0-9]{0,5}(Mi|Gi|Ti)", "a number with its unit, such as 200Gi (or 1Ti)"),
    "START": ("", r"[^\s]*", "a folder on the volume, such as outputs/medium_3day"),
    "CHECKPOINT": ("", r"[^\s]*", "a folder on the volume, such as outputs/medium_3day"),
    "LOG_FORMAT": ("plain", "plain|json|long", "one of json, long, plain"),
    "METRICS_PORT": ("", r"([1-9][0-9]{3,4})?", "a port, 1024 to 65535"),
    "START_MINUTES": ("60", r"[1-9][0-9]{0,4}", "minutes, 1 or more"),
    **dict.fromkeys(("DRY_RUN", "REPLACE", "SKIP_BUILD", "JOBSET"), ("", "[01]?", "1, or 0")),
}


@dataclass(frozen=True)
class Settings:
    """What the environment says. Numbers that are None follow from the kind of job and the GPUs."""

    namespace: str
    image: str
    config: str
    name: str
    """Of the experiment, or "": the shipped experiments in their own folders."""
    nodes: int
    jobset: bool
    gpus: int | None
    cpus: str
    memory: str
    rdma: dict[str, int]
    interface: str
    queue: str
    priority: str
    deadline_hours: int | None
    access_mode: str
    storage_class: str
    storage: str
    start: str
    checkpoint: str
    log_format: str
    metrics_port: int | None
    node_selector: dict[str, str]
    tolerations: list[dict[str, str]]
    annotations: dict[str, str]

    @property
    def runs(self) -> str:
        """The folder of the volume that the experiment writes to."""
        return f"outputs/{self.name}" if self.name else "outputs"

    @property
    def claim(self) -> str:
        """The volume: one of all experiments where several nodes can write to it, else each has its own."""
        return f"titan-pt-{self.name}" if self.name and self.access_mode != "ReadWriteMany" else "titan-pt"


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment.

    Raises:
        ConfigError: every mistake in it.
    """
    problems: list[str] = []
    given = {name: environment.get(name) or default for name, (default, _, _) in _FORMS.items()}
    for name, what in (
        ("REGISTRY", "the registry of the image: REGISTRY=registry.example.com/team"),
        ("NAMESPACE", "the namespace that the jobs run in: NAMESPACE=training"),
    ):
        if not given[name]:
            problems.append(f"{name} is not set; give {what}")
    for name, (_, form, what) in _FORMS.items():
        if given[name] and not re.fullmatch(form, given[name]):
            problems.append(f"{name} = {given[name]!r}: must be {what}{_nearest(name, given[name])}")
    if not re.fullmatch(r"[A-Za-z0-9_-]*", environment.get("HF_TOKEN", "")):
        problems.append("HF_TOKEN: must be a token of the hub: letters, digits, _ and -")

    selector = _node_selector(environment.get("NODE_SELECTOR", ""), problems)
    tolerations = _tolerations(environment.get("TOLERATIONS", ""), problems)
    annotations = _annotations(environment.get("ANNOTATIONS", ""), problems)
    if not problems:
        problems += _conflicts(given)
    if problems:
        raise ConfigError(*problems)
    return Settings(
        namespace=given["NAMESPACE"],
        image=f"{given['REGISTRY']}/titan-pt:{given['TAG']}",
        config=given["CONFIG"],
        name=given["NAME"] or _as_name(Path(given["CONFIG"]).stem),
        nodes=int(given["NODES"]),
        jobset=given["JOBSET"] == "1",
        gpus=int(given["GPUS"]) if given["GPUS"] else None,
        cpus=given["CPUS"],
        memory=given["MEMORY"],
        rdma={given["RDMA_RESOURCE"]: int(given["RDMA"])} if int(given["RDMA"]) else {},
        interface=given["INTERFACE"],
        queue=given["QUEUE"],
        priority=given["PRIORITY"],
        deadline_hours=int(given["DEADLINE_HOURS"]) if given["DEADLINE_HOURS"] else None,
        access_mode=given["ACCESS_MODE"],
        storage_class=given["STORAGE_CLASS"],
        storage=given["STORAGE"],
        start=given["START"],
        checkpoint=given["CHECKPOINT"],
        log_format=given["LOG_FORMAT"],
        metrics_port=int(given["METRICS_PORT"]) if given["METRICS_PORT"] else None,
        node_selector=selector,
        tolerations=tolerations,
        annotations=annotations,
    )


def _nearest(name: str, value: str) -> str:
    """A hint where it is plain what was meant."""
    if name == "ACCESS_MODE":
        return nearest(value, ACCESS_MODES)
    if name in ("MEMORY", "STORAGE") and (digits := re.match(r"[1-9][0-9]*", value)):
        return f"; did you mean {digits[0]}Gi?"
    if name == "NAME":
        return f"; did you mean {meant}?" if (meant := _as_name(value)) else ""
    return ""


def _as_name(text: str) -> str:
    """`medium_1day` as `medium-1day`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:30].strip("-")


def _conflicts(given: Mapping[str, str]) -> list[str]:
    problems = []
    if given["CONFIG"] and not given["NAME"] and not _as_name(Path(given["CONFIG"]).stem):
        problems.append(f"CONFIG = {given['CONFIG']!r}: has no letter or digit for a name; give NAME too")
    if given["JOBSET"] == "1" and given["NODES"] == "1":
        problems.append("JOBSET=1 is for several nodes; set NODES to their number")
    if given["NODES"] != "1" and given["ACCESS_MODE"] != "ReadWriteMany":
        problems.append(
            f"NODES = {given['NODES']} with ACCESS_MODE = {given['ACCESS_MODE']}: such a volume is one node's; give "
            "ACCESS_MODE=ReadWriteMany and a STORAGE_CLASS that has it"
        )
    if given["DEADLINE_HOURS"] and not given["QUEUE"]:
        problems.append(
            "DEADLINE_HOURS needs QUEUE: without a queue the clock counts the wait for GPUs too; leave it out, and "
            "bound the run by training.max_hours"
        )
    locked = [path.stem for path in (Path(__file__).parent / "locks").glob("*.lock") if path.stem != "base"]
    for extra in filter(None, given["EXTRAS"].split(",")):
        if extra not in locked:
            problems.append(
                f"EXTRAS = {given['EXTRAS']!r}: {extra} has no file in k8s/locks{nearest(extra, locked)}; give "
                f"{one_of(locked)}, or take it up by k8s/lock.py"
            )
    if given["METRICS_PORT"] and not 1024 <= int(given["METRICS_PORT"]) <= 65535:
        problems.append(f"METRICS_PORT = {given['METRICS_PORT']}: must be a port, 1024 to 65535")
    return problems


def _node_selector(text: str, problems: list[str]) -> dict[str, str]:
    found = {}
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if key in found:
            problems.append(f"NODE_SELECTOR = {text!r}: {key} is given twice; a node has one value of it")
        elif equals and re.fullmatch(_KEY, key) and re.fullmatch(_LABEL, value):
            found[key] = value
        else:
            problems.append(
                f"NODE_SELECTOR = {text!r}: {pair!r} is no label=value; give labels of nodes (kubectl get nodes "
                "--show-labels), such as pool=a100,zone=b"
            )
    return found


def _tolerations(text: str, problems: list[str]) -> list[dict[str, str]]:
    found = []
    for taint in filter(None, text.split(",")):
        match = re.fullmatch(rf"(?P<key>{_KEY})(=(?P<value>{_LABEL}))?(:(?P<effect>[A-Za-z]+))?", taint)
        effect = match["effect"] if match else None
        if match is None or effect not in (None, *EFFECTS):
            meant = nearest(effect, EFFECTS) if effect else ""
            problems.append(
                f"TOLERATIONS = {text!r}: {taint!r} is no taint; give taints as kubectl taint does, "
                f"key=value:NoSchedule or key:NoSchedule, with {one_of(EFFECTS)}{meant}"
            )
            continue
        entry = {"key": match["key"], "operator": "Exists" if match["value"] is None else "Equal"}
        entry |= {name: match[name] for name in ("value", "effect") if match[name] is not None}
        found.append(entry)
    return found


def _annotations(text: str, problems: list[str]) -> dict[str, str]:
    """Pairs; a comma that no key follows belongs to the value, as in JSON."""
    found = {}
    for pair in filter(None, re.split(r",(?=[A-Za-z0-9./_-]+=)", text)):
        key, equals, value = pair.partition("=")
        if key in found:
            problems.append(f"ANNOTATIONS = {text!r}: {key} is given twice")
        elif equals and re.fullmatch(_KEY, key):
            found[key] = value
        else:
            problems.append(f"ANNOTATIONS = {text!r}: {pair!r} is no key=value, such as team=nlp,example.com/cost=7")
    return found
