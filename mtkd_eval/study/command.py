"""Command line of studies: everything in a grid file trained, measured and written up, by one command."""

import argparse
import fnmatch
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

import mtkd  # first: it mends BasicSR

# isort: split
from mtkd_data.command_line import exit_code
from mtkd_data.folder_lock import only_run
from mtkd_data.whole_files import check_place, write_atomically
from mtkd_eval.image_sets import find_sets
from mtkd_eval.record import commit
from mtkd_eval.study.collect import as_study, clock_plan
from mtkd_eval.study.elsewhere import read_study, take_over
from mtkd_eval.study.grid import Grid, Run, cache_options, clock_runs, read_grid, shortened, student_runs, trained_runs
from mtkd_eval.study.missing import refuse_missing_parts
from mtkd_eval.study.overlay import references
from mtkd_eval.study.report import code_of, insert, to_markdown
from mtkd_eval.study.running import Study, with_plugin
from mtkd_eval.study.schedule import RunFailedError, Task, in_order, told

SMOKE_ITERATIONS = 4


def prepare_data(grid: Grid) -> bool:
    """Run the commands of ``prepare`` whose folders are missing, arguments of Python: a script, or ``-m`` and a module.

    Whether there were any. Raises FileNotFoundError for a script that is not there, RunFailedError where one does not
    make its folder.
    """
    waiting = {folder: shlex.split(command) for folder, command in grid.prepare.items() if not Path(folder).exists()}
    for folder, (first, *others) in waiting.items():
        if not first.startswith('-') and not Path(first).is_file():
            raise FileNotFoundError(
                f'{folder} is missing, and so is {first}, with which prepare of {grid.path} would make it: scripts are '
                'in a checkout of the repository: make the folder there, or start from there'
            )
        command = ' '.join((first, *others))
        print(f'making {folder}: python {command}', file=sys.stderr)
        done = subprocess.run([sys.executable, first, *others], env=with_plugin(), check=False)
        if done.returncode or not Path(folder).exists():
            raise RunFailedError(f'python {command}: exit code {done.returncode}, expected it to make {folder}')
    return bool(waiting)


def needed_parts(grid: Grid, runs: Iterable[Run]) -> tuple[list[str], list[str]]:
    """The trained networks and the caches that ``runs`` need, in the order in which they can be made."""
    trained = trained_runs(grid)
    networks: set[str] = set()
    caches: set[str] = set()

    def follow(run: Run) -> None:
        caches.update([run.cache] if run.cache else [])
        for name in run.needs:
            if name not in networks:
                networks.add(name)
                follow(trained[name])

    for run in runs:
        follow(run)
    return [name for name in trained if name in networks], [name for name in grid.caches if name in caches]


