"""Gathers what the runs of a study measured."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mtkd_data.whole_files import write_atomically
from mtkd_eval.study.grid import CACHE_PART, Grid, Run, cache_options, clock_cells, clock_iterations
from mtkd_eval.study.paces import of_one_place
from mtkd_eval.study.running import Study


def clock_plan(study: Study, planned: Sequence[Run], keep: bool) -> dict[tuple[str, str], int]:
    """(student, method) -> steps at equal time, of the cells whose times are known.

    Times vary from run to run, so a number once planned stays: in ``clock.json``, written if ``keep``. A cell waits
    until all its runs, and those of the method it is compared with, are there, and one machine has run some of both.
    """
    begun = _planned_before(study)
    found = {}
    for student, method in clock_cells(study.grid):
        cells = [_finished(study, planned, student, name) for name in (method, study.grid.wall_clock['like'])]
        known, times = begun.get(f'{student}-{method}'), of_one_place(*cells)
        if known or times:
            found[student, method] = known or clock_iterations(study.grid, student, *times)
    if keep:
        keep_clock_plan(study, found)
    return found


def keep_clock_plan(study: Study, steps: Mapping[tuple[str, str], int]) -> None:
    """Plan these steps of (student, method) from now on."""
    content = _planned_before(study) | {'-'.join(cell): number for cell, number in steps.items()}
    if content:
        write_atomically(study.folder / 'clock.json', json.dumps(content, indent=1).encode())


def _planned_before(study: Study) -> dict[str, int]:
    path = study.folder / 'clock.json'
    return json.loads(path.read_text()) if path.is_file() else {}


def _finished(study: Study, planned: Sequence[Run], student: str, method: str) -> list[dict[str, Any]]:
    """The results of a method on a student; none until all of them are there."""
    results = [study.result_of(run) for run in planned if (run.student, run.method) == (student, method)]
    return [result for result in results if result] if None not in results else []


def as_study(study: Study, planned: Sequence[Run], timed: Sequence[Run]) -> dict[str, Any]:
    """The content of study.json: the grid's titles and every result."""
    grid = study.grid
    results = [result for run in (*planned, *timed) if (result := study.result_of(run))]
    return {
        'name': grid.name,
        'title': grid.title or grid.name,
        'grid': grid.path.as_posix(),
        'scale': grid.scale,
        'iterations': grid.iterations,
        'reference': grid.reference or None,
        'like': grid.wall_clock.get('like'),
        'planned': len(planned) + len(timed),
        'given_sets': study.test_sets,
        'own_sets': study.test_sets == grid.test_sets,
        'test_sets': list(results[0]['sets']) if results else [],
        'students': {name: titled(part, name)['title'] for name, part in grid.students.items()},
        'methods': {name: titled(part, name) for name, part in grid.methods.items()},
        'questions': {title: dict(question) for title, question in grid.questions.items()},
        'networks': study.networks(),
        'targets': teachers_of_targets(grid),
        'cache_seconds': study.cache_seconds(),
        'results': results,
    }


def teachers_of_targets(grid: Grid) -> dict[str, list[str]]:
    """Title of each target under ``networks`` -> those of its teachers there."""
    parts = {title: CACHE_PART.fullmatch(str(part)) for title, part in grid.networks.items()}
    caches = {title: cache_options(grid, part['cache'])['teachers'] for title, part in parts.items()}
    teachers = {title: caches[title][part['teacher']] for title, part in parts.items() if part['teacher']}
    return {
        title: [name for name, teacher in teachers.items() if teacher in caches[title].values()]
        for title, part in parts.items()
        if not part['teacher']
    }


def titled(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Title (by default the name) and note of a part of the grid."""
    return {'title': part.get('title') or name, 'note': part.get('note')}
