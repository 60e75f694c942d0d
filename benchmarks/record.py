"""What every benchmark writes: measured figures with the circumstances they were measured in."""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtkd_data.whole_files import write_atomically
from mtkd_eval.record import circumstances


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, interquartile range and number of timings."""
    low, median, high = np.percentile(seconds, [25, 50, 75]).tolist()
    return {'median_s': median, 'iqr_s': high - low, 'runs': len(seconds)}


def interleaved(
    steps: Mapping[str, Callable[[], Any]], runs: int, device: str, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each step, all of them once per round, so that a busy moment of the machine meets them alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for run in range(warmup + runs):
        for name, step in steps.items():
            synchronise(device)
            begun = time.perf_counter()
            step()
            synchronise(device)
            if run >= warmup:
                times[name].append(time.perf_counter() - begun)
    return times


def ratio(these: Sequence[float], those: Sequence[float]) -> dict[str, float]:
    """Median and interquartile range of the ratio, round by round."""
    found = summary([one / other for one, other in zip(these, those, strict=True)])
    return {'median': found['median_s'], 'iqr': found['iqr_s'], 'runs': found['runs']}


def ratios(times: Mapping[str, Sequence[float]], reference: str) -> dict[str, dict[str, float]]:
    """Of every other step to ``reference``."""
    return {name: ratio(values, times[reference]) for name, values in times.items() if name != reference}


def summaries(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """``summary`` of each step."""
    return {name: summary(values) for name, values in times.items()}


def write(path: Path, device: str, figures: Mapping[str, Any]) -> None:
    """Store ``figures`` with the circumstances as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**circumstances(torch.device(device)), **figures}, indent=2)
    write_atomically(path, f'{text}\n'.encode())


def run_part(
    argv: Sequence[str] | None,
    documentation: str | None,
    measure: Callable[[argparse.Namespace], Mapping[str, Any]],
    runs: int,
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> int:
    """The command line of a part: ``--device``, ``--runs``, ``--json`` and its own; measures, writes and prints."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter, conflict_handler='resolve'
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--runs', type=int, default=runs, help='timed runs (default: %(default)s)')
    parser.add_argument('--json', type=Path, required=True, help='where to write the figures')
    add_arguments(parser)
    args = parser.parse_args(argv)
    figures = measure(args)
    write(args.json, args.device, figures)
    print(json.dumps(figures, indent=2))
    return 0


def replace_between(page: str, start: str, end: str, text: str) -> str:
    """``page`` with ``text`` between the two markers; raises ValueError where it lacks them."""
    before, found, rest = page.partition(start)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f'the page lacks the markers {start} and {end}')
    return f'{before}{start}\n{text}\n{end}{after}'


def synchronise(device: str) -> None:
    """Wait for the device, so that a clock read afterwards counts the work."""
    if device == 'cuda':
        torch.cuda.synchronize()
