"""Command line of inference: images upscaled by any network, each written as a whole PNG."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mtkd_arch.frozen_network import PRECISIONS
from mtkd_arch.tiling import check_tiles
from mtkd_data.command_line import exit_code
from mtkd_data.teacher_cache.command import choose_device
from mtkd_data.whole_files import check_place, write_atomically
from mtkd_eval.any_image import AnyImage, encode_any, list_inputs, read_any, upscale_alpha
from mtkd_eval.comparison import as_file_name
from mtkd_eval.measure import RunSettings
from mtkd_eval.upscaler import Upscaler, load_upscaler


def plan_outputs(inputs: Sequence[Path], folders: Sequence[Path], suffix: str, overwrite: bool) -> None:
    """Raise before anything runs: ValueError for two images of one name or an output onto an input, FileExistsError
    for an output that is there, PermissionError for one that cannot be written.
    """
    stems: dict[str, Path] = {}
    for path in inputs:
        if path.stem in stems:
            raise ValueError(
                f'{stems[path.stem]} and {path.name} would both become {path.stem}{suffix}.png: rename one'
            )
        stems[path.stem] = path
    originals = {path.resolve() for path in inputs}
    for out in (folder / f'{stem}{suffix}.png' for folder in folders for stem in stems):
        if out.resolve() in originals:
            raise ValueError(f'{out} is an input: give another --out, or a --suffix')
        if out.exists() and not overwrite:
            raise FileExistsError(f'{out} exists: give another --out, or --overwrite')
        check_place(out)


def upscale_file(upscaler: Upscaler, path: Path, out: Path) -> None:
    """Write ``path`` upscaled to ``out``, a PNG of the same bits, alpha by bicubic interpolation.

    Raises ValueError or OSError for a file that cannot be read or written, MemoryError for one too large.
    """
    image = read_any(path)
    try:
        rgb = upscaler(image.rgb)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and 'memory' not in str(error):
            raise ValueError(f'{path}: {upscaler.name} fails on it: {str(error).splitlines()[0]}') from error
        size = 'x'.join(map(str, image.rgb.shape[-2:]))
        raise MemoryError(f'{path} ({size}) does not fit in memory: take tiles, such as --tile 128') from error
    alpha = None if image.alpha is None else upscale_alpha(image.alpha, upscaler.scale)
    try:
        data = encode_any(AnyImage(rgb, alpha, image.bits))
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, data)


def upscale_all(jobs: Sequence[tuple[Upscaler, Path, Path]], progress: bool | None = None) -> list[str]:
    """Every job done whose image can be; what was wrong with the others.

    ``progress``: False for no bar, True for one, None for one where stderr is a terminal.
    """
    failures = []
    with tqdm(jobs, unit='image', disable=None if progress is None else not progress) as bar:
        for upscaler, path, out in bar:
            bar.set_description(path.name)
            try:
                upscale_file(upscaler, path, out)
            except (ValueError, OSError, MemoryError) as error:
                failures.append(str(error))
    return failures


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='infer',
        description='Upscale an image, or the images of a folder, with one or more networks; writes PNG.\n'
        'PNG, JPEG and BMP, 8 or 16 bit (which the result has too), grey (becomes RGB) or RGB; alpha is interpolated.',
        epilog='examples:\n'
        '  python scripts/infer.py experiments/MTKD_edsr_x4 --input photos --out upscaled\n'
        '  python scripts/infer.py exported/MTKD_edsr_x4.onnx --input photo.jpg --out upscaled --tile 256\n'
        '  python scripts/infer.py kd=experiments/KD_edsr_x4 mtkd=experiments/MTKD_edsr_x4 --input photos --out both\n'
        'writes <out>/<image>.png, of several networks <out>/<network>/<image>.png\n'
        'exit code: 0 done, 2 refused, or images were left out (the rest is done), 130 interrupted',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        'networks',
        nargs='+',
        metavar='NETWORK',
        help='option file, experiment, checkpoint, .onnx, .torchscript or .pt2; LABEL=NETWORK',
    )
    add('--input', type=Path, required=True, help='an image, or a folder of images')
    add('--out', type=Path, required=True, help='folder to write to')
    add('--suffix', default='', help='behind the name of each image, such as _x4')
    add('--network', dest='option', metavar='YAML', help='option of the network that bare checkpoints hold')
    add('--param-key', help='state dict in a checkpoint (default: params_ema before params)')
    add('--tile', type=int, default=0, help='side of a tile in pixels of the input, 0 for whole images (default: 0)')
    add('--overlap', type=int, default=32, help='pixels that a tile sees around itself (default: 32)')
    add('--precision', choices=PRECISIONS, default='fp32', help='auto: bf16 where the device has it')
    add('--self-ensemble', action='store_true', help='average over 8 flips and transposes: better, 8 times the time')
    add('--device', help='cpu, cuda or cuda:N (default: cuda where there is one)')
    add('--overwrite', action='store_true', help='replace images that are there')
    return parser.parse_args(argv)


def run(given: Mapping[str, Any]) -> tuple[int, list[str]]:
    """What the command line asks for: how many images were written, and what was wrong with the others."""
    check_tiles(given['tile'], given['overlap'])
    device, inputs = choose_device(given['device'], 0), list_inputs(given['input'])
    settings = RunSettings(given['precision'], given['tile'], given['overlap'], given['self_ensemble'])
    upscalers = [
        load_upscaler(text, given['option'], given['param_key'], device, settings) for text in given['networks']
    ]
    names = [as_file_name(upscaler.name) for upscaler in upscalers]
    if len(set(names)) < len(names):
        raise ValueError(f'two networks of one name among {", ".join(names)}: label them, LABEL=NETWORK')
    folders = [given['out'] / name for name in names] if len(names) > 1 else [given['out']]
    plan_outputs(inputs, folders, given['suffix'], given['overwrite'])
    jobs = [
        (upscaler, path, folder / f'{path.stem}{given["suffix"]}.png')
        for upscaler, folder in zip(upscalers, folders, strict=True)
        for path in inputs
    ]
    failures = upscale_all(jobs)
    return len(jobs) - len(failures), failures


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or images left out, 130 interrupted."""
    given = vars(_parse(argv))
    return exit_code(lambda: _report(given), 'the images written so far are whole')


def _report(given: Mapping[str, Any]) -> int:
    written, failures = run(given)
    for failure in failures:
        print(f'error: left out: {failure}', file=sys.stderr)
    print(f'{given["out"]}: {written} images written' + (f', {len(failures)} left out' if failures else ''))
    return 2 if failures else 0
