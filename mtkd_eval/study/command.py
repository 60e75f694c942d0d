"""Command line of studies: everything in a grid file trained, measured and written up, by one command."""

import argparse
import fnmatch
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mtkd_data.command_line import exit_code
from mtkd_data.folder_lock import only_run
from mtkd_data.lmdb_store import write_atomically
from mtkd_eval.image_sets import find_sets
from mtkd_eval.study.collect import as_study, pace_of
from mtkd_eval.study.grid import Grid, Run, clock_runs, read_grid, shortened, student_runs, trained_runs
from mtkd_eval.study.report import gains_of, insert, to_markdown
from mtkd_eval.study.running import RunFailedError, Study, in_parallel
from mtkd_eval.study.statistics import gains_over

SMOKE_ITERATIONS = 4


def prepare_data(grid: Grid) -> None:
    """Run the commands of ``prepare`` whose folders are missing. Raises RunFailedError where one does not make it."""
    for folder, command in grid.prepare.items():
        if not Path(folder).exists():
            print(f'making {folder}: python {command}', file=sys.stderr)
            done = subprocess.run([sys.executable, *shlex.split(command)], check=False)
            if done.returncode or not Path(folder).exists():
                raise RunFailedError(f'python {command}: exit code {done.returncode}, expected it to make {folder}')


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


def make_parts(study: Study, runs: Sequence[Run]) -> None:
    """Train the networks and make the caches that ``runs`` need."""
    trained = trained_runs(study.grid)
    networks, caches = needed_parts(study.grid, runs)
    made: set[str] = set()

    def make_cache(name: str | None) -> None:
        if name and name not in made:
            made.add(name)
            bar.set_description(f'cache {name}')
            study.cache(name)
            bar.update()

    with tqdm(total=len(networks) + len(caches), unit='part') as bar:
        for name in networks:
            make_cache(trained[name].cache)
            bar.set_description(name)
            if study.result_of(trained[name]) is None:
                study.carry_out(trained[name])
            bar.update()
        for name in caches:
            make_cache(name)


def run_all(study: Study, runs: Sequence[Run], jobs: int, what: str) -> dict[str, str]:
    """Train and measure what has no result yet; name -> message of the runs that failed."""
    waiting = [run for run in runs if study.result_of(run) is None]
    with tqdm(total=len(runs), initial=len(runs) - len(waiting), desc=what, unit='run') as bar:
        return in_parallel({run.name: partial(study.carry_out, run) for run in waiting}, jobs, bar.update)


def listing(study: Study, runs: Sequence[Run]) -> str:
    """A line per run: done or waiting, and its name."""
    return '\n'.join(f'{"waiting" if study.result_of(run) is None else "done":8} {run.name}' for run in runs)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train every student of a grid file with every method and seed, measure them and write it up:\n'
        'means, spread, paired gains with confidence intervals. A stopped study is finished by the same command.',
        epilog='examples:\n'
        '  python scripts/run_study.py options/study/small_x4.yml\n'
        '  python scripts/run_study.py options/study/small_x4.yml --list\n'
        '  python scripts/run_study.py options/study/small_x4.yml --set datasets/Set5 datasets/Urban100 --jobs 8\n'
        "  python scripts/run_study.py options/study/small_x4.yml --only 'edsr-mtkd*' 'edsr-scratch*'\n"
        'writes <out>/{study.json,gains.json,results.md}; experiments, caches, logs and option files lie beside them\n'
        'exit code: 0 done, 2 refused or failed, 130 interrupted',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('grid', type=Path, help='grid file, see options/study and docs/studies.md')
    add('--out', type=Path, help='folder of the study (default: results/study/<name>)')
    add(
        '--set',
        nargs='+',
        dest='sets',
        metavar='SET',
        help='test sets as for evaluate.py (default: test_sets of the grid)',
    )
    add('--only', nargs='+', metavar='PATTERN', help='runs by name, * and ? allowed: <student>-<method>-seed<n>')
    add('--redo', nargs='+', default=[], metavar='PATTERN', help='runs to forget and repeat')
    add('--jobs', type=int, default=1, help='trainings at a time; with several GPUs one each (default: 1)')
    add('--threads', type=int, help='CPU threads of a training (default: all)')
    add('--list', action='store_true', help='say what is done and what waits, and do nothing')
    add('--report', action='store_true', help='run nothing, write up what is there')
    add(
        '--smoke', action='store_true', help=f'{SMOKE_ITERATIONS} steps, one seed, in a folder of its own: does it run?'
    )
    add('--page', type=Path, help='insert the tables into this Markdown page too')
    add('--json', type=Path, help='write the figures here too')
    return parser.parse_args(argv)


