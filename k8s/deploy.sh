#!/usr/bin/env bash
# Build the image, push it and run jobs, one after the other: k8s/deploy.sh [pretrain] [sft] [grpo]   (default: all)
#   REGISTRY       where the image goes: $REGISTRY/titan-pt:$TAG (required)
#   NAMESPACE      an existing namespace of the cluster (required)
#   TAG            of the image (default: this commit, or latest without git)
#   DRY_RUN=1      print what would be done, call nothing
#   REPLACE=1      delete and start again jobs that are there already; a run goes on from its checkpoint
#   SKIP_BUILD=1   the image is in the registry; PLATFORM: what it is built for (default linux/amd64)
#   NODES          above 1: pretraining on so many nodes (default 1); JOBSET=1: as a JobSet
#   GPUS           of each node (default 8)
#   START_MINUTES  the longest wait for pods to run (default 60)
#   STORAGE_CLASS  of the volume (default: the cluster's)
#   HF_TOKEN       of the Hugging Face hub: kept as a Secret (default: the one that is there, or none)
# Run again it goes on where it was: what is there stays, what is done is passed over, what runs is followed.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(dirname "$here")"

die() {
    printf 'deploy.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}
usage() { die "$1" 2; }
say() { printf '== %s\n' "$*"; }

read_environment() {
    [[ -n "${REGISTRY:-}" ]] || usage "REGISTRY is not set; give the registry of the image: REGISTRY=registry.example.com/team"
    [[ -n "${NAMESPACE:-}" ]] || usage "NAMESPACE is not set; give the namespace that the jobs run in: NAMESPACE=training"
    TAG="${TAG:-$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo latest)}"
    DRY_RUN="${DRY_RUN:-}" REPLACE="${REPLACE:-}" SKIP_BUILD="${SKIP_BUILD:-}" JOBSET="${JOBSET:-}"
    PLATFORM="${PLATFORM:-linux/amd64}" NODES="${NODES:-1}" GPUS="${GPUS:-8}" START_MINUTES="${START_MINUTES:-60}"
    STORAGE_CLASS="${STORAGE_CLASS:-}" HF_TOKEN="${HF_TOKEN:-}"
    must_match REGISTRY '^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$' 'a host and a path in lower case, no https://, no / at the end'
    must_match NAMESPACE '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$' 'lower-case letters, digits and -, at most 63'
    must_match TAG '^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$' 'letters, digits, _ . -, at most 128'
    must_match PLATFORM '^linux/[a-z0-9/]+$' 'a platform such as linux/arm64'
    must_match NODES '^[1-9][0-9]{0,3}$' 'a number of nodes, 1 or more'
    must_match GPUS '^[1-9][0-9]?$' 'GPUs of a node, 1 or more'
    must_match START_MINUTES '^[1-9][0-9]{0,4}$' 'minutes, 1 or more'
    must_match STORAGE_CLASS '^[a-z0-9.-]*$' 'the name of a storage class: kubectl get storageclass'
    must_match HF_TOKEN '^[A-Za-z0-9_-]*$' 'a token of the hub: letters, digits, _ and -' hidden
    local name
    for name in DRY_RUN REPLACE SKIP_BUILD JOBSET; do must_match "$name" '^[01]?$' '1, or 0'; done
    if [[ "$JOBSET" == 1 && "$NODES" == 1 ]]; then usage "JOBSET=1 is for several nodes; set NODES to their number"; fi
    image="$REGISTRY/titan-pt:$TAG"
}

# must_match NAME REGULAR_EXPRESSION WHAT_IT_IS [hidden]
must_match() {
    if [[ "${!1}" =~ $2 ]]; then return; fi
    if [[ "${4:-}" == hidden ]]; then usage "$1: must be $3"; fi
    usage "$1 = '${!1}': must be $3"
}

read_jobs() {
    jobs=("$@")
    if [[ $# == 0 ]]; then jobs=(pretrain sft grpo); fi
    local job
    for job in "${jobs[@]}"; do
        [[ "$job" =~ ^(pretrain|sft|grpo)$ ]] || usage "'$job': no such job; give one or more of pretrain, sft, grpo"
    done
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

# apply WHAT ADVICE: the manifest on stdin. Server-side: no copy of it, with a token in it, in an annotation.
apply() {
    if [[ "$DRY_RUN" == 1 ]]; then
        printf '+ kubectl --namespace %s apply --server-side --filename -   # %s\n' "$NAMESPACE" "$1"
        sed 's/^/    /'
    else
        kube apply --server-side --filename - || die "$1 could not be applied; $2"
    fi
}

# fill NAME VALUE: stdin with ${NAME} replaced. In the shell itself: other processes could see the value as an argument.
fill() {
    local text placeholder="\${$1}" value="$2"
    text="$(cat)"
    printf '%s\n' "${text//$placeholder/$value}"
}

# render MANIFEST: with everything filled in but the token.
render() {
    local text name
    text="$(<"$1")"
    for name in NAMESPACE REGISTRY TAG NODES; do text="$(fill "$name" "${!name}" <<<"$text")"; done
    text="$(sed -E -e "s/[0-9]+(  # GPUS)\$/$GPUS\1/" -e "s/[0-9]+(  # NODES)\$/$NODES\1/" \
        -e "s/[0-9]+(  # BACKOFF)\$/$((6 * NODES))\1/" <<<"$text")"
    if [[ -n "$STORAGE_CLASS" ]]; then
        text="$(fill STORAGE_CLASS "$STORAGE_CLASS" <<<"${text/\# storageClassName:/storageClassName:}")"
    fi
    printf '%s\n' "$text"
}

check_tools() {
    [[ "$DRY_RUN" == 1 ]] && return
    local tool
    for tool in kubectl $([[ "$SKIP_BUILD" == 1 ]] || echo docker); do
        command -v "$tool" >/dev/null || die "$tool is not installed; install it, or see what would be done with DRY_RUN=1"
    done
    kubectl get namespace "$NAMESPACE" >/dev/null || die "namespace $NAMESPACE cannot be read; see that kubectl reaches \
the cluster (kubectl config current-context) and make the namespace: kubectl create namespace $NAMESPACE"
}

build_and_push() {
    if [[ "$SKIP_BUILD" == 1 ]]; then return; fi
    say "image $image"
    do_it docker build --platform "$PLATFORM" --file "$here/Dockerfile" --tag "$image" "$root" ||
        die "the image could not be built; see above, and that the docker daemon runs: docker info"
    do_it docker push "$image" || die "$image could not be pushed; log in: docker login ${REGISTRY%%/*}"
}

apply_shared() {
    say "volume, configs, secret, TensorBoard"
    if [[ -n "$HF_TOKEN" ]]; then
        local token="$HF_TOKEN"
        if [[ "$DRY_RUN" == 1 ]]; then token='***'; fi
        render "$here/secrets.yaml.template" | fill HF_TOKEN "$token" |
            apply "the hub's token" "see that you may write Secrets"
    fi
    render "$here/pvc.yaml" | apply "the volume claim" "a claim that is there cannot be changed: keep its settings, or \
copy what it holds and delete it with kubectl --namespace $NAMESPACE delete pvc titan-pt"
    apply_configs titan-pt-configs "$root/train_configs"
    apply_configs titan-pt-presets "$root/train_configs/presets"
    render "$here/tensorboard.yaml" | apply "TensorBoard" "see above, and that you may write Deployments and Services"
}

# apply_configs NAME FOLDER: its TOML files, without those of its folders; ConfigMaps are flat.
apply_configs() {
    if [[ "$DRY_RUN" == 1 ]]; then
        printf '+ kubectl --namespace %s create configmap %s --from-file %s --dry-run=client --output yaml | %s\n' \
            "$NAMESPACE" "$1" "$2" "kubectl --namespace $NAMESPACE apply --server-side --filename -"
        return
    fi
    local text advice="a ConfigMap holds 1 MiB: keep other files out of that folder"
    text="$(kube create configmap "$1" --from-file "$2" --dry-run=client --output yaml)" ||
        die "a ConfigMap could not be made of $2; $advice"
    apply "the configs of $2" "$advice" <<<"$text"
}

# describe_job JOB: sets manifest, kind, name, and the batch Job and condition that tell how far it is.
describe_job() {
    name="titan-pt-$1" manifest="$here/$1-job.yaml" kind=job pods="titan-pt-$1" nodes=1 complete=Complete
    if [[ "$1" == pretrain && "$NODES" -gt 1 ]]; then
        manifest="$here/pretrain-multinode.yaml" nodes="$NODES"
        if [[ "$JOBSET" == 1 ]]; then
            manifest="$here/pretrain-jobset.yaml" kind=jobset pods="titan-pt-pretrain-node-0" complete=Completed
        fi
    fi
}

# The conditions of the job that hold, such as Complete or Failed; nothing while it runs or where there is none.
conditions() {
    kube get "$kind" "$name" --ignore-not-found --output "jsonpath={.status.conditions[?(@.status=='True')].type}"
}

deploy() {
    local name manifest kind pods nodes complete found
    describe_job "$1"
    say "$kind $name"
    if [[ "$REPLACE" == 1 ]]; then
        do_it kubectl --namespace "$NAMESPACE" delete "$kind" "$name" --ignore-not-found --wait ||
            die "$kind $name could not be deleted; see above, and that you may: kubectl --namespace $NAMESPACE auth can-i delete $kind"
    elif [[ "$DRY_RUN" != 1 ]]; then
        found="$(conditions)" || die "$kind $name cannot be read; see above, that you may: kubectl --namespace \
$NAMESPACE auth can-i get $kind$([[ "$kind" == job ]] || echo "; and that JobSet is installed: https://jobset.sigs.k8s.io")"
        if [[ " $found " == *" $complete "* ]]; then
            say "$name is done already; REPLACE=1 starts it again"
            return
        fi
        if [[ " $found " == *" Failed "* ]]; then explain_failure; fi
    fi
    render "$manifest" | apply "$kind $name" "a job that is there cannot be changed: give its TAG and settings to follow \
it; with REPLACE=1 it is deleted, saves, and goes on from its checkpoint as the new one"
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
            kube logs --follow --prefix --tail 100 --container train --max-log-requests 1000 \
                --selector "batch.kubernetes.io/job-name=$pods" || say "the log was cut off"
        fi
        if kube wait --for "condition=$complete" --timeout 5s "$kind/$name" >/dev/null 2>&1; then
            say "$name is done"
            return
        fi
        if kube wait --for condition=Failed --timeout 1s "$kind/$name" >/dev/null 2>&1; then explain_failure; fi
        if ((++minutes > START_MINUTES)); then
            die "no pod of $name ran for $START_MINUTES minutes; see why (no free GPUs, image, volume): kubectl \
--namespace $NAMESPACE describe pods --selector batch.kubernetes.io/job-name=$pods"
        fi
    done
}

explain_failure() {
    kube logs --all-containers --prefix --tail 20 --selector "batch.kubernetes.io/job-name=$pods" >&2 || true
    die "$name failed; its last lines are above (exit codes: README.md). When the cause is gone, REPLACE=1 starts it \
again, from its checkpoint. More: kubectl --namespace $NAMESPACE describe $kind $name"
}

main() {
    read_environment
    read_jobs "$@"
    check_tools
    build_and_push
    apply_shared
    local job
    for job in "${jobs[@]}"; do deploy "$job"; done
    say "TensorBoard: kubectl --namespace $NAMESPACE port-forward service/titan-pt-tensorboard 6006"
}

main "$@"
