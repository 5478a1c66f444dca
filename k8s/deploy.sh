#!/usr/bin/env bash
# Build the image, push it and run jobs, one after the other:
#   k8s/deploy.sh [pretrain] [sft] [grpo] [evaluate] [export] [-- FLAG ...]   (default: pretrain sft grpo)
#   k8s/deploy.sh --print JOB ... [-- FLAG ...]    the objects as YAML and nothing else, to keep in git or to compare
# Flags behind -- are the run's or the tool's own, of one job. docs/kubernetes.md tells all of it.
#   REGISTRY       where the image goes: $REGISTRY/titan-pt:$TAG (required)
#   NAMESPACE      an existing namespace of the cluster (required)
#   TAG            of the image (default: this commit, or latest without git)
#   CONFIG         the experiment of the job: a TOML file, or the name of a shipped one (default: the medium model's)
#   NAME           of the experiment: jobs, labels and folders of its own, beside others (default: none, or CONFIG's)
#   START          the run that the job starts from (default: what the TOML says, or the job before it of this NAME)
#   CHECKPOINT     the run that evaluate and export read, such as outputs/exp7/grpo
#   GPUS           of each node (default 8); CPUS, MEMORY: of each node (default 2 cores and 16Gi for each GPU)
#   NODES          several nodes (default 1); JOBSET=1: as a JobSet; INTERFACE: of the pods' network (default eth0)
#   RDMA           RDMA devices of each node, and IPC_LOCK (default 0); RDMA_RESOURCE: what the cluster calls them
#   QUEUE          a LocalQueue of Kueue; DEADLINE_HOURS: the longest that the job may run (default: from the TOML)
#   PRIORITY       a priority class
#   NODE_SELECTOR  label=value,...; TOLERATIONS: key=value:NoSchedule,...; ANNOTATIONS: key=value,...
#   ACCESS_MODE    of the volume (default ReadWriteMany); STORAGE_CLASS (the cluster's), STORAGE (200Gi)
#   LOG_FORMAT     json: an object a line; METRICS_PORT: numbers for Prometheus
#   EXTRAS         of pyproject.toml, for the image, such as reasoning,mirror; PLATFORM (default linux/amd64)
#   HF_TOKEN       of the Hugging Face hub: kept as a Secret (default: the one that is there, or none)
#   DRY_RUN=1      print what would be done, call nothing
#   REPLACE=1      delete and start again jobs that are there already; a run goes on from its checkpoint
#   SKIP_BUILD=1   the image is in the registry
#   START_MINUTES  the longest wait for pods to run (default 60; none in a QUEUE)
#   PYTHON         the interpreter, with titan_pt installed (default: python, else python3)
# Run again it goes on where it was: what is there stays, what is done is passed over, what runs is followed.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"

die() {
    printf 'deploy.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}
say() { printf '== %s\n' "$*"; }

# render TARGET JOB...: everything that was asked for is judged here, before anything is done.
render() {
    local python
    for python in ${PYTHON:-python python3}; do
        if "$python" -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ("pydantic", "tomli_w", "yaml"))))' 2>/dev/null; then
            TAG="${TAG:-$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo latest)}"
            export TAG PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
            "$python" "$here/render.py" "$@"
            return
        fi
    done
    die "${PYTHON:-python} lacks titan_pt's packages, which read the TOML: pip install -e $root, or set PYTHON to an interpreter that has them" 2
}

# do_it COMMAND...: run it, or print it in a dry run.
do_it() {
    if [[ "$DRY_RUN" == 1 ]]; then
        printf '+ %s\n' "$*"
    else
        "$@"
    fi
}

kube() { kubectl --namespace "$NAMESPACE" "$@"; }

