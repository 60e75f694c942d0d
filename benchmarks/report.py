"""The table of what was measured against what was aimed at, and the plots, from the JSON of ``benchmarks.run``."""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use('Agg')

from matplotlib import pyplot as plt

from mtkd_data.whole_files import whole_file

COLOURS = {'online': '#D55E00', 'cached': '#0072B2', 'scratch': '#999999'}  # of the Okabe-Ito palette
LABELS = {'online': 'teachers in every step', 'cached': 'from a cache', 'scratch': 'no teachers'}
GAINS = {'student': 'a step of the EDSR student', 'teachers': 'the forward pass of the three teachers'}
Figures = dict[str, Any]


class Aim(NamedTuple):
    """What is measured, where it stands in the JSON, and the value to reach: at most, or at least."""

    what: str
    path: tuple[str, ...]
    limit: float
    at_least: bool = False
    devices: tuple[str, ...] = ('cpu', 'cuda')


AIMS = (
    Aim('MTKD step from a cache / step from scratch', ('steps', 'students', 'edsr', 'ratio', 'cached'), 1.10),
    Aim('MTKD step online, fp32 / as first released', ('steps', 'students', 'edsr', 'online_fp32_to_graph'), 0.25),
    Aim(
        'MTKD step online, bf16 teachers / as first released',
        ('steps', 'students', 'edsr', 'online_to_graph'), 0.25, devices=('cpu',),
    ),
    Aim(
        'MTKD step online, bf16 teachers / as first released',
        ('steps', 'students', 'edsr', 'online_to_graph'), 1 / 6, devices=('cuda',),
    ),
    Aim(
        'peak memory online, fp32 / as first released, whole process',
        ('steps', 'peak_memory', 'online_fp32_to_graph', 'whole_gb'), 1 / 3,
    ),
    Aim(
        'peak memory online, bf16 teachers / as first released, whole process',
        ('steps', 'peak_memory', 'online_to_graph', 'whole_gb'), 1 / 3,
    ),
    Aim('MTKD step from a cache / online, fp32', ('steps', 'students', 'edsr', 'cached_to_online_fp32'), 0.10),
    Aim('MTKD step from a cache / online, bf16 teachers', ('steps', 'students', 'edsr', 'cached_to_online'), 0.10),
    Aim('DCTSwin / FFT-DCT and attention written out, fp32', ('dctswin_forward', 'to_plain', 'dctswin'), 0.5),
    Aim(
        'DCTSwin in bf16 / FFT-DCT and attention written out',
        ('dctswin_forward', 'to_plain', 'dctswin_bf16'), 0.5, devices=('cpu',),
    ),
    Aim(
        'DCTSwin in bf16 / FFT-DCT and attention written out',
        ('dctswin_forward', 'to_plain', 'dctswin_bf16'), 0.25, devices=('cuda',),
    ),
    Aim('wavelet loss, Haar / pytorch-wavelets', ('wavelet', 'haar_1', 'ours_to_package'), 1 / 3),
    Aim('PSNR-Y of the target in bf16 - fp32, dB (absolute)', ('precision', 'bf16_minus_fp32', 'target'), 0.01),
    Aim('resident loader / BasicSR LMDB, crops per second', ('loader', 'resident_to_fastest_basicsr'), 20, True),
    Aim('the same with the cached image', ('loader', 'resident_cached_to_fastest_basicsr'), 20, True),
    Aim(
        'loader time with the cached image / without, decoding',
        ('loader', 'comparisons', 'time_of_the_cached_image_level1', '1'), 1.25,
    ),
    Aim(
        'validation on Set14, EDSR student / BasicSR',
        ('validation', 'validation EDSR 64x16', 'ours_over_basicsr'), 0.5,
    ),
    Aim(
        'trainer, resident cache, bf16, compiled / BasicSR from scratch, steps per second',
        ('trainer', 'resident_bf16_compiled', 'rate_over_basicsr'), 3, True, ('cuda',),
    ),
    Aim(
        'trainer, resident cache, fp32 / BasicSR from scratch, steps per second',
        ('trainer', 'resident', 'rate_over_basicsr'), 1, True,
    ),
    Aim('share of a step spent waiting for data, resident', ('trainer', 'resident', 'waiting_share'), 0.05),
)  # fmt: skip


def found_at(figures: Figures, path: tuple[str, ...]) -> dict[str, float] | None:
    """Median and IQR at ``path``; a lone number has no IQR; None where it was not measured."""
    for key in path:
        if not isinstance(figures, dict) or key not in figures:
            return None
        figures = figures[key]
    return figures if isinstance(figures, dict) else {'median': figures}


