"""Regions of an image: given by hand, or found where methods differ most."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_model.image_metrics import luma

GIVEN = re.compile(r'(?P<image>.+?)(?::(?P<top>\d+),(?P<left>\d+),(?P<size>\d+))?')


@dataclass(frozen=True)
class Region:
    """A square of an HR image, in its pixels."""

    top: int
    left: int
    size: int

    def of(self, image: Tensor) -> Tensor:
        """What it shows of ``image`` (..., H, W)."""
        return image[..., self.top : self.top + self.size, self.left : self.left + self.size]

    def __str__(self) -> str:
        return f'{self.top},{self.left},{self.size}'


def parse_region(text: str) -> tuple[str, Region | None]:
    """``IMAGE:TOP,LEFT,SIZE`` as name and region, ``IMAGE`` as name alone. Raises ValueError for anything else."""
    found = GIVEN.fullmatch(text)
    if not found or (':' in found['image'] and found['top'] is None) or found['size'] == '0':
        raise ValueError(f'{text}: expected IMAGE:TOP,LEFT,SIZE in HR pixels, such as baby:120,80,64')
    if found['top'] is None:
        return found['image'], None
    return found['image'], Region(int(found['top']), int(found['left']), int(found['size']))


def check_inside(region: Region, image: str, height: int, width: int) -> None:
    """Raise ValueError for a region that is not wholly inside."""
    if region.top + region.size > height or region.left + region.size > width:
        raise ValueError(
            f'region {image}:{region} leaves the image, which has {height}x{width} pixels: expected TOP,LEFT,SIZE with '
            f'TOP + SIZE <= {height} and LEFT + SIZE <= {width}'
        )


def spread_of_errors(outputs: Sequence[Tensor], gt: Tensor, size: int, border: int, step: int) -> Tensor:
    """How much methods differ in each window: the largest minus the smallest mean squared error on Y.

    ``outputs`` and ``gt`` are (1, 3, H, W) in [0, 255]. Entry (i, j) of the result belongs to the window at
    ``border + step * i, border + step * j``; no window reaches into the ``border``. Empty where none fits.
    """
    inner = (slice(None), slice(border, gt.shape[-2] - border), slice(border, gt.shape[-1] - border))
    errors = torch.cat([(luma(output) - luma(gt))[0][inner].double().square() for output in outputs])  # (M, h, w)
    if min(errors.shape[-2:]) < size:
        return errors.new_empty(0, 0)
    sums = F.pad(errors.cumsum(-1).cumsum(-2), (1, 0, 1, 0))  # of everything above and to the left
    below, above = sums[:, size:], sums[:, :-size]
    windows = below[..., size:] - below[..., :-size] - above[..., size:] + above[..., :-size]
    means = windows[:, ::step, ::step] / size**2
    return means.amax(0) - means.amin(0)


def widest_spreads(spread: Tensor, count: int, size: int, border: int, step: int) -> list[tuple[float, Region]]:
    """Up to ``count`` windows of the largest spread, largest first, none overlapping another; see above."""
    left, found = spread.clone(), []
    rows, columns = (torch.arange(length) * step for length in spread.shape)
    while len(found) < count and left.numel() and (best := int(left.argmax())) is not None:
        row, column = divmod(best, left.shape[1])
        if left[row, column] < 0:  # nothing is left that overlaps none
            break
        top, side = row * step, column * step
        found.append((float(left[row, column]), Region(border + top, border + side, size)))
        left[((rows - top).abs() < size)[:, None] & ((columns - side).abs() < size)] = -1
    return found
