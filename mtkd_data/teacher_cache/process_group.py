"""The processes of one ``torchrun``, on one host or several, that share a job without waiting for the dead."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

Result = TypeVar('Result')
PATIENCE = timedelta(days=30)  # shards take as long as they take; a dead process is noticed by its closed connection


class PeerError(ChildProcessError):
    """Another process of the group failed, and has said why."""


class ProcessGroup:
    """Rank and size from the environment; without ``WORLD_SIZE`` a group of one, which needs no network.

    Use as a context manager. Every method but ``check`` and ``add`` must be called by all processes alike.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get('WORLD_SIZE', 1))
        self.rank = int(os.environ.get('RANK', 0)) if self.size > 1 else 0
        self.local_rank = int(os.environ.get('LOCAL_RANK', 0)) if self.size > 1 else 0
        self._store = None
        if self.size > 1:
            self._store, rank, size = next(rendezvous('env://'))
            dist.init_process_group('gloo', store=self._store, rank=rank, world_size=size, timeout=PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this is the process that reports, merges and renames."""
        return self.rank == 0

    def on_first(self, function: Callable[[], Result]) -> Result:
        """What ``function`` gives in the first process, in all of them. Where it raises, the others get PeerError."""
        result, error = None, None
        if self.first:
            try:
                result = function()
            except Exception as raised:  # whatever it is, the others must hear of it
                error = raised
        if self.size > 1:
            shared: list[Any] = [(result, error is not None)]
            _alive(lambda: dist.broadcast_object_list(shared, src=0))
            result, failed = shared[0]
            if failed and not self.first:
                raise PeerError('the first process failed')
        if error is not None:
            raise error
        return result

    def join(self, function: Callable[[], Result]) -> Result:
        """Run ``function`` in every process and wait for all. Where one raises, the others stop: see ``check``."""
        if self.size == 1:
            return function()
        result, error = None, None
        try:
            result = function()
        except Exception as raised:  # whatever it is, the others must hear of it
            error = raised
            self._store.add('failed', 1)
        errors: list[Any] = [None] * self.size
        _alive(lambda: dist.all_gather_object(errors, error is not None))
        if error is not None:
            raise error
        if any(errors):
            raise PeerError(f'process {errors.index(True)} failed')
        return result

    def check(self) -> None:
        """Raise PeerError where another process has failed."""
        if self._store is not None and _alive(lambda: self._store.add('failed', 0)):
            raise PeerError('another process failed')

    def add(self, count: int) -> int:
        """Add to a counter of the whole group; gives its new value."""
        return self._store.add('made', count) if self._store is not None else count

    def __enter__(self) -> 'ProcessGroup':
        return self

    def __exit__(self, *_: object) -> None:
        if self.size > 1:
            dist.destroy_process_group()


def _alive(call: Callable[[], Result]) -> Result:
    try:
        return call()
    except RuntimeError as error:  # what torch raises for a connection that closed
        raise PeerError('a process of the group died; its own output may say why, the same command goes on') from error
