"""Writes the quickstart's table, comparison picture and training curves from its experiments."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
import yaml

matplotlib.use('Agg')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mtkd  # noqa: F401  registers the networks

# isort: split
from basicsr.metrics.psnr_ssim import calculate_psnr, calculate_ssim
from basicsr.utils import img2tensor, tensor2img
from basicsr.utils.matlab_functions import imresize
from basicsr.utils.options import ordered_yaml
from basicsr.utils.registry import ARCH_REGISTRY
from matplotlib import pyplot as plt
from torch import Tensor, nn

from mtkd.checks import build
from mtkd_arch.frozen_network import FrozenNetwork
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble, window_of
from mtkd_arch.weights import load_weights, read_weights

SCALE = 4
COLUMNS = {'bicubic': 'LR, bicubic', 'scratch': 'student, scratch', 'mtkd': 'student, MTKD', 'target': 'teacher target'}
CROPS = {'chelsea': (60, 110, 96), 'coffee': (150, 250, 96), 'coins': (60, 90, 96)}  # top, left, side
COLOURS = {'scratch': '#D55E00', 'mtkd': '#0072B2'}  # of the Okabe-Ito palette


def read_option(name: str) -> dict[str, Any]:
    """The option file of one quickstart run."""
    with open(f'options/quickstart/train_{name}.yml') as file:
        return yaml.load(file, Loader=ordered_yaml()[0])


def load_student(name: str) -> FrozenNetwork:
    """A trained network of the quickstart, averaged weights."""
    opt = read_option(name)
    network = build(ARCH_REGISTRY, opt['network_g'], name)
    path = f'experiments/{opt["name"]}/models/net_g_latest.pth'
    load_weights(network, read_weights(path, 'params_ema'), True, path)
    return FrozenNetwork(network, window_of(opt['network_g']))


def upscaled(lq: np.ndarray) -> np.ndarray:
    """Bicubic upsampling of an 8-bit image, MATLAB's kernel."""
    larger = imresize(img2tensor(lq.astype(np.float32) / 255.0, bgr2rgb=True), SCALE)
    return to_image(larger.unsqueeze(0))


def to_image(output: Tensor) -> np.ndarray:
    """8-bit BGR from RGB in [0, 1]."""
    return tensor2img(output.squeeze(0))


def outputs_for(lq: np.ndarray, students: dict[str, FrozenNetwork], teachers: TeacherEnsemble) -> dict[str, np.ndarray]:
    """8-bit images of every method for one LR image, teachers included."""
    x = img2tensor(lq.astype(np.float32) / 255.0).unsqueeze(0)
    images = {name: to_image(student(x, SCALE)) for name, student in students.items()}
    images |= {name: to_image(output) for name, output in teachers(x).items()}
    return {'bicubic': upscaled(lq), **images}


