"""A study's grid file: students x methods x seeds over one base option, and what has to be trained before them."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkd.checks import nearest, require_keys, require_known_keys
from mtkd.option_file import read_option
from mtkd_eval.study.fingerprints import fingerprints
from mtkd_eval.study.overlay import filled_in, overlaid, references

KEYS = (
    'name', 'title', 'scale', 'iterations', 'seeds', 'reference', 'test_sets', 'prepare', 'base', 'trained', 'caches',
    'students', 'methods', 'wall_clock', 'networks', 'questions',
)  # fmt: skip
REQUIRED = ('name', 'scale', 'iterations', 'seeds', 'test_sets', 'base', 'students', 'methods')
PART_KEYS = {
    'trained': ('title', 'extends', 'cache', 'iterations', 'seed', 'options'),
    'caches': ('extends', 'options', 'stores', 'self_ensemble'),
    'students': ('title', 'extends', 'options', 'iterations', 'seeds'),
    'methods': ('title', 'note', 'extends', 'cache', 'students', 'seeds', 'options', 'for_student'),
    'wall_clock': ('like', 'students', 'methods', 'seeds'),
    'questions': ('method', 'best_of', 'students'),
}
EXTENDABLE = ('trained', 'caches', 'students', 'methods')
CACHE_PART = re.compile(r'(?P<cache>[^:]+):(target|teachers\.(?P<teacher>.+))')


@dataclass(frozen=True)
class Run:
    """One training: its place in the grid, its option (without ``name``) and the caches and networks it needs."""

    name: str
    options: Mapping[str, Any]
    iterations: int
    seed: int
    cache: str | None = None
    needs: tuple[str, ...] = ()  # names of trained networks
    basis: str = ''  # what cache and networks are made of
    student: str | None = None  # None: a network that others need
    method: str | None = None
    clock: bool = False  # given the time of another method instead of its steps

    def digest(self) -> str:
        """SHA-256 of what decides the result: options, weights, images; not the machine, which ``auto`` depends on."""
        own = [self.options, self.iterations, self.seed, self.cache, self.basis]
        return _digest([*own, fingerprints(self.options)])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Grid:
    """A grid file, checked."""

    path: Path
    sections: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name in KEYS:
            return self.sections.get(name) or {}
        raise AttributeError(name)


def read_grid(path: Path) -> Grid:
    """Read and check a grid file. Raises FileNotFoundError, or ValueError naming the key that does not fit."""
    sections = _with_other(read_option(path), path)
    require_known_keys(sections, KEYS, str(path))
    require_keys(sections, REQUIRED, str(path))
    for section, known in PART_KEYS.items():
        parts = sections.get(section) or {}
        if not isinstance(parts, Mapping):
            raise ValueError(f'{path}: {section} should be a mapping; it is {parts!r}')
        for name, part in {'': parts}.items() if section == 'wall_clock' else parts.items():
            require_known_keys(part or {}, known, f'{path}: {section}.{name}'.rstrip('.'))
    for key, value in (('seeds', sections['seeds']), ('test_sets', sections['test_sets'])):
        if not isinstance(value, list) or not value:
            raise ValueError(f'{path}: {key} should be a list of at least one; it is {value!r}')
    for section in EXTENDABLE:
        parts = sections.get(section) or {}
        sections[section] = {name: _extended(parts, name, f'{path}: {section}') for name in parts}
    grid = Grid(path, sections)
    _check_references(grid)
    trained_runs(grid)
    return grid


def _with_other(sections: dict[str, Any], path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A grid laid over the one it ``extends``, a file beside it."""
    other = sections.pop('extends', None)
    if other is None:
        return sections
    file = path.parent / other
    if file in seen:
        raise ValueError(f'{path}: extends itself')
    below = _with_other(read_option(file), file, (*seen, file))
    gone = [name for name, part in (sections.get('students') or {}).items() if part is None]
    for method in (below.get('methods') or {}).values():
        for name in gone:
            ((method or {}).get('for_student') or {}).pop(name, None)  # what it is for has been taken away
    return overlaid(below, sections)


