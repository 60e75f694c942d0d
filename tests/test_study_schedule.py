"""Tasks of a study: each when what it needs is done, several at a time, failures kept apart."""

import threading
from collections.abc import Callable, Iterable

import pytest

from mtkd_eval.study.schedule import RunFailedError, Task, in_order, told


def failing(slot: int) -> None:
    raise RunFailedError('broken')


def recorder() -> tuple[list[str], Callable[[str], Callable[[int], None]]]:
    done: list[str] = []
    return done, lambda name: lambda slot: done.append(name)


def test_one_at_a_time_tasks_go_in_their_order_but_after_what_they_need() -> None:
    done, work = recorder()
    tasks = {
        'aggregator': Task(work('aggregator'), ('cache plain',)),
        'cache plain': Task(work('cache plain'), ('there already',)),
        'cache merged': Task(work('cache merged'), ('aggregator',)),
        'scratch': Task(work('scratch')),
        'mtkd': Task(work('mtkd'), ('cache merged', 'aggregator')),
    }
    assert in_order(tasks, 1) == {}
    assert done == ['cache plain', 'aggregator', 'cache merged', 'scratch', 'mtkd']


def test_tasks_that_do_not_need_each_other_run_together_in_slots_of_their_own() -> None:
    both, slots = threading.Barrier(2, timeout=30), []

    def meet(slot: int) -> None:
        both.wait()  # breaks, and with it the test, where the other one is not at work too
        slots.append(slot)

    after: list[int] = []
    tasks = {'a': Task(meet), 'b': Task(after.append, ('a', 'c')), 'c': Task(meet)}
    assert in_order(tasks, 2) == {}
    assert sorted(slots) == [0, 1]
    assert len(after) == 1


def test_no_more_tasks_run_than_there_are_jobs() -> None:
    at_work, most, lock = set(), [], threading.Lock()

    def work(slot: int) -> None:
        with lock:
            assert slot not in at_work
            at_work.add(slot)
            most.append(len(at_work))
        threading.Event().wait(0.01)
        with lock:
            at_work.remove(slot)

    assert in_order({str(number): Task(work) for number in range(12)}, 3) == {}
    assert max(most) <= 3
    assert len(most) == 12


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
@pytest.mark.parametrize('jobs', [1, 3])
def test_a_failure_takes_along_what_needs_it_and_nothing_else(jobs: int) -> None:
    done, work = recorder()
    tasks = {
        'mtkd': Task(work('mtkd'), ('cache',)),
        'a': Task(failing),
        'cache': Task(work('cache'), ('a',)),
        'b': Task(work('b')),
        'late': Task(work('late'), ('before',)),
    }
    failures = in_order(tasks, jobs, failed={'before': 'burst', 'other': 'burst'})
    reason = 'skipped: needs a, which failed'
    assert failures == {
        'mtkd': reason, 'a': 'broken', 'cache': reason, 'late': 'skipped: needs before, which failed',
    }  # fmt: skip
    assert list(failures) == ['mtkd', 'a', 'cache', 'late']
    assert done == ['b']
    assert told(failures) == ['broken', f'mtkd, cache: {reason}', 'late: skipped: needs before, which failed']


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_a_full_disk_is_no_failure_of_one_task() -> None:
    done, work = recorder()

    def full(slot: int) -> None:
        raise OSError(28, 'No space left on device')

    with pytest.raises(OSError, match='No space left'):
        in_order({'a': Task(full), 'b': Task(work('b'))}, 1)
    assert done == []


def test_a_circle_is_refused_and_not_waited_for() -> None:
    with pytest.raises(ValueError, match='a, b: each needs another'):
        in_order({'a': Task(failing, ('b',)), 'b': Task(failing, ('a',))}, 2)


def test_what_is_left_and_what_runs_are_told_as_they_change() -> None:
    seen: list[tuple[int, tuple[str, ...]]] = []

    def changed(left: int, running: Iterable[str]) -> None:
        seen.append((left, tuple(running)))

    in_order({'a': Task(print), 'b': Task(failing, ('a',)), 'c': Task(print, ('b',))}, 2, changed=changed)
    assert seen == [(3, ('a',)), (2, ('b',)), (0, ())]
