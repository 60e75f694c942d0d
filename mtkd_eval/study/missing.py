"""Data and weights that a study would open and not find: all of them at once, before its first step."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtkd.schema.missing_files import missing_files
from mtkd.schema.problem import Problem
from mtkd.schema.problems import listed
from mtkd_eval.image_sets import find_sets
from mtkd_eval.study.grid import Grid, Run, cache_options, layers
from mtkd_eval.study.overlay import filled_in

HOW = (
    'The head of the grid file and docs/studies.md say how to get them; scripts/prepare_data.py makes data sets, and '
    '--only leaves out what needs them'
)
READ_BY_A_CACHE = ('teachers', 'aggregator')


def refuse_missing_parts(grid: Grid, runs: Iterable[Run], caches: Iterable[str], test_sets: Iterable[str]) -> None:
    """Raise one FileNotFoundError that names all that is missing, with its place in the grid file."""
    found = [*missing_parts(grid, runs, caches), *_missing_sets(grid, test_sets)]
    if found:
        count = 'a file or folder is' if len(found) == 1 else f'{len(found)} files or folders are'
        raise FileNotFoundError(f'{grid.path}: {count} missing:\n{listed(found)}\n{HOW}')


def missing_parts(grid: Grid, runs: Iterable[Run], caches: Iterable[str]) -> list[Problem]:
    """What making ``caches`` and training ``runs`` would not find, each file and folder once, where it is first named.

    Left out are ``@name``, which the study trains, and what is below a folder that ``prepare`` has yet to make.
    """
    parts = [(layers(grid, name), _read_by_a_cache(cache_options(grid, name))) for name in caches]
    for run in runs:
        network = None if run.student else run.name
        parts.append((layers(grid, run.cache, run.student, run.method, network), _read_by_a_run(run)))
    found: dict[str, Problem] = {}
    for layered, options in parts:
        for problem in _missing(grid, options):
            text = problem.message.removeprefix(f'{problem.path}: ')
            if not _will_be_prepared(grid, [_at(options, problem.path)]):
                found.setdefault(text, Problem(problem.path, f'{_place(layered, problem.path)}: {text}'))
    return list(found.values())


def _read_by_a_cache(options: Mapping[str, Any]) -> dict[str, Any]:
    datasets = {phase: each for phase, each in options.get('datasets', {}).items() if phase == 'train'}
    return {'datasets': datasets, **{key: options[key] for key in READ_BY_A_CACHE if key in options}}


def _read_by_a_run(run: Run) -> dict[str, Any]:
    """Without the teachers of its cache, which are looked for with the cache."""
    return {key: value for key, value in run.options.items() if not (run.cache and key in READ_BY_A_CACHE)}


def _missing(grid: Grid, options: Mapping[str, Any]) -> list[Problem]:
    there = filled_in(options, 1, lambda name: str(grid.path))  # a file that is there, for each that will be
    try:
        return missing_files({'datasets': {}, 'path': {}, **there, 'is_train': True})
    except (AttributeError, KeyError, TypeError):  # a mistake in the options, which the process of the part names
        return []


def _missing_sets(grid: Grid, test_sets: Iterable[str]) -> Iterator[Problem]:
    for text in test_sets:
        if not _will_be_prepared(grid, re.split('[=,]', text)):
            try:
                find_sets([text], {grid.scale})
            except FileNotFoundError as error:
                yield Problem('test_sets', f'test_sets: {error}')
            except ValueError:  # no set of this scale, perhaps; all of them together may have one
                pass


def _will_be_prepared(grid: Grid, paths: Iterable[Any]) -> bool:
    waited_for = [folder for folder in grid.prepare if not Path(folder).exists()]
    return any(isinstance(path, str) and Path(path).is_relative_to(one) for path in paths for one in waited_for)


def _place(layered: Mapping[str, Any], path: str) -> str:
    """The key in the grid file that ``path`` of an option comes from; of a key that has a default, its section's."""
    held = path
    while held:
        for place, options in reversed(layered.items()):
            if _at(options, held) is not None:
                return f'{place}.{path}'
        held = held.rpartition('.')[0]
    return path


def _at(options: Any, path: str) -> Any:
    """The value under a dotted path; None where there is none."""
    for key in path.split('.'):
        options = options.get(key) if isinstance(options, Mapping) else None
    return options
