#!/usr/bin/env bash
# Asks the public lists of security flaws about every package of the virtual environment. Needs the network; fails where a
# package could not be looked up.
# usage: bash scripts/audit.sh [arguments of pip-audit]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"
AUDIT="$(mktemp -d)"
trap 'rm -rf "$AUDIT"' EXIT
"$VENV/bin/python" -m venv "$AUDIT" # of its own, so that it audits the environment without being part of it
"$AUDIT/bin/python" -m pip install --quiet --disable-pip-version-check pip-audit
"$VENV/bin/python" -m pip freeze --exclude-editable > "$AUDIT/installed.txt"
# no release of basicsr mends CVE-2024-27763; mtkd/compat does
"$AUDIT/bin/pip-audit" --requirement "$AUDIT/installed.txt" --no-deps --disable-pip --strict \
    --ignore-vuln CVE-2024-27763 "$@"
