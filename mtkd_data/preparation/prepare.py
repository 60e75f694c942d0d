"""From folders of HR images to a paired data set for BasicSR: mod-crop, MATLAB-bicubic LR, sub-images, LMDB or PNG.

Everything is made in `<out>.partial` and renamed to `<out>` when it is whole and on the disk. A killed run is resumed
by the same command: a source is done when all its images are in all stores, and each source is committed as one.
"""

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mtkd_data.command_line import exit_code
from mtkd_data.folder_lock import only_run
from mtkd_data.image_io import decode_image, encode_png
from mtkd_data.lmdb_store import FolderWriter, LmdbWriter, MetaEntry
from mtkd_data.preparation.matlab_bicubic import imresize_bicubic, mod_crop
from mtkd_data.preparation.parallel import run_tasks
from mtkd_data.preparation.plan import (
    Box,
    Settings,
    Source,
    cut_boxes,
    describe_dataset,
    inspect_folders,
    least_bytes,
    read_begun,
    shrink_box,
)
from mtkd_data.whole_files import check_place, sync_path, write_atomically

COMMIT_SECONDS = 0.5  # a kill costs this much finished work, and what the workers hold
COMMIT_BYTES = 64 * 2**20
SHOWN_LEFT_OUT = 3


def make_pairs(image: np.ndarray, key: str, settings: Settings) -> dict[str, dict[str, bytes]]:
    """All PNG files of one HR image, by store and key. The LR is made from the whole image, then cut."""
    gt = mod_crop(image, settings.mod_crop)
    boxes = cut_boxes(key, *gt.shape[:2], settings)
    made: dict[str, dict[str, bytes]] = {}
    for store, scale in settings.stores.items():
        picture = gt if scale == 1 else imresize_bicubic(gt, scale)
        made[store] = {}
        for name, box in boxes.items():
            top, left, height, width = shrink_box(box, scale)
            cut = np.ascontiguousarray(picture[top : top + height, left : left + width])
            made[store][name] = encode_png(cut, settings.compression_level)
    return made


def check_room(folder: Path, out: Path, needed: int) -> None:
    """Raise OSError where the disk cannot hold the data set; what a killed run left in `folder` counts as there."""
    existing = next(parent for parent in (folder, *out.absolute().parents) if parent.exists())
    written = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
    free = shutil.disk_usage(existing).free + written
    if free < needed:
        raise OSError(
            f'{out}: at least {needed / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free: make room'
        )


def prepare_dataset(
    hr: Path | Sequence[Path], out: Path, settings: Settings, workers: int = 1, progress: bool = True
) -> dict:
    """Make the data set `out` from the images in `hr`, or finish what a killed run began; returns its description.

    `hr` is a folder or several, over which the names of the images are unique.

    Raises FileExistsError for an existing `out` or a `.partial` folder made otherwise, and whatever the checks of the
    sources raise, before anything is written.
    """
    if out.exists():
        raise FileExistsError(f'{out}: exists already: delete it or choose another --out')
    folders = [hr] if isinstance(hr, Path) else list(hr)
    check_folders(folders, out)
    check_place(out)
    if workers < 1:
        raise ValueError(f'workers must be at least 1, got {workers}')
    sources, left_out = inspect_folders(folders, settings, workers, progress)
    description = describe_dataset(sources, settings, [path.resolve().name for path in folders], left_out)
    folder = out.with_name(f'{out.name}.partial')
    check_resumable(folder, description)
    check_room(folder, out, least_bytes(sources, settings))
    folder.mkdir(parents=True, exist_ok=True)
    with only_run(folder):
        write_atomically(folder / 'dataset.json', json.dumps(description, indent=1).encode('ascii'))
        _fill(folder, folders, sources, settings, workers, progress)
        sync_path(folder)
        os.rename(folder, out)
        sync_path(out.absolute().parent)
    return description


def check_folders(folders: Sequence[Path], out: Path) -> None:
    """Raise ValueError for HR folders that are named twice, or hold `out`."""
    if not folders:
        raise ValueError('expected at least one folder of HR images, got none')
    for number, path in enumerate(folders):
        if path.resolve() in [other.resolve() for other in folders[:number]]:
            raise ValueError(f'{path}: the folder is named twice: name it once')
        if out.resolve().is_relative_to(path.resolve()):
            raise ValueError(f'{out}: lies inside the folder of the HR images, {path}: choose another --out')


def check_resumable(folder: Path, description: dict) -> None:
    """Raise FileExistsError where the `.partial` folder was begun with other settings, other images or by others."""
    if not folder.exists() or not any(path.name != '.dataset.json.partial' for path in folder.iterdir()):
        return
    record = folder / 'dataset.json'
    begun = read_begun(json.loads(record.read_text()) if record.is_file() else {}, description['folders'])
    for name in ('version', 'settings', 'folders', 'sources'):
        if begun.get(name) != description[name]:
            remedy = 'repeat it as it was, or delete the folder'
            raise FileExistsError(f'{folder}: an unfinished run had another value of {name!r}: {remedy}')