def run(given: argparse.Namespace) -> dict[str, str]:
    """What the command line asks for; the runs that failed."""
    if given.jobs < 1:
        raise ValueError(f'--jobs must be at least 1, got {given.jobs}')
    grid = read_grid(given.grid)
    folder = given.out or Path('results/study') / grid.name
    if given.smoke:
        grid, folder = shortened(grid, SMOKE_ITERATIONS), folder.with_name(f'{folder.name}_smoke')
    study = Study(grid, folder, given.sets, given.threads)
    planned = student_runs(grid)
    runs = _chosen(planned, given.only)
    if given.list:
        print(listing(study, runs))
        return {}
    failures = {}
    if not given.report:
        prepare_data(grid)
        study.test_sets = given.sets or grid.test_sets
        find_sets(study.test_sets, {grid.scale})  # raises where one is missing, before the first step
        folder.mkdir(parents=True, exist_ok=True)
        with only_run(folder):
            for each in (*trained_runs(grid).values(), *planned):
                if any(fnmatch.fnmatch(each.name, pattern) for pattern in given.redo):
                    study.forget(each)
            make_parts(study, runs)
            failures = run_all(study, runs, given.jobs, 'students')
            timed = clock_runs(grid, pace_of(study, planned))
            failures |= run_all(study, _chosen(timed, given.only), given.jobs, 'equal time')
            study.measure_networks()
    write_up(study, planned, given.page, given.json)
    return failures


def write_up(study: Study, planned: Sequence[Run], page: Path | None, copy: Path | None) -> None:
    """Write study.json, gains.json and results.md, and the tables into ``page``."""
    timed = clock_runs(study.grid, pace_of(study, planned))
    content = as_study(study, planned, timed)
    if not content['results']:
        raise ValueError(f'{study.folder}: no finished run to write up')
    text = to_markdown(content)
    data = json.dumps(content, indent=1).encode()
    write_atomically(study.folder / 'study.json', data)
    write_atomically(study.folder / 'results.md', text.encode())
    if study.grid.reference:
        rows = gains_over(content['results'], study.grid.reference, list(study.grid.students), list(study.grid.methods))
        write_atomically(study.folder / 'gains.json', json.dumps(gains_of(rows, content), indent=1).encode())
    if copy:
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, data)
    if page:
        old = page.read_text() if page.is_file() else ''
        write_atomically(page, insert(old, study.grid.name, text).encode())


def _chosen(runs: Sequence[Run], patterns: Sequence[str] | None) -> list[Run]:
    if patterns is None:
        return list(runs)
    found = [run for run in runs if any(fnmatch.fnmatch(run.name, pattern) for pattern in patterns)]
    if not found and runs and not runs[0].clock:
        raise ValueError(f'--only {" ".join(patterns)}: no run by such a name, such as {runs[0].name}')
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed, 130 interrupted."""
    given = _parse(argv)
    return exit_code(lambda: _report(run(given)))


def _report(failures: Mapping[str, str]) -> int:
    for message in failures.values():
        print(f'error: {message}', file=sys.stderr)
    return 2 if failures else 0