def row(aim: Aim, figures: Figures) -> str:
    """A line of the table."""
    found = found_at(figures, aim.path)
    aimed = f'{"at least" if aim.at_least else "at most"} {aim.limit:.3g}'
    if found is None:
        return f'| {aim.what} | {aimed} | not measured | |'
    value = abs(found['median']) if 'absolute' in aim.what else found['median']
    met = value >= aim.limit if aim.at_least else value <= aim.limit
    spread = f' (IQR {found["iqr"]:.2g})' if 'iqr' in found else ''
    return f'| {aim.what} | {aimed} | {value:.3g}{spread} | {"yes" if met else "no"} |'


def step_rows(figures: Figures) -> list[str]:
    """Cost of a step in units of one from scratch, per student."""
    students = figures.get('steps', {}).get('students', {})
    if not students:
        return []
    names = list(next(iter(students.values()))['ratio'])
    lines = [f'| student | {" | ".join(names)} |', '|---' * (len(names) + 1) + '|']
    for student, measured in students.items():
        cells = [f'{measured["ratio"][name]["median"]:.2f} ({measured["ratio"][name]["iqr"]:.2f})' for name in names]
        lines.append(f'| {student} | {" | ".join(cells)} |')
    return lines


def gain_rows(figures: Figures) -> list[str]:
    """What each measure leaves of the time, one on top of the other."""
    gains = figures.get('steps', {}).get('gains', {})
    if not gains:
        return []
    names = list(next(iter(gains.values()))['ratio'])
    lines = ['', 'Seconds in units of the same work done plainly, each measure on top of the one before:', '']
    lines += [f'| | {" | ".join(names)} |', '|---' * (len(names) + 1) + '|']
    for what, gain in gains.items():
        cells = [f'{gain["ratio"][name]["median"]:.2f} ({gain["ratio"][name]["iqr"]:.2f})' for name in names]
        lines.append(f'| {GAINS[what]} | {" | ".join(cells)} |')
    return lines


def table(figures: Figures, device: str) -> str:
    """Everything aimed at, and the cost of a step for each student, in Markdown."""
    machines = {(part['device'], part.get('threads'), part['torch']) for part in figures.values()}
    where = '; '.join(f'{name}, {threads} threads, torch {version}' for name, threads, version in sorted(machines))
    aims = [row(aim, figures) for aim in AIMS if device in aim.devices]
    lines = [f'Measured on: {where}.', '', '| ratio | aim | measured | met |', '|---|---|---|---|', *aims]
    steps = step_rows(figures)
    lines += gain_rows(figures)
    if steps:
        what = 'Seconds of a step in units of the same student trained by ours from scratch, median (IQR):'
        lines += ['', what, '', *steps]
    return '\n'.join(lines) + '\n'


def plot(figures: Figures, path: Path) -> None:
    """Cost of a step against the number of teachers and against the batch."""
    measured = figures.get('teachers')
    if not measured:
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
    counts = sorted(measured['by_teachers'], key=int)
    for name in ('online', 'cached'):
        costs = [measured['by_teachers'][count][name] for count in counts]
        left.errorbar(
            [int(count) for count in counts], [cost['median'] for cost in costs], [cost['iqr'] / 2 for cost in costs],
            marker='o', capsize=3, color=COLOURS[name], label=LABELS[name],
        )  # fmt: skip
    left.set(xlabel='number of teachers', ylabel='step / step from scratch', ylim=(0, None), xticks=range(1, 6))
    left.axhline(1, color=COLOURS['scratch'], linewidth=1, linestyle='--', label=LABELS['scratch'])
    left.legend(frameon=False)
    batches = sorted(measured['by_batch'], key=int)
    for name in ('online', 'cached', 'scratch'):
        seconds = {int(batch): measured['by_batch'][batch]['seconds'][name] for batch in batches}
        right.errorbar(
            list(seconds), [1000 * of['median_s'] / batch for batch, of in seconds.items()],
            [500 * of['iqr_s'] / batch for batch, of in seconds.items()],
            marker='o', capsize=3, color=COLOURS[name], linestyle='--' if name == 'scratch' else '-',
        )  # fmt: skip
    right.set(xlabel='patches in a batch', ylabel='milliseconds per patch', ylim=(0, None), xscale='log')
    right.set_xticks([int(batch) for batch in batches], batches)
    right.minorticks_off()
    for axis in (left, right):
        axis.spines[['top', 'right']].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=120)
    plt.close(figure)
