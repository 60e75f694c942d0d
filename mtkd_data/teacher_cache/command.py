"""Command line of the teacher cache: what an option file's teachers make of its training set, once and for all."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  mends the upstream faults before BasicSR is imported

# isort: split
import torch
from tqdm import tqdm

from mtkd.option_file import read_option
from mtkd_arch.frozen_network import resolve_precision
from mtkd_arch.named_network import with_named_networks
from mtkd_data.command_line import exit_code
from mtkd_data.teacher_cache.description import choose_stores, teacher_order
from mtkd_data.teacher_cache.lq_source import LqImage, LqSource
from mtkd_data.teacher_cache.plan import CacheSettings, describe_cache, find_complete
from mtkd_data.teacher_cache.process_group import ProcessGroup
from mtkd_data.teacher_cache.runner import TeacherRunner, check_sections, choose_precision
from mtkd_data.teacher_cache.writer import write_cache


def read_cache_option(path: Path) -> dict[str, Any]:
    """An option file with the sections a cache needs. Raises FileNotFoundError or ValueError where they are not."""
    opt = read_option(path)
    check_sections(opt)
    return with_named_networks(opt)


def default_out(opt: Mapping[str, Any], settings: CacheSettings) -> Path:
    """``datasets.train.dataroot_cache``, or a folder beside the LQ images that is named after what it holds."""
    train = opt['datasets']['train']
    if train.get('dataroot_cache'):
        return Path(train['dataroot_cache'])
    lq = Path(train['dataroot_lq'])
    parts = [lq.stem if lq.suffix == '.lmdb' else lq.name, 'cache', *settings.stores]
    if 'target' in settings.stores:
        parts += ['of', *teacher_order(opt)]
    return lq.absolute().parent / '_'.join(parts + ['self_ensemble'] * settings.self_ensemble)


def choose_device(asked: str | None, local_rank: int) -> torch.device:
    """The device asked for, by default this process's GPU, or the CPU. Raises ValueError where there is none such."""
    try:
        device = torch.device(asked or ('cuda' if torch.cuda.is_available() else 'cpu'))
    except RuntimeError as error:
        raise ValueError(f'--device {asked}: unknown device, expected cpu, cuda or cuda:N') from error
    if device.type == 'cuda':
        if not torch.cuda.is_available():
            raise ValueError(f'--device {asked}: there is no usable GPU here: take --device cpu')
        if device.index is None:
            device = torch.device('cuda', local_rank % torch.cuda.device_count())
    return device


def cache_teachers(
    opt: Mapping[str, Any], out: Path | None, settings: CacheSettings, device: str | None, group: ProcessGroup
) -> tuple[Path, dict[str, Any], bool]:
    """Make the cache; its folder, the content of its cache.json and whether it was there before."""
    place = choose_device(device, group.local_rank)
    auto = group.on_first(lambda: resolve_precision('auto', place))
    opt = choose_precision(opt, settings.precision, auto)
    settings = replace(settings, stores=choose_stores(opt, settings.stores))
    with LqSource(opt['datasets']['train']) as source:
        out = out or default_out(opt, settings)
        images, description, made = group.on_first(lambda: _survey(opt, out, settings, source))
        if made:
            return out, made, True

        def build() -> TeacherRunner:
            return TeacherRunner(opt, settings.stores, place, settings.self_ensemble, settings.tile, settings.overlap)

        return out, write_cache(source, out, settings, description, images, build, group), False


def _survey(
    opt: Mapping[str, Any], out: Path, settings: CacheSettings, source: LqSource
) -> tuple[dict[str, LqImage], dict[str, Any], dict[str, Any] | None]:
    """Look at everything that decides the content; with it the finished cache where there is one already."""
    images = source.inspect(lambda keys: tqdm(keys, 'checking', unit='image'))
    description = describe_cache(opt, settings, images)
    return images, description, find_complete(out, description)


def describe_result(out: Path, made: Mapping[str, Any], before: bool) -> str:
    """What the user is told."""
    lines = [
        f'{out}: {"already complete: " if before else ""}{made["lq"]["images"]} images in each of '
        f'{", ".join(made["stores"])}; {made["clipped"]:.2g} of the values clipped to {made["range"]}'
    ]
    seam = (made['tile'] or {}).get('seam')
    if seam:
        lines.append(
            f'tiles: differ from the untiled result by at most {seam["largest"]:.2g}, by {seam["mean"]:.2g} on average '
            f'(image {seam["image"]}, {seam["height"]}x{seam["width"]}; 1/255 is {1 / 255:.2g})'
        )
    elif made['tile']:
        lines.append('tiles: no image is larger than a tile, or none could be run untiled to measure the seams')
    return '\n'.join(lines)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Run the teachers (and aggregator) of an option file once over its training set and keep what\n'
        'they make as 16-bit PNG, for CachedTeacherDataset. A killed run is finished by the same command.',
        epilog='examples:\n'
        '  python scripts/cache_teachers.py -opt options/train_mtkd_x4.yml\n'
        '  torchrun --nproc_per_node=8 scripts/cache_teachers.py -opt options/train_mtkd_x4.yml --self-ensemble\n'
        'writes datasets/DIV2K_sub/LRbicx4_cache_target_of_edsr_rcan_swinir/{target.lmdb,cache.json}\n'
        'exit code: 0 done or complete before, 2 refused or failed, 130 interrupted',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('-opt', type=Path, required=True, help='training option file with a teachers section')
    add('--out', type=Path, help='folder to make (default: datasets.train.dataroot_cache, or beside the LQ images)')
    add(
        '--stores',
        nargs='+',
        default=[],
        metavar='NAME',
        help='target, teachers by name, or all (default: target; for model_type AggregationModel its teachers)',
    )
    add('--self-ensemble', action='store_true', help='average over 8 flips and transposes: better, 8 times the time')
    add('--precision', choices=('fp32', 'bf16', 'fp16'), help='of all networks (default: as in the option file, fp32)')
    add('--tile', type=int, default=0, help='side of a tile in LR pixels, 0 for whole images (default: 0)')
    add('--overlap', type=int, default=32, help='LR pixels that a tile sees around itself (default: 32)')
    add('--format', choices=('lmdb', 'disk'), default='lmdb', help='LMDB, or folders of PNG files (default: lmdb)')
    add(
        '--compression-level',
        type=int,
        default=0,
        help='of the PNG: 0 can be cropped without decoding, 1 to 9 are smaller and slower (default: 0)',
    )
    add('--device', help='cpu, cuda or cuda:N (default: cuda where there is one; with torchrun one GPU per process)')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed, 130 interrupted."""
    given = vars(_parse(argv))
    return exit_code(lambda: _run(**given))


def _run(opt: Path, out: Path | None, device: str | None, stores: list[str], **settings: Any) -> None:
    with ProcessGroup() as group:
        made = cache_teachers(
            read_cache_option(opt), out, CacheSettings(stores=tuple(stores), **settings), device, group
        )
        if group.first:
            print(describe_result(*made))
