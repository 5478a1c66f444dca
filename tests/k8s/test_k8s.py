"""k8s/ without a cluster: schemas, linters, what the manifests name exists, and the containers' commands run."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from helpers import ROOT, Result, command, run, write_toml
from packaging.requirements import Requirement
from pod_helpers import (
    ENVIRONMENT,
    JOBS,
    K8S,
    Pod,
    batch_job,
    containers,
    job_spec,
    mount_config,
    named,
    objects,
    of_kind,
    pod_spec,
    render,
    settings,
    works,
)

from titan_pt.config.manager import load_config
from titan_pt.config.resolve.toml_files import tomllib
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.config.schema.metrics import Metrics
from titan_pt.run.exit_codes import ExitCode


def train_of(name: str) -> dict[str, Any]:
    return containers(pod_spec(name))["train"]


SINGLE = ("pretrain-job", "sft-job", "grpo-job")
SEVERAL = ("pretrain-multinode", "pretrain-jobset")
MARGIN_SECONDS = 30


def tool(name: str, *arguments: str) -> Result:
    """Run a linter of the extra `dev`, which pip puts beside the interpreter."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    return run([str(path), *arguments], cwd=ROOT)


def schema_errors(manifest: dict[str, Any], version: str) -> str:
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


JOBSET_MODELS = "kubeflow_trainer_api.models.jobset_v1alpha2_job_set"
ASKED: dict[str, tuple[list[str], dict[str, str]]] = {
    **JOBS,
    "all": ([], {"NAME": "exp7"}),
    "tools": (["evaluate", "export", "--"], {"CHECKPOINT": "outputs/exp7/grpo"}),
    "everything": (
        ["pretrain", "--", "--training.tokens", "1B"],
        {
            "CONFIG": "train_configs/medium_1day.toml",
            "NAME": "exp7",
            "QUEUE": "research",
            "PRIORITY": "high",
            "NODE_SELECTOR": "pool=a100,zone=b",
            "TOLERATIONS": "team=nlp:NoSchedule,spot",
            "RDMA": "1",
            "GPUS": "1",
            "ANNOTATIONS": "example.com/cost=7",
            "CPUS": "4",
            "MEMORY": "64Gi",
            "ACCESS_MODE": "ReadWriteOnce",
        },
    ),
    "everything, several nodes": (
        ["pretrain"],
        {"NAME": "exp8", "NODES": "4", "JOBSET": "1", "QUEUE": "research", "RDMA": "8", "DEADLINE_HOURS": "30"},
    ),
}


