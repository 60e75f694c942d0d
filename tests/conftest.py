"""Shared fixtures: real photographs, small data sets, small networks and a way to run BasicSR's trainer in-process."""

import copy
import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml

import mtkd  # noqa: F401  before BasicSR

# isort: split
from basicsr.utils.logger import get_root_logger, initialized_logger
from basicsr.utils.options import ordered_yaml
from basicsr.utils.registry import ARCH_REGISTRY

from mtkd_data.preparation.prepare import main as prepare
from mtkd_data.teacher_cache.command import main as cache_teachers

pytest_plugins = ['reliability']
REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get('MTKD_SHARED', REPO.parent / 'shared'))
SMALL = {
    'edsr': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 2},
    'rcan': {
        'type': 'RCAN',
        'num_in_ch': 3,
        'num_out_ch': 3,
        'num_feat': 8,
        'num_group': 2,
        'num_block': 1,
        'squeeze_factor': 4,
    },
    'swinir': {
        'type': 'SwinIR',
        'img_size': 16,
        'window_size': 8,
        'depths': [1, 1],
        'embed_dim': 12,
        'num_heads': [2, 2],
        'mlp_ratio': 2,
        'upsampler': 'pixelshuffledirect',
    },
}
AGGREGATOR = {'type': 'DCTSwin', 'in_chans': 9, 'embed_dim': 12, 'depths': [1, 1], 'num_heads': [2, 2]}


@pytest.fixture(scope='session')
def shared() -> Path:
    """Real benchmark images and golden outputs, which users do not have."""
    if not (SHARED / 'data').is_dir():
        pytest.skip(f'no shared data at {SHARED}; set MTKD_SHARED')
    return SHARED


@pytest.fixture(scope='session')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs of 192 x 144 that ship inside scikit-image."""
    skimage = pytest.importorskip('skimage', reason='scikit-image brings the photographs')
    folder = tmp_path_factory.mktemp('photos')
    for name in ('astronaut', 'chelsea', 'coffee', 'rocket'):
        source = Path(skimage.__file__).parent / 'data'
        path = next(path for path in source.iterdir() if path.stem == name)
        cv2.imwrite(str(folder / f'{name}.png'), cv2.imread(str(path))[60:204, 100:292])
    return folder


@pytest.fixture(scope='session')
def data(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` as LMDB and ``val`` as folders, with LR for x2, x3 and x4."""
    root = tmp_path_factory.mktemp('data')
    for part, layout in (('train', 'lmdb'), ('val', 'disk')):
        arguments = ['--hr', str(photos), '--out', str(root / part), '--scale', '2', '3', '4']
        assert prepare([*arguments, '--sub-image', '0', '--format', layout, '--workers', '1']) == 0
    return root


def small_network(name: str, scale: int = 4, **changes: Any) -> dict[str, Any]:
    """Options of a small network that trains in milliseconds."""
    return {**SMALL[name], 'upscale': scale, **changes}


def build_arch(opt: dict[str, Any]) -> torch.nn.Module:
    """The network of an option."""
    return ARCH_REGISTRY.get(opt['type'])(**{key: value for key, value in opt.items() if key != 'type'})


@pytest.fixture(scope='session')
def teacher_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of three small untrained x4 teachers, saved as BasicSR does."""
    folder = tmp_path_factory.mktemp('teachers')
    torch.manual_seed(1)
    files = {}
    for name in SMALL:
        files[name] = folder / f'{name}.pth'
        torch.save({'params': build_arch(small_network(name)).state_dict()}, files[name])
    return files


@pytest.fixture(scope='session')
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small registered network as the encoder of a method."""
    path = tmp_path_factory.mktemp('encoder') / 'edsr.pth'
    torch.manual_seed(9)
    torch.save({'params': build_arch(small_network('edsr', scale=2)).state_dict()}, path)
    return {'network': small_network('edsr', scale=2), 'path': str(path), 'taps': ['conv_first', 'body.-1']}


@pytest.fixture
def teachers(teacher_files: dict[str, Path]) -> dict[str, Any]:
    """The ``teachers`` section for the three small teachers."""
    return {name: {'network': small_network(name), 'path': str(path)} for name, path in teacher_files.items()}