def _extended(parts: Mapping[str, Any], name: str, where: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A part of a section laid over the one it ``extends``."""
    if name in seen:
        raise ValueError(f'{where}.{name} extends itself: {" -> ".join((*seen, name))}')
    own = dict(parts[name] or {})
    other = own.pop('extends', None)
    if other is None:
        return own
    if other not in parts:
        raise ValueError(f"{where}.{name} extends '{other}': {nearest(other, parts)}")
    return overlaid(_extended(parts, other, where, (*seen, name)), own)


def _check_references(grid: Grid) -> None:
    def check(name: Any, known: Mapping[str, Any] | Sequence[str], where: str) -> None:
        if name is not None and name not in known:
            raise ValueError(f"{grid.path}: {where}: no '{name}': {nearest(name, known)}There are: {', '.join(known)}")

    check(grid.reference or None, grid.methods, 'reference')
    for name, method in grid.methods.items():
        check(method.get('cache'), grid.caches, f'methods.{name}.cache')
        for student in (*method.get('students', ()), *method.get('for_student', ())):
            check(student, grid.students, f'methods.{name}: student')
    for name, part in grid.trained.items():
        check(part.get('cache'), grid.caches, f'trained.{name}.cache')
    for section in ('base', 'trained', 'caches', 'students', 'methods'):
        for name in references(grid.sections.get(section)):
            check(name, grid.trained, f'{section}: @{name}')
    for key, known in (('students', grid.students), ('methods', grid.methods)):
        for name in grid.wall_clock.get(key, ()):
            check(name, known, f'wall_clock.{key}')
    check(grid.wall_clock.get('like'), grid.methods, 'wall_clock.like')
    for title, question in grid.questions.items():
        require_keys(question, ('method', 'best_of'), f'{grid.path}: questions.{title}')
        for name in (question['method'], *question['best_of']):
            check(name, grid.methods, f'questions.{title}')
    for title, part in grid.networks.items():
        found = CACHE_PART.fullmatch(str(part))
        if not found:
            raise ValueError(
                f'{grid.path}: networks.{title}: expected CACHE:target or CACHE:teachers.NAME, got {part!r}'
            )
        check(found['cache'], grid.caches, f'networks.{title}')


def shortened(grid: Grid, iterations: int) -> Grid:
    """The same grid at a length and with one seed that show whether everything runs."""

    def short(part: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if key not in ('iterations', 'seeds')}

    base = overlaid(grid.base, {'logger': {'print_freq': 1}})
    sections = {**grid.sections, 'name': f'{grid.name}_smoke', 'base': base}
    sections |= {'iterations': iterations, 'seeds': grid.seeds[:1]}
    sections |= {
        key: {name: short(part) for name, part in grid.sections[key].items()}
        for key in EXTENDABLE
    }  # fmt: skip
    if grid.wall_clock:
        sections['wall_clock'] = short(grid.wall_clock)
    return Grid(grid.path, sections)


def trained_runs(grid: Grid) -> dict[str, Run]:
    """The networks that others need, each after those it needs itself. Raises ValueError where they go in a circle."""
    runs: dict[str, Run] = {}

    def make(name: str, seen: tuple[str, ...]) -> None:
        if name in seen:
            raise ValueError(f'{grid.path}: trained networks need each other: {" -> ".join((*seen, name))}')
        part = grid.trained[name]
        cache = part.get('cache')
        options = overlaid(*layers(grid, cache, network=name).values())
        needs = _needs(grid, options, cache)
        for other in needs:
            if other not in runs:
                make(other, (*seen, name))
        iterations = part.get('iterations', grid.iterations)
        runs[name] = Run(name, options, iterations, part.get('seed', 0), cache, needs, _basis(grid, cache, needs, runs))

    for name in grid.trained:
        if name not in runs:
            make(name, ())
    return runs


def student_runs(grid: Grid) -> list[Run]:
    """Every student with every method and seed; all of the first seed first, so that a study is soon of use."""
    runs, trained = [], trained_runs(grid)
    for seed in grid.seeds:
        for student, method in ((student, method) for student in grid.students for method in grid.methods):
            part = grid.methods[method]
            seeds = part.get('seeds') or grid.students[student].get('seeds') or grid.seeds
            if student in part.get('students', grid.students) and seed in seeds:
                runs.append(_student_run(grid, trained, student, method, seed))
    return runs


def clock_cells(grid: Grid) -> list[tuple[str, str]]:
    """(student, method) of ``wall_clock``: the methods that run once more, for as long as the method ``like`` takes."""
    like = grid.wall_clock.get('like')
    students = grid.wall_clock.get('students', grid.students) if like else ()
    methods = grid.wall_clock.get('methods', grid.methods)
    return [(student, method) for student in students for method in methods if method != like]


def clock_iterations(grid: Grid, student: str, pace: float, pace_of_like: float) -> int:
    """How many steps of ``pace`` seconds fit into the time that the method ``like`` takes."""
    return max(round(grid.students[student].get('iterations', grid.iterations) * pace_of_like / pace), 1)


def clock_runs(grid: Grid, iterations: Mapping[tuple[str, str], int]) -> list[Run]:
    """The runs at equal time of the cells whose number of steps is known, all of the first seed first."""
    seeds = grid.wall_clock.get('seeds', grid.seeds)
    cells = [cell for cell in clock_cells(grid) if cell in iterations]
    trained = trained_runs(grid)
    return [_student_run(grid, trained, *cell, seed, iterations[cell]) for seed in seeds for cell in cells]


def _student_run(
    grid: Grid, trained: Mapping[str, Run], student: str, method: str, seed: int, iterations: int | None = None
) -> Run:
    part, own = grid.methods[method], grid.students[student]
    cache = part.get('cache')
    options = overlaid(*layers(grid, cache, student, method).values())
    name = f'{student}-{method}-seed{seed}' + ('-clock' if iterations else '')
    steps = iterations or own.get('iterations', grid.iterations)
    needs = _needs(grid, options, cache)
    basis = _basis(grid, cache, needs, trained)
    return Run(name, options, steps, seed, cache, needs, basis, student, method, iterations is not None)


def cache_digest(grid: Grid, cache: str) -> str:
    """SHA-256 of everything that decides what a cache holds."""
    return _basis(grid, cache, _needs(grid, {}, cache), trained_runs(grid))


def cache_options(grid: Grid, cache: str) -> dict[str, Any]:
    """The option with which a cache is made: the base with the cache's teachers."""
    return overlaid(*layers(grid, cache).values())


def layers(
    grid: Grid, cache: str | None, student: str | None = None, method: str | None = None, network: str | None = None
) -> dict[str, Any]:
    """What an option is laid together from, the last on top, by its place in the grid file.

    Of a cache; of a student with a method, or a network under ``trained``, that takes over what its ``cache`` has.
    """
    found = {'base': grid.base}
    if cache:
        found[f'caches.{cache}.options'] = grid.caches[cache].get('options')
    if network:
        found[f'trained.{network}.options'] = grid.trained[network].get('options')
    if student and method:
        part = grid.methods[method]
        found[f'students.{student}.options'] = grid.students[student].get('options')
        found[f'methods.{method}.options'] = part.get('options')
        found[f'methods.{method}.for_student.{student}'] = part.get('for_student', {}).get(student)
    return found


def _needs(grid: Grid, options: Mapping[str, Any], cache: str | None) -> tuple[str, ...]:
    """The trained networks that a run needs, those of its cache first."""
    wanted = references(options) | (references(cache_options(grid, cache)) if cache else set())
    return tuple(name for name in grid.trained if name in wanted)


def _basis(grid: Grid, cache: str | None, needs: tuple[str, ...], trained: Mapping[str, Run]) -> str:
    options = cache_options(grid, cache) if cache else {}
    part = grid.caches[cache] if cache else {}
    return _digest([options, part, fingerprints(options), [trained[name].digest() for name in needs]])


def completed(run: Run, folder: Path, name: str) -> dict[str, Any]:
    """The option file of a run in the study's ``folder``: name, seed, lengths and paths filled in."""
    options = filled_in(run.options, run.iterations, lambda other: str(weights_file(folder, other)))
    options |= {'name': name, 'manual_seed': run.seed}
    if run.cache:
        own = {'type': 'CachedTeacherDataset', 'dataroot_cache': str(folder / 'caches' / run.cache)}
        # not `overlaid`: the type changes, and the rest stays
        options['datasets'] = {**options['datasets'], 'train': {**options['datasets']['train'], **own}}
    return options


def weights_file(folder: Path, name: str) -> Path:
    """Where BasicSR leaves the last weights of a run of the study."""
    return folder / 'experiments' / name / 'models' / 'net_g_latest.pth'
