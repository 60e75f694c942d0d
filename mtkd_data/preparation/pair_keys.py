"""Two image stores as the two sides of a paired data set: which images belong together, which have no partner."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mtkd_data.image_io import list_images
from mtkd_data.lmdb_store import LmdbReader, MetaEntry


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
