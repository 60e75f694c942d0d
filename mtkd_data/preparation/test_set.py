"""From a folder of HR images to a test set as the field publishes them: whole HR, LR of each scale, `babyx4.png`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from mtkd_data.command_line import exit_code
from mtkd_data.image_io import check_header, encode_png, key_images, list_images, read_header, read_image
from mtkd_data.preparation.matlab_bicubic import imresize_bicubic, mod_crop
from mtkd_data.preparation.plan import check_scales, list_problems
from mtkd_data.preparation.prepare import check_folders
from mtkd_data.whole_files import check_place, whole_folder

COMPRESSION_LEVEL = 6


def prepare_test_set(hr: Path, out: Path, scales: Sequence[int], progress: bool = True) -> int:
    """Make `out` with `HR/<name>.png` and `LRbicx<scale>/<name>x<scale>.png`; returns the number of images.

    HR images are kept whole, 8-bit RGB (grey: the channel repeated); each scale is cropped to its own multiples before
    the MATLAB bicubic, as in the published Set5 and Set14. The folder appears when all is in it.

    Raises FileExistsError for an existing `out`, ValueError for scales below 2 or given twice and, naming all, for
    images that cannot be used.
    """
    check_scales(scales)
    check_folders([hr], out)
    keyed = key_images(list_images(hr))
    problems = [problem for path in keyed.values() for problem in _problems(path, max(scales))]
    if problems:
        raise ValueError(f'{len(problems)} of {len(keyed)} images cannot be used:\n  ' + list_problems(problems))
    check_place(out)
    with whole_folder(out) as folder:
        for name in ('HR', *(f'LRbicx{scale}' for scale in scales)):
            (folder / name).mkdir()
        for key, path in tqdm(keyed.items(), 'making', unit='image', disable=not progress):
            image = read_image(path, 'convert')
            (folder / f'HR/{key}.png').write_bytes(encode_png(image, COMPRESSION_LEVEL))
            for scale in scales:
                small = imresize_bicubic(mod_crop(image, scale), scale)
                place = folder / f'LRbicx{scale}/{key}x{scale}.png'
                place.write_bytes(encode_png(small, COMPRESSION_LEVEL))
    return len(keyed)


def _problems(path: Path, scale: int) -> list[str]:
    try:
        header = read_header(path.read_bytes(), str(path))
        check_header(header, str(path), 'convert')
    except ValueError as error:
        return [str(error)]
    if min(header.height, header.width) < scale:
        return [f'{path}: {header.height}x{header.width} is too small for x{scale}: remove it']
    return []


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed, 130 interrupted."""
    parser = argparse.ArgumentParser(
        description='Make a test set as the field publishes them, and as the option files want it: HR images and\n'
        'their MATLAB-bicubic LR images.',
        epilog='example:\n  python scripts/prepare_test_set.py --hr Set5_HR --out datasets/Set5\n'
        'writes datasets/Set5/HR/baby.png, LRbicx2/babyx2.png, LRbicx3/babyx3.png, LRbicx4/babyx4.png, ...\n'
        'exit code: 0 done, 2 refused or failed, 130 interrupted',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--hr', type=Path, required=True, metavar='FOLDER', help='8-bit PNG, JPEG or BMP, RGB or grey')
    add('--out', type=Path, required=True, help='folder to make; must not exist')
    add('--scale', type=int, nargs='+', default=[2, 3, 4], help='default: 2 3 4')
    args = parser.parse_args(argv)

    def run() -> None:
        count = prepare_test_set(args.hr, args.out, sorted(args.scale))
        print(f'{args.out}: {count} images, x{", x".join(map(str, sorted(args.scale)))}')

    return exit_code(run, 'nothing was written')