# apply FILE WHAT ADVICE. Server-side: no copy of it, with a token in it, in an annotation.
apply() {
    if [[ "$DRY_RUN" == 1 ]]; then
        printf '+ kubectl --namespace %s apply --server-side --filename -   # %s\n' "$NAMESPACE" "$2"
        sed -E -e 's/^/    /' -e 's/^( *token: ).*/\1"***"/' <"$work/$1.yaml"
    else
        kube apply --server-side --filename - <"$work/$1.yaml" || die "$2 could not be applied; $3"
    fi
}

check_tools() {
    [[ "$DRY_RUN" == 1 ]] && return
    local tool
    for tool in kubectl $([[ "$SKIP_BUILD" == 1 ]] || echo docker); do
        command -v "$tool" >/dev/null || die "$tool is not installed; install it, or see what would be done with DRY_RUN=1"
    done
    kubectl get namespace "$NAMESPACE" >/dev/null || die "namespace $NAMESPACE cannot be read; see that kubectl reaches \
the cluster (kubectl config current-context) and make the namespace: kubectl create namespace $NAMESPACE"
    if [[ -n "$QUEUE" && -z "$(kube get localqueues.kueue.x-k8s.io "$QUEUE" --ignore-not-found --output name)" ]]; then
        die "QUEUE = '$QUEUE': no such queue in $NAMESPACE, and the job would wait for ever; see kubectl --namespace \
$NAMESPACE get localqueues, and that Kueue is installed" 2
    fi
    local found
    # Who may not read the cluster's classes is told by the Job.
    if [[ -n "$PRIORITY" ]] && found="$(kubectl get priorityclasses --output name 2>/dev/null)"; then
        found="${found//$'\n'/ }"
        [[ " $found " == *"/$PRIORITY "* ]] || die "PRIORITY = '$PRIORITY': no such priority class; give one of ${found//priorityclass.scheduling.k8s.io\//}" 2
    fi
}

build_and_push() {
    if [[ "$SKIP_BUILD" == 1 ]]; then return; fi
    local image="$REGISTRY/titan-pt:$TAG" commit
    commit="$(git -C "$root" rev-parse HEAD 2>/dev/null || true)"
    say "image $image"
    [[ -f "$root/pyproject.toml" ]] || die "$root holds no sources to build an image of; run this from a checkout, or give \
the TAG of one that is in the registry, with SKIP_BUILD=1" 2
    do_it docker build --platform "${PLATFORM:-linux/amd64}" --file "$here/Dockerfile" --build-arg "EXTRAS=${EXTRAS//,/ }" \
        --build-arg "VERSION=$TAG" --build-arg "REVISION=$commit" --tag "$image" "$root" ||
        die "the image could not be built; see above, and that the docker daemon runs: docker info"
    do_it docker push "$image" || die "$image could not be pushed; log in: docker login ${REGISTRY%%/*}"
}

apply_shared() {
    say "volume, secret, TensorBoard"
    if [[ -f "$work/secret.yaml" ]]; then apply secret "the hub's token" "see that you may write Secrets"; fi
    apply volume "the volume claim" "a claim that is there cannot be changed: keep its settings, or copy what it holds \
and delete it: kubectl --namespace $NAMESPACE get pvc --selector app.kubernetes.io/name=titan-pt"
    if [[ -f "$work/tensorboard.yaml" ]]; then
        apply tensorboard "TensorBoard" "see above, and that you may write Deployments and Services"
    fi
}

# What the cluster has of the job: the hash of what it was asked for, and the conditions that hold, such as Complete or
# Failed; nothing where there is none.
state() {
    kube get "$kind" "$name" --ignore-not-found \
        --output "jsonpath={.metadata.annotations['titan-pt/manifest']} {.status.conditions[?(@.status=='True')].type}"
}

