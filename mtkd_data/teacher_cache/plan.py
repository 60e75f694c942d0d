"""What a teacher cache will hold: its settings and description, whether it is there already, the room it takes."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mtkd_data.flat_png import encode_flat_png
from mtkd_data.preparation.prepare import check_room
from mtkd_data.teacher_cache.cache import HIGHEST, LOWEST, TeacherCache, fingerprint_of
from mtkd_data.teacher_cache.description import CACHE_VERSION, FORMATS, describe_networks
from mtkd_data.teacher_cache.lq_source import LqImage
from mtkd_data.teacher_cache.runner import precision_of
from mtkd_data.whole_files import check_place

BEGUN = 'begun.json'  # in an unfinished cache: what it is made from; `cache.json` comes last
LMDB_PAGE = 4096
LEAST_SHARE = 0.5  # of its plain size that a compressed 16-bit image takes


@dataclass(frozen=True)
class CacheSettings:
    """How a cache is made. Raises ValueError for values that cannot be."""

    stores: tuple[str, ...]
    format: Literal['lmdb', 'disk'] = 'lmdb'
    compression_level: int = 0
    self_ensemble: bool = False
    precision: Literal['fp32', 'bf16', 'fp16'] | None = None
    tile: int = 0
    overlap: int = 32

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f'format is {self.format!r}, expected {" or ".join(FORMATS)}')
        if not 0 <= self.compression_level <= 9:
            raise ValueError(f'compression level must lie in 0..9, got {self.compression_level}')
        if self.tile < 0 or self.overlap < 0:
            raise ValueError(f'tile and overlap must not be negative, got {self.tile} and {self.overlap}')


def describe_cache(opt: Mapping[str, Any], settings: CacheSettings, images: Mapping[str, LqImage]) -> dict[str, Any]:
    """What decides the content of the cache: cache.json but for what is measured and the versions."""
    return {
        'version': CACHE_VERSION,
        'scale': opt['scale'],
        'format': settings.format,
        'compression_level': settings.compression_level,
        'range': [LOWEST, HIGHEST],
        'stores': list(settings.stores),
        **describe_networks(opt, settings.stores),
        'self_ensemble': settings.self_ensemble,
        'precision': precision_of(opt, settings.stores),
        'tile': {'tile': settings.tile, 'overlap': settings.overlap} if settings.tile else None,
        'lq': {
            'images': len(images),
            'fingerprint': fingerprint_of({key: image.sha256 for key, image in images.items()}),
        },
    }


def find_complete(out: Path, description: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of cache.json where ``out`` is the cache that is described, None where there is nothing.

    Raises FileExistsError where something else is there.
    """
    if not out.exists():
        return None
    try:
        made = TeacherCache(out).description
    except (ValueError, OSError) as error:
        remedy = 'delete it or choose another --out'
        raise FileExistsError(f'{out}: exists already and is no whole teacher cache ({error}): {remedy}') from error
    difference = find_difference(_identity(made), description)
    if difference:
        raise FileExistsError(f'{out}: another cache is there: {difference}: delete it or choose another --out')
    return made


def find_difference(made: Any, wanted: Any, where: str = '') -> str:
    """The first item in which two descriptions differ, with both values; empty where they are equal."""
    if isinstance(made, dict) and isinstance(wanted, dict):
        items = (name for name in {**wanted, **made} if made.get(name) != wanted.get(name))
        name = next(items, None)
        if name is None:
            return ''
        return find_difference(made.get(name), wanted.get(name), f'{where}.{name}' if where else name)
    return '' if made == wanted else f'{where} is {made} there and {wanted} here'


def check_start(
    folder: Path,
    out: Path,
    settings: CacheSettings,
    description: Mapping[str, Any],
    images: Mapping[str, LqImage],
    processes: int,
) -> None:
    """Raise FileExistsError for a ``.partial`` folder that holds something else, OSError for too little room."""
    check_place(out)
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names - {f'.{BEGUN}.partial'}:
        record = folder / BEGUN
        if not record.is_file():
            raise FileExistsError(f'{folder}: holds something that is no unfinished cache: delete the folder')
        difference = find_difference(_identity(json.loads(record.read_text())), dict(description))
        if difference:
            remedy = 'repeat it as it was, or delete the folder'
            raise FileExistsError(f'{folder}: an unfinished run made another cache: {difference}: {remedy}')
    shards = settings.format == 'lmdb' and (processes > 1 or any(name.startswith('shard') for name in names))
    sizes = [(image.height * description['scale'], image.width * description['scale']) for image in images.values()]
    check_room(folder, out, (2 if shards else 1) * bytes_needed(sizes, settings))


def bytes_needed(sizes: Iterable[tuple[int, int]], settings: CacheSettings) -> int:
    """What images of these heights and widths take in all stores: exact for level 0, else a lower bound."""
    total = 0
    for height, width in sizes:
        first, each = _row_bytes(width)
        size = first + (height - 1) * each
        if settings.compression_level:
            size = int(size * LEAST_SHARE)
        if settings.format == 'lmdb':
            size = -(-(size + 16) // LMDB_PAGE) * LMDB_PAGE
        total += size
    return total * len(settings.stores)


@cache
def _row_bytes(width: int) -> tuple[int, int]:
    """Size of an uncompressed PNG of one row, and of each further row."""
    one, two = (len(encode_flat_png(np.zeros((height, width, 3), np.uint16))) for height in (1, 2))
    return one, two - one


def _identity(description: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is measured and the versions: the same for every run of one command."""
    kept = {name: value for name, value in description.items() if name not in ('clipped', 'versions', 'samples')}
    if kept.get('tile'):
        kept['tile'] = {name: value for name, value in kept['tile'].items() if name != 'seam'}
    return kept
