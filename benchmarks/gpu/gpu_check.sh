#!/usr/bin/env bash
# What titan_pt does on a GPU, most valuable first. From the root of the repo:
#   bash benchmarks/gpu/gpu_check.sh  JSON lines in $OUT/results.jsonl, one log a section in $OUT/log.txt
#   BUDGET=470 (seconds in all)  SMALL=1 (reduced shapes, as on a CPU)  ONLY="train rollout" (these sections)
set -uo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export TITAN_ROOT="${TITAN_ROOT:-$PWD}" OUT="${OUT:-$PWD/gpu_check_out}" WORK="${WORK:-/tmp}"
export PYTHONPATH="$TITAN_ROOT${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$WORK/inductor}" PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
mkdir -p "$OUT"
begin=$(date +%s)
budget="${BUDGET:-470}"
left() { echo $((begin + budget - $(date +%s))); }

# section NAME SECONDS [COMMAND ...]: its own limit, within what is left
section() {
    local name="$1" limit="$2" rest
    shift 2
    [[ -n "${ONLY:-}" && " $ONLY " != *" $name "* ]] && return
    rest=$(left)
    ((rest < 12)) && { echo "{\"section\": \"$name\", \"what\": \"end\", \"skipped\": \"no time left\"}" >>"$OUT/results.jsonl"; return; }
    ((limit > rest)) && limit=$rest
    local start code
    start=$(date +%s)
    echo "== $name (limit $limit s, $rest s left)" | tee -a "$OUT/log.txt"
    if (($#)); then
        timeout -k 5 "$limit" "$@" >>"$OUT/log.txt" 2>&1
    else
        SECTION_SECONDS=$((limit - 3)) timeout -k 5 "$limit" python3 "$here/gpu_check.py" "$name" >>"$OUT/log.txt" 2>&1
    fi
    code=$?
    echo "{\"section\": \"$name\", \"what\": \"exit\", \"rc\": $code, \"seconds\": $(($(date +%s) - start))}" | tee -a "$OUT/results.jsonl"
}

nvidia-smi >"$OUT/nvidia-smi.txt" 2>&1
section env 25
# Right or wrong before fast: these need no quiet card, so they run side by side.
(section gputests 80 python3 -m pytest -q -n 0 -m gpu -p no:cacheprovider "$TITAN_ROOT/tests") &
first=$!
(section product 100) &
second=$!
(ONLY="${ONLY:-}" section plan 150) &
third=$!
wait $first $second
section train 130
section rollout 55
section checkpoint 25
section grpo 50
section peers 50
section attention 20
section quantized 20
section ideas 45
wait $third
# The code that inductor made: fusions and kernels can be read here afterwards.
(cd "$TORCHINDUCTOR_CACHE_DIR" 2>/dev/null && find . -name '*.py' -size -400k | head -400 | tar czf "$OUT/inductor_py.tgz" -T - 2>/dev/null)
tail -c 600000 "$OUT/log.txt" >"$OUT/log.cut" && mv "$OUT/log.cut" "$OUT/log.txt"
grep -E '"what": "(train|rollout|matmul|checkpoint|transformers|idea|exit|profile)' "$OUT/results.jsonl" | cut -c1-330 | tail -60
exit 0
