"""A training set with what frozen teachers made of it, so that no step has to run them."""

import os
from collections.abc import Iterator
from os.path import basename, splitext
from typing import ClassVar

import mtkd  # noqa: F401  mends the upstream faults before BasicSR is imported

# isort: split
from basicsr.utils.registry import DATASET_REGISTRY
from tqdm import tqdm

from mtkd_data.dataset_keys import CACHE_KEYS, Keys
from mtkd_data.image_store import FileStore, ImageSource, LmdbStore, SharedReader
from mtkd_data.lmdb_store import parse_meta
from mtkd_data.paired_crops import PairedCrops
from mtkd_data.teacher_cache.cache import CacheFolder, TeacherCache, lq_fingerprint

SHOWN_KEYS = 3


class SharingCache(TeacherCache):
    """A cache whose LMDBs another data set of this process may be reading."""

    def open_store(self, store: str) -> SharedReader | CacheFolder:
        path = self.path_of(store)
        return SharedReader(path) if path.suffix == '.lmdb' else CacheFolder(path)


@DATASET_REGISTRY.register()
class CachedTeacherDataset(PairedCrops):
    """PairedCropDataset plus ``cached_<store>`` for the stores of a teacher cache: float32 RGB (3, H, W), of the same
    crop and the same flips, in [-0.5, 1.5].

    ``dataroot_cache``: the folder with cache.json. ``cached``: names of stores, by default all of the cache. In the
    phases val and test there are no cached images.

    Before anything is read, a cache of another scale, of other LQ images (by their SHA-256), with images missing, left
    over, of another size or of 8 bits is refused with a ValueError, a missing one with FileNotFoundError.
    """

    keys: ClassVar[Keys] = {**PairedCrops.keys, **CACHE_KEYS}

    def add_sources(self) -> None:
        root, wanted = self.opt.get('dataroot_cache'), self.opt.get('cached')
        if root is None:
            raise ValueError("CachedTeacherDataset lacks the key 'dataroot_cache': the folder of a teacher cache")
        self.cache = SharingCache(root)
        self.cache.check_scale(self.scale)
        keys = {splitext(basename(key))[0]: number for number, key in enumerate(self.others['gt'].keys)}
        if len(keys) < len(self):
            raise ValueError(f'{self.opt["dataroot_gt"]}: images that differ only by extension share one cached image')
        for name in self.cache.chosen(wanted):
            self.others[f'cached_{name}'] = _source(self.cache, name, list(keys), self.scale)
        found = fingerprint(self.lq, list(keys))
        try:
            self.cache.check_lq(found)
        except ValueError:
            for number in range(len(keys)):  # are they other images, or is one of them damaged?
                self.lq.check(number)
            raise


def _source(cache: TeacherCache, name: str, keys: list[str], scale: int) -> ImageSource:
    """The store ``name``, ordered as ``keys``. Raises ValueError unless it holds just these."""
    path = cache.path_of(name)
    if cache.description['format'] == 'lmdb':
        there = {entry.key: '' for entry in parse_meta((path / 'meta_info.txt').read_text())}
        source = ImageSource(LmdbStore(path), keys, scale, 16)
    else:
        there = {file.stem: str(file) for file in path.iterdir() if not file.name.startswith('.')}
        source = ImageSource(FileStore(), [there.get(key, key) for key in keys], scale, 16)
    for what, found in (
        ('no image for', sorted(set(keys) - set(there))),
        ('images without a partner in the data set:', sorted(set(there) - set(keys))),
    ):
        if found:
            shown = ', '.join(found[:SHOWN_KEYS]) + (
                f' and {len(found) - SHOWN_KEYS} more' if found[SHOWN_KEYS:] else ''
            )
            raise ValueError(f'{path} holds {what} {shown}: it was made from other images, make the cache of these')
    return source


_fingerprints: dict[tuple, str] = {}  # of this process, by the state of the files: they are hashed once


def fingerprint(lq: ImageSource, keys: list[str]) -> str:
    """``lq_fingerprint`` of the LQ images, each under the key of its GT."""
    files = [lq.store.path / 'data.mdb'] if isinstance(lq.store, LmdbStore) else lq.keys
    stats = [(str(file), os.stat(file)) for file in files]
    state = (tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in stats), tuple(keys))
    if state not in _fingerprints:
        _fingerprints[state] = lq_fingerprint(_values(lq, keys))
    return _fingerprints[state]


def _values(lq: ImageSource, keys: list[str]) -> Iterator[tuple[str, memoryview]]:
    shown = tqdm(keys, 'checking the LQ images', unit='image', disable=None, leave=False)
    return zip(shown, lq.store.values(lq.keys), strict=True)
