"""Wavelet-band error maps: where in an image, and in which band, networks differ from the HR image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from torch import Tensor

from mtkd_eval.plots.regions import Region
from mtkd_eval.plots.style import LARGE, MAGNITUDE, NORMAL, SIGNED, SMALL, new_figure, styled
from mtkd_eval.plots.text import wrapped
from mtkd_loss.wavelet_loss import BANDS, Decomposition
from mtkd_model.image_metrics import luma, psnr

CELL = 1.55  # width of a map, inches
MEANING = {'LL': 'LL (smooth)', 'LH': 'LH (horizontal edges)', 'HL': 'HL (vertical edges)', 'HH': 'HH (diagonal)'}
BRIGHTEST = 0.995  # the part of the values that the colours reach to; single pixels would darken all others


@dataclass(frozen=True)
class BandErrors:
    """One network: its output (H, W, 3) uint8, PSNR-Y of it, maps (h, w) and mean magnitude of each band."""

    name: str
    pixels: np.ndarray
    psnr: float
    maps: Mapping[str, np.ndarray]
    means: Mapping[str, float]


def band_errors(name: str, output: Tensor, gt: Tensor, signed: bool, border: int, region: Region | None) -> BandErrors:
    """Haar bands, one level, of ``output - gt``, both (1, 3, H, W) in [0, 255]; in units of images in [0, 1].

    The magnitude averaged over R, G and B, whose means are the terms of ``WaveletLoss`` against the HR image; or with
    ``signed`` the bands of Y. PSNR-Y is that of the whole image.
    """
    figure = float(psnr(output, gt, border, True))
    if region is not None:
        output, gt = region.of(output), region.of(gt)
    difference = (luma(output) - luma(gt) if signed else output - gt) / 255
    low, ((lh, hl, hh),) = Decomposition(J=1, wave='haar', mode='symmetric')(difference)
    bands = dict(zip(BANDS, (low, lh, hl, hh), strict=True))
    maps = {band: (values if signed else values.abs()).mean((0, 1)).numpy() for band, values in bands.items()}
    means = {band: float(values.abs().mean()) for band, values in bands.items()}
    return BandErrors(name, output[0].permute(1, 2, 0).byte().numpy(), figure, maps, means)


def common_limit(errors: Sequence[BandErrors]) -> float:
    """The magnitude at the end of the one colour scale of all maps."""
    values = torch.cat([torch.from_numpy(each).abs().flatten() for row in errors for each in row.maps.values()])
    return max(float(np.quantile(values.numpy(), BRIGHTEST)), 1 / 255)


@styled
def draw_bands(errors: Sequence[BandErrors], signed: bool, title: str = '', dpi: int = 150) -> Figure:
    """A row per network: what it shows, and its four maps, all on one colour scale; the means above them."""
    height, width = errors[0].pixels.shape[:2]
    cell = min(max(CELL * height / width, 0.6), 2.6)
    labels = [wrapped(row.name, CELL, NORMAL) for row in errors]
    rows, lines = len(errors), sum(len(label) + 1 for label in labels)
    height = rows * (cell + 0.1) + lines * 1.25 * NORMAL / 72 + 0.3 * bool(title)
    figure = new_figure(5 * (CELL + 0.12) + 0.75, max(height, 2.6), dpi)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.04)
    axes = figure.subplots(rows, 5, squeeze=False)
    limit = common_limit(errors)
    scale = Normalize(-limit, limit) if signed else PowerNorm(0.5, 0, limit)
    for line, row, label in zip(axes, errors, labels, strict=True):
        line[0].imshow(row.pixels, interpolation='auto')
        line[0].set_title('\n'.join([*label, f'{row.psnr:.2f} dB']), fontsize=NORMAL)
        for panel, band in zip(line[1:], BANDS, strict=True):
            drawn = panel.imshow(row.maps[band], norm=scale, cmap=SIGNED if signed else MAGNITUDE, interpolation='auto')
            heading = f'{MEANING[band]}\n' if row is errors[0] else ''
            panel.set_title(f'{heading}mean |.| {row.means[band]:.4f}', fontsize=NORMAL)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
        for spine in panel.spines.values():
            spine.set_visible(False)
    _colour_bar(figure, drawn, axes, signed)
    if title:
        figure.suptitle(title, fontsize=LARGE)
    return figure


def _colour_bar(figure: Figure, drawn: Any, axes: np.ndarray, signed: bool) -> None:
    what = 'error on Y' if signed else 'magnitude, mean of RGB'
    bar = figure.colorbar(drawn, ax=axes, extend='both' if signed else 'max', fraction=0.02, pad=0.01, aspect=30)
    bar.set_label(f'{what}\n(image range 1)', fontsize=NORMAL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
