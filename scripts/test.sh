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
python -m pytest --cov --cov-report=term:skip-covered --cov-fail-under=90 --durations=10 "$@"
