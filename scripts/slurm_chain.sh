#!/usr/bin/env bash
# Runs that follow each other, as Slurm jobs: scripts/slurm_chain.sh [--option=value of sbatch ...] FILE.toml FILE.toml ...
#   scripts/slurm_chain.sh --nodes=1 train_configs/medium_3day.toml train_configs/sft_full.toml train_configs/grpo_full.toml
# A job begins when the one before it is done (afterok: a job that saved and queued itself again is not), and is taken out
# of the queue when that one failed. PYTHON, CONTAINER, MOUNTS, MAX_REQUEUES: as in train.slurm.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python}"

die() {
    printf 'slurm_chain.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

options=() files=()
for argument in "$@"; do
    if [[ "$argument" == -* ]]; then options+=("$argument"); else files+=("$argument"); fi
done
((${#files[@]} >= 2)) || die "a chain is two TOML files or more, such as pretrain.toml sft.toml; one alone: sbatch $here/train.slurm" 2
for file in "${files[@]}"; do
    [[ -f "$file" ]] || die "'$file': no such file in $PWD; options of sbatch are written --name=value" 2
done

# Every file is right, and each run starts where the one before it ends: told now, not in days.
"$python" - "${files[@]}" <<'END' || exit 2
import sys
from os.path import normpath

try:
    from titan_pt.config import load_config
    from titan_pt.config.errors import ConfigError
except ImportError as error:
    sys.exit(f"slurm_chain.sh: PYTHON = {sys.executable!r} cannot import titan_pt ({error}); set it to one that can")
earlier = None
for file in sys.argv[1:]:
    try:
        config = load_config(["--job.config_file", file])
    except ConfigError as error:
        sys.exit(error.report())
    start = config.checkpoint.initial_load_path
    if earlier and (not start or not f"{normpath(start)}/".startswith(f"{normpath(earlier)}/")):
        sys.exit(
            f"slurm_chain.sh: {file}: checkpoint.initial_load_path = {start!r} is not the run before it; set it to "
            f"{earlier!r}, the job.dump_folder of that one"
        )
    earlier = config.job.dump_folder
END

submitted=()
for file in "${files[@]}"; do
    name="$(basename "$file" .toml)"
    after=()
    if ((${#submitted[@]})); then after=("--dependency=afterok:${submitted[-1]}" --kill-on-invalid-dep=yes); fi
    id="$(CONFIG_FILE="$file" sbatch --parsable --job-name="$name" "${options[@]}" "${after[@]}" "$here/train.slurm")" ||
        die "$name could not be submitted; see above${submitted[0]:+, and take back what was: scancel ${submitted[*]}}"
    submitted+=("${id%%;*}")
    printf '%s: job %s%s\n' "$name" "${submitted[-1]}" "${after[0]:+, after ${submitted[-2]:-}}"
done
printf 'See them: squeue --jobs=%s\n' "$(IFS=, && echo "${submitted[*]}")"
