"""Training curves of several experiments: a panel per loss and per validation figure."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from mtkd_eval.plots.style import GREY, LARGE, SMALL, look, new_figure, styled
from mtkd_eval.plots.training_log import Series

SHOWN = ('psnr', 'l_*')
UNITS = {'psnr': 'PSNR (dB)', 'ssim': 'SSIM', 'lr': 'learning rate'}
PANEL = (3.6, 2.5)  # inches
WEIGHTED = 'as weighted in training'  # BasicSR logs a loss times its loss_weight, which differs between methods
DECADES = 20.0  # a loss whose largest value is so many times its smallest has a logarithmic axis
MARKED = 40  # more points than these need no markers


def choose_panels(experiments: Mapping[str, Series], shown: Sequence[str]) -> list[str]:
    """The curves that ``shown`` names, by pattern or by what precedes the ``/``: validation first, then losses.

    Raises ValueError for one that no experiment has.
    """
    there = list(dict.fromkeys(name for series in experiments.values() for name in series))
    there.sort(key=lambda name: '/' not in name)  # stable: each kind stays in the order of the logs
    chosen = []
    for pattern in shown:
        fitting = [name for name in there if fnmatchcase(name, pattern) or name.split('/')[0] == pattern]
        if not fitting and pattern not in SHOWN:
            raise ValueError(f'no curve {pattern} in the logs; there are {", ".join(there)}')
        chosen += fitting
    if not chosen:
        raise ValueError(f'no curve {" or ".join(shown)} in the logs; there are {", ".join(there)}')
    return list(dict.fromkeys(chosen))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the ``window`` values around each, of fewer at the ends; the same number on both sides."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    places = np.arange(len(values))
    reach = np.minimum(np.minimum(places, len(values) - 1 - places), window // 2)
    return (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)


@styled
def draw_curves(
    experiments: Mapping[str, Series],
    shown: Sequence[str] = SHOWN,
    smooth: int | None = None,
    title: str = '',
    dpi: int = 150,
) -> Figure:
    """A panel per curve, a line per experiment, smoothed over ``smooth`` points; the raw line light behind.

    ``smooth`` None takes a twentieth of the points; only losses are smoothed. The axis of a validation figure shows
    what follows the first quarter of the training; before it, lines come from below, which the panel says. Raises
    ValueError for a curve in ``shown`` that no experiment has.
    """
    panels = choose_panels(experiments, shown)
    columns = ceil(len(panels) / ceil(len(panels) / 3))
    rows = ceil(len(panels) / columns)
    width = PANEL[0] * columns if len(panels) > 1 else 5.5
    figure = new_figure(width, PANEL[1] * rows + 0.5 + 0.3 * bool(title), dpi)
    axes = figure.subplots(rows, columns, squeeze=False)
    handles = {}
    for panel, name in zip(axes.flat, panels, strict=False):
        for index, (label, series) in enumerate(experiments.items()):
            if name in series:
                window = smooth if name.startswith('l_') else 1
                handles.setdefault(label, _line(panel, series[name], index, label, window))
        _finish(panel, name, [series[name] for series in experiments.values() if name in series])
    for panel in axes.flat[len(panels) :]:
        panel.remove()
    figure.legend(handles.values(), handles, loc='outside lower center', ncols=min(len(handles), columns + 1),
                  frameon=False, handlelength=3)  # fmt: skip
    if title:
        figure.suptitle(title, fontsize=LARGE)
    return figure


def _line(panel: Axes, values: Mapping[int, float], index: int, label: str, smooth: int | None) -> object:
    style = look(index)
    at, raw = np.array(list(values)), np.array(list(values.values()))
    window = smooth or max(1, len(raw) // 20)
    if window > 1:
        panel.plot(at, raw, color=style.colour, linewidth=0.7, alpha=0.25)
    (line,) = panel.plot(
        at, running_mean(raw, window), color=style.colour, linestyle=style.dashes, linewidth=1.6, label=label,
        marker=style.marker, markersize=4, markevery=max(1, -(-len(raw) // MARKED) * 4 if len(raw) > MARKED else 1),
    )  # fmt: skip
    return line


def _finish(panel: Axes, name: str, curves: Sequence[Mapping[int, float]]) -> None:
    metric, _, dataset = name.partition('/')
    title = UNITS.get(metric, metric) + (f', {dataset}' if dataset else '')
    panel.set_title(title, loc='left')
    panel.set_xlabel('iteration')
    if metric.startswith('l_'):
        panel.set_ylabel(WEIGHTED)
    panel.xaxis.set_major_formatter(EngFormatter(sep=''))
    panel.grid()
    values = [value for curve in curves for value in curve.values()]
    if not dataset and min(values) > 0 and max(values) > DECADES * min(values):
        panel.set_yscale('log')
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
        panel.yaxis.set_minor_formatter(NullFormatter())
    if dataset and (floor := _settled(curves)) > min(values):
        reach = max(values) - floor
        panel.set_ylim(floor - 0.06 * reach, max(values) + 0.06 * reach)
        note = f'cut off below; the lowest point is {min(values):.4g}'
        panel.text(0.99, 0.02, note, transform=panel.transAxes, ha='right', va='bottom', fontsize=SMALL, color=GREY)


def _settled(curves: Sequence[Mapping[int, float]]) -> float:
    """The lowest value after the first quarter of each curve: what lies below would hide how the ends differ."""
    return min(value for curve in curves for at, value in curve.items() if 4 * at > max(curve))
