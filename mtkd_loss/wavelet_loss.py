"""L1 distance between the wavelet sub-bands of two images: the distillation loss of MTKD."""

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import pywt
import torch
import torch.nn.functional as F
from basicsr.utils.registry import LOSS_REGISTRY
from pytorch_wavelets import DWTForward
from torch import Tensor, nn

Mode = Literal['zero', 'symmetric', 'reflect', 'periodic', 'periodization', 'constant']
Details = tuple[Tensor, Tensor, Tensor]
BANDS = ('LL', 'LH', 'HL', 'HH')
NUMPY_MODES = {'symmetric': 'symmetric', 'reflect': 'reflect', 'periodic': 'wrap', 'constant': 'edge'}


def extend(x: Tensor, dim: int, taps: int, mode: Mode) -> Tensor:
    """``x`` with the border along ``dim`` that a filter of ``taps`` coefficients needs, as PyWavelets extends it."""
    size = x.shape[dim]
    odd = size % 2
    if mode == 'reflect' and size == 1:
        raise ValueError("WaveletLoss: one pixel cannot be reflected: take fewer levels or the mode 'symmetric'")
    if mode == 'periodization':  # repeats the last pixel of an odd line, then goes round
        side = taps // 2 - 1
        positions = np.pad(np.pad(np.arange(size), (0, odd), mode='edge'), side, mode='wrap')
    elif taps == 2 and not odd:
        return x
    elif mode == 'zero':
        pad = (taps - 2, taps - 2 + odd)
        return F.pad(x, pad if dim == -1 else (0, 0, *pad))
    else:
        positions = np.pad(np.arange(size), (taps - 2, taps - 2 + odd), mode=NUMPY_MODES[mode])
    return x if len(positions) == size else x.index_select(dim, torch.from_numpy(positions).to(x.device))


class Decomposition(DWTForward):
    """DWTForward of pytorch-wavelets with PyWavelets' border in every mode and the gradient autograd finds.

    The package's own backward (1.3.0) leaves the extended border out, so the gradient is wrong at the rim of odd sizes
    and of every filter longer than Haar's; it fails under autocast; its ``constant`` raises, and its ``periodization``
    is wrong where a level is shorter than the filter. On even sizes with Haar both agree. Computes in the type of the
    filters, float32 unless moved.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, list[Details]]:
        """``x`` (B, C, H, W) to the approximation (B, C, h, w) and per level, finest first, the details LH, HL, HH."""
        split = {2: self._sum_and_difference, 4: self._weighted_sums}.get(self.h0_row.numel(), self._filter)
        low, high = x.to(self.h0_col.dtype), []
        with torch.autocast(x.device.type, enabled=False):
            for _ in range(self.J):
                left, right = split(low, -1)
                low, vertical = split(left, -2)
                high.append((vertical, *split(right, -2)))
        return low, high

    def _filter(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        filters = torch.cat([self.h0_row, self.h1_row] if dim == -1 else [self.h0_col, self.h1_col])
        extended = extend(x, dim, self.h0_row.numel(), self.mode)
        lines = extended.flatten(0, 1).unsqueeze(1)
        bands = F.conv2d(lines, filters, stride=(1, 2) if dim == -1 else (2, 1))
        return bands.unflatten(0, x.shape[:2]).unbind(2)

    def _weighted_sums(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """The filters written out, tap by tap; faster than a convolution for short ones."""
        filters = (self.h0_row, self.h1_row) if dim == -1 else (self.h0_col, self.h1_col)
        phases = extend(x, dim, 4, self.mode).unflatten(dim, (-1, 2)).unbind(dim)
        lines = [phases[tap % 2].narrow(dim, tap // 2, phases[0].shape[dim] - 1) for tap in range(4)]
        low, high = (sum(w * line for w, line in zip(f.flatten(), lines, strict=True)) for f in filters)
        return low, high

    def _sum_and_difference(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Haar without a convolution, several times as fast; every filter of two taps is Haar's."""
        even, odd = extend(x, dim, 2, self.mode).unflatten(dim, (-1, 2)).unbind(dim)
        if dim == -1:
            return even + odd, even - odd
        return (even + odd) * 0.5, (even - odd) * 0.5  # 1 / sqrt(2) for each of the two axes


def band_distances(low: Tensor, high: list[Details], reduction: str = 'mean') -> dict[str, Tensor]:
    """Mean (or summed) magnitude per sub-band of a transformed difference.

    ``low`` is the approximation (B, C, h, w); ``high`` holds per level, finest first, the details LH, HL, HH. Keys are
    ``LL`` and ``LH1``, ``HL1``, ``HH1``, ``LH2``, ...
    """
    reduce = {'mean': Tensor.mean, 'sum': Tensor.sum}[reduction]
    distances = {'LL': reduce(low.abs())}
    for level, details in enumerate(high, start=1):
        for name, band in zip(BANDS[1:], details, strict=True):
            distances[f'{name}{level}'] = reduce(band.abs())
    return distances


@LOSS_REGISTRY.register()
class WaveletLoss(nn.Module):
    """Sum over the sub-bands of ``mean|DWT(prediction) - DWT(target)|``.

    MTKD (Jiang et al., ECCV 2024, https://arxiv.org/abs/2404.09571): Haar, one level, every sub-band with weight 1; the
    approximation counts once, at the last level. The transform is linear, so it is applied once, to the difference.
    The released code defaults to 4 levels and lets only one sample of a batch count in the approximation; neither is
    followed. For images in [0, 1] a Haar band of level k has a range of 2^k.

    Args:
        loss_weight: factor of the whole loss.
        reduction: ``mean`` or ``sum`` within each sub-band.
        wave: any discrete wavelet of PyWavelets.
        level: number of decomposition levels, >= 1.
        mode: how the border is extended, as PyWavelets names it; of no effect for Haar on even sizes.
        band_weights: weights of ``LL``, ``LH``, ``HL``, ``HH`` at all levels; those not named have weight 1.

    Raises ValueError for an unknown wavelet, mode, reduction or band, or a level below 1. An image may be smaller than
    the filter: as in PyWavelets, such a level sees mostly border.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        reduction: Literal['mean', 'sum'] = 'mean',
        wave: str = 'haar',
        level: int = 1,
        mode: Mode = 'symmetric',
        band_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        _check_choice('reduction', reduction, ('mean', 'sum'))
        _check_choice('wave', wave, pywt.wavelist(kind='discrete'))
        _check_choice('mode', mode, get_args(Mode))
        for band in band_weights or {}:
            _check_choice('band_weights', band, BANDS)
        if level < 1:
            raise ValueError(f'WaveletLoss: level is {level}, expected at least 1')
        self.loss_weight, self.reduction = loss_weight, reduction
        self.band_weights = {**dict.fromkeys(BANDS, 1.0), **(band_weights or {})}
        self.transform = Decomposition(J=level, wave=wave, mode=mode)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """``pred`` and ``target`` are (B, C, H, W) of equal shape; returns a scalar."""
        if pred.shape != target.shape:
            raise ValueError(f'WaveletLoss: prediction {tuple(pred.shape)}, target {tuple(target.shape)}')
        distances = band_distances(*self.transform(pred - target), self.reduction)
        return self.loss_weight * sum(self.band_weights[name[:2]] * value for name, value in distances.items())


def _check_choice(argument: str, value: object, choices: tuple[str, ...] | list[str]) -> None:
    if value not in choices:
        raise ValueError(f"WaveletLoss: {argument} '{value}' is unknown; expected one of {', '.join(choices)}")
