"""From a folder of HR images to a paired data set for BasicSR: mod-crop, MATLAB-bicubic LR, sub-images, LMDB or PNG.

Everything is made in `<out>.partial` and renamed to `<out>` when it is whole and on the disk. A killed run is resumed
by the same command: a source is done when all its images are in all stores, and each source is committed as one.
"""

import argparse
import fcntl
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from mtkd_data.image_io import check_header, decode_image, encode_png, key_images, list_images, read_header
from mtkd_data.lmdb_store import FolderWriter, LmdbWriter, MetaEntry, sync_path, write_atomically
from mtkd_data.matlab_bicubic import imresize_bicubic, mod_crop

LAYOUT_VERSION = 1  # of dataset.json and of what it promises
COMMIT_SECONDS = 0.5  # a kill costs this much finished work, and what the workers hold
COMMIT_BYTES = 64 * 2**20
SHOWN_PROBLEMS = 20

Task = TypeVar('Task')
Result = TypeVar('Result')
Box = tuple[int, int, int, int]  # top, left, height, width


@dataclass(frozen=True)
class Settings:
    """What decides the content of a data set. Raises ValueError where the values contradict each other."""

    scales: tuple[int, ...]
    sub_image: int = 480
    step: int = 240
    thresh: int = 0
    small: Literal['error', 'keep', 'skip'] = 'error'
    format: Literal['lmdb', 'disk'] = 'lmdb'
    grey: Literal['error', 'convert'] = 'error'
    compression_level: int = 1

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) < 2 or len(set(self.scales)) < len(self.scales):
            raise ValueError(f'scales must be different whole numbers of at least 2, got {list(self.scales)}')
        if not 0 <= self.compression_level <= 9:
            raise ValueError(f'compression level must lie in 0..9, got {self.compression_level}')
        if self.sub_image < 0 or self.thresh < 0 or (self.sub_image and self.step < 1):
            given = f'sub-image {self.sub_image}, step {self.step}, thresh {self.thresh}'
            raise ValueError(f'sub-image and thresh must not be negative, step must be positive, got {given}')
        for what, value in (('sub-image', self.sub_image), ('step', self.step if self.sub_image else 0)):
            if value % self.mod_crop:
                scales = ', '.join(map(str, self.scales))
                raise ValueError(f'{what} {value} must divide by every scale ({scales}): take {self.rounded(value)}')

    @property
    def mod_crop(self) -> int:
        """All scales share one GT, cropped to a multiple of this."""
        return math.lcm(*self.scales)

    def rounded(self, value: int) -> int:
        """The nearest positive size that every scale divides."""
        return max(1, round(value / self.mod_crop)) * self.mod_crop

    @property
    def stores(self) -> dict[str, int]:
        """Name of each store and the scale it is made at; GT has 1."""
        suffix = '.lmdb' if self.format == 'lmdb' else ''
        return {f'GT{suffix}': 1} | {f'LRbicx{scale}{suffix}': scale for scale in self.scales}


@dataclass(frozen=True)
class Source:
    """One HR file, as it was when it was checked; height and width after the mod-crop."""

    file: str
    sha256: str
    bytes: int
    height: int
    width: int


def cut_positions(length: int, size: int, step: int, thresh: int = 0) -> list[int]:
    """Where sub-images start along one side; the last lies flush with the border if more than `thresh` is left over."""
    positions = list(range(0, length - size + 1, step))
    if length - (positions[-1] + size) > thresh:
        positions.append(length - size)
    return positions


def cut_boxes(key: str, height: int, width: int, settings: Settings) -> dict[str, Box]:
    """Key and place of every sub-image of an HR image, row by row as BasicSR's `extract_subimages` counts them."""
    size = settings.sub_image
    if not size:
        return {key: (0, 0, height, width)}
    if height < size or width < size:
        return {f'{key}_s001': (0, 0, height, width)} if settings.small == 'keep' else {}
    tops = cut_positions(height, size, settings.step, settings.thresh)
    lefts = cut_positions(width, size, settings.step, settings.thresh)
    corners = [(top, left) for top in tops for left in lefts]
    return {f'{key}_s{index:03d}': (*corner, size, size) for index, corner in enumerate(corners, start=1)}