def scores(image: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    """PSNR in dB and SSIM, both on Y with SCALE pixels cropped."""
    arguments = {'crop_border': SCALE, 'test_y_channel': True}
    return calculate_psnr(image, gt, **arguments), calculate_ssim(image, gt, **arguments)


def parameters(network: nn.Module) -> str:
    return f'{sum(parameter.numel() for parameter in network.parameters()) / 1e3:.0f} k'


def write_table(path: Path, results: dict[str, dict[str, tuple[float, float]]], sizes: dict[str, str]) -> str:
    """A Markdown table of mean PSNR and SSIM, and a sentence that says who won."""
    photos = list(results)
    methods = list(results[photos[0]])
    lines = [
        '| | parameters | ' + ' | '.join(photos) + ' | mean PSNR-Y (dB) | mean SSIM-Y |',
        '|---|---|' + '---|' * (len(photos) + 2),
    ]
    mean = {m: np.mean([results[photo][m] for photo in photos], axis=0) for m in methods}
    for method in methods:
        each = ' | '.join(f'{results[photo][method][0]:.2f}' for photo in photos)
        label = COLUMNS.get(method, f'teacher {method}')
        lines.append(f'| {label} | {sizes.get(method, "")} | {each} | {mean[method][0]:.2f} | {mean[method][1]:.4f} |')
    gain = mean['mtkd'][0] - mean['scratch'][0]
    verdict = f'beats the control by {gain:.2f} dB' if gain > 0 else f'does not beat the control: {gain:.2f} dB'
    lines += ['', f'MTKD {verdict}; one run, one seed, {len(photos)} held-out photographs.', '']
    path.write_text('\n'.join(lines))
    return '\n'.join(lines)


def draw_comparison(path: Path, pictures: dict[str, dict[str, np.ndarray]], results: dict[str, Any]) -> None:
    """Crops of every photograph side by side, PSNR of the whole image under each."""
    columns = [*COLUMNS, 'gt']
    fig, axes = plt.subplots(
        len(pictures), len(columns), figsize=(2.3 * len(columns), 2.65 * len(pictures)), squeeze=False
    )
    for row, (photo, images) in zip(axes, pictures.items(), strict=True):
        top, left, side = CROPS[photo]
        for axis, method in zip(row, columns, strict=True):
            crop = images[method][top : top + side, left : left + side, ::-1]
            axis.imshow(crop, interpolation='nearest')
            axis.set_xticks([])
            axis.set_yticks([])
            score = f'{results[photo][method][0]:.2f} dB' if method != 'gt' else photo
            axis.set_xlabel(score, fontsize=12)
            if axis in axes[0]:
                axis.set_title(COLUMNS.get(method, 'ground truth'), fontsize=12)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def read_curve(log: str) -> tuple[list[int], list[float]]:
    """Iterations and validation PSNR from a training log."""
    points = re.findall(r'iter:\s+([\d,]+),|# psnr: ([\d.]+)', log)
    iterations, values, current = [], [], 0
    for iteration, psnr in points:
        if iteration:
            current = int(iteration.replace(',', ''))
        elif not iterations or current > iterations[-1]:
            iterations.append(current)
            values.append(float(psnr))
    return iterations, values


def draw_curves(path: Path, folder: Path) -> None:
    """Validation PSNR over the iterations, MTKD against the control."""
    fig, axis = plt.subplots(figsize=(7, 4.2))
    for name, colour in COLOURS.items():
        iterations, values = read_curve((folder / f'{name}.log').read_text())
        axis.plot(iterations, values, marker='o', color=colour, label=COLUMNS[name], linewidth=2)
    axis.set_xlabel('iteration', fontsize=12)
    axis.set_ylabel('validation PSNR-Y (dB)', fontsize=12)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=12)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('results/quickstart'), help='default: %(default)s')
    out = parser.parse_args(argv).out
    opt = read_option('mtkd')
    students = {name: load_student(name) for name in ('scratch', 'mtkd')}
    teachers = TeacherEnsemble(opt['teachers'], SCALE, opt['aggregator'])
    pictures, results = {}, {}
    root = Path(opt['datasets']['val']['dataroot_gt']).parent
    with torch.no_grad():
        for path in sorted((root / 'GT').glob('*.png')):
            gt = cv2.imread(str(path))
            images = outputs_for(cv2.imread(str(root / 'LRbicx4' / path.name)), students, teachers)
            pictures[path.stem] = {**images, 'gt': gt}
            results[path.stem] = {method: scores(image, gt) for method, image in images.items()}
    sizes = {name: parameters(student) for name, student in students.items()}
    sizes |= {name: parameters(network) for name, network in teachers.networks.items()}
    sizes['target'] = f'{parameters(teachers.aggregator)} on top of the teachers'
    out.mkdir(parents=True, exist_ok=True)
    print(write_table(out / 'table.md', results, sizes))
    draw_comparison(out / 'comparison.png', pictures, results)
    draw_curves(out / 'curves.png', out)
    print(f'written: {out}/table.md, {out}/comparison.png, {out}/curves.png')
    return 0


if __name__ == '__main__':
    sys.exit(main())