@pytest.mark.parametrize("version", ["1.31", "1.34", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", [name for name in ASKED if name != "tools"])
def test_schemas(name: str, version: str) -> None:
    """1.31 is the first version with a stable podFailurePolicy. A JobSet by the models that Kubeflow publishes."""
    words, environment = ASKED[name]
    found = objects(*words, **environment)
    assert "${" not in str(found)
    for entry in found:
        if entry["kind"] == "JobSet":
            entry = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": batch_job(entry)}
        assert schema_errors(entry, version) == ""


@pytest.mark.parametrize("name", ["pretrain-jobset", "everything, several nodes"])
def test_the_jobset(name: str) -> None:
    models = pytest.importorskip(JOBSET_MODELS, reason="pip install kubeflow-trainer-api")
    words, environment = ASKED[name]
    jobset = objects(*words, **environment)[-1]
    parsed = models.JobsetV1alpha2JobSet.from_dict(jobset)
    assert parsed.to_dict() == jobset, "no field is unknown to the model, which would drop it"
    jobset["spec"]["replicatedJob"] = jobset["spec"].pop("replicatedJobs")
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() != jobset, "a wrong field would be seen"


def test_the_schemas_would_find_a_mistake() -> None:
    job = named("pretrain-job")[-1]
    job["spec"]["backOffLimit"] = 3
    assert "backOffLimit" in schema_errors(job, "1.34")


def test_what_a_jobset_does() -> None:
    jobset = named("pretrain-jobset")[-1]
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "FailJobSet"
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert "PodFailurePolicy" in rule["onJobFailureReasons"], "what podFailurePolicy's FailJob gives"
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["template"]["spec"]["backoffLimit"] == 0, "the set is restarted, not one pod"
    name, node = jobset["metadata"]["name"], replicated["name"]
    endpoint = Pod(Path("w"), Path("c")).environment(train_of("pretrain-jobset"))["PET_RDZV_ENDPOINT"]
    assert endpoint == f"{name}-{node}-0-0.{name}:29500", "<jobset>-<replicated job>-<job>-<pod>.<subdomain>"


def test_yamllint() -> None:
    files = map(str, [*K8S.glob("*.yaml"), K8S / "secrets.yaml.template"])
    done = tool("yamllint", "--strict", "--config-file", str(ROOT / ".yamllint"), *files)
    assert done.code == 0, done.stdout


def test_hadolint() -> None:
    done = tool("hadolint", str(K8S / "Dockerfile"))
    assert done.code == 0, done.stdout


def test_shellcheck() -> None:
    scripts = [ROOT / "run_train.sh", ROOT / ".ci" / "run", K8S / "deploy.sh", *(ROOT / "scripts").iterdir()]
    done = tool("shellcheck", *map(str, scripts))
    assert done.code == 0, done.stdout
    assert all(script.stat().st_mode & 0o111 for script in scripts), "they can be run"


def test_the_image_is_pinned_and_the_context_small() -> None:
    text = (K8S / "Dockerfile").read_text()
    assert re.search(r"^ARG CUDA_DIGEST=sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert "FROM ${CUDA_IMAGE}@${CUDA_DIGEST} AS base" in text
    stages = re.findall(r"^FROM .* AS (\w+)$", text, re.MULTILINE)
    assert stages == ["base", "build", "runtime"]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", text, re.MULTILINE) and "ENTRYPOINT [" in text
    ignored, *allowed = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    context = {line[1:] for line in allowed if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    words = [Path(word) for line in copied for word in line.split()]
    assert ignored == "*" and all({str(word), *map(str, word.parents)} & context for word in words)
    files = [path for name in context for path in [ROOT / name, *(ROOT / name).rglob("*")] if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix != ".pyc") < 3e6


def test_no_secrets() -> None:
    secret = re.compile(r"hf_[A-Za-z0-9]{8}|BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}")
    files = [*K8S.glob("*.*"), K8S / "Dockerfile", *K8S.glob("locks/*"), *(ROOT / "scripts").iterdir()]
    assert [path for path in files if secret.search(path.read_text())] == []


def test_the_locks_hold_what_the_project_needs() -> None:
    """Exact versions with hashes, within the bounds of pyproject.toml, from no named index; torch is the base's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locks = {path.stem: path.read_text() for path in (K8S / "locks").glob("*.lock")}
    assert {"base", "reasoning", "mirror", "eval"} <= locks.keys()
    pinned: dict[str, dict[str, str]] = {}
    for name, text in locks.items():
        pinned[name] = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE))
        assert text.count("==") == len(pinned[name]) and "://" not in text
        assert not [key for key in pinned[name] if key in ("torch", "triton") or key.startswith(("nvidia-", "cuda-"))]
    for name, requirements in {"base": project["dependencies"], **project["optional-dependencies"]}.items():
        for requirement in map(Requirement, requirements if name in locks else ()):
            needed = requirement.marker is None or requirement.marker.evaluate({"python_version": "3.12"})
            key = requirement.name.lower().replace("_", "-")
            if needed and key != "torch":
                version = {**pinned["base"], **pinned[name]}[key]
                assert version in requirement.specifier, f"{requirement}: k8s/lock.py takes it up"


def test_the_labels_of_the_image() -> None:
    text = (K8S / "Dockerfile").read_text()
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]+)"', text))
    assert labels.keys() == {"title", "description", "licenses", "version", "revision"}
    assert labels["revision"] == "${REVISION}" and re.search(r"^ARG EXTRAS=$", text, re.MULTILINE)


@pytest.mark.parametrize("name", JOBS)
def test_jobs_end_for_good_only_where_that_is_right(name: str) -> None:
    spec = job_spec(name)
    rules = spec["podFailurePolicy"]["rules"]
    by_code = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", ())}
    assert by_code == {ExitCode.USAGE: "FailJob", ExitCode.GAVE_UP: "FailJob", ExitCode.PREEMPTED: "Ignore"}
    assert not any("containerName" in rule.get("onExitCodes", {}) for rule in rules), "init containers too"
    assert rules[-1] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert spec["podReplacementPolicy"] == "Failed" and spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["backoffLimit"] >= (0 if name == "pretrain-jobset" else 6)
    assert "activeDeadlineSeconds" not in spec, "the wait for GPUs would count"
    assert named(name)[-1]["spec"]["ttlSecondsAfterFinished"] > 0


@pytest.mark.parametrize("name", [*JOBS, "tensorboard"])
def test_pods_may_do_little(name: str) -> None:
    spec = pod_spec(name) if name in JOBS else of_kind(objects("sft"), "Deployment")[0]["spec"]["template"]["spec"]
    security = spec["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert security["runAsNonRoot"] is True and security["runAsUser"] == security["fsGroup"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(spec).values():
        assert container["image"] == "registry.example.com/team/titan-pt:v1"
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        variables = container.get("env", ())
        secrets = [entry["valueFrom"]["secretKeyRef"] for entry in variables if "secretKeyRef" in str(entry)]
        assert all(secret["name"] == "titan-pt-hub" for secret in secrets)
        mounts = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        written = [entry["value"] for entry in variables if entry["name"].endswith(("HOME", "_DIR"))]
        assert all(any(path.startswith(mount) for mount in mounts) for path in written), "the root is read-only"


@pytest.mark.parametrize("name", JOBS)
def test_the_training_container(name: str) -> None:
    spec = pod_spec(name)
    train = containers(spec)["train"]
    assert train["command"][:3] == ["python", "-m", "titan_pt.launch"], "process 1, which gets the signals"
    assert "MAX_RESTARTS" not in {entry["name"] for entry in train["env"]}, "Kubernetes restarts, and nobody else"
    assert train["envFrom"] == [{"secretRef": {"name": "titan-pt-env", "optional": True}}]
    resources = train["resources"]
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] >= 1
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in train["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory" and "emptyDir" in mounted["/tmp"]
    (claim,) = of_kind(named(name), "PersistentVolumeClaim")
    assert mounted["/workspace"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    caches = {entry["name"] for entry in train["env"]}
    assert {"HF_HOME", "TIKTOKEN_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"} <= caches


def config_of(found: list[dict[str, Any]], folder: Path) -> JobConfig:
    """What the pods of a job train."""
    train = containers(batch_job(found[-1])["template"]["spec"])["train"]
    pod = Pod(folder / "workspace", mount_config(found, folder / "config"))
    arguments = pod.command_line(train)
    return load_config(arguments[arguments.index("titan_pt.train") + 1 :])


@pytest.mark.parametrize("name", JOBS)
def test_what_a_job_trains(tmp_path: Path, name: str) -> None:
    config = config_of(named(name), tmp_path)
    assert config.job.dump_folder.startswith(str(tmp_path / "workspace" / "outputs")), "on the volume"
    grace = pod_spec(name)["terminationGracePeriodSeconds"]
    assert grace == config.comm.grace_seconds + MARGIN_SECONDS, "or a save is cut off"


@pytest.mark.parametrize("name", ["", "exp7"])
def test_each_job_starts_where_the_one_before_it_ends(tmp_path: Path, name: str) -> None:
    configs = [config_of(objects(kind, NAME=name), tmp_path / kind) for kind in ("pretrain", "sft", "grpo")]
    for kind, earlier, later in zip(("sft", "grpo"), configs, configs[1:], strict=False):
        folder = Path(earlier.job.dump_folder).relative_to(tmp_path / earlier.job.trainer / "workspace")
        assert later.checkpoint.initial_load_path == str(folder)
        spec = batch_job(objects(kind, NAME=name)[-1])["template"]["spec"]
        await_start = containers(spec)["await-start"]
        assert await_start["args"] == containers(spec)["train"]["args"]
        assert {container.get("workingDir") for container in (await_start, containers(spec)["train"])} == {"/workspace"}


def test_experiments_side_by_side(tmp_path: Path) -> None:
    """Names, labels, folders, ConfigMaps: nothing of one is another's, and each writes to its own folder alone."""
    found = {name: objects("pretrain", NAME=name, CONFIG="medium_1day")[2:] for name in ("exp7", "exp8")}
    names = {
        name: {o["metadata"]["name"] for o in entries if o["kind"] != "Service"} for name, entries in found.items()
    }
    assert names["exp7"] & names["exp8"] <= {"titan-pt-tensorboard"}
    for name, entries in found.items():
        job = entries[-1]
        template = job["spec"]["template"]
        assert job["metadata"]["name"] == f"titan-pt-{name}-pretrain"
        assert template["metadata"]["labels"]["app.kubernetes.io/instance"] == name
        mounts = containers(template["spec"])["train"]["volumeMounts"]
        written = {mount["subPath"] for mount in mounts if mount["name"] == "workspace" and not mount.get("readOnly")}
        assert written == {f"outputs/{name}", "cache"}
        assert containers(template["spec"])["folders"]["command"][2:] == [
            f"/workspace/outputs/{name}",
            "/workspace/cache",
        ]
        config = config_of([*entries], tmp_path / name)
        assert config.job.dump_folder == str(tmp_path / name / "workspace" / "outputs" / name / "pretrain")
        assert config.training.tokens == 15 * 10**9
    claims = [objects("pretrain", NAME=name, ACCESS_MODE="ReadWriteOnce")[0] for name in found]
    assert [claim["metadata"]["name"] for claim in claims] == ["titan-pt-exp7", "titan-pt-exp8"], "one node's each"


def test_configs_cannot_change_under_a_job(tmp_path: Path) -> None:
    """What a file extends travels with it, from wherever; another text has another name, and another manifest."""
    base, child = tmp_path / "base" / "b.toml", tmp_path / "mine" / "My exp.toml"
    for path in (base, child):
        path.parent.mkdir()
    base.write_text(f'extends = "{ROOT}/train_configs/quickstart.toml"\n[optimizer]\nlr = 1e-3\n')
    child.write_text('extends = "../base/b.toml"\n[training]\nsteps = 7\n')
    seen = []
    for steps in (7, 7, 8):
        child.write_text(child.read_text().replace("steps = 7", f"steps = {steps}"))
        found = objects("pretrain", CONFIG=str(child), GPUS="1")
        (config_map,) = of_kind(found, "ConfigMap")
        (volume,) = [v for v in found[-1]["spec"]["template"]["spec"]["volumes"] if v["name"] == "config"]
        assert config_map["immutable"] is True and volume["configMap"]["name"] == config_map["metadata"]["name"]
        seen.append((config_map["metadata"]["name"], found[-1]["metadata"]["annotations"]["titan-pt/manifest"]))
        config = config_of(found, tmp_path / f"pod-{len(seen)}")
        assert (config.optimizer.lr, config.training.steps) == (1e-3, steps)
        assert found[-1]["metadata"]["labels"]["app.kubernetes.io/instance"] == "my-exp", (
            "CONFIG's name where none is given"
        )
    assert seen[0] == seen[1] and not set(seen[0]) & set(seen[2])


def test_every_shipped_experiment_can_be_deployed(tmp_path: Path) -> None:
    for path in sorted((ROOT / "train_configs").rglob("*.toml")):
        config = load_config(["--job.config_file", str(path)])
        if not path.stem.startswith("base_"):
            found = objects(config.job.trainer, CONFIG=str(path), GPUS="1")
            in_pod = config_of(found, tmp_path / path.stem)
            assert (in_pod.optimizer, in_pod.training) == (config.optimizer, config.training)


def test_what_the_environment_asks_for() -> None:
    words, environment = ASKED["everything"]
    job = objects(*words, **environment)[-1]
    spec, pods = job["spec"], job["spec"]["template"]["spec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research" and spec["suspend"] is True
    assert spec["activeDeadlineSeconds"] == 96 * 3600, "a suspended Job's clock stands still"
    assert pods["priorityClassName"] == "high" and pods["nodeSelector"] == {"pool": "a100", "zone": "b"}
    assert pods["tolerations"][1:] == [
        {"key": "team", "operator": "Equal", "value": "nlp", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists"},
    ]
    assert spec["template"]["metadata"]["annotations"]["example.com/cost"] == "7"
    train = containers(pods)["train"]
    devices = {"nvidia.com/gpu": 1, "rdma/rdma_shared_device_a": 1}
    assert train["resources"]["requests"] == {"cpu": "4", "memory": "64Gi", **devices}
    assert train["resources"]["limits"] == {"memory": "64Gi", **devices}
    assert train["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert "add" not in containers(pods)["folders"]["securityContext"]["capabilities"]
    assert train["args"][-2:] == ["--training.tokens", "1B"]
    jobset = objects(*ASKED["everything, several nodes"][0], **ASKED["everything, several nodes"][1])[-1]
    assert jobset["spec"]["suspend"] is True and "suspend" not in batch_job(jobset)
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
    assert batch_job(jobset)["activeDeadlineSeconds"] == 30 * 3600


@pytest.mark.parametrize(("gpus", "cpu", "memory"), [("8", "16", "128Gi"), ("1", "2", "16Gi"), ("0", "2", "16Gi")])
def test_requests_follow_the_gpus(gpus: str, cpu: str, memory: str) -> None:
    pods = objects("pretrain", GPUS=gpus, CONFIG="debug")[-1]["spec"]["template"]["spec"]
    requests = containers(pods)["train"]["resources"]["requests"]
    assert (requests["cpu"], requests["memory"]) == (cpu, memory)
    assert requests.get("nvidia.com/gpu", 0) == int(gpus) and bool("tolerations" in pods) == bool(int(gpus))


def test_prometheus_and_json() -> None:
    """The number of a port is told to the run, to the pod, and to who scrapes it."""
    asked = settings.read_settings({**ENVIRONMENT, "METRICS_PORT": "9400", "LOG_FORMAT": "json"})
    *_, job = render.render(works.Work("pretrain", ["python"], [], 1, config="[job]", file="x.toml"), asked)
    template = job["spec"]["template"]
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": "9400", "prometheus.io/path": "/metrics"}
    assert template["metadata"]["annotations"] == scraped
    train = containers(template["spec"])["train"]
    assert train["ports"] == [{"name": "metrics", "containerPort": 9400}]
    assert {"name": "LOG_FORMAT", "value": "json"} in train["env"]
    assert schema_errors(job, "1.34") == ""
    if "prometheus_port" in Metrics.model_fields:
        arguments = containers(objects("pretrain", METRICS_PORT="9400")[-1]["spec"]["template"]["spec"])["train"][
            "args"
        ]
        assert arguments[arguments.index("--metrics.prometheus_port") + 1] == "9400"
        assert arguments[arguments.index("--metrics.prometheus_host") + 1] == "0.0.0.0", "not loopback's alone"


def test_evaluate_and_export(tmp_path: Path) -> None:
    """Their command lines are the tools' own."""
    evaluate = objects("evaluate", "--", "--tasks", "gsm8k", CHECKPOINT="outputs/exp7/grpo", NAME="exp7")[-1]
    export = objects("export", CHECKPOINT="outputs/exp7/grpo/checkpoint/step-9", NAME="exp7")[-1]
    for job, kind in ((evaluate, "evaluate"), (export, "export")):
        spec = job["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert (
            job["metadata"]["name"] == f"titan-pt-exp7-{kind}" and container["command"][2] == f"titan_pt.tools.{kind}"
        )
        assert schema_errors(job, "1.34") == "" and "config" not in str(spec["volumes"])
        done = run(Pod(tmp_path, tmp_path).command_line(container), cwd=tmp_path)
        assert done.code == 2 and "outputs/exp7/grpo" in done.last_line, (
            done.stderr
        )  # the flags are known; no checkpoint
    assert "/workspace/outputs/exp7/grpo-hf" in export["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.mark.parametrize("name", SEVERAL)
def test_several_nodes(name: str) -> None:
    spec = job_spec(name)
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 2
    train = containers(spec["template"]["spec"])["train"]
    environments = [Pod(Path("w"), Path("c"), f"10.0.0.{i}", i).environment(train) for i in (0, 1)]
    for i, environment in enumerate(environments):
        assert (environment["PET_NNODES"], environment["PET_NODE_RANK"]) == ("2", str(i))
        assert environment["PET_LOCAL_ADDR"] == f"10.0.0.{i}"
        assert environment["PET_RDZV_BACKEND"] == "c10d" and environment["PET_RDZV_ENDPOINT"].endswith(":29500")
        assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"]
    arguments = Pod(Path("w"), Path("c")).command_line(train)
    assert arguments[arguments.index("--parallelism.data_parallel_replicate_degree") + 1] == "2"


def test_the_service_names_the_pods() -> None:
    *_, service, job = named("pretrain-multinode")
    pods = job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["metadata"]["name"] == pods["subdomain"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    endpoint = Pod(Path("w"), Path("c")).environment(containers(pods)["train"])["PET_RDZV_ENDPOINT"]
    (port,) = service["spec"]["ports"]
    assert endpoint == f"{job['metadata']['name']}-0.{service['metadata']['name']}:{port['port']}"
    assert job["spec"]["backoffLimit"] == 6 * job["spec"]["completions"]


def test_tensorboard_selects_its_pod_and_no_other() -> None:
    _, deployment, service = objects("pretrain")[:3]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert all(not labels.items() <= job_spec(name)["template"]["metadata"]["labels"].items() for name in JOBS)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    done = run([sys.executable, *container["command"][1:], "--help"])
    assert done.code == 0 and all(flag in done.stdout for flag in container["args"] if flag.startswith("--"))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_the_command_of_the_container(tmp_path: Path, name: str) -> None:
    """For real, as a dry run of its ranks; tests/planner/test_dry_run.py tries these experiments with all layers."""
    spec = pod_spec(name)
    train = containers(spec)["train"]
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    pod = Pod(workspace, mount_config(named(name), tmp_path / "config"))
    num_gpus = int(train["resources"]["limits"]["nvidia.com/gpu"])
    env = {**pod.environment(train), "HOME": str(workspace), "NGPU": str(num_gpus)}
    flags = ("--comm.mode", "fake_backend", "--model.num_layers", "2")
    done = run([*pod.command_line(train), *flags], cwd=workspace, env=env, timeout=300)
    assert done.code == 0, done.stderr
    ranks = 2 * num_gpus if name in SEVERAL else num_gpus
    assert f"Dry run of {ranks} ranks" in done.stderr


@pytest.mark.parametrize("name", ["sft-job", "grpo-job"])
def test_the_start_is_awaited(tmp_path: Path, name: str) -> None:
    """The init container's own command, with less patience: 2 and what to do, then 0 when the checkpoint is there."""
    spec = pod_spec(name)
    container = containers(spec)["await-start"]
    assert container["args"] == containers(spec)["train"]["args"]
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    pod = Pod(workspace, mount_config(named(name), tmp_path / "config"))
    waiting = [*pod.command_line(container), "--minutes", "0.05"]
    env = {**pod.environment(container), "HOME": str(workspace)}
    done = run(waiting, cwd=workspace, env=env)
    start = load_config(["--job.config_file", str(pod.config / Path(container["args"][1]).name)])
    assert done.code == 2 and "Waiting for starting weights" in done.stderr, done.stderr
    assert f"checkpoint.initial_load_path = '{start.checkpoint.initial_load_path}': no such folder" in done.last_line
    found = workspace / start.checkpoint.initial_load_path
    found.mkdir(parents=True)
    (found / "config.json").write_text("{}")  # an export of the run would do
    assert run(waiting, cwd=workspace, env=env).code == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="process namespaces are Linux's")
def test_the_launcher_as_process_1(tmp_path: Path) -> None:
    """The kernel keeps signals without a handler from process 1; the launcher's save and its code get through."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("process namespaces cannot be made here")
    config = write_toml(tmp_path, training={"steps": 10000})
    arguments = ["unshare", "--pid", "--fork", "--mount-proc", *command(config, ranks=1)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(arguments, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline, rows = time.monotonic() + 120, tmp_path / "run" / "metrics.jsonl"
    while not rows.exists() or not rows.read_text():
        assert time.monotonic() < deadline and process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    (launcher,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(launcher), signal.SIGTERM)
    assert process.wait(60) == 75, (tmp_path / "log").read_text()


def test_git_knows_the_scripts_and_not_the_secrets() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "check-ignore", "k8s/secrets.yaml"], cwd=ROOT, capture_output=True, check=False)
    assert listed.returncode == 0, "a filled-in copy of the template is not committed by accident"
