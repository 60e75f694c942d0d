#!/usr/bin/env bash
# Makes the virtual environment .venv (or $MTKD_VENV) with the plugin and all it needs; does nothing when it is there.
# usage: source scripts/install.sh
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${MTKD_VENV:-$ROOT/.venv}"

find_python() {
    local python
    for python in ${PYTHON:-} python3.11 python3.12 python3.10 python3; do
        if command -v "$python" >/dev/null &&
            "$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo 'error: Python 3.10, 3.11 or 3.12 with venv is needed; set PYTHON to one' >&2
    return 1
}

if [ ! -e "$VENV/.complete" ]; then
    PYTHON_FOUND="$(find_python)"
    echo "Installing into $VENV (PyTorch is large; this takes some minutes) ..."
    "$PYTHON_FOUND" -m venv "$VENV"
    PIP="$VENV/bin/python -m pip install --quiet --disable-pip-version-check"
    $PIP --upgrade pip 'setuptools<81' wheel
    # basicsr builds from source and wants torch, numpy and cython at build time: give it those that are used, instead
    # of a second torch in an isolated build environment
    $PIP torch torchvision 'numpy>=1.26' cython
    $PIP --no-build-isolation 'basicsr>=1.4.2'
    $PIP --no-build-isolation --editable "$ROOT[test]"
    touch "$VENV/.complete"
fi
export PATH="$VENV/bin:$PATH"
