"""What half precision of the teachers costs their images: PSNR-Y of every teacher and of the target.

Trained weights are needed; by default those of the quickstart. Run on any folder of HR images and their LR images.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  registers the networks

# isort: split
from basicsr.data.paired_image_dataset import PairedImageDataset

from benchmarks import record
from mtkd.option_file import read_option
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_model.image_metrics import psnr, to_8_bit

PRECISIONS = ('fp32', 'bf16', 'fp16')


def ensemble(opt: dict[str, Any], precision: str, device: str) -> TeacherEnsemble:
    """The teachers of an option file, all in one precision."""
    parts = (*opt['teachers'].values(), opt['aggregator'])
    for part in parts:
        part['precision'] = precision
    return TeacherEnsemble(opt['teachers'], opt['scale'], opt['aggregator']).to(device)


def scores(networks: TeacherEnsemble, images: PairedImageDataset, scale: int, device: str) -> dict[str, float]:
    """Mean PSNR-Y in dB by teacher, and of the target."""
    sums: dict[str, float] = {}
    for pair in images:
        gt = to_8_bit(pair['gt'].unsqueeze(0).to(device))
        for name, output in networks(pair['lq'].unsqueeze(0).to(device)).items():
            sums[name] = sums.get(name, 0) + psnr(to_8_bit(output), gt, scale, True).item() / len(images)
    return sums


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """PSNR-Y by precision, and what is lost against float32."""
    opt = read_option(args.opt)
    found: dict[str, Any] = {'weights': str(args.opt), 'images': str(args.hr)}
    dataset = {'type': 'PairedImageDataset', 'io_backend': {'type': 'disk'}, 'phase': 'val', 'scale': opt['scale']}
    dataset |= {'dataroot_gt': str(args.hr), 'dataroot_lq': str(args.lq_images), 'filename_tmpl': args.filename_tmpl}
    for precision in PRECISIONS if args.device == 'cuda' else PRECISIONS[:2]:
        images = PairedImageDataset({**dataset, 'io_backend': {'type': 'disk'}})
        found[precision] = scores(ensemble(opt, precision, args.device), images, opt['scale'], args.device)
        found[f'{precision}_minus_fp32'] = {name: v - found['fp32'][name] for name, v in found[precision].items()}
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where weights and images are."""
    shared = Path('../shared/data/Set5')
    parser.add_argument('--opt', type=Path, default=Path('options/quickstart/train_mtkd.yml'))
    parser.add_argument('--hr', type=Path, default=shared / 'HR')
    parser.add_argument('--lq-images', type=Path, default=shared / 'LRbicx4')
    parser.add_argument('--filename-tmpl', default='{}x4')


def main(argv: list[str] | None = None) -> int:
    return record.run_part(argv, __doc__, measure, 1, add_arguments)


if __name__ == '__main__':
    sys.exit(main())
