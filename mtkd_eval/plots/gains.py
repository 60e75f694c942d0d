"""Gains over a reference with their confidence intervals, a panel per student."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mtkd.checks import require_keys, require_known_keys
from mtkd_eval.plots.style import COLOURS, GREY, LARGE, NORMAL, SMALL, new_figure, styled
from mtkd_eval.plots.text import signed, width_of
from mtkd_eval.study.report import gains_of

ROW_KEYS = ('student', 'method', 'mean', 'low', 'high', 'n')
BETTER, WORSE = COLOURS[0], COLOURS[1]
MOST_BESIDE = 2  # panels; more would be too small on a page


@dataclass(frozen=True)
class Gain:
    """Mean gain in dB of one method with the ends of its interval, from ``n`` paired differences.

    ``low`` and ``high`` are both None where a single difference has no interval.
    """

    student: str
    method: str
    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def ends(self) -> tuple[float, float]:
        """The interval; the mean twice where there is none."""
        return (self.mean, self.mean) if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Gains:
    """All rows, and in words what they were compared with, on what, and what the interval is."""

    rows: tuple[Gain, ...]
    reference: str
    test_sets: str
    interval: str

    def by_student(self) -> dict[str, list[Gain]]:
        """The rows of each student, the largest gain first."""
        students = dict.fromkeys(row.student for row in self.rows)
        ordered = sorted(self.rows, key=lambda row: -row.mean)
        return {student: [row for row in ordered if row.student == student] for student in students}


def read_gains(path: Path) -> Gains:
    """The gains of a study.json, or of a file with a list of rows under ``gains``.

    Beside the rows stand ``reference``, ``test_sets`` and ``interval``.

    Raises FileNotFoundError, or ValueError naming the row for whatever is missing, unknown or no number.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no such file: {path}')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path}: cannot be read as JSON: {error}') from error
    if isinstance(content, Mapping) and 'results' in content:
        content = _of_study(content, path)
    rows = content.get('gains') if isinstance(content, Mapping) else None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected the study.json of a study, or a list of rows under the key 'gains'")
    require_keys(content, ('reference', 'test_sets', 'interval'), str(path))
    gains = tuple(_gain(row, f'{path}: gains.{index}') for index, row in enumerate(rows))
    for index, row in enumerate(gains):
        if any((row.student, row.method) == (other.student, other.method) for other in gains[:index]):
            raise ValueError(f'{path}: gains.{index}: a second row of {row.student}, {row.method}')
    return Gains(gains, *(str(content[key]) for key in ('reference', 'test_sets', 'interval')))


def _of_study(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    require_keys(content, ('reference', 'results', 'students', 'methods', 'test_sets'), str(path))
    try:
        return gains_of(content)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: not as run_study.py writes it: {type(error).__name__}: {error}') from error


def _gain(row: Any, where: str) -> Gain:
    require_known_keys(row, ROW_KEYS, where)
    require_keys(row, ROW_KEYS, where)
    values = [row[key] for key in ('mean', 'low', 'high')]
    alone = values[1:] == [None, None]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values[: 1 if alone else 3]):
        raise ValueError(
            f'{where}: expected numbers of dB as mean, low and high (null for both ends of one value), got {values}'
        )
    if not alone and not row['low'] <= row['mean'] <= row['high']:
        raise ValueError(f'{where}: expected low <= mean <= high, got {row["low"]}, {row["mean"]}, {row["high"]}')
    return Gain(**row)


@styled
def draw_gains(gains: Gains, title: str = '', dpi: int = 150) -> Figure:
    """A row per method, sorted by mean, with its interval and the value in figures; the zero line is the reference.

    Full circles: the interval lies above zero; crosses: below; hollow ones: it holds zero; diamonds: a single
    difference has none. All panels share one axis; more than two stand below each other.
    """
    students = gains.by_student()
    counts = [len(found) for found in students.values()]
    stacked = len(students) > MOST_BESIDE
    heights = counts if stacked else [max(counts)]  # in rows, of the panels below each other
    names = max(width_of(row.method, NORMAL) for row in gains.rows)
    figures = max(width_of(_figures(row, False), SMALL) for row in gains.rows)
    width = names + figures + 3.6 if stacked else len(students) * (names + figures + 2.2)
    height = sum(0.24 * rows + 0.65 for rows in heights) + 0.5
    figure = new_figure(max(width, 4.8), height + 0.3 * bool(title), dpi)
    figure.get_layout_engine().set(w_pad=0.1)
    shape = (len(students), 1) if stacked else (1, len(students))
    axes = figure.subplots(*shape, squeeze=False, sharex=True, height_ratios=heights).flatten()
    for number, (panel, (student, found)) in enumerate(zip(axes, students.items(), strict=True)):
        _draw_panel(panel, student, found, heights[number if stacked else 0])
    low, high = min(0, *(row.ends[0] for row in gains.rows)), max(0, *(row.ends[1] for row in gains.rows))
    reach = max(high - low, 0.01)
    axes[0].xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_xlim(low - 0.06 * reach, high + 0.06 * reach)
    figure.supxlabel(
        f'gain in PSNR-Y over {gains.reference} (dB), {gains.test_sets}; {gains.interval}', fontsize=NORMAL
    )
    if title:
        figure.suptitle(title, fontsize=LARGE)
    return figure


def _draw_panel(panel: Axes, student: str, rows: Sequence[Gain], height: int) -> None:
    counts = {row.n for row in rows}
    panel.set_title(student + (f' (n = {rows[0].n})' if len(counts) == 1 else ''))
    panel.axvline(0, color='black', linewidth=1)
    for place, row in enumerate(rows):
        colour, marker, face = _look(row)
        panel.plot(row.ends, [place, place], color=colour, linewidth=1.8, solid_capstyle='butt')
        panel.plot(row.mean, place, marker, color=colour, markerfacecolor=face, markersize=6, markeredgewidth=1.5)
        panel.annotate(
            _figures(row, len(counts) > 1), (1, place), (4, 0), ('axes fraction', 'data'), 'offset points',
            va='center', fontsize=SMALL, annotation_clip=False,
        )  # fmt: skip
    panel.set_yticks(range(len(rows)), [row.method for row in rows], fontsize=NORMAL)
    panel.set_ylim(height - 0.4, -0.6)
    panel.tick_params(axis='y', length=0)
    panel.spines['left'].set_visible(False)
    panel.grid(axis='x')


def _look(row: Gain) -> tuple[str, str, str]:
    """Colour, marker and its filling."""
    if row.low is None:
        return GREY, 'D', 'white'
    low, high = row.ends
    if low > 0:
        return BETTER, 'o', BETTER
    return (WORSE, 'X', WORSE) if high < 0 else (GREY, 'o', 'white')


def _figures(row: Gain, with_n: bool) -> str:
    text = signed(row.mean) if row.low is None else f'{signed(row.mean)} [{signed(row.low)}, {signed(row.high)}]'
    return f'{text}, n = {row.n}' if with_n else text
