"""Runs of this project's launchers, and others, as processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import script_environment

TORCHRUN = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')


def launch(folder: Path, *arguments: str | Path, first: str = '') -> str:
    """Run Python in ``folder`` to a good end; what it printed. ``first`` goes before the checkout in PYTHONPATH."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment(first),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def environment(first: str = '') -> dict[str, str]:
    inherited = script_environment()
    return {**inherited, 'PYTHONPATH': os.pathsep.join(filter(None, [first, inherited['PYTHONPATH']]))}


def newest_log(folder: Path) -> str:
    return max(folder.glob('*.log'), key=lambda path: path.stat().st_mtime_ns).read_text()
