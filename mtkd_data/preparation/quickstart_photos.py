"""Makes the quickstart's data from photographs that ship inside scikit-image: nothing is downloaded.

Most are for training; three are held out for validation. Whole images, so that teachers see what is around a patch, in
PNG that crops are cut out of without decoding. Exit code 0 when the data are there, 2 on an error.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from mtkd_data.preparation.prepare import main as prepare

TRAIN = ('astronaut.png', 'rocket.jpg', 'motorcycle_left.png', 'retina.jpg', 'ihc.png', 'hubble_deep_field.jpg',
         'brick.png', 'grass.png', 'gravel.png', 'camera.png')  # fmt: skip
VALIDATION = ('chelsea.png', 'coffee.png', 'coins.png')
LONGEST_SIDE = 768


def export_photos(names: tuple[str, ...], folder: Path) -> None:
    """Write the named photographs as 8-bit RGB PNG into ``folder``, halved while a side exceeds LONGEST_SIDE.

    Raises ModuleNotFoundError without scikit-image, FileNotFoundError for a photograph that this version of it lacks.
    """
    try:
        import skimage
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the photographs are in scikit-image: pip install scikit-image') from error

    folder.mkdir(parents=True)
    for name in names:
        path = Path(skimage.__file__).parent / 'data' / name
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise FileNotFoundError(f'scikit-image lacks {name}; version 0.22 to 0.26 are known to have it')
        while max(image.shape[:2]) > LONGEST_SIDE:
            image = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f'{path.stem}.png'), image)


def holds_sub_images(folder: Path) -> bool:
    """Whether a data set was cut into pieces when it was made."""
    return bool(json.loads((folder / 'dataset.json').read_text())['settings']['sub_image'])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('datasets/quickstart'), help='default: %(default)s')
    out = parser.parse_args(argv).out
    jobs = (('train', TRAIN, ['--format', 'lmdb', '--compression-level', '0', '--min-side', '96']),
            ('val', VALIDATION, ['--format', 'disk']))  # fmt: skip
    for part, names, options in jobs:
        if (out / part / 'dataset.json').is_file():
            if holds_sub_images(out / part):
                print(f'error: {out / part} holds sub-images: made by another version, delete it', file=sys.stderr)
                return 2
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                export_photos(names, Path(folder) / part)
            except (ModuleNotFoundError, FileNotFoundError) as error:
                print(f'error: {error}', file=sys.stderr)
                return 2
            code = prepare(
                [
                    '--hr',
                    f'{folder}/{part}',
                    '--out',
                    str(out / part),
                    '--scale',
                    '2',
                    '4',
                    '--sub-image',
                    '0',
                    *options,
                ]
            )
        if code:
            return code
    return 0


if __name__ == '__main__':
    sys.exit(main())
