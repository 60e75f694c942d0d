"""Checks of one GT and LQ image: both decodable, shaped as listed, the LQ the MATLAB bicubic of the GT."""

from dataclasses import dataclass

import numpy as np

from mtkd_data.image_io import decode_image
from mtkd_data.lmdb_store import MetaEntry
from mtkd_data.preparation.matlab_bicubic import imresize_bicubic, mod_crop


@dataclass(frozen=True)
class Pair:
    """One GT and LQ image, still encoded, and how to compare them."""

    gt_name: str
    lq_name: str
    gt: bytes
    lq: bytes
    gt_entry: MetaEntry | None
    lq_entry: MetaEntry | None
    scale: int
    border: int
    check_bicubic: bool
    exact_size: bool


def check_pair(pair: Pair) -> list[str]:
    """Problems of one pair; sizes are compared only where both images decode, pixels only where the sizes fit."""
    images: list[np.ndarray] = []
    problems: list[str] = []
    for name, data, entry in ((pair.gt_name, pair.gt, pair.gt_entry), (pair.lq_name, pair.lq, pair.lq_entry)):
        try:
            images.append(decode_image(data, name, grey='keep'))
        except ValueError as error:
            problems.append(str(error))
        else:
            problems += find_entry_problems(name, images[-1], entry)
    if len(images) < 2:
        return problems
    sizes = find_size_problems(pair, *images)
    if sizes or not pair.check_bicubic:
        return problems + sizes
    return problems + find_bicubic_problems(pair, *images)


def find_entry_problems(name: str, image: np.ndarray, entry: MetaEntry | None) -> list[str]:
    """Where `meta_info.txt` gives another shape than the image has."""
    shape = (*image.shape, 1)[:3]
    if entry is None or shape == (entry.height, entry.width, entry.channels):
        return []
    return [f'{name}: is {shape}, meta_info.txt says {(entry.height, entry.width, entry.channels)}']


def find_size_problems(pair: Pair, gt: np.ndarray, lq: np.ndarray) -> list[str]:
    """GT must be `scale` times LQ; in folders it may be larger by less than `scale`, as BasicSR crops it itself."""
    spare = 1 if pair.exact_size else pair.scale
    fits = all(0 <= gt.shape[axis] - pair.scale * lq.shape[axis] < spare for axis in (0, 1))
    if fits and gt.shape[2:] == lq.shape[2:]:
        return []
    return [f'{pair.lq_name}: is {lq.shape}, its GT is {gt.shape}, which is not {pair.scale} times as large']


def find_bicubic_problems(pair: Pair, gt: np.ndarray, lq: np.ndarray) -> list[str]:
    """Where the LQ pixels beyond the border differ from the bicubic of the GT."""
    expected = imresize_bicubic(mod_crop(gt, pair.scale), pair.scale)
    height, width = lq.shape[:2]
    inside = np.s_[pair.border : height - pair.border, pair.border : width - pair.border]
    if min(height, width) <= 2 * pair.border:
        return [f'{pair.lq_name}: {height}x{width} leaves nothing to compare within a border of {pair.border}']
    difference = np.abs(expected.astype(np.int16) - lq)
    wrong = difference[inside]
    if not wrong.any():
        return []
    pixels = np.count_nonzero(wrong.reshape(*wrong.shape[:2], -1).any(axis=-1))
    found = f'{pixels} of {wrong.shape[0] * wrong.shape[1]} pixels differ, by up to {wrong.max()} levels'
    remedy = '' if difference[2:-2, 2:-2].any() else ' (only near the border: for sub-images use a border of 2)'
    return [f'{pair.lq_name}: not the bicubic of its GT: {found}{remedy}']
