"""MATLAB's `imresize(image, 1 / scale, 'bicubic')` for uint8 images and whole-number scales, bit for bit.

Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 29(6), 1981, equation 15 (a = -1/2),
https://doi.org/10.1109/TASSP.1981.1163711; stretched by the scale against aliasing, as MATLAB does it.

For a whole-number scale every output pixel has the same weights, and these are fractions with a small common
denominator. So the sums are made in whole numbers: no rounding error, no dependence on position or on the order of
summation. MATLAB's float64 gives the same values for scales 2, 4 and 8 (powers of two: its sums are exact) and 3 and 5
(odd denominators: no sum lies halfway between two levels).
"""

from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np


def mod_crop(image: np.ndarray, scale: int) -> np.ndarray:
    """Cut the bottom and right so that height and width divide by `scale`; a view of `image` (H, W) or (H, W, C)."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def imresize_bicubic(image: np.ndarray, scale: int) -> np.ndarray:
    """Shrink a uint8 image (H, W) or (H, W, C) by a whole number, as MATLAB does: antialiased, mirrored at the border.

    Height first, then width; each pass rounds half up and clips to uint8, as MATLAB does for uint8 input.

    Raises ValueError for another dtype or rank, a scale below 2, or sides that do not divide by the scale.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f'expected a uint8 image (H, W) or (H, W, C), got {image.dtype} of shape {image.shape}')
    if not isinstance(scale, int) or scale < 2:
        raise ValueError(f'scale must be a whole number of at least 2, got {scale!r}')
    height, width = image.shape[:2]
    if height % scale or width % scale or 0 in image.shape:
        raise ValueError(f'image of {height}x{width} does not divide by scale {scale}: mod_crop it first')
    return _shrink_axis(_shrink_axis(image, scale, axis=0), scale, axis=1)


def cubic(x: Fraction) -> Fraction:
    """Keys' cubic convolution kernel with a = -1/2; zero from |x| = 2 on."""
    x = abs(x)
    if x <= 1:
        return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
    if x < 2:
        return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2
    return Fraction(0)


@lru_cache
def integer_weights(scale: int) -> tuple[int, tuple[int, ...], int]:
    """`(first, weights, total)`: output pixel j is `sum(weights[k] * input[j * scale + first + k]) / total`.

    Output pixel j lies at `j * scale + (scale - 1) / 2` of the input, its kernel reaches `2 * scale` to both sides.
    """
    centre = Fraction(scale - 1, 2)
    offsets = [offset for offset in range(-2 * scale, 3 * scale) if cubic((offset - centre) / scale)]
    first, last = offsets[0], offsets[-1]
    exact = [cubic((offset - centre) / scale) for offset in range(first, last + 1)]
    denominator = lcm(*(weight.denominator for weight in exact))
    weights = tuple(int(weight * denominator) for weight in exact)
    return first, weights, sum(weights)


def _shrink_axis(image: np.ndarray, scale: int, axis: int) -> np.ndarray:
    first, weights, total = integer_weights(scale)
    rows = np.moveaxis(image, axis, 0)
    padding = [(-first, first + len(weights) - scale)] + [(0, 0)] * (image.ndim - 1)
    padded = np.pad(rows, padding, mode='symmetric')
    # int32 holds twice the largest sum up to scale 16
    sums = np.zeros((len(rows) // scale, *rows.shape[1:]), np.int32 if scale <= 16 else np.int64)
    for start, weight in enumerate(weights):
        # dtype named: NumPy before 2 would multiply in 8 bits
        sums += np.multiply(padded[start : start + len(rows) : scale], weight, dtype=sums.dtype)
    rounded = (2 * sums + total) // (2 * total)
    return np.ascontiguousarray(np.moveaxis(np.clip(rounded, 0, 255).astype(np.uint8), 0, axis))
