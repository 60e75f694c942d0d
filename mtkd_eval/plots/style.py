"""How every picture looks, and how it is saved: whole, and the same bytes for the same content."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mtkd_data.whole_files import check_place, write_atomically

# Okabe and Ito's palette without its yellow, which is too light for a line on white
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
DASHES: tuple[Any, ...] = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 1)))
MAGNITUDE, SIGNED = 'cividis', 'PuOr'  # colour maps that the colour-blind can read
GREY = '#595959'
SMALL, NORMAL, LARGE = 8, 9, 10.5  # points; nothing is smaller
SETTINGS = {
    'font.family': 'DejaVu Sans',  # comes with matplotlib, so that pictures are alike everywhere
    'font.size': NORMAL,
    'axes.titlesize': LARGE,
    'axes.labelsize': NORMAL,
    'xtick.labelsize': SMALL,
    'ytick.labelsize': SMALL,
    'legend.fontsize': NORMAL,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
    'grid.color': '#d9d9d9',
    'grid.linewidth': 0.6,
    'text.parse_math': False,  # a name with two dollar signs is a name
    'pdf.fonttype': 42,
    'svg.hashsalt': 'mtkd',
}
styled = style.context(['default', SETTINGS])
"""Decorator of every function that draws or saves; what the caller has set is neither used nor changed."""
UNDATED: dict[str, dict[str, Any]] = {
    '.png': {'Software': None},
    '.pdf': {'CreationDate': None, 'Producer': None, 'Creator': None},
    '.svg': {'Date': None, 'Creator': None},
}


@dataclass(frozen=True)
class Look:
    """How one of several things is told apart, in colour and in grey."""

    colour: str
    marker: str
    dashes: Any


def look(index: int) -> Look:
    """The look of the thing at ``index``; 49 differ."""
    turn, place = divmod(index, len(COLOURS))
    shifted = (place + turn) % len(COLOURS)
    return Look(COLOURS[place], MARKERS[shifted], DASHES[shifted])


def new_figure(width: float, height: float, dpi: int, layout: str | None = 'constrained') -> Figure:
    """A white figure of ``width`` x ``height`` inches that knows how large its texts are."""
    figure = Figure((width, height), dpi=dpi, layout=layout, facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def check_out(out: Path) -> None:
    """Raise ValueError for a file name that says no format we write, or a folder, PermissionError for a bad place."""
    if out.suffix.lower() not in UNDATED:
        raise ValueError(f'--out {out}: expected a name that ends in {", ".join(UNDATED)}')
    if out.is_dir():
        raise ValueError(f'--out {out}: is a folder; expected a file to write')
    check_place(out)


@styled
def save(figure: Figure, out: Path) -> None:
    """Write the picture in the format of its ending, whole or not at all, without a date in it."""
    check_out(out)
    ending = out.suffix.lower()
    file = io.BytesIO()
    figure.savefig(file, format=ending[1:], dpi=figure.dpi, metadata=UNDATED[ending])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, file.getvalue())
