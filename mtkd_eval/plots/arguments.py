"""The command line of the pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mtkd_arch.frozen_network import DTYPES
from mtkd_eval.measure import METRICS
from mtkd_eval.plots.curves import SHOWN
from mtkd_eval.plots.scatter import COSTS
from mtkd_eval.plots.style import NORMAL

EXAMPLES = """examples:
  python scripts/plot.py sheet scratch=experiments/scratch_edsr_x4 mtkd=experiments/MTKD_edsr_x4 \\
      --set datasets/Set14 --out results/sheet.png
  python scripts/plot.py sheet mtkd=experiments/MTKD_edsr_x4 --set datasets/Set5 --region baby:120,80,64 --out baby.pdf
  python scripts/plot.py bands scratch=experiments/scratch_edsr_x4 mtkd=experiments/MTKD_edsr_x4 \\
      --set datasets/Set5 --image butterfly --out results/bands.png
  python scripts/plot.py curves scratch=experiments/scratch_edsr_x4 mtkd=experiments/MTKD_edsr_x4 \\
      --out results/curves.svg
  python scripts/plot.py scatter results/table.json --x macs --out results/scatter.png
  python scripts/plot.py gains results/gains.json --out results/gains.png
exit code: 0 done, 2 refused or failed (nothing is written), 130 interrupted"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with the picture asked for as ``kind``."""
    parser = argparse.ArgumentParser(
        prog='plot', description='Pictures of results, from files on disk: PNG, PDF or SVG by the name of --out.',
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='KIND')
    for add in (_sheet, _bands, _curves, _scatter, _gains):
        kind = add(kinds)
        kind.add_argument('--out', type=Path, required=True, help='file to write: .png, .pdf or .svg')
        kind.add_argument('--title', default='', help='line above the picture')
        kind.add_argument('--dpi', type=int, default=150, help='pixels per inch (default: %(default)s)')
    return parser.parse_args(argv)


def add_network_arguments(kind: argparse.ArgumentParser) -> None:
    """Networks and test sets, as ``scripts/evaluate.py`` takes them."""
    add = kind.add_argument
    help = 'option file, experiment, checkpoint or bicubic; LABEL=NETWORK names it; see scripts/evaluate.py --help'
    add('networks', nargs='+', metavar='NETWORK', help=help)
    help = 'NAME=HR,LR[,TEMPLATE], a folder with HR and LRbicx4, a folder of such folders, or an option file'
    add('--set', nargs='+', required=True, dest='sets', metavar='SET', help=help)
    add('--scale', type=int, help='scale (default: that of the networks)')
    add('--network', help='YAML file of the network that bare checkpoints hold: its option, or network_g of it')
    add('--param-key', help='state dict in a checkpoint (default: params_ema before params)')
    add('--crop-border', type=int, help='pixels cut off at each side for PSNR (default: the scale)')
    add('--tile', type=int, default=0, help='side of a tile in LR pixels, 0 for whole images (default: 0)')
    add('--overlap', type=int, default=32, help='LR pixels that a tile sees around itself (default: 32)')
    add('--precision', choices=tuple(DTYPES), default='fp32', help='default: fp32')
    add('--device', help='cpu, cuda or cuda:N (default: cuda where there is one)')


def _sheet(kinds: argparse._SubParsersAction) -> argparse.ArgumentParser:
    kind = kinds.add_parser(
        'sheet',
        help='crops of several networks side by side',
        description='Crops of LR, bicubic, the networks and HR side by side, with PSNR-Y beneath. Regions are chosen '
        'where the networks differ most: the windows in which the mean squared error on Y spreads most between them, '
        'whoever is the better; none overlaps another or touches the border. Bicubic counts beside one network only.',
    )
    add_network_arguments(kind)
    add = kind.add_argument
    add('--region', nargs='+', default=[], metavar='IMAGE:TOP,LEFT,SIZE', help='regions in HR pixels, none chosen')
    add('--images', nargs='+', default=[], metavar='IMAGE', help='choose among these: IMAGE or SET/IMAGE')
    add('--count', type=int, default=3, help='regions to choose in all (default: %(default)s)')
    add('--per-image', type=int, default=1, help='regions of one image at most (default: %(default)s)')
    add('--size', type=int, default=64, help='side of a chosen region in HR pixels (default: %(default)s)')
    add('--psnr', choices=('image', 'crop', 'both'), default='image', help='of what it is shown (default: image)')
    add('--hide', nargs='+', choices=('lr', 'bicubic'), default=[], help='leave these columns out')
    add('--columns', type=int, help='crops in one row (default: all, up to 7)')
    add('--font', type=float, default=NORMAL, help='size of the text in points, 8 at least (default: %(default)s)')
    return kind


def _bands(kinds: argparse._SubParsersAction) -> argparse.ArgumentParser:
    kind = kinds.add_parser(
        'bands',
        help='wavelet-band error maps of several networks on one image',
        description='Haar bands LL, LH, HL and HH, one level, of each output minus the HR image, on one colour scale.',
    )
    add_network_arguments(kind)
    kind.add_argument(
        '--image', required=True, metavar='IMAGE[:TOP,LEFT,SIZE]', help='IMAGE or SET/IMAGE, or a region of it'
    )
    kind.add_argument('--signed', action='store_true', help='error on Y with its sign, instead of magnitudes on RGB')
    return kind


def _curves(kinds: argparse._SubParsersAction) -> argparse.ArgumentParser:
    kind = kinds.add_parser(
        'curves',
        help='training curves of several experiments',
        description='Losses and validation figures over the iterations, from the logs of BasicSR; several logs of a '
        'resumed experiment are joined, later ones winning.',
    )
    add = kind.add_argument
    add('experiments', nargs='+', metavar='EXPERIMENT', help='folder with train_*.log, or a log; LABEL=EXPERIMENT')
    add('--show', nargs='+', default=list(SHOWN), help="curves, such as psnr ssim psnr/Set5 l_pix 'l_*' lr "
        f'(default: {" ".join(SHOWN)})')  # fmt: skip
    add('--smooth', type=int, help='points that a loss is averaged over, 1 for none (default: a twentieth of them)')
    return kind


def _scatter(kinds: argparse._SubParsersAction) -> argparse.ArgumentParser:
    kind = kinds.add_parser(
        'scatter',
        help='quality against parameters, multiplications or seconds',
        description='Quality against cost, a panel per test set, from the JSON that scripts/evaluate.py writes.',
    )
    add = kind.add_argument
    add('results', type=Path, metavar='RESULTS.json', help='what scripts/evaluate.py --out wrote')
    add('--x', choices=tuple(COSTS), default='parameters', help='cost (default: parameters)')
    add('--metric', choices=METRICS, default='psnr_y', help='quality (default: psnr_y)')
    add('--sets', nargs='+', default=[], metavar='NAME', help='test sets (default: all)')
    add('--scale', type=int, help='scale, where there are several')
    return kind


def _gains(kinds: argparse._SubParsersAction) -> argparse.ArgumentParser:
    kind = kinds.add_parser(
        'gains',
        help='gains over a reference with their confidence intervals',
        description='Gains in dB with confidence intervals, a row per method, a panel per student. The file holds '
        '"gains": a list of {"student", "method", "mean", "low", "high", "n"}, low and high null for a single '
        'value, and the texts "reference", "test_sets" and "interval".',
    )
    kind.add_argument('study', type=Path, metavar='STUDY.json', help='study.json of a study')
    return kind
