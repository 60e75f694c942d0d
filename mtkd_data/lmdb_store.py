"""Image stores in BasicSR's own layouts: an LMDB with `meta_info.txt`, or a folder of PNG files.

Both writers can be killed at any time and opened again; `meta_info.txt`, without which BasicSR cannot read an LMDB,
comes last.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import lmdb

from mtkd_data.lmdb_pages import sound_keys
from mtkd_data.whole_files import sync_path, write_atomically

FIRST_MAP_SIZE = 64 * 2**20
META_LINE = re.compile(r'([^.]+)\.png \((\d+),(\d+),(\d+)\) (\d+)')
META_LINES = re.compile(f'^{META_LINE.pattern}$', re.MULTILINE)


class MetaEntry(NamedTuple):
    """One line of `meta_info.txt`: `key.png (height,width,channels) compression_level`."""

    key: str
    height: int
    width: int
    channels: int
    compression_level: int

    def __str__(self) -> str:
        return f'{self.key}.png ({self.height},{self.width},{self.channels}) {self.compression_level}'


def parse_meta_line(line: str) -> MetaEntry:
    """Read one line of `meta_info.txt`; raises ValueError where it has another form."""
    match = META_LINE.fullmatch(line)
    if match is None:
        raise ValueError(f'meta_info.txt: expected `key.png (height,width,channels) level`, got {line!r}')
    return MetaEntry(match[1], *(int(group) for group in match.groups()[1:]))


@functools.lru_cache(maxsize=8)  # a data set asks for the same file several times as it opens
def parse_meta(text: str) -> tuple[MetaEntry, ...]:
    """All lines of `meta_info.txt`, at once where they are as they should be; raises ValueError for one that is not."""
    found, lines = META_LINES.findall(text), text.splitlines()
    if len(found) != len(lines):  # a line of another form joins the next, or is left out
        return tuple(parse_meta_line(line) for line in lines)
    return tuple(
        MetaEntry(key, int(height), int(width), int(channels), int(level))
        for key, height, width, channels, level in found
    )


class LmdbWriter:
    """Writes `<name>.lmdb`; the map grows as needed, an existing one is continued.

    Raises ValueError for another name: BasicSR reads only folders that end in `.lmdb`.
    """

    def __init__(self, path: Path, map_size: int = FIRST_MAP_SIZE) -> None:
        if path.suffix != '.lmdb':
            raise ValueError(f'{path}: expected a name that ends in .lmdb')
        self.path = path
        self._pending: dict[bytes, bytes] = {}
        self.pending_bytes = 0
        try:
            self._environment = lmdb.open(str(path), map_size=map_size)
        except lmdb.Error as error:
            raise OSError(f'{path}: cannot be opened as an LMDB: {error}') from error

    def __contains__(self, key: str) -> bool:
        with self._environment.begin() as transaction:
            return key.encode('ascii') in self._pending or transaction.get(key.encode('ascii')) is not None

    def add(self, images: dict[str, bytes]) -> None:
        """Take encoded images by key; they reach the disk together, with the next `flush`."""
        self._pending.update((key.encode('ascii'), value) for key, value in images.items())
        self.pending_bytes += sum(len(value) for value in images.values())

    def flush(self) -> None:
        """Commit all that was added, in one transaction. Raises OSError where the disk does not take it."""
        try:
            while not self._commit():
                self._environment.set_mapsize(self._environment.info()['map_size'] * 2)
        except lmdb.Error as error:
            raise OSError(f'{self.path}: {error}') from error
        self._pending.clear()
        self.pending_bytes = 0

    def _commit(self) -> bool:
        try:
            with self._environment.begin(write=True) as transaction:
                for key, value in self._pending.items():
                    transaction.put(key, value)
        except lmdb.MapFullError:
            return False
        return True

    def finish(self, entries: Iterable[MetaEntry]) -> None:
        """Check that the store holds the keys of `entries` and no others, write `meta_info.txt`, sync and close."""
        self.flush()
        ordered = sorted(entries, key=lambda entry: entry.key)
        with self._environment.begin() as transaction:
            stored = [key.decode('ascii') for key in transaction.cursor().iternext(values=False)]
        _check_complete(self.path, stored, [entry.key for entry in ordered])
        write_atomically(self.path / 'meta_info.txt', ''.join(f'{entry}\n' for entry in ordered).encode('ascii'))
        self._environment.sync(True)
        self.close()
        sync_path(self.path)

    def close(self) -> None:
        """Close the LMDB; what was not flushed is lost. Closing twice is allowed."""
        self._environment.close()


class FolderWriter:
    """Writes a folder of PNG files, each by rename, with the same methods as `LmdbWriter`."""

    pending_bytes = 0

    def __init__(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        self.path = path
        for leftover in path.glob('.*.partial'):
            leftover.unlink()
        self._stored = {file.stem for file in path.iterdir()}

    def __contains__(self, key: str) -> bool:
        return key in self._stored

    def add(self, images: dict[str, bytes]) -> None:
        """Write encoded images, each under its key."""
        for key, value in images.items():
            write_atomically(self.path / f'{key}.png', value)
        self._stored.update(images)

    def flush(self) -> None:
        """Bring the new names to the disk."""
        sync_path(self.path)

    def finish(self, entries: Iterable[MetaEntry]) -> None:
        """Check that the folder holds the keys of `entries` and no others."""
        _check_complete(self.path, [file.stem for file in self.path.iterdir()], [entry.key for entry in entries])
        sync_path(self.path)

    def close(self) -> None:
        """Nothing is held open."""


class LmdbReader:
    """Reads `<name>.lmdb`: `keys` as stored, `entries` as `meta_info.txt` has them, values by key.

    `faults` names the lines of `meta_info.txt` that cannot be used. Use as a context manager.
    Raises FileNotFoundError where the path is no LMDB in BasicSR's layout, OSError where it is damaged.
    """

    def __init__(self, path: Path) -> None:
        for part in ('data.mdb', 'meta_info.txt'):
            if not (path / part).is_file():
                raise FileNotFoundError(f'{path}: expected an LMDB in the layout of BasicSR, {part} is missing')
        self.path = path
        self.keys = list(sound_keys(path))  # first: what is damaged or cut short can kill the process that maps it
        try:
            self._environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise OSError(f'{path}: cannot be opened as an LMDB: {error}') from error

    @property
    def entries(self) -> dict[str, MetaEntry]:
        return self._listing[0]

    @property
    def faults(self) -> list[str]:
        return self._listing[1]

    @cached_property
    def _listing(self) -> tuple[dict[str, MetaEntry], list[str]]:
        """Entries and faults, read when asked for: loader workers read values alone."""
        entries: dict[str, MetaEntry] = {}
        faults = []
        for line in (self.path / 'meta_info.txt').read_text().splitlines():
            try:
                entry = parse_meta_line(line)
            except ValueError as error:
                faults.append(f'{self.path}: {error}')
                continue
            if entry.key in entries:
                faults.append(f'{self.path}: meta_info.txt: {entry.key!r} stands there twice')
            entries[entry.key] = entry
        return entries, faults

    def __getitem__(self, key: str) -> bytes:
        with self._environment.begin() as transaction:
            value = transaction.get(key.encode('ascii'))
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __enter__(self) -> 'LmdbReader':
        return self

    def __exit__(self, *_: object) -> None:
        self._environment.close()


def _check_complete(path: Path, stored: list[str], expected: list[str]) -> None:
    missing, strange = sorted(set(expected) - set(stored)), sorted(set(stored) - set(expected))
    if missing or strange:
        found = f'{len(missing)} images are missing {missing[:3]}, {len(strange)} do not belong {strange[:3]}'
        raise ValueError(f'{path}: {found}: delete the .partial folder and start again')
