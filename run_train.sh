#!/usr/bin/env bash
# Train: ./run_train.sh [--section.field value ...]
#   NGPU         processes on this machine (default: its accelerators, or 1)
#   CONFIG_FILE  the experiment (default: train_configs/quickstart.toml); --job.config_file F overrides it
#   MAX_RESTARTS how often a run that fails, or has no data, is started again (default 0); a signal is obeyed
#   LOG_RANK     ranks that log, such as 0,1 (default 0)
#   PYTHON       the interpreter (default: python, else python3)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$(command -v python || command -v python3)}"
config="${CONFIG_FILE:-$root/train_configs/quickstart.toml}"
# A name such as train_configs/debug.toml is found from any folder.
if [[ ! -e "$config" && -e "$root/$config" ]]; then config="$root/$config"; fi
# This folder's package, installed or not, whatever the current folder.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True}"
exec "$python" -m titan_pt.launch --standalone -m titan_pt.train --job.config_file "$config" "$@"
