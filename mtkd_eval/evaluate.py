"""Command line of the evaluation: networks on test sets, quality and cost in one table."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtkd_arch.frozen_network import PRECISIONS, resolve_precision
from mtkd_arch.tiling import check_tiles
from mtkd_data.command_line import exit_code
from mtkd_data.teacher_cache.command import choose_device
from mtkd_data.whole_files import check_place, write_atomically
from mtkd_eval.choice import check_names, load_all, with_bicubic
from mtkd_eval.comparison import evaluate
from mtkd_eval.image_sets import find_sets
from mtkd_eval.measure import RunSettings
from mtkd_eval.tables import FORMATS

ENDINGS = {'.md': 'md', '.csv': 'csv', '.json': 'json', '.tex': 'tex'}


def choose_formats(outs: Sequence[Path], asked: str | None) -> dict[Path, str]:
    """The format of each file, by its ending unless ``asked`` says otherwise.

    Raises ValueError for an ending that says nothing, and for a path that is a folder; PermissionError where it cannot
    be written.
    """
    for out in outs:
        if out.is_dir():
            raise ValueError(f'--out {out}: is a folder; expected a file to write')
        if asked is None and out.suffix not in ENDINGS:
            raise ValueError(f'--out {out}: expected a name that ends in {", ".join(ENDINGS)}, or give --format')
        check_place(out)
    return {out: asked or ENDINGS[out.suffix] for out in outs}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Run networks on test sets: PSNR and SSIM on Y and RGB, LPIPS where its package is installed,\n'
        'parameters, multiplications at 1280x720, seconds and peak memory per image.',
        epilog='a network is one of\n'
        '  options/test/test_mtkd_x4.yml              an option file with weights, or trained with it\n'
        '  options/train_mtkd_x4.yml:teachers.edsr    one of its teachers; :target for what they agree on\n'
        '  experiments/MTKD_edsr_x4                   an experiment folder\n'
        '  net_g_latest.pth --network network.yml     a checkpoint; --network may be missing in experiments/*/models,\n'
        '                                             and for the networks that spandrel knows\n'
        '  bicubic                                    the reference\n'
        'and LABEL=NETWORK gives it a name\n\n'
        'examples:\n'
        '  python scripts/evaluate.py bicubic scratch=experiments/scratch_edsr_x4 mtkd=experiments/MTKD_edsr_x4 \\\n'
        '      --set datasets/Set5 datasets/Set14 --out results/table.md results/table.json results/table.tex\n'
        "  python scripts/evaluate.py net.pth --network net.yml --self-ensemble --set 'Set5=HR,LRbicx4,{}x4'\n"
        'exit code: 0 done, 2 refused or failed, 130 interrupted',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('networks', nargs='+', metavar='NETWORK', help='what to evaluate, see below')
    add(
        '--set',
        nargs='+',
        required=True,
        dest='sets',
        metavar='SET',
        help='NAME=HR,LR[,TEMPLATE], a folder with HR and LRbicx4, a folder of such folders, or an option file',
    )
    add('--scale', type=int, nargs='+', default=[], help='scales to evaluate (default: those of the networks)')
    add('--network', help='YAML file of the network that bare checkpoints hold: its option, or network_g of it')
    add('--param-key', help='state dict in a checkpoint (default: params_ema before params)')
    add('--crop-border', type=int, help='pixels cut off at each side before comparing (default: the scale)')
    add('--self-ensemble', action='store_true', help='average over 8 flips and transposes: better, 8 times the time')
    add('--tile', type=int, default=0, help='side of a tile in LR pixels, 0 for whole images (default: 0)')
    add('--overlap', type=int, default=32, help='LR pixels that a tile sees around itself (default: 32)')
    add('--precision', choices=PRECISIONS, default='fp32', help='auto: bf16 where the device has it')
    add(
        '--repeats',
        type=int,
        default=1,
        help='timed runs of each image after the first, of which the median counts; 0: no timing (default: 1)',
    )
    add('--device', help='cpu, cuda or cuda:N (default: cuda where there is one)')
    add('--save-images', type=Path, metavar='DIR', help='write DIR/<network>_x<scale>/<set>/<image>.png')
    add('--out', type=Path, nargs='+', default=[], help='files to write: .md, .csv, .json, .tex (default: to stdout)')
    add('--format', choices=tuple(FORMATS), help='instead of what the ending says; for stdout (default: md)')
    return parser.parse_args(argv)


def _settings(given: Mapping[str, Any]) -> RunSettings:
    check_tiles(given['tile'], given['overlap'])
    border, repeats = given['crop_border'], given['repeats']
    if border is not None and border < 0:
        raise ValueError(f'--crop-border must be at least 0, got {border}')
    if repeats < 0:
        raise ValueError(f'--repeats must be at least 0 (no timing), got {repeats}')
    own = ('precision', 'tile', 'overlap', 'self_ensemble', 'crop_border', 'repeats')
    return RunSettings(**{key: given[key] for key in own})


def run(given: Mapping[str, Any]) -> str:
    """What the command line asks for; the table where no file is named, else what was written."""
    settings, formats = _settings(given), choose_formats(given['out'], given['format'])
    if given['save_images']:
        check_place(given['save_images'] / 'network')
    device = choose_device(given['device'], 0)
    settings = replace(settings, precision=resolve_precision(settings.precision, device))
    loaded = load_all(given['networks'], given['network'], given['param_key'], given['scale'])
    sets = find_sets(given['sets'], set(given['scale']) or {network.scale for network in loaded})
    networks = with_bicubic(given['networks'], loaded, sets)
    check_names(networks, sets)
    results = evaluate(networks, sets, device, settings, given['save_images'], progress=True, keep_going=True)
    for out, kind in formats.items():
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, FORMATS[kind](results).encode())
    return f'written: {", ".join(map(str, formats))}' if formats else FORMATS[given['format'] or 'md'](results)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed, 130 interrupted."""
    given = vars(_parse(argv))
    return exit_code(lambda: print(run(given)), 'nothing was written but images')
