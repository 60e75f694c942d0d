"""Runs of this project's launchers, and others, as processes of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  before BasicSR, also in processes that are spawned

# isort: split
import torch
from basicsr.utils.registry import MODEL_REGISTRY
from conftest import read_option, script_environment

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


def model_of_process(rank: int, world: int, option_file: str, port: int, batch: int | None = None) -> Any:
    """The training model of one of ``world`` processes, joined by gloo where there are several; on one thread.

    ``batch`` is that of all processes together, by default what the option file says for each.
    """
    torch.set_num_threads(1)
    if world > 1:
        address = f'tcp://127.0.0.1:{port}'
        torch.distributed.init_process_group('gloo', init_method=address, rank=rank, world_size=world)
    options = read_option(Path(option_file))
    options.update(dist=world > 1, rank=rank, world_size=world, is_train=True)
    if batch is not None:
        options['datasets']['train']['batch_size_per_gpu'] = batch // world
    torch.manual_seed(0)
    return MODEL_REGISTRY.get(options['model_type'])(options)