def stale_parts(study: Study, runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Runs and caches, of ``runs`` and what they need, that were made with other options, weights or images."""
    runs = list(runs)
    networks, caches = needed_parts(study.grid, runs)
    trained = trained_runs(study.grid)
    stale = [run for run in (*(trained[name] for name in networks), *runs) if study.is_stale(run)]
    return stale, [name for name in caches if study.is_stale_cache(name)]


def forget(study: Study, runs: Iterable[Run], caches: Iterable[str], among: Iterable[Run]) -> None:
    """Forget ``runs`` and ``caches``, and of ``among`` and the caches everything that was made from them."""
    gone = {run.name: run for run in runs}
    lost = set(caches)
    everything = {run.name: run for run in (*trained_runs(study.grid).values(), *among)}
    before = None
    while before != (len(gone), len(lost)):
        before = len(gone), len(lost)
        lost |= {name for name in study.grid.caches if references(cache_options(study.grid, name)) & gone.keys()}
        gone |= {name: run for name, run in everything.items() if run.cache in lost or gone.keys() & set(run.needs)}
    for run in gone.values():
        study.forget(run)
    for name in lost:
        study.forget_cache(name)


def tasks_of(study: Study, runs: Sequence[Run]) -> dict[str, Task]:
    """What there is to do for ``runs``: the networks and caches that unfinished ones need, these, networks to measure.

    A cache that they need is always among it: one that is there is looked at.
    """
    trained = trained_runs(study.grid)

    def unfinished(of: Iterable[Run]) -> list[Run]:
        return [run for run in of if study.result_of(run) is None]

    def trainings(of: Iterable[Run]) -> dict[str, Task]:
        return {run.name: Task(partial(study.carry_out, run), _needs_of(run)) for run in unfinished(of)}

    networks, caches = needed_parts(study.grid, unfinished(runs))
    tasks = trainings(trained[name] for name in networks)
    for name in caches:
        needs = tuple(sorted(references(cache_options(study.grid, name))))
        tasks[f'cache {name}'] = Task(partial(study.cache, name), needs)
    tasks |= trainings(runs)
    for title, cache in study.unmeasured_networks(caches).items():
        tasks[f'measuring {title}'] = Task(partial(study.measure_network, title), (f'cache {cache}',))
    return tasks


def _needs_of(run: Run) -> tuple[str, ...]:
    return (*([f'cache {run.cache}'] if run.cache else []), *run.needs)


def in_order_with_bar(
    study: Study, tasks: Mapping[str, Task], runs: Sequence[Run], what: str, failed: Mapping[str, str]
) -> dict[str, str]:
    """``in_order`` with a progress bar that counts those of ``runs`` that are done, too, and names what is running."""
    done = sum(run.name not in tasks for run in runs)
    with tqdm(total=done + len(tasks), initial=done, desc=what, unit='part') as bar:

        def changed(left: int, running: Iterable[str]) -> None:
            bar.set_postfix_str(', '.join(running), refresh=False)
            bar.update(bar.total - left - bar.n)
            bar.refresh()

        return in_order(tasks, study.jobs, failed, changed)


def listing(study: Study, runs: Sequence[Run]) -> str:
    """A line per run: done, waiting or stale, and its name."""

    def state(run: Run) -> str:
        return 'stale' if study.is_stale(run) else 'waiting' if study.result_of(run) is None else 'done'

    return '\n'.join(f'{state(run):8} {run.name}' for run in runs)


def of_other_commits(study: Study, runs: Iterable[Run]) -> str:
    """A line for results that are kept though another commit than the present one trained them; or an empty text.

    Commits are no part of a digest: a change elsewhere in the code would repeat everything.
    """
    here = code_of({'commit': commit(), 'mtkd': mtkd.__version__})
    kept = [
        code_of(result.get('trained_on') or {}) or 'unknown code' for run in runs if (result := study.result_of(run))
    ]
    others = Counter(code for code in kept if code != here)
    if not others:
        return ''
    counts = ', '.join(f'{count} by {code}' for code, count in others.most_common())
    return f'note: {others.total()} of {len(kept)} kept results were trained by other code than {here}: {counts}'


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train every student of a grid file with every method and seed, measure them and write it up:\n'
        'means, spread, paired gains with confidence intervals. A stopped study is finished by the same command.',
        epilog='examples:\n'
        '  python scripts/run_study.py options/study/small_x4.yml\n'
        '  python scripts/run_study.py options/study/small_x4.yml --list\n'
        '  python scripts/run_study.py options/study/small_x4.yml --set datasets/Set5 datasets/Urban100 --jobs 8\n'
        "  python scripts/run_study.py options/study/small_x4.yml --only 'edsr-mtkd*' 'edsr-scratch*'\n"
        '  python scripts/run_study.py options/study/small_x4.yml --from one/study.json other/study.json\n'
        '  python scripts/run_study.py benchmarks/results/study/small_x4.json --report --page docs/results.md\n'
        'writes <out>/{study.json,results.md}; experiments, caches, logs and option files lie beside them\n'
        'exit code: 0 done, 2 refused or failed, 130 interrupted',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('grid', type=Path, help='grid file, see options/study and docs/studies.md; or a study.json')
    add('--out', type=Path, help='folder of the study (default: results/study/<name>)')
    add(
        '--set',
        nargs='+',
        dest='sets',
        metavar='SET',
        help='test sets as for evaluate.py (default: test_sets of the grid)',
    )
    add('--only', nargs='+', metavar='PATTERN', help='runs by name, * and ? allowed: <student>-<method>-seed<n>')
    add('--redo', nargs='+', metavar='PATTERN', help='runs and trained networks to repeat, with all that needs them')
    add('--redo-stale', action='store_true', help='repeat what was made with other options, weights or images')
    add(
        '--from',
        nargs='+',
        dest='others',
        type=Path,
        default=[],
        metavar='STUDY.json',
        help='keep the results of other folders or machines that these hold, instead of repeating them',
    )
    add('--jobs', type=int, default=1, help='trainings and caches at a time; with several GPUs one each (default: 1)')
    add('--threads', type=int, help='CPU threads of a training (default: cores / jobs)')
    add('--list', action='store_true', help='say what is done and what waits, and do nothing')
    add('--report', action='store_true', help='run nothing, write up what is there')
    add(
        '--smoke', action='store_true', help=f'{SMOKE_ITERATIONS} steps, one seed, in a folder of its own: does it run?'
    )
    add('--page', type=Path, help='insert the tables into this Markdown page too')
    add('--json', type=Path, help='write the figures here too')
    return parser.parse_args(argv)


def run(given: argparse.Namespace) -> dict[str, str]:
    """What the command line asks for; name -> message of what failed."""
    if given.jobs < 1:
        raise ValueError(f'--jobs must be at least 1, got {given.jobs}')
    if given.smoke and (given.page or given.json):
        raise ValueError('--smoke makes no figures to keep: leave --page and --json out')
    if given.others and (given.smoke or given.list):
        raise ValueError('--smoke and --list keep no results: leave --from out')
    if given.others and (given.redo or given.redo_stale):
        raise ValueError('--redo and --redo-stale repeat what --from keeps: one after the other, please')
    for path in (given.page, given.json):
        if path is not None:
            check_place(path)
    if given.grid.suffix == '.json':
        write_up_again(given)
        return {}
    grid = read_grid(given.grid)
    folder = given.out or Path('results/study') / grid.name
    if given.smoke:
        grid, folder = shortened(grid, SMOKE_ITERATIONS), folder.with_name(f'{folder.name}_smoke')
    threads = given.threads or (max((os.cpu_count() or 1) // given.jobs, 1) if given.jobs > 1 else None)
    study = Study(grid, folder, given.sets or grid.test_sets, threads, given.jobs)
    planned = student_runs(grid)
    chosen = _chosen(planned, given.only)
    redone = _chosen([*trained_runs(grid).values(), *planned], given.redo or [], '--redo')
    if given.list:
        print(listing(study, [*chosen, *_timed(study, planned)]))
        _note_other_code(study, planned)
        return {}
    failures = {}
    if given.report and given.others:
        prepare_data(grid)  # what results are of is told by their data and weights
        _refuse_missing(study, planned, planned, None)
        folder.mkdir(parents=True, exist_ok=True)
        with only_run(folder):
            _take_over(study, planned, given.others)
    elif not given.report:
        _refuse_missing(study, planned, chosen, given.only)
        if prepare_data(grid):
            _refuse_missing(study, planned, chosen, given.only)
        find_sets(study.test_sets, {grid.scale})  # raises where one is missing, before the first step
        if given.smoke:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        with only_run(folder):
            _clear(study, planned, redone, given.redo_stale)
            _take_over(study, planned, given.others)
            _note_other_code(study, planned)
            failures = carry_out(study, planned, chosen, given.only)
    for message in told(failures):
        print(f'error: {message}', file=sys.stderr)
    if not failures or any(study.result_of(each) for each in planned):
        write_up(study, planned, given.page, given.json)
    return failures


def write_up_again(given: argparse.Namespace) -> None:
    """The tables of a study.json put into a page, as they were when it was made, without the runs behind it."""
    if not given.report or given.page is None or given.others:
        raise ValueError(f'{given.grid}: a study.json can only be written up again: --report --page PAGE.md')
    content = read_study(given.grid)
    insert_into(given.page, content['name'], to_markdown(content))


def _take_over(study: Study, planned: Sequence[Run], files: Sequence[Path]) -> None:
    if files:
        print(f'{take_over(study, planned, files)} results kept from elsewhere', file=sys.stderr)


def _refuse_missing(study: Study, planned: Sequence[Run], chosen: Sequence[Run], only: Sequence[str] | None) -> None:
    """Raise FileNotFoundError for all data and weights that what is to be done would not find."""
    runs = [*chosen, *_timed(study, planned, only)]
    trained = trained_runs(study.grid)
    networks, caches = needed_parts(study.grid, runs)
    refuse_missing_parts(study.grid, [*(trained[name] for name in networks), *runs], caches, study.test_sets)


def _note_other_code(study: Study, planned: Sequence[Run]) -> None:
    note = of_other_commits(study, [*trained_runs(study.grid).values(), *planned, *_timed(study, planned)])
    if note:
        print(note, file=sys.stderr)


def _clear(study: Study, planned: Sequence[Run], redone: Sequence[Run], redo_stale: bool) -> None:
    """Forget what is to be repeated. Raises ValueError where something is stale and not to be repeated."""
    everything = [*planned, *_timed(study, planned)]
    forget(study, redone, (), everything)
    runs, caches = stale_parts(study, everything)
    if redo_stale:
        forget(study, runs, caches, everything)
    elif runs or caches:
        names = [*(run.name for run in runs), *(f'cache {name}' for name in caches)]
        raise ValueError(
            f'{study.folder}: made with other options, weights or images than now: {", ".join(names)}: repeat them '
            'with --redo-stale, or give another --out'
        )


def carry_out(
    study: Study, planned: Sequence[Run], chosen: Sequence[Run], only: Sequence[str] | None
) -> dict[str, str]:
    """Everything that is missing of ``chosen``, then of the runs at equal time; name -> message of what failed."""
    tasks = tasks_of(study, chosen)
    failures = in_order_with_bar(study, tasks, chosen, study.grid.name, {})
    timed = _timed(study, planned, only, keep=True)
    later = {name: task for name, task in tasks_of(study, timed).items() if name not in tasks}
    return failures | (in_order_with_bar(study, later, timed, 'equal time', failures) if later else {})


def _timed(study: Study, planned: Sequence[Run], only: Sequence[str] | None = None, keep: bool = False) -> list[Run]:
    """The runs at equal time of which the number of steps is known and that ``only`` names, None for all."""
    timed = clock_runs(study.grid, clock_plan(study, planned, keep))
    return timed if only is None else [run for run in timed if _matches(run, only)]


def write_up(study: Study, planned: Sequence[Run], page: Path | None, copy: Path | None) -> None:
    """Write study.json and results.md, and the tables into ``page``."""
    content = as_study(study, planned, _timed(study, planned))
    if not content['results']:
        raise ValueError(f'{study.folder}: no finished run to write up')
    data, text = json.dumps(content, indent=1).encode(), to_markdown(content)
    write_atomically(study.folder / 'study.json', data)
    write_atomically(study.folder / 'results.md', text.encode())
    if copy:
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, data)
    if page:
        insert_into(page, content['name'], text)


def insert_into(page: Path, name: str, text: str) -> None:
    """The tables of the study ``name`` put into a Markdown page."""
    old = page.read_text() if page.is_file() else ''
    write_atomically(page, insert(old, name, text).encode())


def _matches(run: Run, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(run.name, pattern) for pattern in patterns)


def _chosen(runs: Sequence[Run], patterns: Sequence[str] | None, option: str = '--only') -> list[Run]:
    """The runs that ``patterns`` name, all for None. Raises ValueError for a pattern that names none."""
    for pattern in patterns or ():
        if not any(_matches(run, [pattern]) for run in runs) and not pattern.endswith('-clock'):
            raise ValueError(f'{option} {pattern}: no run by such a name, such as {runs[0].name}')
    return [run for run in runs if patterns is None or _matches(run, patterns)]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed, 130 interrupted."""
    given = _parse(argv)
    return exit_code(lambda: 2 if run(given) else 0)
