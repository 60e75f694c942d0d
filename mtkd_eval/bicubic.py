"""MATLAB's `imresize(image, scale, 'bicubic')` of 8-bit images: what every table of super-resolution compares with."""

from fractions import Fraction
from functools import lru_cache
from math import floor, lcm

import torch
from torch import Tensor, nn

from mtkd_data.preparation.matlab_bicubic import cubic

REACH = 2  # of the kernel, in pixels of the small image


class BicubicUpsampling(nn.Module):
    """Enlarges 8-bit images by a whole number as MATLAB does: height first, each pass rounded half up to 8 bit.

    Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 29(6), 1981, equation 15
    (a = -1/2), https://doi.org/10.1109/TASSP.1981.1163711. The sums are made of whole numbers, so that the result does
    not depend on device or size. Raises ValueError for a scale below 2.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        if not isinstance(scale, int) or scale < 2:
            raise ValueError(f'scale must be a whole number of at least 2, got {scale!r}')
        self.scale = scale

    def forward(self, lq: Tensor) -> Tensor:
        """``lq`` (B, C, H, W) in [0, 1], rounded to 8 bit first, to (B, C, scale * H, scale * W) in [0, 1]."""
        levels = lq.float().clamp(0, 1).mul(255).round()
        for dimension in (-2, -1):
            levels = _enlarged(levels, self.scale, dimension)
        return levels / 255


@lru_cache
def phase_weights(scale: int) -> tuple[tuple[tuple[int, tuple[int, ...]], ...], int]:
    """Per phase the first offset and whole-number weights, and their sum.

    Output pixel ``scale * i + phase`` is ``sum(weights[k] * input[i + first + k]) / total``; it lies at
    ``(phase + 1/2) / scale - 1/2`` of the input, seen from pixel i.
    """
    phases = []
    for phase in range(scale):
        centre = Fraction(2 * phase + 1, 2 * scale) - Fraction(1, 2)
        first = floor(centre) - REACH + 1
        phases.append((first, [cubic(centre - offset) for offset in range(first, first + 2 * REACH)]))
    total = lcm(*(weight.denominator for _, exact in phases for weight in exact))
    return tuple((first, tuple(int(weight * total) for weight in exact)) for first, exact in phases), total


def _enlarged(levels: Tensor, scale: int, dimension: int) -> Tensor:
    """One pass over whole numbers in [0, 255], mirrored at the border."""
    phases, total = phase_weights(scale)
    size = levels.shape[dimension]
    rows = levels.movedim(dimension, 0).double()  # float64 holds every sum exactly
    made = []
    for first, weights in phases:
        taps = (rows[_mirrored(first + offset, size).to(rows.device)] * weight for offset, weight in enumerate(weights))
        made.append(((2 * sum(taps) + total) / (2 * total)).floor_())
    result = torch.stack(made, dim=1).flatten(0, 1).clamp_(0, 255)  # (size, scale, ...) to (size * scale, ...)
    return result.movedim(0, dimension).float()


def _mirrored(offset: int, size: int) -> Tensor:
    """Positions ``offset`` to ``offset + size - 1`` of a line whose ends are mirrored, edge pixel included."""
    position = (torch.arange(size) + offset) % (2 * size)
    return torch.minimum(position, 2 * size - 1 - position)
