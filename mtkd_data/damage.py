"""Damaged images are found where they are read: OpenCV makes pictures of them in silence, or nothing at all.

Every chunk of a PNG has a checksum, so no change of its pixels goes unnoticed. A JPEG has none: only its structure
tells.
"""

import mmap
import multiprocessing
from typing import Any

import cv2
import numpy as np

from mtkd_data.flat_png import view_flat_png
from mtkd_data.image_io import PNG_SIGNATURE, decode_by_opencv, read_header

WITHOUT_DECODING = (PNG_SIGNATURE, b'\xff\xd8\xff')  # PNG and JPEG


class DamagedImage(ValueError):
    """An encoded image that is not whole, by its name."""


class MissingImage(DamagedImage, KeyError):
    """A key that an LMDB lacks, though it is listed."""

    __str__ = Exception.__str__  # KeyError's shows it in quotes


def check_encoded(data: bytes | memoryview, name: str) -> None:
    """Raise DamagedImage unless ``data`` is a whole image; ``name`` is what errors call it.

    PNG: all chunks and their checksums, up to the end. JPEG: its segments, from the first marker to the last. Anything
    else is decoded.
    """
    try:
        view_flat_png(data)
    except ValueError as error:
        raise DamagedImage(f'{name}: {error}') from None
    try:
        (read_header if bytes(data[:8]).startswith(WITHOUT_DECODING) else _check_decodable)(data, name)
    except ValueError as error:
        raise DamagedImage(str(error)) from None


def _check_decodable(data: bytes | memoryview, name: str) -> None:
    if not len(data):
        raise ValueError(f'{name}: empty file, expected an image')
    decode_by_opencv(data, name, cv2.IMREAD_COLOR)


class Marks:
    """A small number for each of ``count`` items, 0 at first, which processes forked from this one share.

    A copy by pickle starts anew.
    """

    def __init__(self, count: int) -> None:
        self._bytes = mmap.mmap(-1, max(count, 1))
        self._lock = multiprocessing.Lock()
        self.count = count

    def __getitem__(self, number: int) -> int:
        return self._bytes[number]

    def __setitem__(self, number: int, mark: int) -> None:
        self._bytes[number] = mark

    def claim(self, number: int, mark: int) -> int:
        """Give an item a mark: how many have it now, or 0 where it had it already, of several processes all but one."""
        with self._lock:
            if self[number] == mark:
                return 0
            self[number] = mark
            return len(self.marked(mark))

    def marked(self, mark: int) -> list[int]:
        """The items that have this mark."""
        return np.flatnonzero(np.frombuffer(self._bytes[: self.count], np.uint8) == mark).tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        return Marks, (self.count,)
