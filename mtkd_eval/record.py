"""The circumstances under which figures were made."""

import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mtkd import __version__  # first: it mends BasicSR

# isort: split
import torch
from basicsr.version import __version__ as basicsr_version

from mtkd_arch.frozen_network import best_dtype


def circumstances(device: torch.device) -> dict[str, Any]:
    """Date, commit (None outside a checkout), versions, the device's name and the number of threads."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name()
    return {
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d'),
        'commit': commit(),
        'mtkd': __version__,
        'basicsr': basicsr_version,
        'torch': torch.__version__,
        'python': platform.python_version(),
        'device': name,
        'threads': torch.get_num_threads(),
    }


def cpu_name() -> str:
    """What of a CPU decides speed and precision: its family, and the vector instructions that torch has for it."""
    bf16 = ' with bf16' if best_dtype(torch.device('cpu')) else ''
    return f'{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}{bf16}'


def commit() -> str | None:
    """The commit this code is from, with ``-dirty`` where it is not what the commit holds."""
    here = Path(__file__)
    tracked = _git('ls-files', '--error-unmatch', here.name)  # not that of a repository it was installed in
    return _git('describe', '--always', '--dirty', '--exclude=*') if tracked else None


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ['git', *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
        )
    except OSError:  # no git
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
