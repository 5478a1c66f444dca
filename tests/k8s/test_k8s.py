"""k8s/ without a cluster: schemas, linters, what the manifests name exists, and the containers' commands run."""

import itertools
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
import yaml
from helpers import ROOT, Result, command, run, write_toml
from pod_helpers import JOBS, K8S, MANIFESTS, Pod, containers, job_spec, mount_configs, pod_spec, read

from titan_pt.config.manager import load_config
from titan_pt.config.schema.job_config import JobConfig
from titan_pt.run.exit_codes import ExitCode

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


@pytest.mark.parametrize("version", ["1.31", "1.34", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("path", [*MANIFESTS, K8S / "secrets.yaml.template"], ids=lambda path: path.name)
def test_schemas(path: Path, version: str) -> None:
    """As they stand, placeholders and all; 1.31 is the first version with a stable podFailurePolicy."""
    for manifest in yaml.safe_load_all(path.read_text()):
        if manifest["kind"] == "JobSet":
            (replicated,) = manifest["spec"]["replicatedJobs"]
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, **replicated["template"]}
            assert schema_errors(job, version) == ""
        else:
            assert schema_errors(manifest, version) == ""


def test_the_schemas_would_find_a_mistake() -> None:
    (job,) = read("pretrain-job.yaml")
    job["spec"]["backOffLimit"] = 3
    assert "backOffLimit" in schema_errors(job, "1.34")


def test_the_jobset() -> None:
    """Its CRD is in no package: field by field against jobset.x-k8s.io/v1alpha2."""
    (jobset,) = read("pretrain-jobset.yaml")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    assert spec.keys() <= {"ttlSecondsAfterFinished", "network", "failurePolicy", "replicatedJobs"}
    assert spec["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    assert spec["failurePolicy"].keys() == {"maxRestarts", "restartStrategy", "rules"}
    assert spec["failurePolicy"]["restartStrategy"] in ("Recreate", "BlockingRecreate", "InPlaceRestart")
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule.keys() == {"name", "action", "onJobFailureReasons"} and rule["action"] == "FailJobSet"
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert "PodFailurePolicy" in rule["onJobFailureReasons"], "what podFailurePolicy's FailJob gives"
    (replicated,) = spec["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"} and replicated["template"].keys() == {"spec"}
    assert replicated["template"]["spec"]["backoffLimit"] == 0, "the set is restarted, not one pod"
    name, node = jobset["metadata"]["name"], replicated["name"]
    train = containers(pod_spec("pretrain-jobset"))["train"]
    endpoint = Pod(Path("w"), Path("c")).environment(train)["PET_RDZV_ENDPOINT"]
    assert endpoint == f"{name}-{node}-0-0.{name}:29500", "<jobset>-<replicated job>-<job>-<pod>.<subdomain>"


def test_yamllint() -> None:
    files = map(str, [*MANIFESTS, K8S / "secrets.yaml.template"])
    done = tool("yamllint", "--strict", "--config-file", str(ROOT / ".yamllint"), *files)
    assert done.code == 0, done.stdout


def test_hadolint() -> None:
    done = tool("hadolint", str(K8S / "Dockerfile"))
    assert done.code == 0, done.stdout


def test_shellcheck() -> None:
    scripts = [ROOT / "run_train.sh", ROOT / ".ci" / "run", K8S / "deploy.sh", ROOT / "scripts" / "train.slurm"]
    done = tool("shellcheck", *map(str, scripts))
    assert done.code == 0, done.stdout
    assert all(script.stat().st_mode & 0o111 for script in scripts), "they can be run"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_placeholders_stand_in_text(path: Path) -> None:
    text = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"\$\{(\w+)\}", text)) <= {"NAMESPACE", "REGISTRY", "TAG", "NODES"}
    for line in text.splitlines():
        assert "${" not in line or re.fullmatch(r'\s*[\w.-]+: "[^"]*"', line), line
    for manifest in read(path.name):
        assert manifest["metadata"]["namespace"] == "${NAMESPACE}"


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
    assert ignored == "*" and context == {word.split("/")[0] for line in copied for word in line.split()}
    files = [path for name in context for path in [ROOT / name, *(ROOT / name).rglob("*")] if path.is_file()]
    assert sum(path.stat().st_size for path in files if path.suffix != ".pyc") < 3e6


