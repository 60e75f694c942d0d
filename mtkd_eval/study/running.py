"""Runs what a study consists of, each in a process of its own, and leaves out what is done."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

import mtkd  # first: it mends BasicSR

# isort: split
import torch
import yaml
from basicsr.utils.options import ordered_yaml

from mtkd_data.lmdb_store import write_atomically
from mtkd_eval.comparison import as_file_name
from mtkd_eval.study.grid import Grid, Run, cache_options, completed, weights_file
from mtkd_eval.study.overlay import filled_in

CACHE = 'import sys; from mtkd_data.teacher_cache.command import main; sys.exit(main())'
WORK = 'import sys; from mtkd_eval.study.worker import main; sys.exit(main())'
STEP_TIME = re.compile(r'iter:\s*([\d,]+).* time \(data\): ([\d.]+)')
ERROR_LINES = 15


class RunFailedError(ChildProcessError):
    """A process of the study failed; the message holds the end of its log."""


def write_option(options: Mapping[str, Any], path: Path) -> Path:
    """Write an option file; the same text for the same options."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.dump(json.loads(json.dumps(options)), Dumper=ordered_yaml()[1], sort_keys=False)
    write_atomically(path, text.encode())
    return path


def call(code: str, arguments: list[str], log: Path, slot: int, threads: int | None) -> None:
    """Run Python code in a process with its output in ``log``; RunFailedError with the end of the log if it fails.

    ``slot``: which of the parallel jobs this is; with several GPUs it picks one.
    """
    root = str(Path(mtkd.__file__).parents[1])
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))}
    if threads:
        environment |= {'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads)}
    if torch.cuda.device_count() > 1 and 'CUDA_VISIBLE_DEVICES' not in environment:
        environment['CUDA_VISIBLE_DEVICES'] = str(slot % torch.cuda.device_count())
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as output:
        done = subprocess.run(
            [sys.executable, '-c', code, *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    if done.returncode:
        end = '\n'.join(log.read_text(errors='replace').splitlines()[-ERROR_LINES:])
        raise RunFailedError(f'{log} (exit code {done.returncode}):\n{end}')


class Study:
    """The folder of a study: option files, experiments, caches, logs and a result per run."""

    def __init__(
        self, grid: Grid, folder: Path, test_sets: list[str] | None = None, threads: int | None = None
    ) -> None:
        self.grid, self.folder, self.test_sets, self.threads = grid, folder, test_sets, threads

    def result_file(self, run: Run) -> Path:
        return self.folder / 'runs' / f'{run.name}.json'

    def result_of(self, run: Run) -> dict[str, Any] | None:
        """What a finished run measured; ValueError where it ran with other options than the grid has now.

        None while there is nothing, or figures of other test sets, so that it has to be measured again.
        """
        path = self.result_file(run)
        if not path.is_file():
            return None
        result = json.loads(path.read_text())
        if result['digest'] != run.digest():
            raise ValueError(
                f'{path}: was made with other options than the grid file has now: repeat it with --redo {run.name}, or '
                'give another --out'
            )
        return result if self.test_sets in (None, result['test_sets']) else None

    def forget(self, run: Run) -> None:
        """Take the result of a run away, and its experiment out of the way of a new one."""
        experiment = self.folder / 'experiments' / run.name
        self.result_file(run).unlink(missing_ok=True)
        if experiment.exists():
            others = len(list(experiment.parent.glob(f'{run.name}_archived_*')))
            experiment.rename(experiment.with_name(f'{run.name}_archived_{others}'))

    def cache(self, name: str) -> None:
        """Make a teacher cache; one that is there already is only looked at."""
        options = filled_in(cache_options(self.grid, name), 1, lambda other: str(weights_file(self.folder, other)))
        options['name'] = f'cache_{name}'
        option_file = write_option(options, self.folder / 'options' / f'cache_{name}.yml')
        part = self.grid.caches[name]
        arguments = ['-opt', str(option_file), '--out', str(self.folder / 'caches' / name)]
        arguments += ['--stores', *part.get('stores', ['target'])]
        arguments += ['--self-ensemble'] if part.get('self_ensemble') else []
        call(CACHE, arguments, self.folder / 'logs' / f'cache_{name}.log', 0, None)

    def carry_out(self, run: Run, slot: int = 0) -> None:
        """Train a run to its end, measure it and keep the result; one that was begun goes on from its checkpoint."""
        experiment, place = self.folder / 'experiments' / run.name, self.result_file(run)
        option_file = write_option(completed(run, self.folder, run.name), self.folder / 'options' / f'{run.name}.yml')
        place.parent.mkdir(parents=True, exist_ok=True)
        raw = place.with_suffix('.measured')
        arguments = [str(experiment), str(raw), *self.test_sets]
        if not weights_file(self.folder, run.name).is_file():
            arguments = ['--train', str(self.folder.absolute()), str(option_file), *arguments]
        call(WORK, arguments, self.folder / 'logs' / f'{run.name}.log', slot, self.threads)
        result = {
            'run': run.name, 'digest': run.digest(), 'student': run.student, 'method': run.method, 'seed': run.seed,
            'clock': run.clock, 'iterations': run.iterations, 'step_seconds': step_seconds(experiment, run.iterations),
            'threads': self.threads or torch.get_num_threads(), 'test_sets': self.test_sets,
            **json.loads(raw.read_text()),
        }  # fmt: skip
        write_atomically(place, json.dumps(result, indent=1).encode())
        raw.unlink()

    def measure_networks(self) -> None:
        """Evaluate teachers and targets that the grid's ``networks`` name, where that has not been done."""
        for title, part in self.grid.networks.items():
            place, source = self._network_file(title), self._network_source(part)
            if place.is_file() and json.loads(place.read_text())['test_sets'] == self.test_sets:
                continue
            if Path(source.rpartition(':')[0]).is_file():  # the cache was needed, so its networks are there
                place.parent.mkdir(parents=True, exist_ok=True)
                raw = place.with_suffix('.measured')
                call(WORK, [source, str(raw), *self.test_sets], self.folder / 'logs' / f'{place.stem}.log', 0, None)
                found = {'test_sets': self.test_sets, **json.loads(raw.read_text())}
                write_atomically(place, json.dumps(found, indent=1).encode())
                raw.unlink()

    def networks(self) -> dict[str, Any]:
        """Title -> what was measured of it."""
        files = {title: self._network_file(title) for title in self.grid.networks}
        return {title: json.loads(path.read_text()) for title, path in files.items() if path.is_file()}

    def _network_file(self, title: str) -> Path:
        return self.folder / 'networks' / f'{as_file_name(title)}.json'

    def _network_source(self, part: str) -> str:
        cache, _, rest = part.partition(':')
        return f'{self.folder}/options/cache_{cache}.yml:{rest}'


def step_seconds(experiment: Path, iterations: int) -> float | None:
    """Seconds of a training step: the median of what the trainer logged after the first tenth; None without any."""
    found = [
        (int(match[1].replace(',', '')), float(match[2]))
        for log in sorted(experiment.glob('train_*.log'))
        for match in STEP_TIME.finditer(log.read_text(errors='replace'))
    ]
    times = [seconds for iteration, seconds in found if iteration > iterations / 10]
    return median(times) if times else None


def in_parallel(tasks: Mapping[str, Callable[[int], Any]], jobs: int, done: Callable[[], None]) -> dict[str, str]:
    """Run tasks by name, each given the number of its slot, ``jobs`` at a time; name -> message of those that failed.

    A failure keeps no other task from running; what is no failure of a task (an interrupt, a full disk) ends them.
    """
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def run(task: Callable[[int], Any]) -> None:
        slot = slots.get()
        try:
            task(slot)
        finally:
            slots.put(slot)

    failures = {}
    with ThreadPoolExecutor(jobs) as pool:
        names: dict[Future, str] = {pool.submit(run, task): name for name, task in tasks.items()}
        try:
            for future in as_completed(names):
                try:
                    future.result()
                except RunFailedError as error:
                    failures[names[future]] = str(error)
                done()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failures
