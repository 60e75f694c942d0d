"""Files and folders that are there whole or not at all: made under another name, brought to the disk, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def sync_path(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets the name ``path`` at the end of the context, in place of what had it.

    A process killed at any moment leaves the old file or the new one, and a hidden `.<name>.partial` that the next
    writing replaces. Its permissions are those of any new file. Raises OSError, naming ``path``, where the disk
    refuses.
    """
    partial = path.with_name(f'.{path.name}.partial')
    try:
        with open(partial, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:  # KeyboardInterrupt too
        with suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(partial)):
            raise OSError(error.errno, f'cannot be written: {error.strerror}', str(path)) from error
        raise
    sync_path(path.absolute().parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is never seen half written: under another name, synced, then renamed."""
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that gets the name ``path`` at the end of the context.

    Raises FileExistsError where there is something by that name. What a killed process left, the hidden
    `.<name>.partial`, goes first.
    """
    if path.exists():
        raise FileExistsError(f'{path} exists already; give a new folder')
    partial = path.with_name(f'.{path.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for made in (*partial.rglob('*'), partial):
            sync_path(made)
        os.rename(partial, path)
    except BaseException:  # KeyboardInterrupt too
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_path(path.absolute().parent)


def check_place(path: Path) -> None:
    """Raise PermissionError or NotADirectoryError, before any work, where ``path`` could not be written.

    Folders above it that are missing may be made.
    """
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(f'{path}: cannot be written: {above} is a file, expected a folder')
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f'{path}: cannot be written: no permission to write into {above}; give another place')
