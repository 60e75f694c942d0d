"""Commands in forked processes that are killed, or whose disk takes nothing; what they leave in a folder.

Forked, since importing torch anew for each of a hundred kills would take minutes.
"""

import ctypes
import hashlib
import os
import resource
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import lmdb
import torch

Work = Callable[[], int | None]
NO_FILE_ABOVE = 64  # bytes
LONGEST = 60  # seconds
PASSING = ('lock.mdb', '.measured')  # neither is a result
CAPABILITIES = 0x20080522  # the version of the structure that capset(2) takes
NOT_FLUSHED = ('data.mdb', 'lock.mdb', 'clipped.txt')  # LMDB flushes by itself; a count that is part of no result


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the signal that killed it, and what it printed."""

    code: int
    output: str


def forked(work: Work, before: Callable[[], Any] = lambda: None) -> Ended:
    """Run ``work`` in a process of its own, after ``before``; an exception ends it with code 1."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = os.fdopen(1, 'w', closefd=False), os.fdopen(2, 'w', closefd=False)  # not pytest's
        signal.alarm(LONGEST)
        try:
            torch.set_num_threads(1)  # the threads of the parent did not come along
            cv2.setNumThreads(0)
            before()
            code = work() or 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(writing)
    with open(reading, 'rb') as file:
        output = file.read().decode()
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output)


def dying_at(moment: int) -> Callable[[], None]:
    """For ``forked``: die at the ``moment``-th flush or rename, before it is done.

    A file that was about to be flushed is cut to its half, as a crash may leave it.
    """

    def before() -> None:
        fsync, replace, rename = os.fsync, os.replace, os.rename
        calls = iter(range(1, 10**9))

        def die(descriptor: int | None = None) -> None:
            if next(calls) == moment:
                if descriptor is not None and stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.truncate(f'/proc/self/fd/{descriptor}', os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = lambda descriptor: (die(descriptor), fsync(descriptor))[1]
        os.replace = lambda *paths: (die(), replace(*paths))[1]
        os.rename = lambda *paths: (die(), rename(*paths))[1]

    return before


def watched(work: Work, folder: Path) -> Work:
    """``work`` that fails where a file in ``folder`` changed otherwise than by the rename of one that was flushed.

    It prints how many flushes and renames there were.
    """

    def watching() -> int | None:
        fsync, replace, rename = os.fsync, os.replace, os.rename
        flushed: set[int] = set()
        renamed: list[Path] = []
        moments: list[str] = []
        before = {path: path.stat() for path in visible(folder)}

        def flush(descriptor: int) -> None:
            moments.append('flush')
            flushed.add(os.fstat(descriptor).st_ino)
            fsync(descriptor)

        def move(upstream: Callable[..., None], source: Any, target: Any) -> None:
            moments.append('rename')
            source = Path(source)
            for file in [source] if source.is_file() else [each for each in source.rglob('*') if each.is_file()]:
                ready = file.stat().st_ino in flushed or file.name in NOT_FLUSHED
                assert ready, f'{file} becomes {target} and may not be on the disk'
            upstream(source, target)
            renamed.append(Path(target).absolute())

        os.fsync = flush
        os.replace = lambda source, target: move(replace, source, target)
        os.rename = lambda source, target: move(rename, source, target)
        code = work()
        for path in visible(folder):
            changed = path not in before or path.stat().st_mtime_ns != before[path].st_mtime_ns
            whole = any(path.absolute().is_relative_to(target) for target in renamed)
            assert whole or not changed, f'{path} was written in place'
        print(f'\nmoments: {len(moments)}', flush=True)
        return code

    return watching


def full_disk() -> None:
    """For ``forked``: no file of more than a few bytes can be written, by Python or by a library."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (NO_FILE_ABOVE, NO_FILE_ABOVE))


def ordinary_user() -> None:
    """For ``forked``: permissions bind the superuser too."""
    header, nothing = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0


def visible(folder: Path) -> list[Path]:
    """The files in ``folder`` that count: no hidden ones, none in what is unfinished by its name, none in passing."""
    files = [path for path in sorted(folder.rglob('*')) if path.is_file() and not path.name.endswith(PASSING)]
    parts = {path: path.relative_to(folder).parts for path in files}
    return [
        path for path in files if not any(part.startswith('.') or part.endswith('.partial') for part in parts[path])
    ]


def contents(folder: Path) -> dict[str, str]:
    """Digest of every visible file by name; of an LMDB, of its keys and values."""
    return {str(path.relative_to(folder)): digest(path) for path in visible(folder)}


def digest(path: Path) -> str:
    if path.name != 'data.mdb':
        return hashlib.sha256(path.read_bytes()).hexdigest()
    with lmdb.open(str(path.parent), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return hashlib.sha256(repr(list(transaction.cursor())).encode()).hexdigest()
