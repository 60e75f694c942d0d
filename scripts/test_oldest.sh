#!/usr/bin/env bash
# The tests with the oldest Python and the oldest packages that setup.py allows, in a virtual environment of their own.
# usage: [PYTHON=python3.10] bash scripts/test_oldest.sh [pytest arguments]
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export MTKD_VENV="${MTKD_OLDEST_VENV:-$HERE/../.venv-oldest}"
CONSTRAINTS="$(mktemp)"
trap 'rm -f "$CONSTRAINTS"' EXIT
export PYTHON="${PYTHON:-python3.10}"
"$PYTHON" "$HERE/oldest_versions.py" > "$CONSTRAINTS"
export PIP_CONSTRAINT="$CONSTRAINTS"
source "$HERE/install.sh"
cd "$ROOT"
cores=$(python -c 'import os; print(min(len(os.sched_getaffinity(0)), 8))')
OMP_NUM_THREADS=1 python -m pytest -n "$cores" --dist worksteal "$@"
