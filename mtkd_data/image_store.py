"""Encoded images by key without a copy: LMDBs and files are mapped, opened in each process when first read.

What is mapped is gone when the context ends, so whatever outlives it must have been copied.
"""

import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from mtkd_data.damage import DamagedImage, Marks, MissingImage, check_encoded
from mtkd_data.flat_png import view_flat_png
from mtkd_data.lmdb_store import LmdbReader
from mtkd_data.teacher_cache.cache import check_stored, decode_cached

Bits = Literal[8, 16]


class _Mapped(LmdbReader):
    """An open LMDB of one process."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.process = os.getpid()

    def values(self, keys: Iterable[str]) -> Iterator[memoryview]:
        """The values of ``keys``, each valid until the next one is asked for."""
        with self._environment.begin(buffers=True) as transaction:
            for key in keys:
                found = transaction.get(key.encode('ascii'))
                if found is None:
                    raise MissingImage(
                        f'{self.path}: no image {key!r}, though meta_info.txt may name it: copy the LMDB again'
                    )
                yield found

    def close(self) -> None:
        self._environment.close()


# an LMDB can be open only once in a process: all who read it share it, and it is closed with the last of them
_opened: 'weakref.WeakValueDictionary[str, _Mapped]' = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _open_lmdb(path: Path) -> _Mapped:
    with _opening:
        name = os.path.realpath(path)
        mapped = _opened.get(name)
        if mapped is not None and mapped.process != os.getpid():  # inherited by a fork
            mapped.close()
            mapped = None
        if mapped is None:
            mapped = _opened[name] = _Mapped(path)
        return mapped


@dataclass
class LmdbStore:
    """Values of an LMDB in BasicSR's layout, by key. May be pickled, and may go through a fork."""

    path: Path
    _mapped: _Mapped | None = None

    def values(self, keys: Iterable[str]) -> Iterator[memoryview]:
        """The encoded images ``keys``, each valid until the next. Raises MissingImage where there is none."""
        if self._mapped is None or self._mapped.process != os.getpid():
            self._mapped = _open_lmdb(self.path)
        yield from self._mapped.values(keys)

    @contextmanager
    def value(self, key: str) -> Iterator[memoryview]:
        """The encoded image ``key``, valid inside the context. Raises MissingImage where there is none."""
        with closing(self.values([key])) as values:
            yield next(values)

    def where(self, key: str) -> str:
        """What errors call an image."""
        return f'{self.path}: {key}'

    def __getstate__(self) -> dict[str, Path | None]:
        return {'path': self.path, '_mapped': None}


class SharedReader:
    """LmdbReader's reading of values, for an LMDB that may be open in this process already. A context manager."""

    def __init__(self, path: Path) -> None:
        self._mapped = _open_lmdb(path)

    def __getitem__(self, key: str) -> bytes:
        with closing(self._mapped.values([key])) as values:
            return bytes(next(values))

    def __enter__(self) -> 'SharedReader':
        return self

    def __exit__(self, *_: object) -> None:
        del self._mapped


@dataclass(frozen=True)
class FileStore:
    """Files, whose path is their key."""

    def values(self, keys: Iterable[str]) -> Iterator[memoryview]:
        """The files ``keys``, each valid until the next. Raises what ``value`` raises."""
        for key in keys:
            with self.value(key) as value:
                yield value

    @contextmanager
    def value(self, key: str) -> Iterator[memoryview]:
        """The file ``key``, valid inside the context. Raises FileNotFoundError, and DamagedImage for an empty one."""
        with open(key, 'rb') as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise DamagedImage(f'{key}: empty file, expected an image') from error
        yield memoryview(mapped)  # unmapped when the last view of it is gone

    def where(self, key: str) -> str:
        """What errors call an image."""
        return key


Store = LmdbStore | FileStore


@dataclass
class ImageSource:
    """One kind of image of a data set: ``keys`` by number in ``store``; ``factor`` times the size of its LQ image.

    Whether an image is whole is looked at once, by this process and the loader workers it forks.
    """

    store: Store
    keys: list[str]
    factor: int
    bits: Bits = 8

    def __post_init__(self) -> None:
        self._whole = Marks(len(self.keys))

    @contextmanager
    def image(self, number: int, rows: range | None = None) -> Iterator[np.ndarray]:
        """Image ``number`` as RGB (H, W, 3), valid inside the context: a view where the PNG allows, else decoded.

        8 bits: uint8, made of whatever the file holds as BasicSR does. 16 bits: uint16 of either byte order, anything
        else is a ValueError. ``rows`` are those about to be used. Raises DamagedImage for one that is not whole.
        """
        with self.store.value(self.keys[number]) as value:
            self._look(number, value)
            yield see_image(value, self.where(number), self.bits, rows)

    def check(self, number: int) -> None:
        """Raise DamagedImage where image ``number`` is not whole."""
        if not self._whole[number]:
            with self.store.value(self.keys[number]) as value:
                self._look(number, value)

    def _look(self, number: int, value: memoryview) -> None:
        if not self._whole[number]:
            check_encoded(value, self.where(number))
            self._whole[number] = True

    def where(self, number: int) -> str:
        """What errors call image ``number``."""
        return self.store.where(self.keys[number])


def see_image(data: memoryview, name: str, bits: Bits, rows: range | None = None) -> np.ndarray:
    """An encoded image as RGB (H, W, 3); ``name`` is what errors call it. See ``ImageSource.image``."""
    try:
        view = view_flat_png(data, rows)
    except ValueError as error:
        raise DamagedImage(f'{name}: {error}') from error
    if bits == 16:
        check_stored(data, name)
        return view if view is not None else decode_cached(bytes(data), name)
    if view is not None and view.dtype == np.uint8:
        return view
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise DamagedImage(f'{name}: cannot be decoded: replace it')
    return image[..., ::-1]
