"""Quality against cost: what ``scripts/evaluate.py`` wrote as JSON, a panel per test set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log10
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from mtkd_eval.plots.labels import nearest_point, place_labels
from mtkd_eval.plots.style import GREY, LARGE, SMALL, look, new_figure, styled
from mtkd_eval.tables import LOWER_IS_BETTER, TITLES

Cost = Literal['parameters', 'macs', 'seconds']
COSTS: dict[Cost, str] = {
    'parameters': 'parameters',
    'macs': 'multiply-accumulates at 1280x720 output',
    'seconds': 'time per image (median)',
}
PANEL = (4.4, 3.6)  # inches


@dataclass(frozen=True)
class Point:
    """One network: where it lies, x None for one that costs nothing of the kind; ``index`` gives its look."""

    name: str
    x: float | None
    y: float
    index: int


def read_results(path: Path) -> dict[str, Any]:
    """The JSON that the evaluation writes. Raises FileNotFoundError, or ValueError for anything else."""
    if not path.is_file():
        raise FileNotFoundError(f'no such file: {path}')
    try:
        results = json.loads(path.read_text(encoding='utf-8'))
        networks = results['networks']
        complete = all({'name', 'scale', 'parameters', 'macs', 'sets'} <= set(network) for network in networks)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected the JSON of scripts/evaluate.py --out ...json ({error!r})') from error
    if not networks or not complete:
        raise ValueError(f'{path}: expected the JSON of scripts/evaluate.py, with networks and what they scored')
    return results


def points_of(
    results: Mapping[str, Any], cost: Cost, metric: str, sets: Sequence[str] = (), scale: int | None = None
) -> tuple[dict[str, list[Point]], list[str]]:
    """The points of each set, and for each network left out why.

    Raises ValueError for networks of several scales without ``scale``, an unknown set, and where no point is left.
    """
    scales = sorted({network['scale'] for network in results['networks']})
    if scale is None and len(scales) > 1:
        raise ValueError(
            f'networks of several scales do not compare: give --scale, one of {", ".join(map(str, scales))}'
        )
    networks = [network for network in results['networks'] if network['scale'] == (scale or scales[0])]
    there = list(dict.fromkeys(name for network in networks for name in network['sets']))
    unknown = [name for name in sets if name not in there]
    if unknown or not there:
        raise ValueError(f'no results on {", ".join(unknown) or "any set"} at x{scale}; there are {", ".join(there)}')
    points: dict[str, list[Point]] = {name: [] for name in sets or there}
    reasons = []
    for index, network in enumerate(networks):
        for name, panel in points.items():
            found = network['sets'].get(name)
            y = found and found['mean'].get(metric)
            x = found and (found['seconds'] if cost == 'seconds' else network[cost])
            free = cost != 'seconds' and not network['parameters']  # an interpolation
            if y is None or (x is None and not free):
                reasons.append(f'{network["name"]}: no {cost if y is not None else TITLES[metric]} on {name}')
            else:
                panel.append(Point(network['name'], x or None, y, index))
    if not any(point.x for panel in points.values() for point in panel):
        raise ValueError(f'no network has both {TITLES[metric]} and {cost}: {"; ".join(reasons)}')
    return {name: panel for name, panel in points.items() if panel}, reasons


@styled
def draw_scatter(
    panels: Mapping[str, Sequence[Point]], cost: Cost, metric: str, title: str = '', dpi: int = 150
) -> Figure:
    """A panel per set; cost on a logarithmic axis, those without cost as a line across; every point labelled."""
    columns = ceil(len(panels) / ceil(len(panels) / 2))
    rows = ceil(len(panels) / columns)
    figure = new_figure(max(PANEL[0] * columns, 5.0), PANEL[1] * rows + 0.3 * bool(title), dpi)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel, (name, points) in zip(axes.flat, panels.items(), strict=False):
        _plot(panel, points, cost)
        lower = ' (lower is better)' if metric in LOWER_IS_BETTER else ''
        unit = ' (dB)' if metric.startswith('psnr') else lower
        panel.set(title=name, xlabel=COSTS[cost], ylabel=TITLES[metric] + unit)
    for panel in axes.flat[len(panels) :]:
        panel.remove()
    if title:
        figure.suptitle(title, fontsize=LARGE)
    figure.draw_without_rendering()  # from here on it is known where every point lies
    figure.set_layout_engine('none')
    for panel, points in zip(axes.flat, panels.values(), strict=False):
        _label(figure, panel, points)
    return figure


def _plot(panel: Axes, points: Sequence[Point], cost: Cost) -> None:
    panel.set_xscale('log')
    for point in points:
        style = look(point.index)
        if point.x:
            panel.plot(point.x, point.y, style.marker, color=style.colour, markersize=7, markeredgecolor='white')
        else:
            panel.axhline(point.y, color=GREY, linestyle='--', linewidth=1)
            panel.annotate(
                f'{point.name} {point.y:.2f}', (1, point.y), (-2, 2), ('axes fraction', 'data'), 'offset points',
                ha='right', va='bottom', fontsize=SMALL, color=GREY,
            )  # fmt: skip
    panel.margins(x=0.28, y=0.16)
    low, high = panel.get_xlim()
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if log10(high / low) < 2.5 else (1.0,)))
    panel.xaxis.set_major_formatter(EngFormatter(unit='s' if cost == 'seconds' else '', sep=''))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(which='major')


def _label(figure: Figure, panel: Axes, drawn: Sequence[Point]) -> None:
    renderer, scale = figure.canvas.get_renderer(), 72 / figure.dpi
    points = [point for point in drawn if point.x]
    texts = [
        panel.annotate(point.name, (point.x, point.y), (0, 0), textcoords='offset points', fontsize=SMALL, va='bottom')
        for point in points
    ]
    sizes = [(box.width + 3, box.height + 2) for box in (text.get_window_extent(renderer) for text in texts)]
    anchors = [tuple(panel.transData.transform((point.x, point.y))) for point in points]
    radius = 5 / scale
    taken = [text.get_window_extent(renderer).extents for text in panel.texts if text not in texts]
    across = [panel.transData.transform((panel.get_xlim()[0], point.y))[1] for point in drawn if not point.x]
    taken += [(panel.bbox.x0, height - 1, panel.bbox.x1, height + 1) for height in across]
    places = place_labels(anchors, sizes, panel.bbox.extents, radius, taken)
    for text, point, anchor, place, size in zip(texts, points, anchors, places, sizes, strict=True):
        text.set_position(((place[0] - anchor[0]) * scale, (place[1] - anchor[1]) * scale))
        end = nearest_point((*place, place[0] + size[0], place[1] + size[1]), anchor)
        if (end[0] - anchor[0]) ** 2 + (end[1] - anchor[1]) ** 2 > (2.2 * radius) ** 2:
            offset = ((end[0] - anchor[0]) * scale, (end[1] - anchor[1]) * scale)
            line = {'arrowstyle': '-', 'color': GREY, 'linewidth': 0.6, 'shrinkA': 0, 'shrinkB': 3}
            panel.annotate('', (point.x, point.y), offset, textcoords='offset points', arrowprops=line)
