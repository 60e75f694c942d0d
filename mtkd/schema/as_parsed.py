"""Options as BasicSR's ``parse_options`` hands them on, without its command line, its loader and its processes."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from mtkd.schema.problems import is_training

HOMES = ('dataroot_gt', 'dataroot_lq')


def as_parsed(opt: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """``opt``, which has no problems, as a run below ``root`` in one process would get it."""
    training = is_training(opt)
    opt = {**deepcopy(dict(opt)), 'dist': False, 'rank': 0, 'world_size': 1, 'auto_resume': False, 'is_train': training}
    opt['manual_seed'] = opt.get('manual_seed') or 0
    devices = torch.cuda.device_count() if opt['num_gpu'] == 'auto' else opt['num_gpu']
    opt['num_gpu'] = min(devices, 1)  # each process has one
    for phase, dataset in opt['datasets'].items():
        dataset |= {'phase': phase.split('_')[0], 'scale': opt['scale']}
        dataset |= {key: _at_home(dataset[key]) for key in HOMES if isinstance(dataset.get(key), str)}
    for key, value in opt['path'].items():
        if isinstance(value, str) and ('resume_state' in key or 'pretrain_network' in key):
            opt['path'][key] = _at_home(value)
    return {**opt, 'root_path': str(root), 'path': {**opt['path'], **_folders(opt, root, training)}}


def _at_home(path: str) -> str:
    return str(Path(path).expanduser())


def _folders(opt: Mapping[str, Any], root: Path, training: bool) -> dict[str, str]:
    own = root / ('experiments' if training else 'results') / opt['name']
    named = {
        'experiments_root' if training else 'results_root': own,
        'log': own,
        'visualization': own / 'visualization',
    }
    if training:
        named |= {'models': own / 'models', 'training_states': own / 'training_states'}
    return {key: str(path) for key, path in named.items()}
