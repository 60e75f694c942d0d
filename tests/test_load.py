"""Twenty thousand steps, ten thousand reads, a hundred thousand images: nothing piles up, nothing is mixed up."""

import copy
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from conftest import REPO, WAVELET_TERM, build_arch, cached, script_environment, write_option
from growth import EVERY, children, growth, open_files, slowdown
from hand_made_cache import write_cache, write_lmdb
from torch.utils.data import DataLoader, Dataset, RandomSampler

from mtkd.checks import check_datasets
from mtkd.schema.plan import count_images
from mtkd_data.lmdb_store import LmdbWriter, MetaEntry

STEPS, WARM_UP = 20_000, 4_000
MIB = 2**20
# over the steps after the warm-up; what is measured is a hundredth of it. A leak of 300 bytes a step would be more
MOST_MEMORY = 4 * MIB
MOST_SLOWDOWN = 1.5  # of CPU time, which other processes move by a fifth; a list searched in every step doubles it


def tiny(options: dict[str, Any], data: Path, folder: Path, steps: int) -> dict[str, Any]:
    """The smallest training that has all parts: a worker, LMDBs, a cache, a teacher beside it, taps, validation."""
    network = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 4, 'num_block': 1, 'upscale': 2}
    torch.save({'params': build_arch(network).state_dict()}, folder / 'teacher.pth')
    train_set, val_set = options['datasets']['train'], options['datasets']['val']
    for dataset, part, ending in ((train_set, 'train', '.lmdb'), (val_set, 'val', '')):
        dataset |= {f'dataroot_{of}': f'{data}/{part}/{name}{ending}' for of, name in (('gt', 'GT'), ('lq', 'LRbicx2'))}
    train_set |= {'gt_size': 8, 'batch_size_per_gpu': 1, 'num_worker_per_gpu': 1}
    train_set['dataset_enlarge_ratio'] = 500  # of four images: ten epochs, each with a worker of its own
    options |= {'scale': 2, 'network_g': network}
    options['teachers'] = {'edsr': {'network': network, 'path': str(folder / 'teacher.pth')}}
    options['train']['distill'] = {'wavelet': dict(WAVELET_TERM)}
    del options['aggregator']
    options = cached(options, folder, '--stores', 'target')
    options['train']['distill']['hint'] = {'type': 'FitNetDistiller', 'taps': {'upsample': 'edsr/upsample'}}
    options['train'] |= {'total_iter': steps}
    options['val']['val_freq'] = 1000
    options['logger'] |= {'print_freq': 100, 'save_checkpoint_freq': 1000, 'keep_last': 2, 'keep_best': 'psnr'}
    return options