@pytest.fixture(scope='session')
def aggregator_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small aggregator with the order of its teachers, as AggregationModel saves it."""
    path = tmp_path_factory.mktemp('aggregator') / 'net_g_latest.pth'
    torch.manual_seed(2)
    network = build_arch({**AGGREGATOR, 'upscale': 4})
    torch.nn.init.normal_(network.conv_last.weight, std=0.01)  # zero would make it the plain mean of the teachers
    torch.save({'params_ema': network.state_dict(), 'mtkd': {'inputs': ['edsr', 'rcan', 'swinir']}}, path)
    return path


@pytest.fixture
def aggregator(aggregator_file: Path) -> dict[str, Any]:
    """The ``aggregator`` section for the small aggregator."""
    network = {**AGGREGATOR, 'upscale': 4}
    return {'network': network, 'inputs': ['edsr', 'rcan', 'swinir'], 'path': str(aggregator_file)}


WAVELET_TERM = {'type': 'OutputDistiller', 'loss': {'type': 'WaveletLoss'}}


@pytest.fixture
def options(data: Path, teachers: dict[str, Any], aggregator: dict[str, Any]) -> dict[str, Any]:
    """A whole MTKD stage-2 option at toy size; tests change what they need."""
    return {
        'name': 'toy',
        'model_type': 'MultiTeacherSRModel',
        'scale': 4,
        'num_gpu': 0,
        'manual_seed': 0,
        'datasets': {
            'train': {
                'name': 'photos',
                'type': 'PairedImageDataset',
                'dataroot_gt': str(data / 'train/GT.lmdb'),
                'dataroot_lq': str(data / 'train/LRbicx4.lmdb'),
                'io_backend': {'type': 'lmdb'},
                'gt_size': 64,
                'use_hflip': True,
                'use_rot': True,
                'num_worker_per_gpu': 0,
                'batch_size_per_gpu': 2,
                'dataset_enlarge_ratio': 100,
            },
            'val': {
                'name': 'val',
                'type': 'PairedImageDataset',
                'dataroot_gt': str(data / 'val/GT'),
                'dataroot_lq': str(data / 'val/LRbicx4'),
                'io_backend': {'type': 'disk'},
            },
        },
        'teachers': teachers,
        'aggregator': aggregator,
        'network_g': small_network('edsr'),
        'path': {'pretrain_network_g': None},
        'train': {
            'ema_decay': 0.9,
            'optim_g': {'type': 'Adam', 'lr': 0.001},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [100], 'gamma': 0.5},
            'total_iter': 4,
            'warmup_iter': -1,
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 0.1},
            'distill': {'wavelet': dict(WAVELET_TERM)},
        },
        'val': {
            'val_freq': 100,
            'save_img': False,
            'metrics': {'psnr': {'type': 'calculate_psnr', 'crop_border': 4, 'test_y_channel': True}},
        },
        'logger': {'print_freq': 1, 'save_checkpoint_freq': 2, 'use_tb_logger': False},
    }


def scratch(options: dict[str, Any]) -> dict[str, Any]:
    """Strip ``options`` of teachers and terms, in place."""
    del options['teachers'], options['aggregator'], options['train']['distill']
    return options


def stage_one(options: dict[str, Any]) -> dict[str, Any]:
    """Turn the stage-2 ``options`` into those of stage 1, in place."""
    options['model_type'] = 'AggregationModel'
    options['network_g'] = {**AGGREGATOR, 'upscale': 4}
    options['aggregator'] = {'inputs': ['edsr', 'rcan', 'swinir']}
    del options['train']['distill']
    return options


def write_option(options: dict[str, Any], path: Path) -> Path:
    """``options`` as an option file."""
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return path


def cached(options: dict[str, Any], folder: Path, *flags: str, device: str = 'cpu', **train_set: Any) -> dict[str, Any]:
    """``options`` that train from a cache, which is made in ``folder``."""
    option_file = write_option(options, folder / 'cache.yml')
    assert cache_teachers(['-opt', str(option_file), '--out', str(folder / 'cache'), '--device', device, *flags]) == 0
    options = copy.deepcopy(options)
    own = {'type': 'CachedTeacherDataset', 'dataroot_cache': str(folder / 'cache'), **train_set}
    options['datasets']['train'] |= own
    return options


def read_option(path: Path) -> dict[str, Any]:
    """An option file, as BasicSR reads it."""
    with path.open() as file:
        return yaml.load(file, Loader=ordered_yaml()[0])


@pytest.fixture
def fresh_logger() -> Iterator[Callable[[], None]]:
    """BasicSR keeps one logger per process; close it, so that each run writes its own file."""

    def close() -> None:
        logger = logging.getLogger('basicsr')
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        initialized_logger.clear()

    close()
    yield close
    close()


Run = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_logger: Callable[[], None]) -> Run:
    """``train(options, *flags)`` runs BasicSR's own ``train_pipeline`` below ``tmp_path``; gives the experiment."""

    def run(options: dict[str, Any], *flags: str) -> Path:
        from basicsr.train import train_pipeline

        fresh_logger()
        option_file = write_option(options, tmp_path / 'option.yml')
        monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(option_file), *flags])
        train_pipeline(str(tmp_path))
        return tmp_path / 'experiments' / options['name']

    return run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A root of its own for this project's launchers, so that experiments go there."""
    (tmp_path / 'project/basicsr').mkdir(parents=True)
    for name in ('train.py', 'test.py'):
        shutil.copy(REPO / 'basicsr' / name, tmp_path / 'project/basicsr')
    return tmp_path / 'project'


def script_environment() -> dict[str, str]:
    """Environment for a process that imports the plugin from this checkout and computes on one thread."""
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get('PYTHONPATH')])])
    return {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


@pytest.fixture
def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What BasicSR's logger says; it hands nothing on to the root logger."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(f'{record.levelname} {record.getMessage()}')
    get_root_logger().addHandler(handler)
    yield said
    get_root_logger().removeHandler(handler)
