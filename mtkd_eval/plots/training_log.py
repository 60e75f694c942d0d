"""Curves in BasicSR's training logs: losses, learning rate and validation figures by iteration."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

Series = dict[str, dict[int, float]]
"""Values by iteration, under ``l_<term>``, ``lr``, and ``<metric>/<data set>`` such as ``psnr/Set5``."""

TRAINED = re.compile(r'\[epoch:\s*\d+, iter:\s*([\d,]+), lr:\(([^)]*)\)\](?: \[eta:[^\]]*\])?(.*)')
NAMED = re.compile(r'([^\s:]+): (\S+)')
VALIDATED = re.compile(r'INFO: Validation (.+?)\s*$')
FIGURE = re.compile(r'^\s+# ([^:]+): (\S+)')
VAL_FREQ = re.compile(r'^\s+val_freq: ([\d.e+]+)\s*$')
PLANNED = re.compile(r'^\s+Total epochs: \d+; iters: (\d+)\.')
RESUMED = re.compile(r'Resuming training from epoch: \d+, iter: (\d+)')


@dataclass(frozen=True)
class Log:
    """One log: its curves, and the iteration it went on from, None where it began anew."""

    series: Series
    resumed: int | None

    @property
    def first(self) -> int:
        """The first iteration of which it tells anything."""
        return min((iteration for values in self.series.values() for iteration in values), default=0)


def find_logs(source: Path) -> list[Path]:
    """The file itself, or ``train_*.log`` of an experiment folder, oldest first (BasicSR puts the time in the name).

    Raises FileNotFoundError where there is none.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f'{source}: no such log or experiment folder')
    logs = sorted(source.glob('train_*.log'), key=lambda path: (path.stem[-15:], path.name))
    if not logs:
        raise FileNotFoundError(f'{source}: holds no train_*.log; expected an experiment folder of BasicSR')
    return logs


def read_training(source: Path) -> Series:
    """The curves of an experiment; where it was resumed, later logs replace what came after that iteration.

    Raises FileNotFoundError where there is no log, ValueError where none holds a value.
    """
    logs = find_logs(source)
    series = merge(parse_log(path.read_text(encoding='utf-8', errors='replace')) for path in logs)
    if not series:
        raise ValueError(f'{source}: no losses and no validation in {", ".join(path.name for path in logs)}')
    return series


def merge(logs: Iterable[Log]) -> Series:
    """The curves of several logs of one experiment, oldest first."""
    merged: Series = {}
    for log in logs:
        if not log.series:
            continue
        kept = log.first - 1 if log.resumed is None else log.resumed
        merged = {name: {at: value for at, value in old.items() if at <= kept} for name, old in merged.items()}
        for name, values in log.series.items():
            merged.setdefault(name, {}).update(values)
    return {name: dict(sorted(values.items())) for name, values in merged.items() if values}


def parse_log(text: str) -> Log:
    """One log. Values that are no finite numbers are left out.

    A validation does not tell its iteration: it is that of the last line before it. Where the log begins with its
    options, each of a data set comes ``val_freq`` after the one before, and on no multiple of it before the last line;
    after training ended it is at the last iteration.
    """
    series: Series = {}
    iteration, frequency, resumed, dataset, at, ended, planned = 0, None, None, '', 0, False, 0
    validations: dict[str, int] = {}  # the iteration of the last one by data set
    for line in text.splitlines():
        if trained := TRAINED.search(line):
            iteration = int(trained[1].replace(',', ''))
            for name, value in _values(trained[2], trained[3]):
                series.setdefault(name, {})[iteration] = value
        elif validated := VALIDATED.search(line):
            dataset, at = validated[1], iteration
            before = validations.get(dataset, 0 if not frequency else (resumed or 0) // frequency * frequency)
            if ended:
                at = max(iteration, before, planned)
            elif frequency:
                at = max(before + frequency, -(-iteration // frequency) * frequency)
            validations[dataset] = at
        elif (figure := FIGURE.match(line)) and dataset:
            if (value := _number(figure[2])) is not None:
                series.setdefault(f'{figure[1]}/{dataset}', {})[at] = value
        elif (given := VAL_FREQ.match(line)) and (number := _number(given[1])):
            frequency = int(number)
        elif whole := PLANNED.match(line):
            planned = int(whole[1])
        elif found := RESUMED.search(line):
            resumed = int(found[1])
        ended = ended or 'End of training' in line
    return Log(series, resumed)


def _values(rates: str, others: str) -> Iterator[tuple[str, float]]:
    named = [('lr', rates.split(',')[0]), *NAMED.findall(others)]
    for name, text in named:
        if (value := _number(text)) is not None:
            yield name, value


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
