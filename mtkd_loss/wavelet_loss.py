"""L1 distance between the wavelet sub-bands of two images: the distillation loss of MTKD."""

from collections.abc import Mapping
from typing import Literal, get_args

import pywt
from basicsr.utils.registry import LOSS_REGISTRY
from pytorch_wavelets import DWTForward
from torch import Tensor, nn

Mode = Literal['zero', 'symmetric', 'reflect', 'periodic', 'periodization', 'constant']
BANDS = ('LL', 'LH', 'HL', 'HH')


def band_distances(low: Tensor, high: list[Tensor], reduction: str = 'mean') -> dict[str, Tensor]:
    """Mean (or summed) magnitude per sub-band of a transformed difference.

    ``low`` is the approximation (B, C, h, w); ``high`` holds per level, finest first, (B, C, 3, h, w) with the details
    LH, HL, HH. Keys are ``LL`` and ``LH1``, ``HL1``, ``HH1``, ``LH2``, ...
    """
    reduce = {'mean': Tensor.mean, 'sum': Tensor.sum}[reduction]
    distances = {'LL': reduce(low.abs())}
    for level, details in enumerate(high, start=1):
        for index, band in enumerate(BANDS[1:]):
            distances[f'{band}{level}'] = reduce(details[:, :, index].abs())
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

    Raises ValueError for an unknown wavelet, mode, reduction or band, or a level below 1.
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
        self.transform = DWTForward(J=level, wave=wave, mode=mode)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """``pred`` and ``target`` are (B, C, H, W) of equal shape; returns a scalar."""
        if pred.shape != target.shape:
            raise ValueError(f'WaveletLoss: prediction {tuple(pred.shape)}, target {tuple(target.shape)}')
        distances = band_distances(*self.transform(pred - target), self.reduction)
        return self.loss_weight * sum(self.band_weights[name[:2]] * value for name, value in distances.items())


def _check_choice(argument: str, value: object, choices: tuple[str, ...] | list[str]) -> None:
    if value not in choices:
        raise ValueError(f"WaveletLoss: {argument} '{value}' is unknown; expected one of {', '.join(choices)}")
