"""Crops per second of BasicSR's PairedImageDataset, of ours, and of resident data, as a training step would get them.

Batches of GT crops at x4, from 480 x 480 sub-images and from whole images of about 2K, made of photographs. Every
variant is timed in turn, round after round, on 0, 1 and 2 loader workers; figures are medians, and ratios are medians
of the ratios within a round. The time includes handing the batch to the model (gathering, for resident data). Whole
images are timed on the most workers alone. Files lie in the page cache; a slow disk favours smaller files.

    python -m benchmarks.loader --images photographs --threads 2
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  registers the datasets

# isort: split
import cv2
import numpy as np
import torch
from basicsr.utils.registry import DATASET_REGISTRY
from torch.utils.data import DataLoader, Dataset, RandomSampler
from tqdm import tqdm

from benchmarks import record
from benchmarks.networks import describe_cache
from mtkd_data.flat_png import encode_flat_png
from mtkd_data.image_io import decode_image
from mtkd_data.lmdb_store import LmdbReader, LmdbWriter, MetaEntry
from mtkd_data.preparation.plan import Settings
from mtkd_data.preparation.prepare import prepare_dataset
from mtkd_data.resident import gather
from mtkd_data.teacher_cache.cache import lq_fingerprint

ROOT = Path(__file__).resolve().parents[1]
SCALE, SUB_IMAGE = 4, 480
LARGE, TILE = (1356, 2040), (320, 480)  # height and width of a whole image, as DIV2K's are, and of a small photograph
BASE = 'basicsr_lmdb'  # what ratios refer to
# name: (data, dataset, further options)
VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    BASE: ('upstream_level1', 'PairedImageDataset', {}),
    'basicsr_disk': ('disk', 'PairedImageDataset', {}),
    'ours_disk': ('disk', 'PairedCropDataset', {}),
    'ours_level1': ('level1', 'PairedCropDataset', {}),
    'ours_level1_cached': ('level1', 'CachedTeacherDataset', {}),
    'ours_level0': ('level0', 'PairedCropDataset', {}),
    'ours_level0_cached': ('level0', 'CachedTeacherDataset', {}),
    'resident_host': ('level0', 'PairedCropDataset', {'resident': 'host'}),
    'resident_host_cached': ('level0', 'CachedTeacherDataset', {'resident': 'host'}),
    'basicsr_lmdb_whole': ('upstream_whole1', 'PairedImageDataset', {}),
    'ours_level0_whole': ('whole0', 'PairedCropDataset', {}),
    'ours_level0_whole_cached': ('whole0', 'CachedTeacherDataset', {}),
}
DATA = {  # name: (sub-image or 0, level, format); upstream's are copies: an LMDB opens once in a process
    'level1': (SUB_IMAGE, 1, 'lmdb'), 'upstream_level1': (SUB_IMAGE, 1, 'lmdb'), 'level0': (SUB_IMAGE, 0, 'lmdb'),
    'disk': (SUB_IMAGE, 1, 'disk'), 'whole0': (0, 0, 'lmdb'), 'upstream_whole1': (0, 1, 'lmdb'),
}  # fmt: skip
COMPARISONS = {  # how much longer, or how many times as fast
    'time_of_the_cached_image_level1': ('ours_level1', 'ours_level1_cached'),
    'time_of_the_cached_image_level0': ('ours_level0', 'ours_level0_cached'),
    'time_of_the_cached_image_over_basicsr': (BASE, 'ours_level0_cached'),
    'speed_resident_cached_over_basicsr': ('resident_host_cached', BASE),
    'speed_resident_over_basicsr': ('resident_host', BASE),
}


def read_photos(folder: Path | None) -> list[np.ndarray]:
    """The photographs of a folder, or those that ship inside scikit-image, BGR, lying."""
    if folder is None:
        import skimage

        names = ('astronaut', 'chelsea', 'coffee', 'rocket', 'motorcycle_left', 'retina', 'ihc', 'hubble_deep_field')
        paths = [path for path in (Path(skimage.__file__).parent / 'data').iterdir() if path.stem in names]
    else:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in ('.png', '.jpg', '.jpeg', '.bmp')]
    images = [cv2.imread(str(path)) for path in sorted(paths)]
    images = [image if image.shape[0] <= image.shape[1] else image.transpose(1, 0, 2) for image in images]
    images = [image for image in images if image.shape[0] >= TILE[0] and image.shape[1] >= TILE[1]]
    if not images:
        raise SystemExit(f'{folder}: no photographs of at least {TILE[0]}x{TILE[1]}')
    return images


def large_images(photos: list[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Images of the size of DIV2K's: photographs of that size, cut, or smaller ones side by side."""
    big = [photo for photo in photos if photo.shape[0] >= LARGE[0] and photo.shape[1] >= LARGE[1]]
    rows, columns = -(-LARGE[0] // TILE[0]), -(-LARGE[1] // TILE[1])
    for number in range(count):
        if big:
            whole = big[number % len(big)]
        else:
            first = number * rows * columns
            tiles = [photos[(first + place) % len(photos)][: TILE[0], : TILE[1]] for place in range(rows * columns)]
            whole = np.vstack([np.hstack(tiles[row * columns : (row + 1) * columns]) for row in range(rows)])
        yield np.ascontiguousarray(whole[: LARGE[0], : LARGE[1]])


def add_cache(root: Path) -> None:
    """A cache of one store beside the LMDBs of ``root``: the GT with the noise of a network's last bits, in place."""
    (root / 'cache').mkdir()
    writer, generator = LmdbWriter(root / 'cache' / 'target.lmdb'), np.random.default_rng(0)
    with LmdbReader(root / 'GT.lmdb') as gt, LmdbReader(root / f'LRbicx{SCALE}.lmdb') as lq:
        for key in gt:
            image = decode_image(gt[key], key)[..., ::-1]
            levels = (image / 255 + 0.5) * 32767.5 + generator.normal(0, 300, image.shape)
            writer.add({key: encode_flat_png(levels.clip(0, 65535).astype(np.uint16))})
        entries = [MetaEntry(key, entry.height, entry.width, 3, 0) for key, entry in gt.entries.items()]
        fingerprint = lq_fingerprint((key, lq[key]) for key in lq)
    writer.finish(entries)
    describe_cache(root / 'cache', len(entries), fingerprint)


def make_data(folder: Path, images: Path | None, count: int) -> dict[str, Path]:
    """Every data set of ``DATA``, by name."""
    (folder / 'hr').mkdir()
    for number, image in enumerate(large_images(read_photos(images), count)):
        cv2.imwrite(str(folder / 'hr' / f'{number:04d}.png'), image)
    for name, (sub_image, level, form) in DATA.items():
        settings = Settings((SCALE,), sub_image, SUB_IMAGE, format=form, compression_level=level)
        prepare_dataset(folder / 'hr', folder / name, settings, progress=False)
    for name in ('level1', 'level0', 'whole0'):
        add_cache(folder / name)
    return {name: folder / name for name in DATA}


def build(variant: str, roots: dict[str, Path], gt_size: int) -> Dataset:
    """The dataset of a variant."""
    data, kind, options = VARIANTS[variant]
    form = DATA[data][2]
    suffix = '.lmdb' if form == 'lmdb' else ''
    opt = {
        'phase': 'train', 'scale': SCALE, 'gt_size': gt_size, 'use_hflip': True, 'use_rot': True,
        'dataroot_gt': str(roots[data] / f'GT{suffix}'), 'dataroot_lq': str(roots[data] / f'LRbicx{SCALE}{suffix}'),
        'io_backend': {'type': form}, **options,
    }  # fmt: skip
    if kind == 'CachedTeacherDataset':
        opt['dataroot_cache'] = str(roots[data] / 'cache')
    return DATASET_REGISTRY.get(kind)(opt)


def crops_per_second(dataset: Dataset, workers: int, batch: int, seconds: float, device: torch.device) -> float:
    """Steady rate: batches made ahead before the clock starts are taken off first."""
    endless = RandomSampler(dataset, replacement=True, num_samples=10**7)
    batches = iter(DataLoader(dataset, batch, sampler=endless, num_workers=workers))
    for _ in range(2 * workers + 1):  # what DataLoader prefetches, and one more
        gather(next(batches), device)
    record.synchronise(device.type)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or count < 2:
        gather(next(batches), device)
        record.synchronise(device.type)
        count += 1
    return count * batch / elapsed


def spread(values: list[float]) -> dict[str, float]:
    """Median and interquartile range."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {'median': median, 'iqr': high - low}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Crops per second by variant and number of workers, and ratios between them."""
    device = torch.device(args.device)
    rates: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        roots = make_data(Path(folder), args.images, args.count)
        datasets = {name: build(name, roots, args.gt_size) for name in VARIANTS}
        for _ in tqdm(range(args.rounds), 'measuring', unit='round', disable=None):
            for workers in args.workers:
                for name in chosen(workers, args):
                    dataset = datasets[name]
                    rate = crops_per_second(dataset, workers, args.batch, args.seconds, device)
                    rates.setdefault((name, workers), []).append(rate)
        sub_images = len(datasets[BASE])
        del datasets, dataset
    return {
        'what': f'batches of {args.batch} GT crops of {args.gt_size}, x{SCALE}, from {sub_images} sub-images of '
        f'{SUB_IMAGE} and {args.count} whole images of {LARGE[1]}x{LARGE[0]}',
        'images': str(args.images.name) if args.images else 'scikit-image',
        'rounds': args.rounds,
        'crops_per_second': {
            name: {str(workers): spread(rates[name, workers]) for workers in args.workers if (name, workers) in rates}
            for name in VARIANTS
        },
        'ratio_to_basicsr_lmdb': {
            name: {
                str(workers): spread(ratios(rates, (name, workers), (BASE, workers)))
                for workers in args.workers
                if (name, workers) in rates
            }
            for name in VARIANTS
        },
        'comparisons': {
            name: {str(workers): spread(ratios(rates, (one, workers), (other, workers))) for workers in args.workers}
            for name, (one, other) in COMPARISONS.items()
        },
        'resident_to_fastest_basicsr': fastest_ratio(rates, 'resident_host', args.workers),
        'resident_cached_to_fastest_basicsr': fastest_ratio(rates, 'resident_host_cached', args.workers),
    }


def chosen(workers: int, args: argparse.Namespace) -> list[str]:
    """The variants to time on this many workers."""
    return [
        name for name in VARIANTS if workers == max(args.workers) or not name.removesuffix('_cached').endswith('_whole')
    ]


def ratios(rates: dict, one: tuple[str, int], other: tuple[str, int]) -> list[float]:
    """How many times as fast ``one`` is as ``other``, by round."""
    return [mine / theirs for mine, theirs in zip(rates[one], rates[other], strict=True)]


def fastest_ratio(rates: dict, name: str, workers: list[int]) -> dict[str, Any]:
    """Each at its best number of workers."""
    best, base = (
        max(workers, key=lambda count, which=which: statistics.median(rates[which, count])) for which in (name, BASE)
    )
    figures = spread(ratios(rates, (name, best), (BASE, base)))
    return {**figures, 'workers': best, 'basicsr_workers': base}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument('--threads', type=int, help="threads of PyTorch (default: PyTorch's)")
    parser.add_argument('--json', type=Path, help='default: benchmarks/results/loader_<device>.json')
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    figures = measure(args)
    record.write(args.json or ROOT / f'benchmarks/results/loader_{args.device}.json', args.device, figures)
    print(json.dumps(figures, indent=2))
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``measure`` needs."""
    parser.add_argument('--images', type=Path, help='folder of photographs (default: those inside scikit-image)')
    parser.add_argument('--count', type=int, default=8, help='whole images to make of them (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=16, help='default: %(default)s')
    parser.add_argument('--gt-size', type=int, default=128, help='side of the GT crops (default: %(default)s)')
    parser.add_argument('--workers', type=int, nargs='+', default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--rounds', type=int, default=7, help='timed rounds (default: %(default)s)')
    parser.add_argument('--seconds', type=float, default=0.5, help='of each timing (default: %(default)s)')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))


if __name__ == '__main__':
    sys.exit(main())
