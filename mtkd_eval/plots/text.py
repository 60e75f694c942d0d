"""Texts that fit where they are put."""

import re
from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

BREAKS = re.compile(r'(?<=[\s_:/.,+-])')  # behind any of these


@lru_cache(maxsize=4096)
def width_of(text: str, points: float, bold: bool = False) -> float:
    """Width in inches of one line of the pictures' font."""
    if not text.strip():
        return 0.0
    font = FontProperties(family='DejaVu Sans', weight='bold' if bold else 'normal')
    return TextPath((0, 0), text, size=points, prop=font, usetex=False).get_extents().x1 / 72


def wrapped(text: str, width: float, points: float, bold: bool = False) -> list[str]:
    """``text`` in lines of at most ``width`` inches, broken between words, or within one that is too long."""
    lines = ['']
    for word in filter(None, BREAKS.split(text)):
        if width_of((lines[-1] + word).rstrip(), points, bold) <= width:
            lines[-1] += word
            continue
        lines.append('')
        for letter in word:
            if lines[-1] and width_of(lines[-1] + letter, points, bold) > width:
                lines.append('')
            lines[-1] += letter
    return [line.rstrip() for line in lines if line.strip()] or ['']


def signed(value: float, digits: int = 2) -> str:
    """``value`` with its sign, as typeset."""
    return f'{value:+.{digits}f}'.replace('-', '\N{MINUS SIGN}')
