"""Comparison sheets: the same region of an image, side by side, as several methods show it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mtkd_eval.image_sets import ImagePair
from mtkd_eval.plots.outputs import Networks
from mtkd_eval.plots.regions import Region, check_inside, spread_of_errors, widest_spreads
from mtkd_eval.plots.sheet_layout import Grid
from mtkd_eval.plots.style import COLOURS, GREY, NORMAL, SMALL, new_figure, styled
from mtkd_eval.plots.text import wrapped
from mtkd_eval.tables import MISSING, ranks
from mtkd_model.image_metrics import psnr

Scored = Literal['image', 'crop', 'both']
FRAME = COLOURS[0]


@dataclass(frozen=True)
class Crop:
    """What one method shows of a region: (S, S, 3) RGB, uint8; PSNR-Y in dB of the whole image and of the crop."""

    label: str
    pixels: np.ndarray
    image: float | None = None
    crop: float | None = None


@dataclass(frozen=True)
class Sample:
    """A region of an image, in the whole HR image ``whole`` (H, W, 3) and as each method shows it."""

    name: str
    region: Region
    whole: np.ndarray
    crops: tuple[Crop, ...]


def samples_at(
    networks: Networks, regions: Sequence[tuple[str, Region]], border: int, lr: bool, step: Callable[[], Any]
) -> list[Sample]:
    """One sample per region, in their order. Raises ValueError for one outside its image, before any network runs."""
    pairs = networks.pairs([name for name, _ in regions])
    for pair, (name, region) in zip(pairs, regions, strict=True):
        check_inside(region, name, *networks.size(pair))
    made = []
    for pair, (_, region) in zip(pairs, regions, strict=True):
        made.append(_sample(pair.name, region, *networks.outputs(pair), border, lr))
        step()
    return made


def samples_of_widest_spread(
    networks: Networks,
    pairs: Sequence[ImagePair],
    size: int,
    count: int,
    per_image: int,
    border: int,
    lr: bool,
    step: Callable[[], Any],
) -> list[Sample]:
    """The ``count`` regions of all ``pairs`` where the networks differ most, at most ``per_image`` of each image.

    See ``spread_of_errors``; the bicubic reference counts only beside a single network. Raises ValueError for a
    single network without it, and where no image holds such a region.
    """
    if len(networks.runs) < 2:
        raise ValueError(
            f'{", ".join(networks.runs)} is alone, so there is nowhere that the networks differ: give another, leave '
            'out --hide bicubic, or name regions with --region'
        )
    found: list[tuple[float, Sample]] = []
    for pair in pairs:
        lq, gt, outputs = networks.outputs(pair)
        compared = [output for name, output in outputs.items() if name != 'bicubic' or len(outputs) < 3]
        spread = spread_of_errors(compared, gt, size, border, networks.scale)
        for value, region in widest_spreads(spread, per_image, size, border, networks.scale):
            found.append((value, _sample(pair.name, region, lq, gt, outputs, border, lr)))
        found = sorted(found, key=lambda each: -each[0])[:count]  # the others' pixels need no memory
        step()
    if not found:
        raise ValueError(f'no image holds a region of {size}x{size} pixels {border} away from its border: lower --size')
    return [sample for _, sample in found]


def _sample(
    name: str, region: Region, lq: Tensor, gt: Tensor, outputs: dict[str, Tensor], border: int, lr: bool
) -> Sample:
    scale = gt.shape[-1] // lq.shape[-1]
    crops = [Crop('LR', _pixels(region.of(lq.repeat_interleave(scale, -1).repeat_interleave(scale, -2))))] if lr else []
    for method, output in outputs.items():
        part = region.of(output)
        figures = psnr(output, gt, border, True), psnr(part, region.of(gt), 0, True)
        crops.append(Crop(method, _pixels(part), *map(float, figures)))
    crops.append(Crop('HR', _pixels(region.of(gt))))
    return Sample(name, region, _pixels(gt), tuple(crops))


def _pixels(image: Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).byte().numpy().copy()


@styled
def draw_sheet(
    samples: Sequence[Sample],
    scored: Scored = 'image',
    columns: int | None = None,
    caption: str = '',
    title: str = '',
    dpi: int = 150,
    points: float = NORMAL,
) -> Figure:
    """Per sample the HR image with the region's box, and beside it the crops, in rows of at most ``columns``.

    Beneath each crop its PSNR-Y; the best of a sample is in bold, its crop framed. Pixels are enlarged alike.
    Text has ``points``, what matters less the smallest size.
    """
    count = len(samples[0].crops)
    columns = columns or ceil(count / ceil(count / 7))
    scores = ('image', 'crop') if scored == 'both' else (scored,)
    grid = Grid(samples, columns, len(scores), title, caption, dpi, points)
    figure = new_figure(grid.width / dpi, grid.height / dpi, dpi, layout=None)
    for index, sample in enumerate(samples):
        _draw_whole(figure, grid, index, sample)
        marks = {score: _marks(sample, score) for score in scores}
        for place, crop in enumerate(sample.crops):
            best = marks[scores[0]][place] == 'best'
            axes = _picture(figure, grid.cell_box(index, place), crop.pixels, grid, FRAME if best else None)
            lines = [(text, False, points) for text in grid.labels[place]]
            for score in scores:
                shown = _shown(getattr(crop, score))
                text = '' if shown == MISSING else f'{shown} dB' + (f' ({score})' if len(scores) > 1 else '')
                lines.append((text, marks[score][place] == 'best', points))
            _write_below(axes, lines)
    _write_around(figure, grid, title, caption)
    return figure


def _marks(sample: Sample, score: str) -> tuple[str, ...]:
    return ranks([_shown(getattr(crop, score)) for crop in sample.crops], lower_is_better=False)


def _shown(value: float | None) -> str:
    return MISSING if value is None else f'{value:.2f}'


def _picture(figure: Figure, box: tuple[float, ...], pixels: np.ndarray, grid: Grid, frame: str | None = None) -> Any:
    """Axes that hold an image and nothing else; ``box`` is left, bottom, width, height in pixels."""
    axes = figure.add_axes(grid.relative(box))
    enlarged = box[2] >= pixels.shape[1]
    axes.imshow(pixels, interpolation='nearest' if enlarged else 'hanning', aspect='auto')
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=frame is not None, color=frame, linewidth=2.5)
    return axes


def _draw_whole(figure: Figure, grid: Grid, index: int, sample: Sample) -> None:
    axes = _picture(figure, grid.whole_box(index, sample), sample.whole, grid)
    region = sample.region
    for colour, width in (('white', 3.5), (COLOURS[1], 1.8)):  # the white rim shows it on any background
        where = (region.left - 0.5, region.top - 0.5)
        axes.add_patch(Rectangle(where, region.size, region.size, fill=False, edgecolor=colour, linewidth=width))
    inches = grid.whole_width / grid.dpi
    lines = [(line, False, grid.points) for line in wrapped(sample.name, inches, grid.points)]
    _write_below(axes, [*lines, (f'{region.size} px at {region.top}, {region.left}', False, SMALL)])


def _write_below(axes: Any, lines: Sequence[tuple[str, bool, float]]) -> None:
    offset = 4.5  # beneath the frame
    for text, bold, points in lines:
        weight = 'bold' if bold else 'normal'
        axes.annotate(
            text, (0.5, 0), (0, -offset), 'axes fraction', 'offset points',
            ha='center', va='top', fontsize=points, weight=weight,
        )  # fmt: skip
        offset += 1.25 * points


def _write_around(figure: Figure, grid: Grid, title: str, caption: str) -> None:
    if title:
        figure.text(0.5, 1 - grid.margin / grid.height, title, ha='center', va='top', fontsize=grid.points + 2)
    if caption:
        text = '\n'.join(grid.caption)
        left, bottom = grid.margin / grid.width, grid.margin / grid.height
        figure.text(left, bottom, text, ha='left', va='bottom', fontsize=SMALL, color=GREY, linespacing=1.25)
