"""Teacher caches written by hand for tests: what the writer of caches does is no part of these."""

import json
from pathlib import Path

import cv2
import numpy as np

from mtkd_data.flat_png import encode_flat_png
from mtkd_data.lmdb_store import LmdbReader, LmdbWriter, MetaEntry
from mtkd_data.teacher_cache.cache import lq_fingerprint


def encode(image: np.ndarray, level: int) -> bytes:
    """RGB as PNG: in place at level 0, else OpenCV's."""
    if level == 0:
        return encode_flat_png(image)
    return cv2.imencode('.png', image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()


def write_lmdb(path: Path, images: dict[str, np.ndarray], level: int) -> None:
    """An LMDB in BasicSR's layout."""
    writer = LmdbWriter(path)
    writer.add({key: encode(image, level) for key, image in images.items()})
    writer.finish(MetaEntry(key, *image.shape, level) for key, image in images.items())


def write_folder(path: Path, images: dict[str, np.ndarray], level: int) -> None:
    """A folder of PNG files."""
    path.mkdir(parents=True)
    for key, image in images.items():
        (path / f'{key}.png').write_bytes(encode(image, level))


def lq_values(path: Path) -> dict[str, bytes]:
    """Encoded LQ images of an LMDB or a folder."""
    if path.suffix == '.lmdb':
        with LmdbReader(path) as reader:
            return {key: reader[key] for key in reader}
    return {file.stem: file.read_bytes() for file in path.iterdir()}


def write_record(
    root: Path, lq: Path, scale: int, stores: list[str], form: str = 'lmdb', changes: dict | None = None
) -> None:
    """The cache.json of a cache for the LQ images at ``lq``."""
    values = lq_values(lq)
    record = {
        'version': 1, 'scale': scale, 'format': form, 'compression_level': 0, 'range': [-0.5, 1.5], 'stores': stores,
        'inputs': [], 'teachers': {}, 'aggregator': None, 'self_ensemble': False, 'precision': 'fp32', 'tile': None,
        'lq': {'images': len(values), 'fingerprint': lq_fingerprint(values.items())}, 'clipped': 0.0, 'versions': {},
    }  # fmt: skip
    (root / 'cache.json').write_text(json.dumps({**record, **(changes or {})}))


def write_cache(
    root: Path, lq: Path, scale: int, stores: dict[str, dict[str, np.ndarray]], form: str = 'lmdb', level: int = 0
) -> Path:
    """A whole cache: images by key, by store."""
    root.mkdir(parents=True)
    for name, images in stores.items():
        if form == 'lmdb':
            write_lmdb(root / f'{name}.lmdb', images, level)
        else:
            write_folder(root / name, images, level)
    write_record(root, lq, scale, list(stores), form)
    return root
