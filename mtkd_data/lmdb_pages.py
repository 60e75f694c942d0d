"""The pages of an LMDB, walked by plain reading: LMDB trusts what it maps, and damage makes it crash or mix images up.

After this walk every key leads to a value of its own inside the file. The values themselves are not read. The format is
that of LMDB 0.9 on machines of 64 bits:

    page   number (8) | pad (2) | flags (2) | lower (2) | upper (2) | places of the nodes (2 each) ... nodes
    node   size of the value, or low part of a page's number (4) | flags, or its high part (2) | length of key (2) | key
    meta   pages 0 and 1: header (16) | magic, version (4 each) | address, map size (8 each) | two trees (48 each) |
           last page, transaction (8 each); the later transaction counts
"""

import itertools
import os
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

HEADER = 16
NODE = struct.Struct('=IHH')
MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, DIRTY = 1, 2, 16
ELSEWHERE = 1  # a value on pages of its own
DEEPEST = 32
NOWHERE = 2**64 - 1
LONGEST_KEY = 511
REMEDY = 'copy it again, or make it anew'


class _Meta(NamedTuple):
    page_size: int
    flags: int
    depth: int
    entries: int
    root: int
    last_page: int
    transaction: int


def sound_keys(folder: Path) -> tuple[str, ...]:
    """The keys of the LMDB in ``folder``, in their order; see ``sound_sizes``."""
    return tuple(sound_sizes(folder))


def sound_sizes(folder: Path) -> dict[str, int]:
    """Key -> bytes of its value, of the LMDB in ``folder``, after its pages were found sound; done once for each state.

    Raises OSError, naming the folder, for one that is cut short or damaged.
    """
    with open(folder / 'data.mdb', 'rb') as file:
        stat = os.fstat(file.fileno())
        state = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
        walk = _Walk(folder, file, stat.st_size)
        known = _known.get(state)
        if known is None or known[0] != walk.meta:
            known = _known[state] = walk.meta, walk.sizes()
    return known[1]


_known: dict[tuple[int, ...], tuple['_Meta', dict[str, int]]] = {}  # of this process


class _Walk:
    """Of one open file; ``runs`` are its pages as they are met: the first, how many, whose."""

    def __init__(self, folder: Path, file: BinaryIO, size: int) -> None:
        self.folder, self.file, self.size = folder, file, size
        self.runs: list[tuple[int, int, str]] = []
        self.meta = self._newest_meta()

    def sizes(self) -> dict[str, int]:
        needed = (self.meta.last_page + 1) * self.meta.page_size
        if self.size < needed:
            raise OSError(f'{self.folder}: data.mdb is truncated: {self.size} bytes of {needed}: copy it again')
        found: list[tuple[bytes, int]] = []
        if self.meta.root != NOWHERE:
            self._page(self.meta.root, self.meta.depth, found)
        for (one, _), (other, _) in itertools.pairwise(found):
            if one >= other:
                raise self._damaged(f'its keys are out of order at {_shown(one)!r} and {_shown(other)!r}')
        if len(found) != self.meta.entries:
            raise self._damaged(f'it holds {len(found)} keys and says {self.meta.entries}')
        self._check_runs()
        return {_shown(key): size for key, size in found}

    def _damaged(self, what: str) -> OSError:
        return OSError(f'{self.folder}: data.mdb is damaged: {what}: {REMEDY}')

    def _newest_meta(self) -> _Meta:
        first = self._read_meta(0)
        return max(first, self._read_meta(first.page_size), key=lambda meta: meta.transaction)  # a tie: the first

    def _read_meta(self, place: int) -> _Meta:
        self.file.seek(place)
        data = self.file.read(HEADER + 136)
        if len(data) < HEADER + 136:
            raise OSError(f'{self.folder}: data.mdb is truncated: {self.size} bytes: copy it again')
        magic, version = struct.unpack_from('=II', data, HEADER)
        (page_size,) = struct.unpack_from('=I', data, HEADER + 24)
        flags, depth, *_, entries, root = struct.unpack_from('=HHQQQQQ', data, HEADER + 76)
        meta = _Meta(page_size, flags, depth, entries, root, *struct.unpack_from('=QQ', data, HEADER + 120))
        if (magic, version) != (MAGIC, VERSION) or not (512 <= page_size <= 65536) or page_size & (page_size - 1):
            raise self._damaged('its head is not that of an LMDB')
        if flags or depth > DEEPEST or meta.last_page > 2**48:
            raise self._damaged('its head says what no image set is')
        return meta

    def _page(self, number: int, depth: int, found: list[tuple[bytes, int]]) -> None:
        """Check a page and what is below it, ``depth`` levels with itself; adds keys and sizes to ``found``."""
        if not 2 <= number <= self.meta.last_page or depth < 1 or len(self.runs) > self.meta.last_page:
            raise self._damaged(f'it refers to page {number}')
        self.runs.append((number, 1, f'page {number}'))
        self.file.seek(number * self.meta.page_size)
        page = self.file.read(self.meta.page_size)
        own, _, flags, lower, upper = struct.unpack_from('=QHHHH', page)
        kind, count = flags & ~DIRTY, (lower - HEADER) // 2
        sound = own == number and kind == (LEAF if depth == 1 else BRANCH) and HEADER < lower <= upper
        if not sound or upper > self.meta.page_size or count < (1 if kind == LEAF else 2):
            raise self._damaged(f'page {number} is not what it should be')
        for place in np.frombuffer(page, '=u2', count, HEADER).tolist():
            if not upper <= place <= self.meta.page_size - NODE.size:
                raise self._damaged(f'page {number} has an entry outside itself')
            low, high, length = NODE.unpack_from(page, place)
            if kind == LEAF:
                found.append(self._entry(page, number, place, (low, high, length)))
            else:
                self._page(low | high << 32, depth - 1, found)

    def _entry(self, page: bytes, number: int, place: int, node: tuple[int, int, int]) -> tuple[bytes, int]:
        """The key of a node of a leaf and the size of its value, after a look at where that lies."""
        size, flags, length = node
        begin = place + NODE.size
        key, end = page[begin : begin + length], begin + length
        value_end = end + (8 if flags == ELSEWHERE else size)
        if flags not in (0, ELSEWHERE) or not 0 < length <= LONGEST_KEY or value_end > len(page):
            raise self._damaged(f'the entry {_shown(key)} of page {number} is not what it should be')
        if flags == ELSEWHERE:
            (first,) = struct.unpack_from('=Q', page, end)
            pages = (HEADER - 1 + size) // self.meta.page_size + 1
            if first < 2 or first + pages - 1 > self.meta.last_page:
                raise self._damaged(f'the value of {_shown(key)} lies outside of it')
            self.runs.append((first, pages, _shown(key)))
        return key, size

    def _check_runs(self) -> None:
        """No page serves two: otherwise a key would lead to the value of another."""
        self.runs.sort()
        for (first, pages, one), (after, _, other) in itertools.pairwise(self.runs):
            if first + pages > after:
                raise self._damaged(f'{one} and {other} share a page')


def _shown(key: bytes) -> str:
    return key.decode('utf-8', 'backslashreplace')
