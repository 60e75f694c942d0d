"""PSNR and SSIM of tensors where they lie, equal to those that BasicSR computes from NumPy images of 8 bit.

All images are (B, C, H, W), RGB or one channel, whole numbers in [0, 255] of any type: see :func:`to_8_bit`. Everything
is float32 and still exact enough, on a GPU whose float64 is slow too, because both metrics are written in terms of
``x - y`` and ``x + y``: errors are relative to the difference of the images, and no two large numbers cancel.
"""

import math

import torch
from torch import Tensor

LUMA = (65.481, 128.553, 24.966)  # ITU-R BT.601 as MATLAB's rgb2ycbcr has it: Y in [16, 235]
WINDOW, SIGMA = 11, 1.5
_GAUSSIAN = [math.exp(-((position - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for position in range(WINDOW)]
WEIGHTS = tuple(value / sum(_GAUSSIAN) for value in _GAUSSIAN)
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def to_8_bit(image: Tensor) -> Tensor:
    """``image`` in [0, 1] as whole numbers in [0, 255], float32: clamped, halves to even, as BasicSR's tensor2img."""
    return image.float().clamp(0, 1).mul_(255).round_()


def psnr(image: Tensor, image2: Tensor, crop_border: int = 0, test_y_channel: bool = False) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,) float64; infinite for equal images.

    Equals BasicSR's ``calculate_psnr``. Raises ValueError for images of different shapes or all cropped away.
    """
    difference = _combined(image, image2, -1, crop_border, test_y_channel)
    return 10 * torch.log10(255**2 / difference.square().mean((1, 2, 3)).double())


def ssim(image: Tensor, image2: Tensor, crop_border: int = 0, test_y_channel: bool = False) -> Tensor:
    """Structural similarity, mean over channels, (B,) float64; NaN when the crop leaves less than the window of 11.

    Wang et al., IEEE TIP 13(4), 2004, equation 13, https://doi.org/10.1109/TIP.2003.819861, with their Gaussian window
    (sigma 1.5) where it lies inside the image. Equals BasicSR's ``calculate_ssim``. With d = x - y and s = x + y the
    two factors are ``1 - mean(d)^2 / ((mean(s)^2 + mean(d)^2) / 2 + C1)`` and
    ``1 - var(d) / ((var(s) + var(d)) / 2 + C2)``. Raises ValueError for images of different shapes or all cropped away.
    """
    difference = _combined(image, image2, -1, crop_border, test_y_channel)
    if min(difference.shape[-2:]) < WINDOW:
        return torch.full((image.shape[0],), torch.nan, dtype=torch.float64, device=image.device)
    total = _combined(image, image2, 1, crop_border, test_y_channel).sub_(255)  # small numbers have small squares
    # a channel at a time: what four maps of it need stays in the cache
    pairs = zip(difference.split(1, 1), total.split(1, 1), strict=True)
    return torch.stack([_ssim_of_channel(d, s) for d, s in pairs]).mean(0)


def _ssim_of_channel(difference: Tensor, total: Tensor) -> Tensor:
    """SSIM (B,) float64 from ``x - y`` and ``x + y - 255`` of one channel."""
    mean_d, mean_s, square_d, square_s = blur(torch.stack([difference, total, difference.square(), total.square()]))
    var_d, var_s = square_d.sub_(mean_d.square()), square_s.sub_(mean_s.square())
    mean_d, mean_s = mean_d.square_(), mean_s.add_(255).square_()
    luminance = 1 - mean_d / mean_s.add_(mean_d).div_(2).add_(C1)
    structure = 1 - var_d / var_s.add_(var_d).div_(2).add_(C2)
    return luminance.mul_(structure).mean((1, 2, 3)).double()


def luma(image: Tensor) -> Tensor:
    """Y of YCbCr, (B, 1, H, W) in [16, 235], not rounded; an image of one channel is Y already."""
    return _weighted(image.float()) + 16 if image.shape[1] == 3 else image.float()


def blur(image: Tensor) -> Tensor:
    """The Gaussian window over the last two dimensions, which shrink by 10.

    Sums of shifted slices: as a convolution of one channel it takes 27 times as long on a CPU; on a GPU that would
    round to TF32 and be tuned anew for every image size.
    """
    for dimension in (-1, -2):
        size = image.shape[dimension] - WINDOW + 1
        first, *others = (image.narrow(dimension, offset, size) for offset in range(WINDOW))
        image = first * WEIGHTS[0]
        for part, weight in zip(others, WEIGHTS[1:], strict=True):
            image.add_(part, alpha=weight)
    return image


def _combined(image: Tensor, image2: Tensor, sign: int, crop_border: int, test_y_channel: bool) -> Tensor:
    """``image + sign * image2``, cropped, of all channels or of Y; a new float32 tensor."""
    if image.shape != image2.shape:
        raise ValueError(f'images differ in shape: {tuple(image.shape)}, {tuple(image2.shape)}')
    one, two = _cropped(image, crop_border).float(), _cropped(image2, crop_border)
    combined = torch.add(one, two, alpha=sign)
    if not test_y_channel or image.shape[1] != 3:
        return combined
    return _weighted(combined).add_(16 * (1 + sign))


def _weighted(image: Tensor) -> Tensor:
    red, green, blue = (weight / 255 for weight in LUMA)
    return (image[:, :1] * red).add_(image[:, 1:2], alpha=green).add_(image[:, 2:], alpha=blue)


def _cropped(image: Tensor, border: int) -> Tensor:
    if min(image.shape[-2:]) <= 2 * border:
        raise ValueError(f'crop_border {border} leaves nothing of an image {tuple(image.shape)}')
    return image[..., border:-border, border:-border] if border else image
