"""What a study does in a process of its own: train a network, measure it. Quality of every image, size and cost."""

import json
import sys
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  first: it mends BasicSR

# isort: split
import torch
from basicsr.train import train_pipeline

from mtkd.option_file import read_option
from mtkd_arch.frozen_network import DTYPES, resolve_precision
from mtkd_data.folder_lock import only_run
from mtkd_data.teacher_cache.command import choose_device
from mtkd_data.whole_files import write_atomically
from mtkd_eval.comparison import evaluate
from mtkd_eval.image_sets import find_sets
from mtkd_eval.load import load_network
from mtkd_eval.measure import RunSettings
from mtkd_eval.record import circumstances

TRAINED_ON = 'trained_on.json'
KEPT = {'psnr_y': 4, 'ssim_y': 6}  # decimal places


def measured(source: str, test_sets: list[str]) -> dict[str, Any]:
    """The network ``source`` names (see mtkd_eval.load) on the test sets of its scale."""
    network = load_network(source)
    sets = find_sets(test_sets, {network.scale})
    results = evaluate([network], sets, choose_device(None, 0), RunSettings(repeats=0))
    row = results['networks'][0]
    images = {
        name: {
            image: {key: found[key] and round(found[key], digits) for key, digits in KEPT.items()}
            for image, found in each.items()
        }
        for name, each in ((name, found['images']) for name, found in row['sets'].items())
    }
    return {
        'parameters': row['parameters'], 'macs': row['macs'], 'sets': images, 'circumstances': results['circumstances'],
    }  # fmt: skip


def train(root: str, option_file: str) -> None:
    """BasicSR's trainer on an option file, its experiments below ``root``; it goes on from the newest checkpoint.

    Raises FileExistsError while another process is at it.
    """
    experiment = Path(root, 'experiments', Path(option_file).stem)
    experiment.parent.mkdir(parents=True, exist_ok=True)
    with only_run(experiment):
        _train(root, option_file)
    options = read_option(Path(option_file))
    device = choose_device('cpu' if options.get('num_gpu') == 0 else None, 0)  # as BasicSR chooses
    dtype = DTYPES[resolve_precision(options['train'].get('amp'), device)]
    made = {**circumstances(device), 'precision': str(dtype or torch.float32).removeprefix('torch.')}
    write_atomically(experiment / TRAINED_ON, json.dumps(made).encode())


def _train(root: str, option_file: str) -> None:
    arguments, sys.argv = sys.argv, ['train.py', '-opt', option_file, '--auto_resume']
    try:
        train_pipeline(root)
    finally:
        sys.argv = arguments


def main(argv: list[str] | None = None) -> int:
    """``[--train ROOT OPTION.yml] SOURCE OUT.json SET...``: trains, then measures."""
    given = sys.argv[1:] if argv is None else argv
    if given[0] == '--train':
        train(*given[1:3])
        given = given[3:]
    source, out, *test_sets = given
    write_atomically(Path(out), json.dumps(measured(source, test_sets)).encode())
    return 0
