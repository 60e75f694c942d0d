"""Makes a teacher cache: every LQ image of a training set through the frozen networks once, into 16-bit PNG.

Everything is made in ``<out>.partial`` and renamed to ``<out>`` when it is whole and on the disk. A killed run is
resumed by the same command, with any number of processes.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import mtkd
from mtkd_data.flat_png import encode_flat_png
from mtkd_data.folder_lock import only_run
from mtkd_data.lmdb_store import LmdbReader, MetaEntry
from mtkd_data.preparation.prepare import COMMIT_BYTES, COMMIT_SECONDS
from mtkd_data.teacher_cache.cache import (
    HIGHEST,
    LOWEST,
    RECORD,
    CacheFolder,
    TeacherCache,
    sample_digest,
    store_name,
    to_uint16,
)
from mtkd_data.teacher_cache.lq_source import LqImage, LqSource
from mtkd_data.teacher_cache.plan import BEGUN, CacheSettings, check_start
from mtkd_data.teacher_cache.process_group import ProcessGroup
from mtkd_data.teacher_cache.runner import TeacherRunner
from mtkd_data.teacher_cache.shards import CLIPPED, CacheShard, done_keys, merge_shards, read_clipped
from mtkd_data.whole_files import sync_path, write_atomically


def write_cache(
    source: LqSource,
    out: Path,
    settings: CacheSettings,
    description: dict[str, Any],
    images: Mapping[str, LqImage],
    build: Callable[[], TeacherRunner],
    group: ProcessGroup,
    progress: bool = True,
) -> dict[str, Any]:
    """Make the cache ``out``, or finish what a killed run began; returns the content of its cache.json.

    To be called by all processes of ``group`` alike; ``build`` gives the networks. Raises FileExistsError for a
    ``.partial`` folder begun otherwise, OSError for too little room, before anything is written.
    """
    folder = out.with_name(f'{out.name}.partial')
    group.on_first(lambda: check_start(folder, out, settings, description, images, group.size))
    runner = group.join(build)
    with ExitStack() as stack:
        missing = group.on_first(lambda: _begin(stack, folder, settings, description, source, images, runner))
        group.join(lambda: _make(folder, settings, source, images, missing, runner, group, progress))
        return group.on_first(lambda: _finish(folder, out, settings, images, runner.scale, progress))


def _begin(
    stack: ExitStack,
    folder: Path,
    settings: CacheSettings,
    description: dict[str, Any],
    source: LqSource,
    images: Mapping[str, LqImage],
    runner: TeacherRunner,
) -> list[str]:
    """Claim the folder, note what is made in it, and give the keys that are not made yet."""
    folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(only_run(folder))
    if not (folder / BEGUN).is_file():
        begun = dict(description)
        if settings.tile:
            largest = max(source.keys, key=lambda key: (images[key].height * images[key].width, key))
            seam = runner.measure_seams(torch.from_numpy(source.read(largest, images[largest])))
            begun['tile'] = {**description['tile'], 'seam': seam and {'image': largest, **seam}}
        write_atomically(folder / BEGUN, _json(begun))
        sync_path(folder)
    done = done_keys(folder, settings.stores, settings.format)
    return [key for key in source.keys if key not in done]


def _make(
    folder: Path,
    settings: CacheSettings,
    source: LqSource,
    images: Mapping[str, LqImage],
    missing: Sequence[str],
    runner: TeacherRunner,
    group: ProcessGroup,
    progress: bool,
) -> None:
    """Make this process's share of the missing images."""
    part = folder if group.size == 1 else folder / f'shard{group.rank}'
    initial = len(images) - len(missing)
    bar = tqdm(total=len(images), initial=initial, desc='caching', unit='image', disable=not (progress and group.first))
    with CacheShard(part, settings.stores, settings.format) as shard, bar:
        committed = time.monotonic()
        for key in missing[group.rank :: group.size]:
            group.check()
            outputs = _run_named(runner, source, key, images[key])
            clipped = sum(int(((image < LOWEST) | (image > HIGHEST)).sum()) for image in outputs.values())
            shard.add(key, {name: _encode(image, settings) for name, image in outputs.items()}, clipped)
            if shard.pending_bytes > COMMIT_BYTES or time.monotonic() - committed > COMMIT_SECONDS:
                shard.flush()
                committed = time.monotonic()
            made = group.add(1)
            bar.update(made if group.size == 1 else initial + made - bar.n)
        shard.flush()


def _run_named(runner: TeacherRunner, source: LqSource, key: str, known: LqImage) -> dict[str, Tensor]:
    lq = torch.from_numpy(source.read(key, known))
    try:
        outputs = runner.run(lq)
    except MemoryError as error:
        raise MemoryError(f'{source.name_of(key)}: {error}') from error
    for name, image in outputs.items():
        if not image.isfinite().all():
            remedy = 'take --precision bf16 or fp32; with fp32 its weights are to blame'
            raise ValueError(f"{source.name_of(key)}: '{name}' is infinite or not a number somewhere: {remedy}")
    return outputs


def _encode(image: Tensor, settings: CacheSettings) -> bytes:
    stored = to_uint16(image)
    if not settings.compression_level:
        return encode_flat_png(stored)
    done, data = cv2.imencode(
        '.png', np.ascontiguousarray(stored[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, settings.compression_level]
    )
    if not done:
        raise ValueError(f'image {stored.dtype} {stored.shape} cannot be encoded as PNG')
    return data.tobytes()


def _finish(
    folder: Path, out: Path, settings: CacheSettings, images: Mapping[str, LqImage], scale: int, progress: bool
) -> dict[str, Any]:
    """Merge the shards, complete the stores, write cache.json and give the folder its name."""
    watch = partial(tqdm, desc='merging', unit='image', disable=not progress)
    merge_shards(folder, settings.stores, settings.format, COMMIT_BYTES, watch)
    sizes = {key: (image.height * scale, image.width * scale) for key, image in images.items()}
    with CacheShard(folder, settings.stores, settings.format) as whole:
        whole.finish([MetaEntry(key, *size, 3, settings.compression_level) for key, size in sizes.items()])
    values = 3 * len(settings.stores) * sum(height * width for height, width in sizes.values())
    clipped = sum(read_clipped(folder).values()) / values
    made = {**json.loads((folder / BEGUN).read_text()), 'clipped': clipped, 'versions': _versions()}
    paths = {name: folder / store_name(name, settings.format) for name in settings.stores}
    made['samples'] = {name: _sample(path, list(sizes)) for name, path in paths.items()}
    write_atomically(folder / RECORD, _json(made))
    TeacherCache(folder)  # raises where it could not be read again
    sync_path(folder)
    os.rename(folder, out)
    for leftover in (BEGUN, CLIPPED):
        (out / leftover).unlink()
    sync_path(out)
    sync_path(out.absolute().parent)
    return made


def _sample(path: Path, keys: list[str]) -> str:
    with (LmdbReader if path.suffix == '.lmdb' else CacheFolder)(path) as reader:
        return sample_digest(reader, keys)


def _versions() -> dict[str, str]:
    from basicsr import __version__  # not above: mtkd mends what it imports

    return {'mtkd': mtkd.__version__, 'torch': str(torch.__version__), 'basicsr': __version__}


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode('ascii')
