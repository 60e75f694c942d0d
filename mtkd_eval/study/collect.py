"""Gathers what the runs of a study measured."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from mtkd_eval.study.grid import Run
from mtkd_eval.study.running import Study


def pace_of(study: Study, runs: Sequence[Run]) -> dict[tuple[str, str], float]:
    """(student, method) -> seconds of a step, the median over the seeds; pairs without a finished run are missing."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        result = study.result_of(run)
        if result and result['step_seconds']:
            found.setdefault((run.student, run.method), []).append(result['step_seconds'])
    return {cell: median(times) for cell, times in found.items()}


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
        'test_sets': list(results[0]['sets']) if results else [],
        'students': {name: titled(part, name)['title'] for name, part in grid.students.items()},
        'methods': {name: titled(part, name) for name, part in grid.methods.items()},
        'questions': {title: dict(question) for title, question in grid.questions.items()},
        'networks': study.networks(),
        'results': results,
    }


def titled(part: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Title (by default the name) and note of a part of the grid."""
    return {'title': part.get('title') or name, 'note': part.get('note')}
