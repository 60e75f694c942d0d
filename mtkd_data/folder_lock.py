"""One run at a time in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``, a file beside it; the system lifts it when this process dies.

    Raises FileExistsError where another run holds it, OSError where the file system knows no locks.
    """
    path = folder.with_name(f'.{folder.name}.lock')  # a file open for writing: NFS locks no folder
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FileExistsError(f'{folder}: another run is at work in it: wait for it or end it') from error
        except OSError as error:
            raise OSError(f'{path}: this file system locks no files ({error}): write to another one') from error
        yield
        path.unlink()
    finally:
        os.close(descriptor)