def _fill(
    folder: Path, hr: Sequence[Path], sources: dict[str, Source], settings: Settings, workers: int, progress: bool
) -> None:
    """Make what is missing in the stores of `folder`, then finish them."""
    writer_type = LmdbWriter if settings.format == 'lmdb' else FolderWriter
    boxes = {key: cut_boxes(key, source.height, source.width, settings) for key, source in sources.items()}
    with ExitStack() as stack:
        writers = {name: stack.enter_context(closing(writer_type(folder / name))) for name in settings.stores}
        missing = [
            key for key in sources if any(name not in writer for writer in writers.values() for name in boxes[key])
        ]
        tasks = ((hr[one.folder] / one.file, key, one.sha256, settings) for key in missing for one in (sources[key],))
        bar = tqdm(
            total=len(sources), initial=len(sources) - len(missing), desc='making', unit='image', disable=not progress
        )
        with bar:
            _write_results(run_tasks(_make_source, tasks, workers), writers, bar)
        for name, writer in writers.items():
            writer.finish(_meta_entries(boxes, settings.stores[name], settings.compression_level))


def _make_source(task: tuple[Path, str, str, Settings]) -> dict[str, dict[str, bytes]]:
    path, key, sha256, settings = task
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f'{path}: changed while the data set was made: delete the .partial folder and start again')
    try:
        return make_pairs(decode_image(data, str(path), settings.grey), key, settings)
    except (cv2.error, MemoryError) as error:
        raise OSError(f'{path}: {type(error).__name__}: {error}') from error


def _write_results(results: Iterable[dict[str, dict[str, bytes]]], writers: dict, bar: tqdm) -> None:
    committed = time.monotonic()
    for made in results:
        for name, images in made.items():
            writers[name].add(images)
        held = sum(writer.pending_bytes for writer in writers.values())
        if held > COMMIT_BYTES or time.monotonic() - committed > COMMIT_SECONDS:
            for writer in writers.values():
                writer.flush()
            committed = time.monotonic()
        bar.update()


def _meta_entries(boxes: dict[str, dict[str, Box]], scale: int, compression_level: int) -> Iterator[MetaEntry]:
    for name, box in ((name, box) for named in boxes.values() for name, box in named.items()):
        _, _, height, width = shrink_box(box, scale)
        yield MetaEntry(name, height, width, 3, compression_level)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Make a paired super-resolution data set for BasicSR: GT and MATLAB-bicubic LR, whole or in\n'
        'sub-images, as LMDB or folders. A killed run is finished by the same command.',
        epilog='examples:\n  python scripts/prepare_data.py --hr DIV2K_train_HR --out datasets/DIV2K --scale 2 3 4\n'
        'writes datasets/DIV2K/{GT,LRbicx2,LRbicx3,LRbicx4}.lmdb and dataset.json\n'
        '  python scripts/prepare_data.py --hr BSDS400 T91 --out datasets/BSDS400_T91 --sub-image 0 --min-side 96\n'
        'exit code: 0 done, 2 refused or failed, 130 interrupted',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        '--hr',
        type=Path,
        nargs='+',
        required=True,
        metavar='FOLDER',
        help='one or more folders of HR images: 8-bit RGB PNG, JPEG or BMP, no dots in the names, no name twice',
    )
    add('--out', type=Path, required=True, help='folder to make; must not exist')
    add('--scale', type=int, nargs='+', default=[4], help='one or more scales, sharing one GT (default: 4)')
    add('--sub-image', type=int, default=480, help='side of the HR sub-images, 0 for whole images (default: 480)')
    add('--step', type=int, default=240, help='distance of the HR sub-images (default: 240)')
    add('--thresh', type=int, default=0, help='rest at the border that earns no sub-image of its own (default: 0)')
    add('--small', choices=('error', 'keep', 'skip'), default='error', help='images below the sub-image size')
    add('--min-side', type=int, default=0, help='leave out images with a side below this, in HR pixels (default: 0)')
    add('--format', choices=('lmdb', 'disk'), default='lmdb', help='LMDB, or folders of PNG files (default: lmdb)')
    add('--grey', choices=('error', 'convert'), default='error', help='grey images: refuse, or repeat the channel')
    add(
        '--compression-level',
        type=int,
        default=1,
        help='of the PNG values, 0 to 9 (default: 1, fast to decode). 0 writes in-place PNG: larger, valid for every '
        'reader, but PairedCropDataset and CachedTeacherDataset cut crops out of it without decoding the image',
    )
    add('--workers', type=int, default=min(8, os.cpu_count() or 1), help='processes (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed, 130 interrupted."""
    given = vars(_parse(argv))
    return exit_code(lambda: _run(**given))


def _run(hr: list[Path], out: Path, workers: int, scale: list[int], **settings: Any) -> None:
    description = prepare_dataset(hr, out, Settings(tuple(sorted(scale)), **settings), workers)
    counts, stores = description['counts'], ', '.join(description['stores'])
    print(f'{out}: {counts["images"]} images from {counts["sources"]} sources in each of {stores}')
    if description['left_out']:
        print(describe_left_out(description['left_out'], settings['min_side']))


def describe_left_out(left_out: Mapping[str, Sequence[int]], min_side: int) -> str:
    """Which images were too small, by the first names."""
    names = [f'{key} ({height}x{width})' for key, (height, width) in left_out.items()]
    more = f' and {len(names) - SHOWN_LEFT_OUT} more' if len(names) > SHOWN_LEFT_OUT else ''
    return f'{len(names)} left out, smaller than min-side {min_side}: {", ".join(names[:SHOWN_LEFT_OUT])}{more}'
