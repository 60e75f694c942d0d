"""Runs what a study consists of, each in a process of its own, and leaves out what is done."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import mtkd  # first: it mends BasicSR

# isort: split
import torch
import yaml
from basicsr.utils.options import ordered_yaml

from mtkd_data.whole_files import write_atomically
from mtkd_eval.comparison import as_file_name
from mtkd_eval.study.grid import Grid, Run, cache_digest, cache_options, completed, weights_file
from mtkd_eval.study.overlay import filled_in
from mtkd_eval.study.schedule import RunFailedError
from mtkd_eval.study.worker import TRAINED_ON

CACHE = 'import sys; from mtkd_data.teacher_cache.command import main; sys.exit(main())'
WORK = 'import sys; from mtkd_eval.study.worker import main; sys.exit(main())'
LOGGED = re.compile(r'^(?P<at>[\d-]+ [\d:]+,\d+) INFO: \[.*iter:\s*(?P<iteration>[\d,]+)', re.MULTILINE)
ERROR_LINES = 15


def write_option(options: Mapping[str, Any], path: Path) -> Path:
    """Write an option file; the same text for the same options."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.dump(json.loads(json.dumps(options)), Dumper=ordered_yaml()[1], sort_keys=False)
    write_atomically(path, text.encode())
    return path


def with_plugin() -> dict[str, str]:
    """The environment of a process that finds this very plugin, be it installed or not."""
    root = str(Path(mtkd.__file__).parents[1])
    return os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))}


