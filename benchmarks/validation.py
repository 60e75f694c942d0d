"""Validation of a student on Set14: BasicSR's loop against ours, and the metrics alone.

All validate the same network with PSNR-Y and SSIM-Y, in turn in one process: BasicSR's loop, ours, which decodes the
images in the first round and keeps them, and ours with ``val.keep_images: false``. The first round is reported apart.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mtkd  # noqa: F401  before BasicSR

# isort: split
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.models.sr_model import SRModel
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import trange

from benchmarks import record
from mtkd_model.image_metrics import psnr, ssim, to_8_bit
from mtkd_model.multi_teacher_model import MultiTeacherSRModel
from mtkd_model.validation import to_host

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = {
    'EDSR 64x16': {'num_feat': 64, 'num_block': 16},
    'EDSR 16x4': {'num_feat': 16, 'num_block': 4},
}
METRICS = {
    'psnr': {'type': 'calculate_psnr', 'crop_border': 4, 'test_y_channel': True},
    'ssim': {'type': 'calculate_ssim', 'crop_border': 4, 'test_y_channel': True},
}


def loader(args: argparse.Namespace) -> DataLoader:
    """The images as BasicSR's trainer loads them for validation."""
    opt = {
        'name': args.hr.parent.name, 'phase': 'val', 'scale': args.scale, 'io_backend': {'type': 'disk'},
        'dataroot_gt': str(args.hr), 'dataroot_lq': str(args.lq), 'filename_tmpl': f'{{}}x{args.scale}',
    }  # fmt: skip
    return DataLoader(PairedImageDataset(opt), batch_size=1, shuffle=False, num_workers=0)


def model(kind: type[SRModel], student: Mapping[str, int], args: argparse.Namespace) -> SRModel:
    """An untrained student in a model of BasicSR or of ours, with the same weights in both."""
    torch.manual_seed(0)
    network = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': args.scale, **student}
    return kind(
        {
            'is_train': False, 'dist': False, 'num_gpu': int(args.device == 'cuda'), 'scale': args.scale,
            'path': {}, 'network_g': network, 'val': {'metrics': METRICS, 'pbar': False},
        }
    )  # fmt: skip


def in_turn(work: Mapping[str, Callable[[], Any]], args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Seconds of each and its ratio to BasicSR's, round by round; the first round, which warms up, apart."""
    seconds: dict[str, list[float]] = {key: [] for key in work}
    for _ in trange(args.runs + 1, unit='round', desc=name, disable=None):
        for key, run in work.items():
            record.synchronise(args.device)
            start = time.perf_counter()
            run()
            record.synchronise(args.device)
            seconds[key].append(time.perf_counter() - start)
    figures = {key: {**record.summary(times[1:]), 'first_s': times[0]} for key, times in seconds.items()}
    for key in work:
        if key != 'basicsr':
            pairs = zip(seconds[key][1:], seconds['basicsr'][1:], strict=True)
            ratio = record.summary([mine / theirs for mine, theirs in pairs])
            figures[f'{key}_over_basicsr'] = {'median': ratio['median_s'], 'iqr': ratio['iqr_s']}
    return figures


def measure_loop(student: str, args: argparse.Namespace) -> dict[str, Any]:
    """Whole validations, and how far their results lie apart."""
    images, theirs = loader(args), model(SRModel, STUDENTS[student], args)
    ours = model(MultiTeacherSRModel, STUDENTS[student], args)
    decoding = model(MultiTeacherSRModel, STUDENTS[student], args)
    decoding.opt['val'] = {**decoding.opt['val'], 'keep_images': False}
    work = {
        'basicsr': lambda: theirs.validation(images, 0, None, False),
        'ours': lambda: ours.validation(images, 0, None, False),
        'ours_decoding': lambda: decoding.validation(images, 0, None, False),
    }
    figures = in_turn(work, args, student)
    apart = {f'{key}_apart': abs(ours.metric_results[key] - float(theirs.metric_results[key])) for key in METRICS}
    return {**figures, **apart}


def measure_metrics(y: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Both metrics from the network's float output on the device; BasicSR's from NumPy images of 8 bit."""
    pairs = [(_enlarged(sample['lq'], args.scale).to(args.device), sample['gt']) for sample in loader(args)]
    pairs = [(output, to_8_bit(gt.to(args.device)).byte()) for output, gt in pairs]

    def ours() -> list[float]:
        images = [(to_8_bit(output), gt) for output, gt in pairs]
        return torch.cat([metric(*image, 4, y) for image in images for metric in (psnr, ssim)]).tolist()

    def basicsr() -> list[float]:
        images = [(to_host(to_8_bit(output)), to_host(gt)) for output, gt in pairs]
        return [metric(*image, 4, test_y_channel=y) for image in images for metric in (calculate_psnr, calculate_ssim)]

    apart = [abs(one - other) for one, other in zip(ours(), basicsr(), strict=True)]
    figures = in_turn({'basicsr': basicsr, 'ours': ours}, args, f'metrics, {"Y" if y else "RGB"}')
    return {**figures, 'psnr_apart': max(apart[::2]), 'ssim_apart': max(apart[1::2])}


def _enlarged(lq: Tensor, scale: int) -> Tensor:
    return torch.nn.functional.interpolate(lq, scale_factor=scale, mode='bicubic', align_corners=False)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures; ``args`` as of :func:`arguments`."""
    logging.getLogger('basicsr').setLevel(logging.WARNING)
    figures = {f'metrics {name}': measure_metrics(y, args) for name, y in (('Y', True), ('RGB', False))}
    return {**figures, **{f'validation {student}': measure_loop(student, args) for student in STUDENTS}}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = ROOT.parent / 'shared/data/Set14'
    parser.add_argument('--hr', type=Path, default=data / 'HR', help='folder of HR images (default: %(default)s)')
    parser.add_argument('--lq', type=Path, default=data / 'LRbicx4', help='LR images, such as baboonx4.png')
    parser.add_argument('--scale', type=int, default=4)
    parser.add_argument('--runs', type=int, default=7, help='timed rounds (default: %(default)s)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--json', type=Path, help='default: benchmarks/results/validation_<device>.json')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    for folder in (args.hr, args.lq):
        if not folder.is_dir():
            print(f'no such folder: {folder}', file=sys.stderr)
            return 2
    figures = {'what': f'PSNR-Y and SSIM-Y of an x{args.scale} student on {args.hr.parent.name}', **measure(args)}
    record.write(args.json or ROOT / f'benchmarks/results/validation_{args.device}.json', args.device, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())
