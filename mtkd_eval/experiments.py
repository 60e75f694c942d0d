"""Option files, and where BasicSR puts what it trained with them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OPTION_SUFFIXES = ('.yml', '.yaml')
CHECKPOINT = re.compile(r'net_g_(\d+)\.pth')


def option_in(folder: Path) -> Path:
    """The option file that BasicSR copied into an experiment folder.

    Raises FileNotFoundError where there is none, ValueError where there are several.
    """
    found = sorted(folder.glob('*.yml'))
    if not found:
        raise FileNotFoundError(
            f'{folder}: expected an experiment folder of BasicSR, with its option file (*.yml) and models/net_g_*.pth'
        )
    if len(found) > 1:
        names = ', '.join(path.name for path in found)
        raise ValueError(f'{folder} holds several option files ({names}): remove all but one, or name a checkpoint')
    return found[0]


def trained_weights(opt: Mapping[str, Any], option_file: Path, experiment: Path | None = None) -> Path:
    """The newest weights of an experiment; its folder follows from ``name`` where it is not given.

    ``net_g_latest.pth``, which BasicSR writes when training ends, or the checkpoint of most iterations where that is
    newer by the files' times: a training that had ended was resumed with more iterations, and is not at its end. Raises
    FileNotFoundError where there are none, ValueError for an option file without a name.
    """
    if experiment is None:
        if not opt.get('name'):
            raise ValueError(f"{option_file} lacks the key 'name', and path.pretrain_network_g: no weights to be found")
        root = (opt.get('path') or {}).get('experiments_root') or 'experiments'
        experiment = Path(root).expanduser() / str(opt['name'])
    models = experiment / 'models'
    numbered = {
        int(match[1]): path for path in models.glob('net_g_*.pth') if (match := CHECKPOINT.fullmatch(path.name))
    }
    latest, newest = models / 'net_g_latest.pth', numbered.get(max(numbered, default=0))
    if latest.is_file() and (newest is None or newest.stat().st_mtime_ns <= latest.stat().st_mtime_ns):
        return latest
    if newest is None:
        raise FileNotFoundError(
            f'{option_file}: no weights at {models}/net_g_latest.pth: train it, run from the folder that holds '
            f'experiments/, or name the checkpoint itself with --network {option_file}'
        )
    return newest
