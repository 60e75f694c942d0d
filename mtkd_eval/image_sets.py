"""Test sets: HR images with their LR images, found and checked before any network runs."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtkd.option_file import read_option
from mtkd_data.image_io import check_header, decode_image, key_images, list_images, read_header
from mtkd_eval.experiments import OPTION_SUFFIXES

HR_FOLDERS = ('HR', 'GT')
LR_FOLDER = re.compile(r'LRbicx(\d+)')


@dataclass(frozen=True)
class ImagePair:
    """One image of a test set, by the name of the HR file without its ending."""

    name: str
    hr: Path
    lq: Path


@dataclass(frozen=True)
class ImageSet:
    """A test set of one scale."""

    name: str
    scale: int
    pairs: tuple[ImagePair, ...]


def find_sets(given: Sequence[str], scales: Collection[int]) -> list[ImageSet]:
    """The sets that ``--set`` names, of the ``scales`` wanted; without any, of all scales there are.

    ``NAME=HR,LR[,TEMPLATE]`` (folders; the template, such as ``{}x4``, makes the name of the LR image out of that of
    the HR image), a folder with ``HR`` (or ``GT``) and ``LRbicx4``, a folder of such folders, or an option file, of
    which all data sets but ``train`` are taken.

    Raises FileNotFoundError or ValueError for whatever is missing or does not fit.
    """
    sets = [found for text in given for found in _find(text, scales) if not scales or found.scale in scales]
    if not sets:
        wanted = ' or '.join(f'x{scale}' for scale in sorted(scales))
        raise ValueError(f'no test set {wanted} in {", ".join(given)}: expected folders such as LRbicx4')
    for found in sets:
        if [(other.name, other.scale) for other in sets].count((found.name, found.scale)) > 1:
            raise ValueError(f'two test sets are called {found.name} (x{found.scale}): name them, NAME=HR,LR')
    return sets


def read_image(path: Path) -> np.ndarray:
    """uint8 (H, W, 3), BGR; a grey image repeated, as BasicSR's data sets read it."""
    return decode_image(path.read_bytes(), str(path), grey='convert')


def _find(text: str, scales: Collection[int]) -> list[ImageSet]:
    name, separator, folders = text.partition('=')
    if separator and not Path(text).exists():
        parts = folders.split(',')
        if not name or len(parts) not in (2, 3):
            raise ValueError(f'--set {text}: expected NAME=HR,LR or NAME=HR,LR,TEMPLATE')
        return [pair_up(name, Path(parts[0]), Path(parts[1]), *parts[2:])]
    path = Path(text)
    if path.suffix in OPTION_SUFFIXES:
        return _in_option(path)
    if not path.is_dir():
        raise FileNotFoundError(f'--set {text}: no such folder or option file; expected one, or NAME=HR,LR')
    if _hr_in(path) is not None:
        return _in_folder(path, scales)
    below = sorted(folder for folder in path.iterdir() if folder.is_dir() and _hr_in(folder) is not None)
    if not below:
        raise FileNotFoundError(f'--set {text}: expected a folder with HR and LRbicx4, or a folder of such folders')
    return [found for folder in below for found in _in_folder(folder, scales)]


def _hr_in(folder: Path) -> Path | None:
    return next((folder / name for name in HR_FOLDERS if (folder / name).is_dir()), None)


def _in_folder(folder: Path, scales: Collection[int]) -> list[ImageSet]:
    there = {int(match[1]): path for path in folder.iterdir() if (match := LR_FOLDER.fullmatch(path.name))}
    wanted = sorted(scales or there)
    return [pair_up(folder.resolve().name, _hr_in(folder), there[scale]) for scale in wanted if scale in there]


def _in_option(path: Path) -> list[ImageSet]:
    found = []
    for key, opt in (read_option(path).get('datasets') or {}).items():
        if key.split('_')[0] == 'train':
            continue
        roots = [opt.get(root) for root in ('dataroot_gt', 'dataroot_lq')]
        if None in roots or str(roots[0]).endswith('.lmdb'):
            raise ValueError(f'{path}: datasets.{key}: expected folders of images as dataroot_gt and dataroot_lq')
        hr, lq = (Path(root).expanduser() for root in roots)
        found.append(pair_up(str(opt.get('name', key)), hr, lq, opt.get('filename_tmpl')))
    if not found:
        raise ValueError(f'{path}: has no data sets to test on: expected datasets.test_1 or datasets.val')
    return found


def pair_up(name: str, hr: Path, lq: Path, template: str | None = None) -> ImageSet:
    """The set of every image in ``hr`` with its image in ``lq``; the scale follows from their sizes.

    Without a template ``{}`` and ``{}x<scale>`` are tried. Raises FileNotFoundError for LR images that are missing,
    ValueError for sizes that do not belong together.
    """
    sharp, small = key_images(list_images(hr)), key_images(list_images(lq))
    first = next(iter(sharp))
    templates = [template] if template else ['{}', *(f'{{}}x{scale}' for scale in range(2, 9))]
    fitting = next((each for each in templates if each.format(first) in small), templates[0])
    missing = [key for key in sharp if fitting.format(key) not in small]
    if missing:
        raise FileNotFoundError(
            f'{name}: {len(missing)} of {len(sharp)} HR images have no LR image in {lq}, such as '
            f'{fitting.format(missing[0])}.png for {sharp[missing[0]].name}: give the template, as in NAME=HR,LR,{{}}x4'
        )
    pairs = tuple(ImagePair(key, path, small[fitting.format(key)]) for key, path in sharp.items())
    scales = {_scale_of(pair) for pair in pairs}
    if len(scales) > 1:
        raise ValueError(f'{name}: images of several scales, {sorted(scales)}, in {lq}')
    return ImageSet(name, scales.pop(), pairs)


def _scale_of(pair: ImagePair) -> int:
    (height, width), (small_height, small_width) = _size(pair.hr), _size(pair.lq)
    scale = round(height / small_height)
    left_over = height - scale * small_height, width - scale * small_width
    if scale < 1 or not all(0 <= rest < max(scale, 1) for rest in left_over):
        raise ValueError(
            f'{pair.hr} has {height}x{width} pixels, {pair.lq} has {small_height}x{small_width}: expected the HR image '
            'to be a whole number of times larger, up to a rest below that number'
        )
    return scale


def _size(path: Path) -> tuple[int, int]:
    header = read_header(path.read_bytes(), str(path))
    check_header(header, str(path), 'convert')
    return header.height, header.width
