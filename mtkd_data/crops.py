"""Random crops: drawn in the very order of BasicSR's ``paired_random_crop`` and ``augment``, cut from views."""

import random
from typing import NamedTuple

import numpy as np

from mtkd_data.teacher_cache.cache import from_uint16


class Crop(NamedTuple):
    """Where a patch lies in its LQ image, and how it is turned: first the flips, then the transposition."""

    top: int
    left: int
    hflip: bool
    vflip: bool
    rot90: bool


def draw_crop(
    height: int, width: int, patch: int, use_hflip: bool, use_rot: bool, generator: random.Random | None = None
) -> Crop:
    """Draw what BasicSR draws, in its order, by default from Python's global generator; sizes in LQ pixels."""
    draw = random if generator is None else generator
    top = draw.randint(0, height - patch)
    left = draw.randint(0, width - patch)
    hflip = use_hflip and draw.random() < 0.5
    vflip = use_rot and draw.random() < 0.5
    rot90 = use_rot and draw.random() < 0.5
    return Crop(top, left, hflip, vflip, rot90)


def cut(image: np.ndarray, crop: Crop, patch: int, factor: int) -> np.ndarray:
    """The crop of an image (H, W, C) of ``factor`` times the LQ's size, turned: (C, side, side).

    A view where the values are in the machine's byte order, else of a copy.
    """
    top, left, side = crop.top * factor, crop.left * factor, patch * factor
    part = image[top : top + side, left : left + side]
    if not part.dtype.isnative:  # while rows are whole: swapping bytes in any other order takes five times as long
        part = np.ascontiguousarray(part).astype(part.dtype.newbyteorder('='))
    part = part[:: -1 if crop.vflip else 1, :: -1 if crop.hflip else 1]
    return part.transpose((2, 1, 0) if crop.rot90 else (2, 0, 1))


def to_float(image: np.ndarray) -> np.ndarray:
    """A copy in contiguous float32: 8 bits in [0, 1], 16 bits as the teacher cache means them."""
    if image.dtype != np.uint8:
        return from_uint16(image)
    values = image.astype(np.float32, order='C')
    values /= np.float32(255)
    return values
