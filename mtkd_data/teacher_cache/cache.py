"""The teacher cache: what frozen networks made of a training set, kept as 16-bit images in BasicSR's layouts.

A cache is a folder with ``cache.json`` (what it was made from) and one store per kind of image: ``target`` and teachers
by name, each an LMDB (``target.lmdb``) or a folder of PNG (``target``). An image has the key of its ground truth.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mtkd_data.damage import check_encoded
from mtkd_data.image_io import PNG_SIGNATURE
from mtkd_data.lmdb_store import LmdbReader, parse_meta
from mtkd_data.preparation.pair_keys import FolderReader
from mtkd_data.teacher_cache.description import CACHE_VERSION, FORMATS, compare_teachers

if TYPE_CHECKING:
    from torch import Tensor

LOWEST, HIGHEST = -0.5, 1.5  # networks overshoot [0, 1]; clamping them would change what the student learns
LEVELS = 65535 / (HIGHEST - LOWEST)  # per unit of intensity
RECORD = 'cache.json'
SAMPLE = 8  # images of a store that are compared whenever a cache is opened
NEEDED = (
    'version',
    'scale',
    'format',
    'compression_level',
    'range',
    'stores',
    'inputs',
    'teachers',
    'aggregator',
    'lq',
)
REMAKE = 'make it with scripts/cache_teachers.py'


def to_uint16(x: 'Tensor') -> np.ndarray:
    """A network's output (3, H, W) as it is stored, uint16 (H, W, 3), both RGB: round((x + 0.5) * 32767.5).

    Values outside [-0.5, 1.5] are clipped. Raises ValueError for values that are not finite.
    """
    levels = (x.detach().double() - LOWEST) * LEVELS
    if not levels.isfinite().all():
        raise ValueError(f'{int((~levels.isfinite()).sum())} of {levels.numel()} values are infinite or not a number')
    return levels.round().clamp(0, 65535).permute(1, 2, 0).cpu().numpy().astype(np.uint16)


def from_uint16(array: np.ndarray) -> np.ndarray:
    """Stored values of any shape and byte order as contiguous float32 in [-0.5, 1.5], a copy."""
    values = array.astype(np.float32, order='C')  # in place: a new array costs as much as the arithmetic
    values /= np.float32(LEVELS)
    values += np.float32(LOWEST)
    return values


def lq_fingerprint(values: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 of a set of LQ images: of the keys of their GT, sorted, each with the SHA-256 of the encoded LQ image."""
    return fingerprint_of({key: hashlib.sha256(value).hexdigest() for key, value in values})


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """``lq_fingerprint`` from the SHA-256 of each image by key."""
    lines = ''.join(f'{key} {digests[key]}\n' for key in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def decode_cached(data: bytes, name: str) -> np.ndarray:
    """A stored image as uint16 (H, W, 3), RGB; ``name`` is what errors call it.

    Raises ValueError for anything but a whole 16-bit RGB PNG: 8-bit images are no cache of this kind.
    """
    check_stored(data, name)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    height, width = struct.unpack_from('>II', data, 16)[::-1]
    if image is None or image.dtype != np.uint16 or image.shape != (height, width, 3):
        raise ValueError(f'{name}: cannot be decoded as a 16-bit RGB image of {height}x{width}: {REMAKE} again')
    return image[..., ::-1]


def check_stored(data: bytes, name: str) -> None:
    """Raise ValueError, naming the image, where its header is not that of a 16-bit RGB PNG."""
    if bytes(data[:8]) != PNG_SIGNATURE or len(data) < 33:
        raise ValueError(f'{name}: expected a 16-bit RGB PNG, found something else: {REMAKE}')
    depth, colour = data[24], data[25]
    if (depth, colour) != (16, 2):
        kind = 'RGB' if colour == 2 else f'colour type {colour}'
        raise ValueError(f'{name}: expected a 16-bit RGB PNG, got {depth}-bit {kind}: not a teacher cache; {REMAKE}')


def sample_digest(reader: Mapping[str, bytes], keys: Sequence[str]) -> str:
    """SHA-256 over ``SAMPLE`` images of a store, evenly spread over its sorted keys."""
    digest = hashlib.sha256()
    for key in sampled(keys):
        digest.update(key.encode() + reader[key])
    return digest.hexdigest()


def sampled(keys: Sequence[str]) -> list[str]:
    """The keys of ``sample_digest``."""
    ordered = sorted(keys)
    return [ordered[len(ordered) * number // SAMPLE] for number in range(min(SAMPLE, len(ordered)))]


class CacheFolder(FolderReader):
    """Reads a store of PNG files; unlike FolderReader's its keys have no extension, as those of an LMDB."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.keys = [Path(name).stem for name in self.keys]

    def __getitem__(self, key: str) -> bytes:
        return super().__getitem__(f'{key}.png')


class TeacherCache:
    """A finished cache. ``root`` is its folder, ``description`` the content of cache.json.

    Raises FileNotFoundError where there is none, or only an unfinished one, and ValueError where cache.json or the
    stores are not what they should be.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.description = _read_description(self.root)
        self.scale: int = self.description['scale']
        self.stores: tuple[str, ...] = tuple(self.description['stores'])
        self._check_stores()

    def path_of(self, store: str) -> Path:
        """The LMDB or folder of a store. Raises ValueError for a store that the cache does not hold."""
        if store not in self.stores:
            raise ValueError(f"{self.root} holds no '{store}', it holds {', '.join(self.stores)}: {REMAKE} --stores")
        return self.root / store_name(store, self.description['format'])

    def chosen(self, wanted: Sequence[str] | None) -> tuple[str, ...]:
        """The stores to read: those ``wanted``, by default all. Raises ValueError for one that the cache lacks."""
        from mtkd.checks import nearest  # here: importing mtkd loads torch, and reading a cache needs none

        if wanted is None:
            return self.stores
        if isinstance(wanted, str) or not wanted:
            raise ValueError(f'cached: expected a list of stores such as [target], got {wanted!r}')
        for name in wanted:
            if name not in self.stores:
                known = ', '.join(self.stores)
                raise ValueError(
                    f"cached: {self.root} has no store '{name}': {nearest(name, self.stores)}Stores: {known}"
                )
        return tuple(dict.fromkeys(wanted))

    def open_store(self, store: str) -> LmdbReader | CacheFolder:
        """Reader of a store, a context manager: ``reader[key]`` is the encoded image."""
        path = self.path_of(store)
        return LmdbReader(path) if self.description['format'] == 'lmdb' else CacheFolder(path)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Sorted keys of the images, the same in every store."""
        return self._keys_of(self.stores[0])

    def _keys_of(self, store: str) -> tuple[str, ...]:
        path = self.path_of(store)
        if self.description['format'] == 'disk':
            return tuple(sorted(CacheFolder(path).keys))
        return tuple(sorted(entry.key for entry in parse_meta((path / 'meta_info.txt').read_text())))

    def _check_stores(self) -> None:
        """Every store is there and holds as many images as cache.json says, under the same keys, the first 16-bit."""
        expected = self.description['lq']['images']
        for store in self.stores:
            path = self.path_of(store)
            listing = path / 'meta_info.txt' if self.description['format'] == 'lmdb' else path
            if not listing.exists():
                raise FileNotFoundError(f'{listing}: missing, though {RECORD} names it: copy the whole cache again')
            keys = self._keys_of(store)
            if len(keys) != expected or keys != self.keys:
                found = f'{len(keys)} images' if len(keys) != expected else f'other keys than {self.stores[0]!r}'
                raise ValueError(f'{path} holds {found}, {RECORD} says {expected}: copy the whole cache again')
            self._check_sample(store, keys)

    def _check_sample(self, store: str, keys: tuple[str, ...]) -> None:
        """The first image is 16-bit, and a sample of all is what it was when the cache was made."""
        path, key = self.path_of(store), keys[0]
        try:
            with self.open_store(store) as reader:
                check_stored(reader[key], f'{path}: {key}')
                made, found = self.description.get('samples', {}).get(store), sample_digest(reader, keys)
                if made not in (None, found):
                    for sample in sampled(keys):  # one that is damaged is named
                        check_encoded(reader[sample], f'{path}: {sample}')
                    raise ValueError(
                        f'{path} is not the store that {RECORD} describes: a sample of its images had SHA-256 {made} '
                        f'when the cache was made, has {found} now: copy the whole cache again'
                    )
        except KeyError as error:
            raise ValueError(f'{path}: {key} is missing: copy the whole cache again') from error
        except OSError as error:
            if 'already open in this process' not in str(error):  # by a data set, which checks whatever it reads
                raise

    def check_scale(self, scale: int) -> None:
        """Raise ValueError for another scale."""
        if scale != self.scale:
            raise ValueError(f'{self.root} was made for scale {self.scale}, the option file has {scale}: {REMAKE}')

    def check_lq(self, fingerprint: str) -> None:
        """Raise ValueError for another LQ data set, by its ``lq_fingerprint``."""
        made_from = self.description['lq']['fingerprint']
        if fingerprint != made_from:
            raise ValueError(
                f'{self.root} was made from other LQ images: fingerprint of the cache {made_from}, of the LQ images '
                f'now {fingerprint}: take the cache made from these images, or {REMAKE}'
            )

    def check_teachers(self, opt: Mapping[str, Any], stores: Iterable[str] | None = None) -> None:
        """Raise ValueError where the option file has other teachers than those that made ``stores`` (default: all).

        Compared are the scale and, of the networks involved, options, window, weights by their SHA-256, param_key and
        strict, for the target also the aggregator and the order of its inputs. A weights file that is absent by now
        cannot be compared: that is a warning.
        """
        self.check_scale(opt['scale'])
        compare_teachers(self.description, opt, tuple(stores or self.stores), self.root)


def store_name(store: str, form: str) -> str:
    """File name of a store in a cache of format ``lmdb`` or ``disk``."""
    return f'{store}.lmdb' if form == 'lmdb' else store


def _read_description(root: Path) -> dict[str, Any]:
    record = root / RECORD
    if not record.is_file():
        partial = root.with_name(f'{root.name}.partial')
        if partial.is_dir():
            raise FileNotFoundError(
                f'{root}: the cache is unfinished, {partial} holds what was made: run the same command of '
                'scripts/cache_teachers.py again, it goes on from there'
            )
        raise FileNotFoundError(f'{root}: expected a teacher cache, {RECORD} is missing: {REMAKE}')
    try:
        description = json.loads(record.read_text())
    except ValueError as error:
        raise ValueError(f'{record}: damaged or truncated ({error}): copy it again, or {REMAKE} again') from error
    if not isinstance(description, dict) or description.get('version') != CACHE_VERSION:
        version = description.get('version') if isinstance(description, dict) else None
        raise ValueError(f'{record}: expected version {CACHE_VERSION}, got {version!r}: {REMAKE} of this release')
    missing = [name for name in NEEDED if name not in description]
    if missing:
        raise ValueError(f'{record}: lacks {", ".join(missing)}: copy it again, or {REMAKE} again')
    if description['range'] != [LOWEST, HIGHEST] or description['format'] not in FORMATS or not description['stores']:
        raise ValueError(
            f'{record}: expected range {[LOWEST, HIGHEST]}, format {" or ".join(FORMATS)} and stores, got '
            f'{description["range"]}, {description["format"]!r} and {description["stores"]}: {REMAKE}'
        )
    return description
