"""What a data set will hold: its settings, its checked HR sources and the sub-images to cut from each."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from mtkd_data.image_io import check_header, key_images, list_images, read_header

LAYOUT_VERSION = 1  # of dataset.json and of what it promises
SHOWN_PROBLEMS = 20

Box = tuple[int, int, int, int]  # top, left, height, width


def check_scales(scales: Sequence[int]) -> None:
    """Raise ValueError unless ``scales`` are different numbers of at least 2."""
    if not scales or min(scales) < 2 or len(set(scales)) < len(scales):
        raise ValueError(f'scales must be different whole numbers of at least 2, got {list(scales)}')


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
    min_side: int = 0

    def __post_init__(self) -> None:
        check_scales(self.scales)
        if not 0 <= self.compression_level <= 9:
            raise ValueError(f'compression level must lie in 0..9, got {self.compression_level}')
        if self.sub_image < 0 or self.thresh < 0 or (self.sub_image and self.step < 1):
            given = f'sub-image {self.sub_image}, step {self.step}, thresh {self.thresh}'
            raise ValueError(f'sub-image and thresh must not be negative, step must be positive, got {given}')
        if self.min_side < 0:
            raise ValueError(f'min-side must not be negative, got {self.min_side}')
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
    """One HR file, as it was when it was checked; height and width after the mod-crop, ``folder`` counts from 0."""

    file: str
    sha256: str
    bytes: int
    height: int
    width: int
    folder: int = 0


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


def inspect_source(path: Path, settings: Settings, folder: int = 0) -> Source:
    """Check one HR file without decoding it; raises ValueError, naming it, where it cannot be used.

    One below `min_side` is to be left out, so what else would be too small about it does not matter.
    """
    data = path.read_bytes()
    header = read_header(data, str(path))
    check_header(header, str(path), settings.grey)
    height, width = (side - side % settings.mod_crop for side in (header.height, header.width))
    source = Source(path.name, hashlib.sha256(data).hexdigest(), len(data), height, width, folder)
    if min(height, width) < settings.min_side:
        return source
    if not height or not width:
        needed = f'{settings.mod_crop}x{settings.mod_crop}'
        raise ValueError(f'{path}: {header.height}x{header.width} is too small, these scales need {needed}: remove it')
    if settings.sub_image and min(height, width) < settings.sub_image and settings.small == 'error':
        remedy = '--small skip leaves it out, --small keep takes it whole, --sub-image takes another size'
        raise ValueError(f'{path}: {height}x{width} (after mod-crop) is below sub-image {settings.sub_image}: {remedy}')
    return source


def _inspect_or_explain(path: Path, folder: int, settings: Settings) -> Source | str:
    try:
        return inspect_source(path, settings, folder)
    except ValueError as error:
        return str(error)


def inspect_folders(
    folders: Sequence[Path], settings: Settings, workers: int, progress: bool = True
) -> tuple[dict[str, Source], dict[str, Source]]:
    """Check every HR file: those to use by key, and those left out as too small.

    Raises ValueError for a name that is in two folders, and one that names all (the first 20) files which cannot be
    used.
    """
    placed = {path: number for number, folder in enumerate(folders) for path in list_images(folder)}
    keyed = key_images(sorted(placed, key=lambda path: path.name))
    with ThreadPoolExecutor(workers) as pool:  # threads: reading and checksums run outside the interpreter's lock
        numbers = [placed[path] for path in keyed.values()]
        found = pool.map(partial(_inspect_or_explain, settings=settings), keyed.values(), numbers)
        found = list(tqdm(found, 'checking', len(keyed), unit='image', disable=not progress))
    problems = [problem for problem in found if isinstance(problem, str)]
    if problems:
        raise ValueError(f'{len(problems)} of {len(found)} images cannot be used:\n  ' + list_problems(problems))
    every = dict(zip(keyed, found, strict=True))
    sources = {key: one for key, one in every.items() if min(one.height, one.width) >= settings.min_side}
    if not any(cut_boxes(key, source.height, source.width, settings) for key, source in sources.items()):
        bound = f'sub-image {settings.sub_image}' if sources else f'min-side {settings.min_side}'
        raise ValueError(f'{", ".join(map(str, folders))}: every image is below {bound}: nothing would be left')
    return sources, {key: one for key, one in every.items() if key not in sources}


def list_problems(problems: list[str]) -> str:
    """The first problems, one per line, and how many more there are."""
    more = len(problems) - SHOWN_PROBLEMS
    return '\n  '.join(problems[:SHOWN_PROBLEMS] + ([f'... and {more} more'] if more > 0 else []))


def describe_dataset(
    sources: Mapping[str, Source], settings: Settings, folders: Sequence[str] = (), left_out: Mapping[str, Source] = {}
) -> dict:
    """Content of `dataset.json`: the same for the same sources and settings, however often the run was killed.

    `folders` are names without their place, as checksums say what was in them.
    """
    boxes = {key: cut_boxes(key, source.height, source.width, settings) for key, source in sources.items()}
    return {
        'version': LAYOUT_VERSION,
        'settings': asdict(settings) | {'scales': list(settings.scales)},
        'mod_crop': settings.mod_crop,
        'stores': settings.stores,
        'counts': {'sources': len(sources), 'images': sum(map(len, boxes.values()))},
        'folders': list(folders),
        'sources': {key: asdict(source) | {'images': len(boxes[key])} for key, source in sources.items()},
        'left_out': {key: [source.height, source.width] for key, source in left_out.items()},
    }


def read_begun(record: Mapping, folders: Sequence[str]) -> dict:
    """A `dataset.json` as it is written now: one from before several folders and `min_side` lacks these."""
    settings = {'min_side': 0, **record.get('settings', {})}
    sources = {key: {'folder': 0, **source} for key, source in record.get('sources', {}).items()}
    return {'folders': list(folders)[:1], **record, 'settings': settings, 'sources': sources}


def least_bytes(sources: dict[str, Source], settings: Settings) -> int:
    """A lower bound of what the data set takes: our PNG are no smaller per pixel than their source (BMP: a quarter).

    At compression level 0 it is what the pixels take.
    """
    share = sum(1 / scale**2 for scale in settings.stores.values())
    total = 0.0
    for key, source in sources.items():
        boxes = cut_boxes(key, source.height, source.width, settings).values()
        pixels = sum(height * width for _, _, height, width in boxes)
        factor = 0.25 if source.file.lower().endswith('.bmp') else 1.0
        total += (
            3 * pixels
            if settings.compression_level == 0
            else factor * source.bytes * pixels / (source.height * source.width)
        )
    return int(total * share)
