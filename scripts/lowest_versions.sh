#!/usr/bin/env bash
# The fast tests on the lowest versions that pyproject.toml allows: scripts/lowest_versions.sh [pytest arguments]
#   PYTHON   the interpreter of the fresh virtual environment (default: python3)
# uv finds the versions (every dependency that pyproject.toml names at its lowest, what those need at its newest), pip
# installs them. A bound that lies shows as an installation or a test that fails: raise it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_WAIT_POLICY=PASSIVE

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
step() { printf '\n== %s (%ds)\n' "$1" "$SECONDS"; }

step "lowest versions"
"${PYTHON:-python3}" -m venv "$work/uv"
"$work/uv/bin/pip" install --quiet uv
"$work/uv/bin/uv" pip compile --quiet --resolution lowest-direct --extra test --python "${PYTHON:-python3}" \
    --no-header --no-annotate --output-file "$work/lowest.txt" pyproject.toml

step "pip install -e '.[test]'"
"${PYTHON:-python3}" -m venv "$work/venv"
# shellcheck disable=SC1091
source "$work/venv/bin/activate"
pip install --quiet --constraint "$work/lowest.txt" -e '.[test]'
pip check
pip list --format=freeze

step "pytest"
pytest -m 'not slow' "$@"
