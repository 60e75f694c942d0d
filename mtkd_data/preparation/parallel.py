"""Runs a function over many tasks in several processes, in order, with workers that never outlive their parent."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

Task = TypeVar('Task')
Result = TypeVar('Result')


def run_tasks(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Results of `function` in the order of `tasks`, from `workers` processes; 1 stays in this one.

    Only two tasks per worker are in flight, so results do not pile up. Raises ChildProcessError where a worker dies.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context('forkserver')
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    pending: deque = deque()
    try:
        for task in tasks:
            pending.append(executor.submit(function, task))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError('a worker died, perhaps for want of memory: take fewer workers') from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers
    # a worker waits for tasks for ever when its parent is killed
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
