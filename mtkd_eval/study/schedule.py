"""Carries out tasks that need each other, several at a time."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

SKIPPED = 'skipped: needs '


class RunFailedError(ChildProcessError):
    """A process of the study failed; the message holds the end of its log."""


@dataclass(frozen=True)
class Task:
    """Work that is given the number of its slot, and the names of the tasks that it needs."""

    work: Callable[[int], Any]
    needs: tuple[str, ...] = ()


def in_order(
    tasks: Mapping[str, Task],
    jobs: int,
    failed: Mapping[str, str] | None = None,
    changed: Callable[[int, Iterable[str]], None] = lambda left, running: None,
) -> dict[str, str]:
    """Carry out ``tasks``, ``jobs`` at a time, each when what it needs is done, the first in order first.

    Name -> message, in the order of ``tasks``, of those that failed and of those skipped because they need one that
    did. What is needed and no task is there already, unless it is among ``failed``. ``changed`` is told how many are
    left, and the names of those running. A failure keeps no other task from running; what is no failure of a task
    (an interrupt, a full disk) ends all. Raises ValueError where tasks need each other in a circle.
    """
    slots = list(range(jobs))
    waiting, failures = dict(tasks), dict(failed or {})
    running: dict[Future, tuple[str, int]] = {}
    _leave_out_blocked(waiting, failures)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting or running:
                undone = {*waiting, *(name for name, _ in running.values())}
                ready = [name for name, task in waiting.items() if undone.isdisjoint(task.needs)]
                for name in ready[: len(slots)]:
                    slot = slots.pop(0)
                    running[pool.submit(waiting.pop(name).work, slot)] = name, slot
                if waiting and not running:
                    raise ValueError(f'{", ".join(waiting)}: each needs another of these')
                changed(len(waiting) + len(running), [name for name, _ in running.values()])
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name, slot = running.pop(future)
                    slots.append(slot)
                    try:
                        future.result()
                    except RunFailedError as error:
                        failures[name] = str(error)
                _leave_out_blocked(waiting, failures)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    changed(0, ())
    return {name: failures[name] for name in tasks if name in failures}


def _leave_out_blocked(waiting: dict[str, Task], failures: dict[str, str]) -> None:
    """Move those of ``waiting`` that can never be carried out to ``failures``, with the failure they go back to."""
    before = None
    while before != len(waiting):
        before = len(waiting)
        for name, task in list(waiting.items()):
            other = next((each for each in task.needs if each in failures), None)
            if other is not None:
                del waiting[name]
                reason = failures[other]
                failures[name] = reason if reason.startswith(SKIPPED) else f'{SKIPPED}{other}, which failed'


def told(failures: Mapping[str, str]) -> list[str]:
    """A message for each failure, and one for all that was left out for the same reason."""
    reasons = dict.fromkeys(text for text in failures.values() if text.startswith(SKIPPED))
    names = {reason: ', '.join(name for name, text in failures.items() if text == reason) for reason in reasons}
    failed = [text for text in failures.values() if text not in reasons]
    return [*failed, *(f'{those}: {reason}' for reason, those in names.items())]