def call(code: str, arguments: list[str], log: Path, slot: int, threads: int | None) -> None:
    """Run Python code in a process with its output in ``log``; RunFailedError with the end of the log if it fails.

    ``slot``: which of the parallel jobs this is; with several GPUs it picks one.
    """
    environment = with_plugin()
    if threads:
        environment |= {'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads)}
    if len(devices := visible_devices()) > 1:
        environment['CUDA_VISIBLE_DEVICES'] = devices[slot % len(devices)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('w') as output:
        done = subprocess.run(
            [sys.executable, '-c', code, *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    if done.returncode:
        end = '\n'.join(log.read_text(errors='replace').splitlines()[-ERROR_LINES:])
        raise RunFailedError(f'{log} (exit code {done.returncode}):\n{end}')


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    return named.split(',') if named else [str(number) for number in range(torch.cuda.device_count())]


class Study:
    """The folder of a study: option files, experiments, caches, logs and a result per run."""

    def __init__(
        self, grid: Grid, folder: Path, test_sets: list[str], threads: int | None = None, jobs: int = 1
    ) -> None:
        self.grid, self.folder, self.test_sets, self.threads, self.jobs = grid, folder, test_sets, threads, jobs

    def result_file(self, run: Run) -> Path:
        return self.folder / 'runs' / f'{run.name}.json'

    def experiment_of(self, run: Run) -> Path:
        return self.folder / 'experiments' / run.name

    def result_of(self, run: Run) -> dict[str, Any] | None:
        """What a finished run measured on the test sets; None while it has not, or of other options than these."""
        result = self._kept(run)
        return result if result and result['test_sets'] == self.test_sets else None

    def _kept(self, run: Run) -> dict[str, Any] | None:
        """The result of a run with these options, on whatever test sets it was measured."""
        path = self.result_file(run)
        result = json.loads(path.read_text()) if path.is_file() else None
        return result if result and result['digest'] == run.digest() else None

    def is_begun(self, run: Run) -> bool:
        """Whether anything is there of a run, finished or not."""
        return self.experiment_of(run).exists() or self.result_file(run).exists()

    def is_stale(self, run: Run) -> bool:
        """Whether what is there of a run was made, or begun, with other options, weights or images."""
        return self.is_begun(run) and self._recorded(run.name) != run.digest()

    def is_stale_cache(self, name: str) -> bool:
        """Whether a cache, finished or not, was made of other networks or images."""
        return any(path.exists() for path in self._cache_folders(name)) and (
            self._recorded(f'cache_{name}') != cache_digest(self.grid, name)
        )

    def _recorded(self, name: str) -> str | None:
        path = self.folder / 'digests' / name
        return path.read_text() if path.is_file() else None

    def _record(self, name: str, digest: str) -> None:
        path = self.folder / 'digests' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, digest.encode())

    def _cache_folders(self, name: str) -> tuple[Path, Path]:
        return self.folder / 'caches' / name, self.folder / 'caches' / f'{name}.partial'

    def _cache_option(self, name: str) -> Path:
        return self.folder / 'options' / f'cache_{name}.yml'

    def forget(self, run: Run) -> None:
        """Take the result of a run away, and its experiment out of the way of a new one."""
        experiment = self.experiment_of(run)
        self.result_file(run).unlink(missing_ok=True)
        if experiment.exists():
            archived = [int(path.name.rpartition('_')[2]) for path in experiment.parent.glob(f'{run.name}_archived_*')]
            experiment.rename(experiment.with_name(f'{run.name}_archived_{max(archived, default=-1) + 1}'))

    def forget_cache(self, name: str) -> None:
        """Delete a cache: the same command makes it again."""
        for path in self._cache_folders(name):
            shutil.rmtree(path, ignore_errors=True)

    def cache(self, name: str, slot: int = 0) -> None:
        """Make a teacher cache; one that is there already is only looked at."""
        options = filled_in(cache_options(self.grid, name), 1, lambda other: str(weights_file(self.folder, other)))
        options['name'] = f'cache_{name}'
        option_file = write_option(options, self._cache_option(name))
        part = self.grid.caches[name]
        arguments = ['-opt', str(option_file), '--out', str(self.folder / 'caches' / name)]
        arguments += ['--stores', *part.get('stores', ['target'])]
        arguments += ['--self-ensemble'] if part.get('self_ensemble') else []
        digest, begun = cache_digest(self.grid, name), any(path.exists() for path in self._cache_folders(name))
        self._record(f'cache_{name}', digest)
        start = time.monotonic()
        call(CACHE, arguments, self.folder / 'logs' / f'cache_{name}.log', slot, self.threads)
        if not begun:
            self.keep_cache_seconds(name, time.monotonic() - start)

    def keep_cache_seconds(self, name: str, seconds: float) -> None:
        """Keep how long making a cache took."""
        made = {'digest': cache_digest(self.grid, name), 'seconds': round(seconds, 1)}
        _keep(made, self._cache_time(name))

    def cache_seconds(self) -> dict[str, float]:
        """How long making each cache took, start of the process included; those made in one go."""
        places = {name: self._cache_time(name) for name in self.grid.caches}
        found = {name: json.loads(place.read_text()) for name, place in places.items() if place.is_file()}
        return {
            name: made['seconds'] for name, made in found.items() if made['digest'] == cache_digest(self.grid, name)
        }

    def _cache_time(self, name: str) -> Path:
        return self.folder / 'cache_times' / f'{name}.json'

    def carry_out(self, run: Run, slot: int = 0) -> None:
        """Train a run to its end, measure it and keep the result; one that was begun goes on from its checkpoint."""
        experiment, place = self.experiment_of(run), self.result_file(run)
        self._record(run.name, run.digest())
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
            **self._side_by_side(run), 'test_sets': self.test_sets,
            'trained_on': trained_on(experiment), **json.loads(raw.read_text()),
        }  # fmt: skip
        self.keep_result(run, result)
        raw.unlink()

    def _side_by_side(self, run: Run) -> dict[str, int]:
        """Threads and jobs of a run's training: those of now, or, where it is only measured again, those it had."""
        of_now = {'threads': self.threads or torch.get_num_threads(), 'jobs': self.jobs}
        before = self._kept(run) or of_now
        return {key: before[key] for key in of_now if key in before}

    def keep_result(self, run: Run, result: Mapping[str, Any]) -> None:
        """Keep what a finished run measured, with the digest of what it was trained with."""
        self._record(run.name, run.digest())
        _keep(result, self.result_file(run))

    def unmeasured_networks(self, caches: Collection[str]) -> dict[str, str]:
        """Title -> cache of the grid's ``networks`` without figures: of those of ``caches`` and of any made before."""
        parts = {title: part.partition(':')[0] for title, part in self.grid.networks.items()}
        return {
            title: cache
            for title, cache in parts.items()
            if self._network(title) is None and (cache in caches or self._cache_option(cache).is_file())
        }

    def measure_network(self, title: str, slot: int = 0) -> None:
        """Evaluate a teacher or target that the grid's ``networks`` name, and keep the result."""
        cache, _, part = self.grid.networks[title].partition(':')
        place = self._network_file(title)
        raw = place.with_suffix('.measured')
        place.parent.mkdir(parents=True, exist_ok=True)
        arguments = [f'{self._cache_option(cache)}:{part}', str(raw), *self.test_sets]
        call(WORK, arguments, self.folder / 'logs' / f'{place.stem}.log', slot, self.threads)
        found = {
            'digest': self._network_digest(title), 'test_sets': self.test_sets, **json.loads(raw.read_text()),
        }  # fmt: skip
        self.keep_network(title, found)
        raw.unlink()

    def keep_network(self, title: str, found: Mapping[str, Any]) -> None:
        """Keep what was measured of a teacher or target."""
        _keep(found, self._network_file(title))

    def networks(self) -> dict[str, Any]:
        """Title -> what was measured of it."""
        return {title: found for title in self.grid.networks if (found := self._network(title))}

    def _network(self, title: str) -> dict[str, Any] | None:
        place = self._network_file(title)
        found = json.loads(place.read_text()) if place.is_file() else None
        return found if found and self.fits(title, found) else None

    def fits(self, title: str, found: Mapping[str, Any]) -> bool:
        """Whether ``found`` was measured of the network of that title as the grid has it, on these test sets."""
        return (found['digest'], found['test_sets']) == (self._network_digest(title), self.test_sets)

    def _network_digest(self, title: str) -> str:
        cache, _, part = self.grid.networks[title].partition(':')
        return f'{cache_digest(self.grid, cache)}:{part}'

    def _network_file(self, title: str) -> Path:
        return self.folder / 'networks' / f'{as_file_name(title)}.json'


def _keep(content: Mapping[str, Any], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(content, indent=1).encode())


def trained_on(experiment: Path) -> dict[str, Any] | None:
    """Device and versions of a training, as its process left them."""
    path = experiment / TRAINED_ON
    return json.loads(path.read_text()) if path.is_file() else None


def step_seconds(experiment: Path, iterations: int) -> float | None:
    """Seconds of a training step, those of the fastest tenth of the lines of the trainer's log.

    Other work on the machine disturbs them least. From the times at which they were logged, data and optimizer
    included, the beginning left out. None without two such lines.
    """
    times = []
    for log in sorted(experiment.glob('train_*.log')):
        found = [
            (int(match['iteration'].replace(',', '')), datetime.strptime(match['at'], '%Y-%m-%d %H:%M:%S,%f'))
            for match in LOGGED.finditer(log.read_text(errors='replace'))
        ]
        times += [
            (after[1] - before[1]).total_seconds() / (after[0] - before[0])
            for before, after in pairwise(found)
            if before[0] >= iterations / 10 and after[0] > before[0]
        ]
    return sorted(times)[len(times) // 10] if times else None
