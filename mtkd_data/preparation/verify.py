"""Check a paired data set: counts, keys, sizes, every image decodable, every LR the MATLAB bicubic of its GT.

Sub-images were cut from larger pictures, so their outer LR pixels saw HR pixels that are not in the GT. The kernel of
LR pixel j begins above HR pixel `scale * j + (scale - 1) / 2 - 2 * scale`, which is inside from j = 2 on, at every
scale: all but a border of two LR pixels can be checked.
"""

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from mtkd_data.command_line import exit_code
from mtkd_data.lmdb_store import LmdbReader
from mtkd_data.preparation.pair_checks import Pair, check_pair
from mtkd_data.preparation.pair_keys import Reader, find_count_problems, find_key_problems, open_reader, paired_keys
from mtkd_data.preparation.parallel import run_tasks
from mtkd_data.preparation.plan import list_problems

SUB_IMAGE_BORDER = 2


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
    return exit_code(lambda: _run(args), 'nothing was changed')


def _run(args: argparse.Namespace) -> int:
    problems = verify_pair_sets(**vars(args), progress=True)
    if problems:
        print(f'{len(problems)} problems in {args.gt} and {args.lq}:\n  {list_problems(problems)}')
        return 1
    compared = 'LR is the bicubic of GT' if args.check_bicubic else 'pixels were not compared'
    print(f'{args.gt} and {args.lq}: all is well at scale {args.scale}; {compared}')
    return 0