def shrink_box(box: Box, scale: int) -> Box:
    """The same place in the LR image."""
    top, left, height, width = (value // scale for value in box)
    return top, left, height, width


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


def run_tasks(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Results of `function` in the order of `tasks`, from `workers` processes; 1 stays in this one.

    Only two tasks per worker are in flight, so results do not pile up. Raises ChildProcessError where a worker dies.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context('forkserver')
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    pending: deque = deque()
    try:
        for task in tasks:
            pending.append(executor.submit(function, task))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError('a worker died, perhaps for want of memory: take fewer workers') from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    # a worker waits for tasks for ever when its parent is killed
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def inspect_source(path: Path, settings: Settings) -> Source:
    """Check one HR file without decoding it; raises ValueError, naming it, where it cannot be used."""
    data = path.read_bytes()
    header = read_header(data, str(path))
    check_header(header, str(path), settings.grey)
    height, width = (side - side % settings.mod_crop for side in (header.height, header.width))
    if not height or not width:
        needed = f'{settings.mod_crop}x{settings.mod_crop}'
        raise ValueError(f'{path}: {header.height}x{header.width} is too small, these scales need {needed}: remove it')
    if settings.sub_image and min(height, width) < settings.sub_image and settings.small == 'error':
        remedy = '--small skip leaves it out, --small keep takes it whole, --sub-image takes another size'
        raise ValueError(f'{path}: {height}x{width} (after mod-crop) is below sub-image {settings.sub_image}: {remedy}')
    return Source(path.name, hashlib.sha256(data).hexdigest(), len(data), height, width)


def _inspect_or_explain(path: Path, settings: Settings) -> Source | str:
    try:
        return inspect_source(path, settings)
    except ValueError as error:
        return str(error)


def inspect_folder(folder: Path, settings: Settings, workers: int, progress: bool = True) -> dict[str, Source]:
    """Check every HR file; raises one ValueError that names all (the first 20) which cannot be used."""
    keyed = key_images(list_images(folder))
    with ThreadPoolExecutor(workers) as pool:  # threads: reading and checksums run outside the interpreter's lock
        found = pool.map(partial(_inspect_or_explain, settings=settings), keyed.values())
        found = list(tqdm(found, 'checking', len(keyed), unit='image', disable=not progress))
    problems = [problem for problem in found if isinstance(problem, str)]
    if problems:
        raise ValueError(f'{len(problems)} of {len(found)} images cannot be used:\n  ' + list_problems(problems))
    sources = dict(zip(keyed, found, strict=True))
    if not any(cut_boxes(key, source.height, source.width, settings) for key, source in sources.items()):
        raise ValueError(f'{folder}: every image is below sub-image {settings.sub_image}: nothing would be left')
    return sources


def list_problems(problems: list[str]) -> str:
    """The first problems, one per line, and how many more there are."""
    more = len(problems) - SHOWN_PROBLEMS
    return '\n  '.join(problems[:SHOWN_PROBLEMS] + ([f'... and {more} more'] if more > 0 else []))


def describe_dataset(sources: dict[str, Source], settings: Settings) -> dict:
    """Content of `dataset.json`: the same for the same sources and settings, however often the run was killed."""
    boxes = {key: cut_boxes(key, source.height, source.width, settings) for key, source in sources.items()}
    return {
        'version': LAYOUT_VERSION,
        'settings': asdict(settings) | {'scales': list(settings.scales)},
        'mod_crop': settings.mod_crop,
        'stores': settings.stores,
        'counts': {'sources': len(sources), 'images': sum(map(len, boxes.values()))},
        'sources': {key: asdict(source) | {'images': len(boxes[key])} for key, source in sources.items()},
    }


def least_bytes(sources: dict[str, Source], settings: Settings) -> int:
    """A lower bound of what the data set takes: our PNG are no smaller per pixel than their source (BMP: a quarter)."""
    share = sum(1 / scale**2 for scale in settings.stores.values())
    total = 0.0
    for key, source in sources.items():
        boxes = cut_boxes(key, source.height, source.width, settings).values()
        pixels = sum(height * width for _, _, height, width in boxes)
        factor = 0.25 if source.file.lower().endswith('.bmp') else 1.0
        total += factor * source.bytes * pixels / (source.height * source.width)
    return int(total * share)


def check_room(folder: Path, out: Path, needed: int) -> None:
    """Raise OSError where the disk cannot hold the data set; what a killed run left in `folder` counts as there."""
    existing = next(parent for parent in (folder, *out.absolute().parents) if parent.exists())
    written = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
    free = shutil.disk_usage(existing).free + written
    if free < needed:
        raise OSError(
            f'{out}: at least {needed / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free: make room'
        )


def prepare_dataset(hr: Path, out: Path, settings: Settings, workers: int = 1, progress: bool = True) -> dict:
    """Make the data set `out` from the images in `hr`, or finish what a killed run began; returns its description.

    Raises FileExistsError for an existing `out` or a `.partial` folder made otherwise, and whatever the checks of the
    sources raise, before anything is written.
    """
    if out.exists():
        raise FileExistsError(f'{out}: exists already: delete it or choose another --out')
    if out.resolve().is_relative_to(hr.resolve()):
        raise ValueError(f'{out}: lies inside the folder of the HR images, {hr}: choose another --out')
    if workers < 1:
        raise ValueError(f'workers must be at least 1, got {workers}')
    sources = inspect_folder(hr, settings, workers, progress)
    description = describe_dataset(sources, settings)
    folder = out.with_name(f'{out.name}.partial')
    check_resumable(folder, description)
    check_room(folder, out, least_bytes(sources, settings))
    folder.mkdir(parents=True, exist_ok=True)
    with _only_run(folder):
        write_atomically(folder / 'dataset.json', json.dumps(description, indent=1).encode('ascii'))
        _fill(folder, hr, sources, settings, workers, progress)
        sync_path(folder)
        os.rename(folder, out)
        sync_path(out.absolute().parent)
    return description


def check_resumable(folder: Path, description: dict) -> None:
    """Raise FileExistsError where the `.partial` folder was begun with other settings, other images or by others."""
    if not folder.exists() or not any(path.name != '.dataset.json.partial' for path in folder.iterdir()):
        return
    record = folder / 'dataset.json'
    begun = json.loads(record.read_text()) if record.is_file() else {}
    for name in ('version', 'settings', 'sources'):
        if begun.get(name) != description[name]:
            remedy = 'repeat it as it was, or delete the folder'
            raise FileExistsError(f'{folder}: an unfinished run had another value of {name!r}: {remedy}')


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lifts it when this process dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f'{folder}: another run is at work in it: wait for it or end it') from error
        yield
    finally:
        os.close(descriptor)


def _fill(folder: Path, hr: Path, sources: dict[str, Source], settings: Settings, workers: int, progress: bool) -> None:
    """Make what is missing in the stores of `folder`, then finish them."""
    writer_type = LmdbWriter if settings.format == 'lmdb' else FolderWriter
    boxes = {key: cut_boxes(key, source.height, source.width, settings) for key, source in sources.items()}
    with ExitStack() as stack:
        writers = {name: stack.enter_context(closing(writer_type(folder / name))) for name in settings.stores}
        missing = [
            key for key in sources if any(name not in writer for writer in writers.values() for name in boxes[key])
        ]
        tasks = ((hr / sources[key].file, key, sources[key].sha256, settings) for key in missing)
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
        epilog='example:\n  python scripts/prepare_data.py --hr DIV2K_train_HR --out datasets/DIV2K --scale 2 3 4\n'
        'writes datasets/DIV2K/{GT,LRbicx2,LRbicx3,LRbicx4}.lmdb and dataset.json\n'
        'exit code: 0 done, 2 refused or failed, 130 interrupted',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--hr', type=Path, required=True, help='folder of HR images: 8-bit RGB PNG, JPEG or BMP, no dots in the names')
    add('--out', type=Path, required=True, help='folder to make; must not exist')
    add('--scale', type=int, nargs='+', default=[4], help='one or more scales, sharing one GT (default: 4)')
    add('--sub-image', type=int, default=480, help='side of the HR sub-images, 0 for whole images (default: 480)')
    add('--step', type=int, default=240, help='distance of the HR sub-images (default: 240)')
    add('--thresh', type=int, default=0, help='rest at the border that earns no sub-image of its own (default: 0)')
    add('--small', choices=('error', 'keep', 'skip'), default='error', help='images below the sub-image size')
    add('--format', choices=('lmdb', 'disk'), default='lmdb', help='LMDB, or folders of PNG files (default: lmdb)')
    add('--grey', choices=('error', 'convert'), default='error', help='grey images: refuse, or repeat the channel')
    add('--compression-level', type=int, default=1, help='of the PNG values, 0 to 9 (default: 1, fast to read)')
    add('--workers', type=int, default=min(8, os.cpu_count() or 1), help='processes (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed, 130 interrupted."""
    given = vars(_parse(argv))
    hr, out, workers, scales = (given.pop(name) for name in ('hr', 'out', 'workers', 'scale'))
    try:
        description = prepare_dataset(hr, out, Settings(tuple(sorted(scales)), **given), workers)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted: the same command goes on from here', file=sys.stderr)
        return 130
    counts, stores = description['counts'], ', '.join(description['stores'])
    print(f'{out}: {counts["images"]} images from {counts["sources"]} sources in each of {stores}')
    return 0
