"""What the files that an option names hold, so that a result of other weights or images is not taken for a new one."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtkd_data.lmdb_pages import sound_sizes
from mtkd_data.teacher_cache.description import sha256_of_file
from mtkd_data.weights_path import weights_path

LISTING = 'meta_info.txt'


def fingerprints(options: Any) -> list[list[str]]:
    """[path, fingerprint] of every file and folder that strings in ``options`` name, in the order of the paths."""
    found = {path: weights_path(path) for path in sorted(set(_paths(options)))}
    return [[path, of_path(place)] for path, place in found.items() if place.exists()]


def of_path(path: Path) -> str:
    """SHA-256 of a file; of a folder that of its files' names and sizes.

    Of an LMDB that of its keys, the sizes of their values and its listing: the pages it is stored on differ from
    one writing of the same images to the next. Raises OSError for one that is damaged.
    """
    if path.is_file():
        return _of_state(_of_file, path)
    names: list[str] = []
    for file in sorted(each for each in path.rglob('*') if each.is_file()):
        place = file.relative_to(path).as_posix()
        if file.name == LISTING:
            names.append(file.read_text())
        elif file.name == 'data.mdb':
            names.append(f'{place} {_of_state(_of_lmdb, file)}')
        elif file.name != 'lock.mdb':
            names.append(f'{place} {file.stat().st_size}')
    return hashlib.sha256('\n'.join(names).encode()).hexdigest()


def _of_state(fingerprint: Callable[[Path, int, int], str], file: Path) -> str:
    stat = file.stat()
    return fingerprint(file, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=256)
def _of_file(path: Path, modified: int, size: int) -> str:
    return sha256_of_file(path)


@functools.lru_cache(maxsize=256)
def _of_lmdb(data: Path, modified: int, size: int) -> str:
    entries = '\n'.join(f'{key} {length}' for key, length in sound_sizes(data.parent).items())
    return hashlib.sha256(entries.encode()).hexdigest()


def _paths(options: Any) -> Iterator[str]:
    if isinstance(options, Mapping):
        for value in options.values():
            yield from _paths(value)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from _paths(value)
    elif isinstance(options, str) and '/' in options:
        yield options
