#!/usr/bin/env bash
# Train: ./run_train.sh [FILE.toml | NAME] [--section.field value ...]      NAME: a shipped experiment (titan-pt ls)
#   NGPU         processes on this machine (default: its accelerators, or 1)
#   CONFIG_FILE  the experiment where none is named (default: train_configs/quickstart.toml); --job.config_file F overrides both
#   MAX_RESTARTS how often a run that fails, or has no data, is started again (default 0); a signal is obeyed
#   LOG_RANK     ranks that log, such as 0,1 (default 0)
#   PYTHON       the interpreter (default: python, else python3)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$(command -v python || command -v python3 || echo python3)}"
config="${CONFIG_FILE:-$root/train_configs/quickstart.toml}"
if [[ $# -gt 0 && "$1" != -* ]]; then
    config="$1"
    shift
fi
# This folder's package, installed or not, whatever the current folder; what it needs comes with its installation.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
needed='from importlib.util import find_spec; raise SystemExit(not all(map(find_spec, ("torch", "pydantic", "tomli_w"))))'
if ! "$python" -c "$needed" 2>/dev/null; then
    printf 'run_train.sh: %q lacks what titan_pt needs: cd %q && %q -m pip install -e .\n' "$python" "$root" "$python" >&2
    exit 2
fi
exec "$python" -m titan_pt.launch --standalone -m titan_pt.train --job.config_file "$config" "$@"
