#!/usr/bin/env bash
# The tests with the oldest Python and the oldest packages that setup.py allows, in a virtual environment of their own.
# usage: [PYTHON=python3.10] bash scripts/test_oldest.sh [pytest arguments]
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export MTKD_VENV="${MTKD_OLDEST_VENV:-$HERE/../.venv-oldest}"
CONSTRAINTS="$(mktemp)"
trap 'rm -f "$CONSTRAINTS"' EXIT
export PYTHON="${PYTHON:-python3.10}" # or the oldest there is
python3 "$HERE/oldest_versions.py" > "$CONSTRAINTS"
export PIP_CONSTRAINT="$CONSTRAINTS"
source "$HERE/install.sh"
cd "$ROOT"
# ONNX graphs of one size take a newer torch: 2.10 and the onnxscript of today do not understand each other
one_size='not a_graph_of_one_size and not mambalite_is_refused_for_any_size'
cores=$(python -c 'import os; print(min(len(os.sched_getaffinity(0)), 8))')
OMP_NUM_THREADS=1 python -m pytest -n "$cores" --dist worksteal -k "$one_size" "$@"
