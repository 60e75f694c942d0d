"""The stores of a cache in the making: whole, or in shards of several processes that are merged at the end.

All of it may be killed at any time. An image is done when it is in all stores of one folder.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

import lmdb

from mtkd_data.lmdb_store import FolderWriter, LmdbWriter, MetaEntry
from mtkd_data.teacher_cache.cache import store_name

CLIPPED = 'clipped.txt'  # lines `key count`


class CacheShard(AbstractContextManager):
    """Writes images into all stores of one folder, and beside them how many of their values were clipped."""

    def __init__(self, folder: Path, stores: Sequence[str], form: str) -> None:
        folder.mkdir(exist_ok=True)
        writer_type = LmdbWriter if form == 'lmdb' else FolderWriter
        with ExitStack() as stack:
            self.writers = {
                name: stack.enter_context(closing(writer_type(folder / store_name(name, form)))) for name in stores
            }
            self._clipped = stack.enter_context(open(folder / CLIPPED, 'a+'))
            self._clipped.write('\n')  # ends a line that a kill cut short
            self._stack = stack.pop_all()

    def __contains__(self, key: str) -> bool:
        return all(key in writer for writer in self.writers.values())

    @property
    def pending_bytes(self) -> int:
        """What a kill would lose."""
        return sum(writer.pending_bytes for writer in self.writers.values())

    def add(self, key: str, images: Mapping[str, bytes], clipped: int) -> None:
        """Take the encoded images of one key by store; they reach the disk with the next ``flush``."""
        if clipped:  # first, so that no image is done whose count is lost
            self._clipped.write(f'{key} {clipped}\n')
            self._clipped.flush()
        for name, data in images.items():
            self.writers[name].add({key: data})

    def flush(self) -> None:
        """Bring all that was added to the disk."""
        for writer in self.writers.values():
            writer.flush()

    def finish(self, entries: Sequence[MetaEntry]) -> None:
        """Check that every store holds the images of ``entries`` and no others, write ``meta_info.txt``, sync."""
        for writer in self.writers.values():
            writer.finish(entries)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def shard_folders(folder: Path) -> list[Path]:
    """The shards that processes of a group left in an unfinished cache, by rank."""
    return sorted(folder.glob('shard*'), key=lambda path: (len(path.name), path.name))


def done_keys(folder: Path, stores: Sequence[str], form: str) -> set[str]:
    """Keys that are in all stores of the unfinished cache itself, or of one of its shards. No writer may be open."""
    done: set[str] = set()
    for part in (folder, *shard_folders(folder)):
        done |= set.intersection(*(set(_stored_keys(part / store_name(name, form))) for name in stores))
    return done


def merge_shards(
    folder: Path, stores: Sequence[str], form: str, most_bytes: int, watch: Callable[[Iterable], Iterable] = iter
) -> None:
    """Move what is in the shards into the stores of the cache itself and remove each shard when it is there.

    Of an LMDB at most ``most_bytes`` are held in memory; files are renamed, not copied.
    """
    for part in shard_folders(folder):
        with CacheShard(folder, stores, form) as whole:
            for name in stores:
                _merge_store(part / store_name(name, form), whole.writers[name], most_bytes, watch)
            for key, count in read_clipped(part).items():
                whole.add(key, {}, count)
            whole.flush()
        shutil.rmtree(part)


def read_clipped(folder: Path) -> dict[str, int]:
    """Number of clipped values by key; a line that a kill cut short belongs to no finished image."""
    path = folder / CLIPPED
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = (line.split(' ') for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _stored_keys(path: Path) -> list[str]:
    if path.suffix != '.lmdb':
        return [file.stem for file in path.glob('*.png') if not file.name.startswith('.')]
    if not (path / 'data.mdb').is_file() or not (path / 'data.mdb').stat().st_size:
        return []
    return [key for key, _ in _stored(path, values=False)]


def _stored(path: Path, values: bool = True) -> Iterator[tuple[str, bytes]]:
    try:
        with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
            for item in transaction.cursor().iternext(values=values):
                yield (item[0].decode('ascii'), item[1]) if values else (item.decode('ascii'), b'')
    except lmdb.Error as error:
        raise OSError(f'{path}: cannot be opened as an LMDB: {error}: delete the .partial folder') from error


def _merge_store(
    source: Path, writer: LmdbWriter | FolderWriter, most_bytes: int, watch: Callable[[Iterable], Iterable]
) -> None:
    if isinstance(writer, FolderWriter):
        for file in watch(sorted(source.glob('*.png'))):
            if not file.name.startswith('.'):
                file.rename(writer.path / file.name)
        return
    if not (source / 'data.mdb').is_file():
        return
    for key, data in watch(_stored(source)):
        if key not in writer:
            writer.add({key: data})
        if writer.pending_bytes > most_bytes:
            writer.flush()
    writer.flush()
