"""What a resumed run needs beside the weights and the optimizers: random generators, and the place in the data."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import distributed

from mtkd_data.placed_sampler import PlacedSampler

State = dict[str, Any]


def random_state(device: torch.device) -> State:
    """The states of Python's, NumPy's, torch's and the device's generators, as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  what BasicSR draws from
    state = {
        'python': {'version': version, 'words': torch.tensor(words), 'gauss': gauss},
        'numpy': {
            'name': name, 'keys': torch.from_numpy(keys.astype(np.int64)), 'position': position,
            'has_gauss': has_gauss, 'cached': cached,
        },
        'torch': torch.get_rng_state(),
    }  # fmt: skip
    if device.type == 'cuda':
        state['cuda'] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what ``random_state`` gave; the device's state only where it is of the same kind."""
    python, numpy = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['words'].tolist()), python['gauss']))
    keys = numpy['keys'].numpy().astype(np.uint32)
    np.random.set_state((numpy['name'], keys, numpy['position'], numpy['has_gauss'], numpy['cached']))  # noqa: NPY002
    torch.set_rng_state(state['torch'].cpu())
    if device.type == 'cuda' and 'cuda' in state:
        torch.cuda.set_rng_state(state['cuda'].cpu(), device)


def of_all_processes(value: Any) -> list[Any]:
    """``value`` of every process of a distributed run, by rank; to be called by all of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def place_in_data(sampler: PlacedSampler | None, batch: int) -> State | None:
    """Seed, epoch and samples trained on in it; None for a training set that another sampler reads."""
    if sampler is None:
        return None
    return {'seed': sampler.seed, 'epoch': sampler.epoch, 'samples': sampler.samples(batch)}


def set_place_in_data(sampler: PlacedSampler, place: Mapping[str, int]) -> None:
    """Let ``sampler`` go on where another run was. Raises ValueError where the processes cannot share the rest."""
    sampler.seed = place['seed']
    sampler.start_at(place['epoch'], place['samples'])
