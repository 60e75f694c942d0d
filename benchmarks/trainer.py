"""Whole training runs through BasicSR's trainer: its own SRModel from scratch against MTKD from a cache, ours.

Both train the published EDSR student (64 features, 16 blocks) on the same images and batch, with loader, logging and
optimizer, for some iterations after a warm-up; steps per second come from the time stamps of the log. The share of time
spent waiting for data is what BasicSR's log says. The cache is that of a small teacher: its size does not matter here.
"""

import argparse
import re
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import record
from benchmarks.loader import make_data
from benchmarks.networks import build_network, log_of_training
from mtkd_data.teacher_cache.command import main as cache_teachers

ROOT = Path(__file__).resolve().parents[1]
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': 4, 'num_feat': 64, 'num_block': 16}
TEACHER = {**EDSR, 'num_feat': 8, 'num_block': 1}
WAVELET = {'wavelet': {'type': 'OutputDistiller', 'loss': {'type': 'WaveletLoss'}}}
LINE = re.compile(r'^(\S+ \S+) INFO: .*iter:\s*([\d,]+),.*time \(data\): ([\d.]+) \(([\d.]+)\)', re.MULTILINE)
# name: (data set, options of the training set, options of train); BasicSR's own model for the first
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    'basicsr': ('upstream_level1', {}, {}),
    'cached': ('whole0', {'resident': None}, {}),
    'resident': ('whole0', {'resident': 'device', 'num_worker_per_gpu': 0}, {}),
    'resident_bf16': ('whole0', {'resident': 'device', 'num_worker_per_gpu': 0}, {'amp': 'bf16'}),
    'resident_bf16_compiled': (
        'whole0',
        {'resident': 'device', 'num_worker_per_gpu': 0},
        {'amp': 'bf16', 'compile': 'default'},
    ),
}


def option(variant: str, roots: dict[str, Path], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The option file of one run."""
    data, own, train = VARIANTS[variant]
    root, ours = roots[data], variant != 'basicsr'
    train_set = {
        'name': data, 'type': 'CachedTeacherDataset' if ours else 'PairedImageDataset',
        'dataroot_gt': str(root / 'GT.lmdb'), 'dataroot_lq': str(root / 'LRbicx4.lmdb'), 'io_backend': {'type': 'lmdb'},
        'gt_size': 4 * args.lq, 'use_hflip': True, 'use_rot': True, 'num_worker_per_gpu': args.workers,
        'batch_size_per_gpu': args.batch, 'dataset_enlarge_ratio': 1000, 'pin_memory': args.device == 'cuda',
    }  # fmt: skip
    opt: dict[str, Any] = {
        'name': variant, 'model_type': 'MultiTeacherSRModel' if ours else 'SRModel', 'scale': 4,
        'num_gpu': 1 if args.device == 'cuda' else 0, 'manual_seed': 0, 'datasets': {'train': train_set},
        'network_g': EDSR, 'path': {'pretrain_network_g': None},
        'train': {
            'ema_decay': 0.999, 'optim_g': {'type': 'Adam', 'lr': 0.0001}, 'total_iter': args.iterations,
            'scheduler': {'type': 'MultiStepLR', 'milestones': [100000], 'gamma': 0.5}, 'warmup_iter': -1,
            'pixel_opt': {'type': 'L1Loss', 'loss_weight': 0.1 if ours else 1.0},
        },
        'logger': {'print_freq': args.iterations // 4, 'save_checkpoint_freq': 10**9, 'use_tb_logger': False},
    }  # fmt: skip
    if ours:
        teacher = folder / 'teacher.pth'
        opt['teachers'] = {'small': {'network': TEACHER, 'path': str(teacher)}}
        opt['train'] |= {'distill': WAVELET, **train}
        train_set |= {'dataroot_cache': str(root / 'made_cache'), **own}
    return opt


def train(opt: dict[str, Any], folder: Path) -> dict[str, float]:
    """Steps per second and the share of waiting, over the last three quarters of a run."""
    log = log_of_training(opt, folder)
    lines = [(datetime.strptime(m[1], '%Y-%m-%d %H:%M:%S,%f'), *m.groups()[1:]) for m in LINE.finditer(log)]
    seconds = (lines[-1][0] - lines[0][0]).total_seconds()
    steps = int(lines[-1][1].replace(',', '')) - int(lines[0][1].replace(',', ''))
    return {'steps_per_second': steps / seconds, 'waiting_share': float(lines[-1][3]) / float(lines[-1][2])}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every variant, one after the other, ``runs`` times; ratios to BasicSR's within a round."""
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        roots = make_data(folder, args.images, args.count)
        torch.manual_seed(0)
        torch.save(build_network(TEACHER).state_dict(), folder / 'teacher.pth')
        option_file = folder / 'cache.yml'
        option_file.write_text(yaml.safe_dump(option('cached', roots, folder, args), sort_keys=False))
        if cache_teachers(['-opt', str(option_file), '--device', args.device]):
            raise SystemExit('the cache could not be made')
        for number in range(args.runs):
            for variant in args.variants:
                opt = option(variant, roots, folder, args)
                opt['name'] = f'{variant}_{number}'
                found.setdefault(variant, []).append(train(opt, folder))
    base = [run['steps_per_second'] for run in found['basicsr']]
    return {
        'what': f'EDSR 64x16, x4, batch {args.batch}, LR {args.lq}, {args.iterations} iterations',
        'workers': args.workers,
        **{
            variant: {
                'steps_per_second': record.ratio([run['steps_per_second'] for run in runs], [1.0] * len(runs)),
                'waiting_share': record.ratio([run['waiting_share'] for run in runs], [1.0] * len(runs)),
                'rate_over_basicsr': record.ratio([run['steps_per_second'] for run in runs], base),
            }
            for variant, runs in found.items()
        },
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes; ``--runs`` is the number of rounds."""
    gpu = torch.cuda.is_available()
    parser.add_argument('--images', type=Path, help="folder of photographs (default: scikit-image's)")
    parser.add_argument('--count', type=int, default=24 if gpu else 4, help='whole images (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=16 if gpu else 4)
    parser.add_argument('--lq', type=int, default=48 if gpu else 32, help='side of the LR patches')
    parser.add_argument('--iterations', type=int, default=2000 if gpu else 40)
    parser.add_argument('--workers', type=int, default=8 if gpu else 1, help='of the loaders that decode')
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS)[: None if gpu else 4], choices=VARIANTS)


def main(argv: list[str] | None = None) -> int:
    return record.run_part(argv, __doc__, measure, 2, add_arguments)


if __name__ == '__main__':
    sys.exit(main())
