"""Networks on test sets: everything the tables are made of."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mtkd_data.teacher_cache.description import sha256_of_file
from mtkd_eval.cost import COUNTED, count_macs, count_parameters
from mtkd_eval.image_sets import ImageSet
from mtkd_eval.loaded import LoadedNetwork
from mtkd_eval.measure import METRICS, RunSettings, border_of, make_runner, measure_set, repeatable
from mtkd_eval.perceptual import Perceptual, perceptual
from mtkd_eval.record import circumstances

COST_NOTE = (
    's: seconds per image, MiB: peak memory of the network beyond weights and LR image (CPU: of the process), both '
    'medians over a set'
)


def evaluate(
    networks: Sequence[LoadedNetwork],
    sets: Sequence[ImageSet],
    device: torch.device,
    settings: RunSettings,
    save: Path | None = None,
    progress: bool | None = False,
    keep_going: bool = False,
) -> dict[str, Any]:
    """Every network on every set of its scale; the content of the JSON file.

    ``progress``: False for no bar, True for one, None for one where stderr is a terminal. Raises MemoryError, naming
    the image, where one does not fit; with ``keep_going`` that becomes a note of the network, which then has no figures
    for this set, and is raised only where no network has any.
    """
    lpips, reason = perceptual(device)
    total = sum(len(images.pairs) for network in networks for images in sets if images.scale == network.scale)
    bar = tqdm(total=total, unit='image', disable=None if progress is None else not progress)
    with bar, repeatable(), torch.no_grad():
        rows = [_evaluate_one(network, sets, device, settings, lpips, save, bar, keep_going) for network in networks]
    if networks and not any(found['images'] for row in rows for found in row['sets'].values()):
        raise MemoryError(rows[0]['notes'][-1])
    return {
        'circumstances': circumstances(device),
        'settings': asdict(settings),
        'notes': {'macs': COUNTED, 'cost': COST_NOTE, 'lpips': reason},
        'networks': rows,
    }


def _evaluate_one(
    network: LoadedNetwork,
    sets: Sequence[ImageSet],
    device: torch.device,
    settings: RunSettings,
    lpips: Perceptual | None,
    save: Path | None,
    bar: tqdm,
    keep_going: bool,
) -> dict[str, Any]:
    bar.set_description(network.name)
    described = describe(network, settings)
    run = make_runner(network, device, settings)
    found = {}
    for images in sets:
        if images.scale == network.scale:
            folder = save and save / f'{as_file_name(network.name)}_x{network.scale}' / as_file_name(images.name)
            try:
                found[images.name] = measure_set(run, images, device, settings, lpips, folder, bar.update)
            except MemoryError as error:
                if not keep_going:
                    raise
                described['notes'].append(str(error))
                found[images.name] = _nothing(border_of(images, settings))
    network.network.cpu()  # the next one needs the device's memory
    return {**described, 'sets': found}


def _nothing(border: int) -> dict[str, Any]:
    """What ``measure_set`` would give, without a figure."""
    return {
        'crop_border': border, 'mean': dict.fromkeys(METRICS), 'seconds': None, 'peak_bytes': None, 'images': {}
    }  # fmt: skip


def describe(network: LoadedNetwork, settings: RunSettings) -> dict[str, Any]:
    """Name, weights with their SHA-256, and counted cost; None of the bicubic, which has nothing that is counted."""
    notes, macs = [], None
    try:
        macs = count_macs(network) * (8 if settings.self_ensemble else 1) or None
    except ValueError as error:
        notes.append(str(error))
    return {
        'name': network.name,
        'scale': network.scale,
        'source': network.source,
        'weights': [{'path': str(path), 'sha256': sha256_of_file(path)} for path in network.weights],
        'parameters': count_parameters(network.network) or None,
        'macs': macs,
        'notes': notes,
    }


def as_file_name(name: str) -> str:
    """``name`` with nothing in it that a file name cannot hold."""
    return re.sub(r'[^\w.+-]+', '_', name).strip('.') or '_'
