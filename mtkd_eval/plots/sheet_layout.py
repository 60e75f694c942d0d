"""Where everything lies on a comparison sheet, in whole pixels, so that no pixel of a crop is wider than another."""

from collections.abc import Sequence
from math import ceil
from typing import Any

from mtkd_eval.plots.style import SMALL
from mtkd_eval.plots.text import wrapped

SMALLEST, LARGEST = 1.4, 2.2  # side of a crop, inches
WIDEST = 2.0  # of the whole image, in sides of a crop


class Grid:
    """The layout of ``samples``: per sample a block of rows of ``columns`` crops, the whole image at its left."""

    def __init__(
        self, samples: Sequence[Any], columns: int, scores: int, title: str, caption: str, dpi: int, points: float
    ) -> None:
        self.dpi, self.columns, self.points = dpi, columns, points
        self.margin, self.gap = self._points(6), self._points(5)
        self.cell = max(_side(sample.region.size, dpi) for sample in samples)
        self.rows = ceil(len(samples[0].crops) / columns)
        inches = (self.cell - self._points(2)) / dpi
        labels = [wrapped(crop.label, inches, points) for crop in samples[0].crops]
        lines = max(map(len, labels))
        self.labels = _aligned(labels, columns)
        self.text = self._points(6 + 1.25 * points * (lines + scores))
        block = self.rows * (self.cell + self.text)
        self.whole_height = block - self.text
        widths = [self._whole_size(sample)[0] for sample in samples]
        self.whole_width = max(*widths, self._points(60))
        self.block = block + self.gap
        self.width = 2 * self.margin + self.whole_width + columns * (self.cell + self.gap)
        self.caption = wrapped(caption, (self.width - 2 * self.margin) / dpi, SMALL) if caption else []
        above = self._points(1.7 * (points + 2)) if title else 0
        self.top = self.margin + above
        self.height = (
            self.top + len(samples) * self.block + self._points(1.25 * SMALL * len(self.caption)) + self.margin
        )

    def cell_box(self, sample: int, place: int) -> tuple[int, int, int, int]:
        """Left, bottom, width and height of a crop."""
        row, column = divmod(place, self.columns)
        left = self.margin + self.whole_width + self.gap + column * (self.cell + self.gap)
        top = self.top + sample * self.block + row * (self.cell + self.text)
        return left, self.height - top - self.cell, self.cell, self.cell

    def whole_box(self, index: int, sample: Any) -> tuple[int, int, int, int]:
        """The same of the whole image, centred in its column, at the top of its block."""
        width, height = self._whole_size(sample)
        left = self.margin + (self.whole_width - width) // 2
        return left, self.height - self.top - index * self.block - height, width, height

    def relative(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """``box`` in parts of the figure."""
        left, bottom, width, height = box
        return left / self.width, bottom / self.height, width / self.width, height / self.height

    def _whole_size(self, sample: Any) -> tuple[int, int]:
        height, width = sample.whole.shape[:2]
        factor = min(self.whole_height / height, WIDEST * self.cell / width)
        return round(factor * width), round(factor * height)

    def _points(self, points: float) -> int:
        return round(points * self.dpi / 72)


def _aligned(labels: Sequence[list[str]], columns: int) -> list[list[str]]:
    """The labels of each row with equally many lines, so that what stands beneath them is in line."""
    made = []
    for first in range(0, len(labels), columns):
        row = labels[first : first + columns]
        made += [label + [''] * (max(map(len, row)) - len(label)) for label in row]
    return made


def _side(size: int, dpi: int) -> int:
    """Pixels of the picture for ``size`` pixels of an image: a whole multiple, unless that would be too large."""
    return (
        min(size * ceil(SMALLEST * dpi / size), round(LARGEST * dpi)) if size < LARGEST * dpi else round(LARGEST * dpi)
    )
