"""Command line of the pictures: what each kind reads, and what becomes of it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from mtkd_data.command_line import exit_code
from mtkd_eval.choice import BICUBIC, split_label
from mtkd_eval.plots.arguments import parse
from mtkd_eval.plots.bands import band_errors, draw_bands
from mtkd_eval.plots.curves import draw_curves
from mtkd_eval.plots.gains import draw_gains, read_gains
from mtkd_eval.plots.outputs import load_networks
from mtkd_eval.plots.regions import check_inside, parse_region
from mtkd_eval.plots.scatter import draw_scatter, points_of, read_results
from mtkd_eval.plots.sheet import draw_sheet, samples_at, samples_of_widest_spread
from mtkd_eval.plots.style import SMALL, check_out, save
from mtkd_eval.plots.training_log import read_training

Drawn = tuple[Figure, list[str]]
"""A picture, and what had to be left out of it."""


def sheet(given: Mapping[str, Any]) -> Drawn:
    """A comparison sheet."""
    require_positive(given, 'count', 'per_image', 'size', 'columns')
    if not given['font'] >= SMALL:
        raise ValueError(f'--font must be at least {SMALL} points, got {given["font"]}')
    regions = [parse_region(text) for text in given['region']]
    for text, (_, region) in zip(given['region'], regions, strict=True):
        if region is None:
            raise ValueError(f'--region {text}: expected IMAGE:TOP,LEFT,SIZE, such as {text}:120,80,64')
    networks = load_networks(given, bicubic=BICUBIC not in given['hide'])
    pairs, border = networks.pairs(given['images']), border_of(given, networks.scale)
    lr = 'lr' not in given['hide']
    with tqdm(total=len(regions) or len(pairs), unit='image', disable=None) as bar:
        if regions:
            samples = samples_at(networks, regions, border, lr, bar.update)
        else:
            how = given['size'], given['count'], given['per_image']
            samples = samples_of_widest_spread(networks, pairs, *how, border, lr, bar.update)
    of = {'image': 'whole image', 'crop': 'crop', 'both': 'whole image and of the crop'}[given['psnr']]
    caption = f'x{networks.scale}. PSNR-Y of the {of}, best in bold and framed.'
    if not regions:
        caption += ' Regions: where the squared errors on Y of the methods differ most.'
    how = given['psnr'], given['columns'], caption, given['title'], given['dpi'], given['font']
    return draw_sheet(samples, *how), []


def bands(given: Mapping[str, Any]) -> Drawn:
    """Wavelet-band error maps."""
    name, region = parse_region(given['image'])
    networks = load_networks(given)
    (pair,) = networks.pairs([name])
    if region is not None:
        check_inside(region, name, *networks.size(pair))
    border = border_of(given, networks.scale)
    _, gt, outputs = networks.outputs(pair)
    rows = [band_errors(method, output, gt, given['signed'], border, region) for method, output in outputs.items()]
    return draw_bands(rows, given['signed'], given['title'], given['dpi']), []


def curves(given: Mapping[str, Any]) -> Drawn:
    """Training curves."""
    require_positive(given, 'smooth')
    experiments = {}
    for text in given['experiments']:
        label, source = split_label(text)
        label = label or Path(source).stem
        if label in experiments:
            raise ValueError(f"two experiments are called '{label}': label them, LABEL=EXPERIMENT")
        experiments[label] = read_training(Path(source))
    return draw_curves(experiments, given['show'], given['smooth'], given['title'], given['dpi']), []


def scatter(given: Mapping[str, Any]) -> Drawn:
    """Quality against cost."""
    cost, metric = given['x'], given['metric']
    panels, left_out = points_of(read_results(given['results']), cost, metric, given['sets'], given['scale'])
    return draw_scatter(panels, cost, metric, given['title'], given['dpi']), left_out


def gains(given: Mapping[str, Any]) -> Drawn:
    """Gains with their confidence intervals."""
    return draw_gains(read_gains(given['study']), given['title'], given['dpi']), []


KINDS: dict[str, Callable[[Mapping[str, Any]], Drawn]] = {
    'sheet': sheet, 'bands': bands, 'curves': curves, 'scatter': scatter, 'gains': gains,
}  # fmt: skip


def require_positive(given: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError for an argument that is given and below 1."""
    for name in names:
        if given[name] is not None and given[name] < 1:
            raise ValueError(f'--{name.replace("_", "-")} must be at least 1, got {given[name]}')


def border_of(given: Mapping[str, Any], scale: int) -> int:
    """Pixels cut off at each side. Raises ValueError for fewer than none."""
    border = scale if given['crop_border'] is None else given['crop_border']
    if border < 0:
        raise ValueError(f'--crop-border must be at least 0, got {border}')
    return border


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed, 130 interrupted."""
    given = vars(parse(argv))
    return exit_code(lambda: _run(given), 'nothing was written')


def _run(given: Mapping[str, Any]) -> None:
    check_out(given['out'])
    require_positive(given, 'dpi')
    figure, left_out = KINDS[given['kind']](given)
    save(figure, given['out'])
    for reason in left_out:
        print(f'left out: {reason}', file=sys.stderr)
    print(f'written: {given["out"]}')
