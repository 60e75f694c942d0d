"""Seconds until a data set of many small images is open, and until its first image is there.

LMDBs of 1 000 and of 100 000 pairs of 4 x 4 and 1 x 1 pixels, opened by BasicSR's PairedImageDataset, by ours, by the
one that reads a teacher cache beside them (which hashes the LQ images once in a process), and by what
``python -m mtkd check`` asks. CPU seconds of this process; the files lie in the page cache. The first image is read
after the LMDB's pages were looked through.

    python -m benchmarks.opening --json benchmarks/results/opening.json
"""

import copy
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  registers the datasets

# isort: split
import cv2
import numpy as np
from basicsr.utils.registry import DATASET_REGISTRY

from benchmarks import record
from benchmarks.networks import describe_cache
from mtkd.checks import check_datasets
from mtkd_data import cached_teacher_dataset, lmdb_pages
from mtkd_data.flat_png import encode_flat_png
from mtkd_data.lmdb_store import LmdbWriter, MetaEntry
from mtkd_data.teacher_cache.cache import lq_fingerprint

COUNTS = (1_000, 100_000)
SCALE = 4
DATASETS = ('PairedImageDataset', 'PairedCropDataset', 'CachedTeacherDataset')


def write_store(path: Path, count: int, image: np.ndarray, level: int) -> bytes:
    """An LMDB of ``count`` times the same image, in one transaction; its encoded form."""
    if level:
        data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()
    else:
        data = encode_flat_png(image)
    writer = LmdbWriter(path)
    writer.add({f'{number:06d}': data for number in range(count)})
    writer.finish(MetaEntry(f'{number:06d}', *image.shape, level) for number in range(count))
    return data


def make_data(root: Path, count: int) -> Path:
    """GT, LQ and a cache of targets for ``count`` pairs."""
    (root / 'cache').mkdir(parents=True)
    write_store(root / 'GT.lmdb', count, np.full((SCALE, SCALE, 3), 99, np.uint8), 1)
    lq = write_store(root / 'LRbicx4.lmdb', count, np.full((1, 1, 3), 99, np.uint8), 1)
    write_store(root / 'cache/target.lmdb', count, np.full((SCALE, SCALE, 3), 999, np.uint16), 0)
    describe_cache(root / 'cache', count, lq_fingerprint((f'{number:06d}', lq) for number in range(count)))
    return root


def options(root: Path, kind: str) -> dict[str, Any]:
    """Of a training set."""
    cache = {'dataroot_cache': str(root / 'cache')} if kind == 'CachedTeacherDataset' else {}
    roots = {'dataroot_gt': str(root / 'GT.lmdb'), 'dataroot_lq': str(root / 'LRbicx4.lmdb')}
    crop = {'gt_size': SCALE, 'use_hflip': True, 'use_rot': True, 'batch_size_per_gpu': 1}
    return {'name': 'x', 'scale': SCALE, 'phase': 'train', 'io_backend': {'type': 'lmdb'}, **roots, **crop, **cache}


def clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and what ``work`` gives."""
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def open_once(root: Path, kind: str) -> tuple[float, float]:
    """Seconds to open a data set, as a process that has never seen it would, and to its first image."""
    lmdb_pages._known.clear()
    cached_teacher_dataset._fingerprints.clear()
    if kind == 'check':
        return clocked(lambda: check_datasets({'datasets': {'train': options(root, kind)}}))[0], 0.0
    opening, dataset = clocked(lambda: DATASET_REGISTRY.get(kind)(copy.deepcopy(options(root, kind))))
    return opening, clocked(lambda: dataset[len(dataset) // 2])[0]


def measure(args: Namespace) -> dict[str, Any]:
    """Every way to open both sizes, in turn, ``args.runs`` times."""
    with tempfile.TemporaryDirectory() as folder:
        roots = {count: make_data(Path(folder) / str(count), count) for count in COUNTS}
        found: dict[str, dict[str, Any]] = {}
        for kind in (*DATASETS, 'check'):
            times = {count: [open_once(roots[count], kind) for _ in range(args.runs + 1)][1:] for count in COUNTS}
            opening = {count: [one for one, _ in times[count]] for count in COUNTS}
            found[kind] = {
                'opening': {str(count): record.summary(opening[count]) for count in COUNTS},
                'first_image': {str(count): record.summary([one for _, one in times[count]]) for count in COUNTS},
                'ratio_of_a_hundred_times_the_images': record.ratio(opening[COUNTS[1]], opening[COUNTS[0]]),
            }
    return {'benchmark': 'opening', 'clock': 'CPU time of one process on a machine with other work', **found}


if __name__ == '__main__':
    sys.exit(record.run_part(None, __doc__, measure, runs=7))
