"""Check a paired data set: counts, keys, sizes, every image decodable, every LR the MATLAB bicubic of its GT.

Sub-images were cut from larger pictures, so their outer LR pixels saw HR pixels that are not in the GT. The kernel of
LR pixel j begins above HR pixel `scale * j + (scale - 1) / 2 - 2 * scale`, which is inside from j = 2 on, at every
scale: all but a border of two LR pixels can be checked.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mtkd_data.image_io import decode_image, list_images
from mtkd_data.lmdb_store import LmdbReader, MetaEntry
from mtkd_data.matlab_bicubic import imresize_bicubic, mod_crop
from mtkd_data.prepare import list_problems, run_tasks

SUB_IMAGE_BORDER = 2


class FolderReader:
    """Reads a folder of image files with the methods of `LmdbReader`; keys are file names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, MetaEntry] = {}
        self.faults: list[str] = []
        self.keys = [file.name for file in list_images(path)]

    def __getitem__(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __enter__(self) -> 'FolderReader':
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open."""


Reader = LmdbReader | FolderReader


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


def verify_pair_sets(
    gt: Path,
    lq: Path,
    scale: int,
    filename_tmpl: str = '{}',
    border: int | None = None,
    workers: int = 1,
    check_bicubic: bool = True,
    progress: bool = False,
) -> list[str]:
    """Problems of a paired set, each in one line that names the image; an empty list when all is well.

    `gt` and `lq` are two LMDBs or two folders; `filename_tmpl` makes the LQ from the GT file name, as in BasicSR.
    `border` LR pixels on each side are not compared; by default 2 for sub-images (says `dataset.json`), else 0.
    Raises FileNotFoundError, OSError or ValueError where there is nothing to check or it cannot be opened.
    """
    check_arguments(gt, lq, scale, filename_tmpl, border, workers)
    description = read_description(gt, lq)
    if border is None:
        border = SUB_IMAGE_BORDER if description.get('settings', {}).get('sub_image') else 0
    with ExitStack() as stack:
        gt_reader, lq_reader = (stack.enter_context(open_reader(path)) for path in (gt, lq))
        problems = [*gt_reader.faults, *lq_reader.faults]
        problems += find_key_problems(gt_reader, lq_reader, filename_tmpl)
        problems += find_count_problems((gt_reader, lq_reader), description)
        names = list(paired_keys(gt_reader, lq_reader, filename_tmpl))
        exact_size = isinstance(gt_reader, LmdbReader)
        tasks = (_load_pair(gt_reader, lq_reader, *pair, scale, border, check_bicubic, exact_size) for pair in names)
        for found in tqdm(run_tasks(check_pair, tasks, workers), 'verifying', len(names), disable=not progress):
            problems += found
    return problems


def check_arguments(gt: Path, lq: Path, scale: int, filename_tmpl: str, border: int | None, workers: int) -> None:
    """Raise ValueError or FileNotFoundError for arguments that no data set could meet."""
    for path in (gt, lq):
        if not path.is_dir():
            raise FileNotFoundError(f'{path}: expected an LMDB or a folder of images, found none')
        if path.absolute().parent.name.endswith('.partial'):
            raise ValueError(f'{path}: belongs to an unfinished run of prepare_data: finish it first')
    if (gt.suffix == '.lmdb') != (lq.suffix == '.lmdb'):
        raise ValueError(f'{gt} and {lq}: expected two LMDBs or two folders, got one of each')
    if scale < 2 or (border or 0) < 0 or workers < 1:
        given = f'scale {scale}, border {border}, workers {workers}'
        raise ValueError(f'expected scale >= 2, border >= 0 and workers >= 1, got {given}')
    if filename_tmpl.count('{}') != 1 or (gt.suffix == '.lmdb' and filename_tmpl != '{}'):
        expected = "'{}' (the pairs of two LMDBs share their keys)" if gt.suffix == '.lmdb' else "one '{}' in it"
        raise ValueError(f'filename template: expected {expected}, got {filename_tmpl!r}')


def read_description(gt: Path, lq: Path) -> dict:
    """The `dataset.json` beside both, or an empty one."""
    record = gt.absolute().parent / 'dataset.json'
    if gt.absolute().parent != lq.absolute().parent or not record.is_file():
        return {}
    return json.loads(record.read_text())


def open_reader(path: Path) -> Reader:
    """Reader of an LMDB (by its name) or of a folder."""
    return LmdbReader(path) if path.suffix == '.lmdb' else FolderReader(path)


def lq_key(gt_key: str, filename_tmpl: str) -> str:
    """Name of the LQ image that BasicSR pairs with a GT image."""
    stem, extension = os.path.splitext(gt_key)
    return filename_tmpl.format(stem) + extension


def paired_keys(gt: Reader, lq: Reader, filename_tmpl: str) -> Iterator[tuple[str, str]]:
    """GT and LQ keys of all pairs that are there."""
    there = set(lq)
    return ((key, lq_key(key, filename_tmpl)) for key in gt if lq_key(key, filename_tmpl) in there)


def find_key_problems(gt: Reader, lq: Reader, filename_tmpl: str) -> list[str]:
    """Images without a partner, and keys that only one of `data.mdb` and `meta_info.txt` has."""
    wanted = {lq_key(key, filename_tmpl): key for key in gt}
    problems = [
        f'{gt.path}: {wanted[name]!r} has no partner {name!r} in {lq.path}' for name in sorted(wanted.keys() - set(lq))
    ]
    problems += [f'{lq.path}: {name!r} has no partner in {gt.path}' for name in sorted(set(lq) - wanted.keys())]
    for reader in (gt, lq):
        if isinstance(reader, LmdbReader):
            stored, listed = set(reader), reader.entries.keys()
            problems += [
                f'{reader.path}: {key!r} is in data.mdb, not in meta_info.txt' for key in sorted(stored - listed)
            ]
            problems += [
                f'{reader.path}: {key!r} is in meta_info.txt, not in data.mdb' for key in sorted(listed - stored)
            ]
    return problems


def find_count_problems(readers: Iterable[Reader], description: dict) -> list[str]:
    """Stores that hold another number of images than `dataset.json` promises."""
    if not description:
        return []
    promised = description['counts']['images']
    return [
        f'{reader.path}: holds {len(reader.keys)} images, dataset.json says {promised}'
        for reader in readers
        if len(reader.keys) != promised
    ]


def _load_pair(
    gt: Reader, lq: Reader, gt_key: str, lq_key: str, scale: int, border: int, check_bicubic: bool, exact_size: bool
) -> Pair:
    return Pair(
        gt_name=f'{gt.path}: {gt_key}',
        lq_name=f'{lq.path}: {lq_key}',
        gt=gt[gt_key],
        lq=lq[lq_key],
        gt_entry=gt.entries.get(gt_key),
        lq_entry=lq.entries.get(lq_key),
        scale=scale,
        border=border,
        check_bicubic=check_bicubic,
        exact_size=exact_size,
    )


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


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Check a paired data set (LMDBs or folders): counts, keys, sizes, every image decodable,\n'
        'every LR the MATLAB bicubic of its GT.',
        epilog='examples:\n'
        '  python scripts/verify_data.py --gt datasets/DIV2K/GT.lmdb --lq datasets/DIV2K/LRbicx4.lmdb --scale 4\n'
        "  python scripts/verify_data.py --gt Set5/HR --lq Set5/LRbicx4 --scale 4 --filename-tmpl '{}x4'\n"
        'exit code: 0 all is well, 1 problems were found, 2 it could not be checked',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--gt', type=Path, required=True, help='GT: an .lmdb or a folder of images')
    add('--lq', type=Path, required=True, help='LQ: an .lmdb or a folder of images')
    add('--scale', type=int, required=True, help='GT is this many times as large as LQ')
    add('--filename-tmpl', default='{}', help="LQ file name made from the GT file name, such as '{}x4' (folders only)")
    add('--border', type=int, help='LR pixels at each side that are not compared (default: 2 for sub-images, else 0)')
    add('--no-bicubic', dest='check_bicubic', action='store_false', help='do not compare pixels')
    add('--workers', type=int, default=min(8, os.cpu_count() or 1), help='processes (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 all is well, 1 problems found, 2 it could not be checked."""
    args = _parse(argv)
    try:
        problems = verify_pair_sets(**vars(args), progress=True)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if problems:
        print(f'{len(problems)} problems in {args.gt} and {args.lq}:\n  {list_problems(problems)}')
        return 1
    compared = 'LR is the bicubic of GT' if args.check_bicubic else 'pixels were not compared'
    print(f'{args.gt} and {args.lq}: all is well at scale {args.scale}; {compared}')
    return 0