# deploy JOB KIND NAME PODS NODES CONTAINER HASH, as render.py tells them.
deploy() {
    local job="$1" kind="$2" name="$3" pods="$4" nodes="$5" container="$6" hash="$7" complete=Complete found=""
    if [[ "$kind" == jobset ]]; then complete=Completed; fi
    say "$kind $name"
    if [[ "$REPLACE" == 1 ]]; then
        do_it kubectl --namespace "$NAMESPACE" delete "$kind" "$name" --ignore-not-found --wait ||
            die "$kind $name could not be deleted; see above, and that you may: kubectl --namespace $NAMESPACE auth can-i delete $kind"
    elif [[ "$DRY_RUN" != 1 ]]; then
        found="$(state)" || die "$kind $name cannot be read; see above, that you may: kubectl --namespace \
$NAMESPACE auth can-i get $kind$([[ "$kind" == job ]] || echo "; and that JobSet is installed: https://jobset.sigs.k8s.io")"
        if [[ "$found " == *" $complete "* ]]; then
            say "$name is done already; REPLACE=1 starts it again"
            return
        fi
        if [[ "$found " == *" Failed "* ]]; then explain_failure; fi
    fi
    if [[ -z "${found// /}" ]]; then
        apply "$job" "$kind $name" "see above, and that you may write Jobs and ConfigMaps"
    elif [[ "${found%% *}" != "$hash" ]]; then
        die "$kind $name is there with other settings, and cannot be changed: give its TAG, TOML and settings to follow \
it; another NAME starts another one beside it; with REPLACE=1 it is deleted, saves, and goes on from its checkpoint"
    fi
    follow
}

# Until the job is complete: wait for its pods, show their log, and again, for pods that take the place of others.
follow() {
    if [[ "$DRY_RUN" == 1 ]]; then
        printf '+ kubectl --namespace %s wait --for condition=%s %s/%s   # showing its log\n' \
            "$NAMESPACE" "$complete" "$kind" "$name"
        return
    fi
    say "waiting for $name; Ctrl-C leaves it running, and the same command follows it again"
    local minutes=0
    while true; do
        if kube wait --for "jsonpath={.status.ready}=$nodes" --timeout 60s "job/$pods" >/dev/null 2>&1; then
            minutes=0
            kube logs --follow --prefix --tail 100 --container "$container" --max-log-requests 1000 \
                --selector "batch.kubernetes.io/job-name=$pods" || say "the log was cut off"
        fi
        if kube wait --for "condition=$complete" --timeout 5s "$kind/$name" >/dev/null 2>&1; then
            say "$name is done"
            return
        fi
        if kube wait --for condition=Failed --timeout 1s "$kind/$name" >/dev/null 2>&1; then explain_failure; fi
        # A queue may take days.
        if [[ -z "$QUEUE" ]] && ((++minutes > START_MINUTES)); then
            die "no pod of $name ran for $START_MINUTES minutes; see why (no free GPUs, image, volume): kubectl \
--namespace $NAMESPACE describe pods --selector batch.kubernetes.io/job-name=$pods"
        fi
    done
}

explain_failure() {
    kube logs --all-containers --prefix --tail 20 --selector "batch.kubernetes.io/job-name=$pods" >&2 || true
    die "$name failed; its last lines are above (exit codes: docs/kubernetes.md). When the cause is gone, REPLACE=1 starts it \
again, from its checkpoint. More: kubectl --namespace $NAMESPACE describe $kind $name"
}

main() {
    if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
        sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        return
    fi
    if [[ "${1:-}" == --print ]]; then
        render "$@"
        return
    fi
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
    render "$work" "$@"
    DRY_RUN="${DRY_RUN:-}" REPLACE="${REPLACE:-}" SKIP_BUILD="${SKIP_BUILD:-}" QUEUE="${QUEUE:-}" PRIORITY="${PRIORITY:-}" EXTRAS="${EXTRAS:-}"
    START_MINUTES="${START_MINUTES:-60}"
    check_tools
    build_and_push
    apply_shared
    local facts
    while read -ra facts <&3; do deploy "${facts[@]}"; done 3<"$work/jobs"
    if [[ -f "$work/tensorboard.yaml" ]]; then
        say "TensorBoard: kubectl --namespace $NAMESPACE port-forward service/titan-pt-tensorboard 6006"
    fi
}

main "$@"