@pytest.mark.parametrize("path", [*K8S.iterdir(), ROOT / "scripts" / "train.slurm"], ids=lambda path: path.name)
def test_no_secrets(path: Path) -> None:
    assert not re.search(r"hf_[A-Za-z0-9]{8}|BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}", path.read_text())


@pytest.mark.parametrize("name", JOBS)
def test_jobs_end_for_good_only_where_that_is_right(name: str) -> None:
    spec = job_spec(name)
    rules = spec["podFailurePolicy"]["rules"]
    by_code = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", ())}
    assert by_code == {ExitCode.USAGE: "FailJob", ExitCode.GAVE_UP: "FailJob", ExitCode.PREEMPTED: "Ignore"}
    assert not any("containerName" in rule.get("onExitCodes", {}) for rule in rules), "init containers too"
    assert rules[-1] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert spec["podReplacementPolicy"] == "Failed" and spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] > 3600 and spec["backoffLimit"] >= (0 if name == "pretrain-jobset" else 6)
    owner = spec if name != "pretrain-jobset" else read("pretrain-jobset.yaml")[0]["spec"]
    assert owner["ttlSecondsAfterFinished"] > 0


@pytest.mark.parametrize("name", [*JOBS, "tensorboard"])
def test_pods_may_do_little(name: str) -> None:
    spec = pod_spec(name) if name in JOBS else read("tensorboard.yaml")[0]["spec"]["template"]["spec"]
    security = spec["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert security["runAsNonRoot"] is True and security["runAsUser"] == security["fsGroup"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(spec).values():
        assert container["image"] == "${REGISTRY}/titan-pt:${TAG}"
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        secrets = [entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "secretKeyRef" in str(entry)]
        assert all(secret["name"] == "titan-pt-hub" for secret in secrets)
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        written = [entry["value"] for entry in container["env"] if entry["name"].endswith(("HOME", "_DIR"))]
        assert all(any(path.startswith(mount) for mount in mounts) for path in written), "the root is read-only"


@pytest.mark.parametrize("name", JOBS)
def test_the_training_container(name: str) -> None:
    spec = pod_spec(name)
    train = containers(spec)["train"]
    assert train["command"][:3] == ["python", "-m", "titan_pt.launch"], "process 1, which gets the signals"
    assert "MAX_RESTARTS" not in {entry["name"] for entry in train["env"]}, "Kubernetes restarts, and nobody else"
    resources = train["resources"]
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] >= 1
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in train["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory" and "emptyDir" in mounted["/tmp"]
    (claim,) = read("pvc.yaml")
    assert mounted["/workspace"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    caches = {entry["name"] for entry in train["env"]}
    assert {"HF_HOME", "TIKTOKEN_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"} <= caches


def config_of(name: str, folder: Path) -> JobConfig:
    """What the pods of a manifest would train."""
    spec = pod_spec(name)
    pod = Pod(folder / "workspace", mount_configs(spec, folder / "config"))
    arguments = pod.command_line(containers(spec)["train"])
    return load_config(arguments[arguments.index("titan_pt.train") + 1 :])


@pytest.mark.parametrize("name", JOBS)
def test_what_a_job_trains(tmp_path: Path, name: str) -> None:
    config = config_of(name, tmp_path)
    assert config.job.dump_folder.startswith(str(tmp_path / "workspace" / "outputs")), "on the volume"
    grace = pod_spec(name)["terminationGracePeriodSeconds"]
    assert grace == config.comm.grace_seconds + MARGIN_SECONDS, "or a save is cut off"
    deadline = job_spec(name)["activeDeadlineSeconds"]
    assert config.training.max_hours is None or deadline > 3600 * config.training.max_hours


def test_each_job_starts_where_the_one_before_it_ends(tmp_path: Path) -> None:
    configs = [config_of(name, tmp_path / name) for name in SINGLE]
    for earlier, later in itertools.pairwise(configs):
        folder = Path(earlier.job.dump_folder)
        assert later.checkpoint.initial_load_path == f"{folder.parent.name}/{folder.name}"
    for name in SINGLE[1:]:  # the path is relative, and so the volume's
        assert {container["workingDir"] for container in containers(pod_spec(name)).values()} == {"/workspace"}


def test_every_preset_is_found_in_the_pod(tmp_path: Path) -> None:
    """ConfigMaps are flat; what `extends` names is found all the same."""
    folder = mount_configs(pod_spec("grpo-job"), tmp_path / "config")
    shipped = {str(path.relative_to(ROOT / "train_configs")) for path in (ROOT / "train_configs").rglob("*.toml")}
    assert {name for name in shipped if (folder / name).is_file()} == shipped
    for name in sorted(shipped):
        assert load_config(["--job.config_file", str(folder / name)]).job.dump_folder == f"outputs/{Path(name).stem}"


@pytest.mark.parametrize("name", SEVERAL)
def test_several_nodes(name: str) -> None:
    spec = job_spec(name)
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 2
    train = containers(spec["template"]["spec"])["train"]
    environments = [Pod(Path("w"), Path("c"), f"10.0.0.{i}", i, 2).environment(train) for i in (0, 1)]
    for i, environment in enumerate(environments):
        assert (environment["PET_NNODES"], environment["PET_NODE_RANK"]) == ("2", str(i))
        assert environment["PET_LOCAL_ADDR"] == f"10.0.0.{i}"
        assert environment["PET_RDZV_BACKEND"] == "c10d" and environment["PET_RDZV_ENDPOINT"].endswith(":29500")
        assert environment["GLOO_SOCKET_IFNAME"] == environment["NCCL_SOCKET_IFNAME"]
    arguments = Pod(Path("w"), Path("c")).command_line(train)
    assert arguments[arguments.index("--parallelism.data_parallel_replicate_degree") + 1] == "2"


def test_the_service_names_the_pods() -> None:
    service, job = read("pretrain-multinode.yaml")
    pods = job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["metadata"]["name"] == pods["subdomain"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    endpoint = Pod(Path("w"), Path("c")).environment(containers(pods)["train"])["PET_RDZV_ENDPOINT"]
    (port,) = service["spec"]["ports"]
    assert endpoint == f"{job['metadata']['name']}-0.{service['metadata']['name']}:{port['port']}"
    assert job["spec"]["backoffLimit"] == 6 * job["spec"]["completions"]


def test_tensorboard_selects_its_pod_and_no_other() -> None:
    deployment, service = read("tensorboard.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert all(job_spec(name)["template"]["metadata"]["labels"] != labels for name in JOBS)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    done = run([sys.executable, *container["command"][1:], "--help"])
    assert done.code == 0 and all(flag in done.stdout for flag in container["args"] if flag.startswith("--"))


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_the_command_of_the_container(tmp_path: Path, name: str) -> None:
    """For real, as a dry run of its real size."""
    spec = pod_spec(name)
    train = containers(spec)["train"]
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    pod = Pod(workspace, mount_configs(spec, tmp_path / "config"))
    num_gpus = int(train["resources"]["limits"]["nvidia.com/gpu"])
    env = {**pod.environment(train), "HOME": str(workspace), "NGPU": str(num_gpus)}
    done = run([*pod.command_line(train), "--comm.mode", "fake_backend"], cwd=workspace, env=env, timeout=300)
    assert done.code == 0, done.stderr
    ranks = pod.nodes * num_gpus if name in SEVERAL else num_gpus
    assert f"Dry run of {ranks} ranks" in done.stderr


@pytest.mark.parametrize("name", ["sft-job", "grpo-job"])
def test_the_start_is_awaited(tmp_path: Path, name: str) -> None:
    """The init container's own command, with less patience: 2 and what to do, then 0 when the checkpoint is there."""
    spec = pod_spec(name)
    container = containers(spec)["await-start"]
    assert container["args"] == containers(spec)["train"]["args"]
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    pod = Pod(workspace, mount_configs(spec, tmp_path / "config"))
    waiting = [*pod.command_line(container), "--minutes", "0.01"]
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