def piled_up(samples: list[dict[str, float]]) -> list[str]:
    """What grows over the samples after the warm-up."""
    late = samples[WARM_UP // EVERY :]
    grown = {name: growth([sample[name] for sample in late]) for name in late[0]}
    most = {'memory': MOST_MEMORY, 'worker memory': MOST_MEMORY}
    found = [f'{name}: {grown[name]:+.0f}' for name in grown if name != 'cpu' and grown[name] >= most.get(name, 1)]
    seconds = [later['cpu'] - earlier['cpu'] for earlier, later in pairwise(late)]
    return found + (
        [f'a step takes {slowdown(seconds):.2f} times as long'] if slowdown(seconds) > MOST_SLOWDOWN else []
    )


@pytest.mark.slow
def test_twenty_thousand_steps_hold_no_more_than_the_first(options: dict[str, Any], data: Path, tmp_path: Path) -> None:
    option_file, out = (
        write_option(tiny(options, data, tmp_path, STEPS), tmp_path / 'option.yml'),
        tmp_path / 'out.json',
    )
    command = [sys.executable, str(REPO / 'tests/growth.py'), str(tmp_path), str(option_file), str(out)]
    done = subprocess.run(command, cwd=REPO, env=script_environment(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    samples = json.loads(out.read_text())
    assert len(samples) == STEPS // EVERY
    assert all(sample['workers'] == 1 for sample in samples), 'the worker of an epoch outlived it'
    assert piled_up(samples) == []
    experiment = tmp_path / 'experiments/toy'
    assert sorted(path.name for path in experiment.glob('training_states/*')) == ['19000.state', '20000.state']


def made_up(seed: int = 0, **change: float) -> list[dict[str, float]]:
    """Samples of a run as they are: steady but for noise and the first steps, plus ``change`` with every sample."""
    draw, cpu, samples = random.Random(seed), 0.0, []
    for number in range(STEPS // EVERY):
        cpu += draw.uniform(0.9, 1.1) + (3.0 if draw.random() < 0.1 else 0) + change.get('cpu', 0) * number
        sample = {
            'memory': 8e8 + draw.uniform(0, MIB / 4),
            'handles': 13.0,
            'worker handles': draw.choice((24.0, 30.0)),
        }
        sample['memory'] += 5e7 if draw.random() < 0.1 else 0  # a validation
        samples.append({name: value + change.get(name, 0) * number for name, value in sample.items()} | {'cpu': cpu})
    return samples


@pytest.mark.parametrize('seed', range(5))
def test_noise_and_peaks_are_no_leak_and_a_small_leak_is(seed: int) -> None:
    assert piled_up(made_up(seed)) == []
    assert piled_up(made_up(seed, memory=300 * EVERY))[0].startswith('memory: ')
    assert piled_up(made_up(seed, handles=0.02))[0].startswith('handles: ')  # one in ten thousand steps
    assert piled_up(made_up(seed, **{'worker handles': 0.5}))[0].startswith('worker handles: ')
    assert 'a step takes' in piled_up(made_up(seed, cpu=0.02))[0]


# reading a cache


def pixels(key: str, store: str, side: int, depth: type) -> np.ndarray:
    """An image that only this key of this store has, (side, side, 3)."""
    length = side * side * 3 * np.dtype(depth).itemsize
    return np.frombuffer(hashlib.shake_256(f'{store}/{key}'.encode()).digest(length), depth).reshape(side, side, 3)


class Reading(Dataset):
    """Samples of ``dataset`` with the process that read them and how many handles it had open."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        return {**sample, 'process': os.getpid(), 'handles': len(open_files('self'))}


def dataset_options(root: Path, lq_side: int, **more: Any) -> dict[str, Any]:
    """Options of a data set in ``root`` whose crops are its whole images."""
    roots = {'dataroot_gt': str(root / 'GT.lmdb'), 'dataroot_lq': str(root / 'LRbicx2.lmdb')}
    crop = {'gt_size': 2 * lq_side, 'use_hflip': False, 'use_rot': False, 'batch_size_per_gpu': 1}
    return {'name': 'set', 'scale': 2, 'phase': 'train', 'io_backend': {'type': 'lmdb'}, **roots, **crop, **more}


@pytest.mark.filterwarnings('ignore:This DataLoader will create 4 worker processes')  # more than there are cores
def test_ten_thousand_reads_by_four_workers_are_what_was_written(tmp_path: Path) -> None:
    keys = [f'image{number:04d}' for number in range(1000)]
    for name, side in (('GT', 8), ('LRbicx2', 4)):
        write_lmdb(tmp_path / f'{name}.lmdb', {key: pixels(key, name, side, np.uint8) for key in keys}, 1)
    stores = {name: {key: pixels(key, name, 8, np.uint16) for key in keys} for name in ('target', 'edsr')}
    write_cache(tmp_path / 'cache', tmp_path / 'LRbicx2.lmdb', 2, stores, level=1)
    options = dataset_options(tmp_path, 4, dataroot_cache=str(tmp_path / 'cache'))
    dataset = DATASET_REGISTRY.get('CachedTeacherDataset')(options)
    sampler = RandomSampler(dataset, replacement=True, num_samples=10_000, generator=torch.Generator().manual_seed(0))
    before, read, handles = set(children()), Counter(), defaultdict(list)
    for batch in DataLoader(Reading(dataset), batch_size=50, sampler=sampler, num_workers=4):
        for number, path in enumerate(batch['gt_path']):
            key = Path(path).stem
            read[key] += 1
            handles[int(batch['process'][number])].append(int(batch['handles'][number]))
            for store in stores:  # 65535 levels from -0.5 to 1.5
                levels = ((batch[f'cached_{store}'][number].double() + 0.5) * 32767.5).round().permute(1, 2, 0)
                assert np.array_equal(levels.numpy(), pixels(key, store, 8, np.uint16)), (key, store)
            for kind, name, side in (('gt', 'GT', 8), ('lq', 'LRbicx2', 4)):
                levels = (batch[kind][number] * 255).round().permute(1, 2, 0).numpy()
                assert np.array_equal(levels, pixels(key, name, side, np.uint8)), (key, kind)
    assert sum(read.values()) == 10_000
    assert len(read) == 1000  # none is left out: the chance of that is below a twentieth, and the seed is fixed
    assert len(handles) == 4
    assert {process: growth(found[100::50]) for process, found in handles.items()} == dict.fromkeys(handles, 0)
    deadline = time.monotonic() + 60
    while set(children()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(children()) == before, 'a worker is left'


# many images


def write_many(root: Path, count: int) -> Path:
    """A data set of ``count`` pairs of 2 x 2 and 1 x 1 pixels, in one transaction each; the content says the number."""
    root.mkdir()
    for name, side in (('GT', 2), ('LRbicx2', 1)):
        writer, images = LmdbWriter(root / f'{name}.lmdb'), {}
        for number in range(count):
            level = number % 256
            if number < 256:
                images[level] = cv2.imencode('.png', np.full((side, side, 3), level, np.uint8))[1].tobytes()
            writer.add({f'{number:06d}': images[level]})
        writer.finish(MetaEntry(f'{number:06d}', side, side, 3, 1) for number in range(count))
    return root


_events: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _events is not None and event == 'open':
        _events.append(str(arguments[0]))


sys.addaudithook(_note)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Files that Python opens and images that are decoded, as they come."""
    global _events
    decode, _events = cv2.imdecode, []
    monkeypatch.setattr(cv2, 'imdecode', lambda *arguments: (_events.append('decoded'), decode(*arguments))[1])
    yield _events
    _events = None


@pytest.mark.parametrize('kind', ['PairedImageDataset', 'PairedCropDataset', 'CachedTeacherDataset', 'check'])
def test_opening_a_data_set_takes_as_many_files_however_many_images(
    kind: str, tmp_path: Path, opened: list[str]
) -> None:
    counts = []
    for count in (30, 3000):
        root = write_many(tmp_path / str(count), count)
        options = dataset_options(root, 1)
        if kind == 'CachedTeacherDataset':
            target = dict.fromkeys((f'{number:06d}' for number in range(count)), np.zeros((2, 2, 3), np.uint16))
            cache = write_cache(root / 'cache', root / 'LRbicx2.lmdb', 2, {'target': target})
            options |= {'dataroot_cache': str(cache)}
        opened.clear()
        if kind == 'check':
            check_datasets({'datasets': {'train': options}})
            assert count_images(options, 'train') == count
        else:
            assert len(DATASET_REGISTRY.get(kind)(copy.deepcopy(options))) == count
        counts.append(len(opened))
    assert counts[0] == counts[1] <= 16, opened


def test_a_hundred_thousand_images_open_and_each_is_its_own(tmp_path: Path) -> None:
    options = dataset_options(write_many(tmp_path / 'many', 100_000), 1)
    numbers = [0, 99_999, *random.Random(0).sample(range(100_000), 20)]
    for kind in ('PairedCropDataset', 'PairedImageDataset'):
        dataset = DATASET_REGISTRY.get(kind)(copy.deepcopy(options))
        assert len(dataset) == 100_000
        for number in numbers:
            sample = dataset[number]
            assert {int(Path(sample[path]).stem) for path in ('gt_path', 'lq_path')} == {number}
            assert ((sample['gt'] * 255).round() == number % 256).all()
            assert ((sample['lq'] * 255).round() == number % 256).all()
        del dataset, sample  # an LMDB is open once in a process
    check_datasets({'datasets': {'train': options}})
    assert count_images(options, 'train') == 100_000
