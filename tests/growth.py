"""What a training process and its children hold, sampled as it runs, and whether such a series grows.

    python tests/growth.py ROOT OPTION.yml SAMPLES.json

trains below ``ROOT`` and writes a sample of every ``EVERY`` steps.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

EVERY = 200
PROC = Path('/proc')
PAGE = os.sysconf('SC_PAGE_SIZE')

Sample = dict[str, float]


def children() -> list[int]:
    """Processes that this one started and that live."""
    found = [path.read_text().split() for path in PROC.glob('self/task/*/children')]
    return [int(number) for numbers in found for number in numbers]


def resident_bytes(process: int | str) -> int:
    return int((PROC / str(process) / 'statm').read_text().split()[1]) * PAGE


def open_files(process: int | str) -> list[str]:
    """What the handles of a process point to; those that are closed meanwhile are left out."""
    names = []
    for path in (PROC / str(process) / 'fd').iterdir():
        try:
            names.append(os.readlink(path))
        except FileNotFoundError:  # the handle of this very listing
            continue
    return names


def usage() -> Sample:
    """Memory (bytes), handles, threads, segments of shared memory, mapped or open, and CPU seconds of this process.

    Memory and handles of its children together.
    """
    workers, files = children(), open_files('self')
    maps = (PROC / 'self/maps').read_text().splitlines()
    mapped = {line.split(maxsplit=5)[-1] for line in maps if '/dev/shm/' in line}
    return {
        'memory': resident_bytes('self'),
        'handles': len(files),
        'threads': len(list((PROC / 'self/task').iterdir())),
        'segments': len(mapped | {name for name in files if name.startswith('/dev/shm/')}),
        'worker memory': sum(map(resident_bytes, workers)),
        'worker handles': sum(len(open_files(worker)) for worker in workers),
        'workers': len(workers),
        'cpu': time.process_time(),
    }


def growth(series: Sequence[float]) -> float:
    """By how much an evenly sampled series grows from its first sample to its last.

    The slope of Theil and Sen, which is the median of those of all pairs, times the length: more than a quarter of the
    samples may be anything.
    """
    slopes = [
        (later - earlier) / (end - start)
        for start, earlier in enumerate(series)
        for end, later in enumerate(series[start + 1 :], start + 1)
    ]
    return median(slopes) * (len(series) - 1)


def slowdown(series: Sequence[float]) -> float:
    """The median of the last third over that of the first."""
    third = len(series) // 3
    return median(series[-third:]) / median(series[:third])


def main(root: str, option_file: str, out: str) -> None:
    import mtkd  # noqa: F401  first: it mends BasicSR

    # isort: split
    from basicsr.train import train_pipeline

    from mtkd_model.multi_teacher_model import MultiTeacherSRModel

    samples, step = [], MultiTeacherSRModel.optimize_parameters

    def sampled(self: MultiTeacherSRModel, iteration: int) -> None:
        step(self, iteration)
        if iteration % EVERY == 0:
            samples.append(usage())

    MultiTeacherSRModel.optimize_parameters = sampled
    sys.argv = ['train.py', '-opt', option_file]
    train_pipeline(root)
    Path(out).write_text(json.dumps(samples))


if __name__ == '__main__':
    main(*sys.argv[1:])
