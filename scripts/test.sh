#!/usr/bin/env bash
# The whole check: environment if missing, formatting and lint, option files, tests with coverage of the plugin.
# usage: bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
cd "$ROOT"
ruff format --check .
ruff check .
python scripts/make_options.py --check
python scripts/make_method_table.py --check
python scripts/make_options_reference.py --check
# a process per core, each on one thread: twice as fast as one process on both of two cores; -n 0 for a debugger
cores=$(python -c 'import os; print(min(len(os.sched_getaffinity(0)), 8))')
OMP_NUM_THREADS=1 python -m pytest -n "$cores" --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90 --durations=10 "$@"
