"""Resident data: a training set decoded once into memory, from which whole batches are gathered where they are needed.

The dataset publishes its images under a name; its samples are that name and the coordinates of a crop, which cost a
loader next to nothing. ``gather`` turns a batch of them into tensors on the model's device.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, distributed
from tqdm import tqdm

from mtkd_data.crops import Crop, cut
from mtkd_data.damage import DamagedImage
from mtkd_data.image_store import ImageSource
from mtkd_data.teacher_cache.cache import LEVELS, LOWEST

Place = Literal['host', 'device']

HALF = 32768  # torch computes little in uint16, so 16 bits are kept as int16: value - HALF
BYTES = {8: 3, 16: 6}  # of a pixel
DTYPES = {8: torch.uint8, 16: torch.int16}

_published: dict[str, 'Resident'] = {}
_numbers = itertools.count()


class Resident:
    """The images of a data set in memory, loaded at the first ``gather``.

    Per source one table (pixels, 3), all images one after the other; so they may differ in size. ``sizes`` are those of
    the LQ images, ``patch`` the side of a crop, in LQ pixels. ``place`` device keeps the tables where the model is, and
    indexes each once for a whole batch. host keeps them in the host's memory, cuts crop by crop, which is three times
    as fast there, and moves the crops alone, in their narrow types. ``skipping`` leaves damaged images out; nobody may
    ask for them then.
    """

    def __init__(
        self,
        sources: Mapping[str, ImageSource],
        sizes: Sequence[tuple[int, int]],
        patch: int,
        place: Place,
        skipping: bool = False,
    ) -> None:
        self.sources, self.sizes, self.patch, self.place = dict(sources), list(sizes), patch, place
        self.skipping = skipping
        self._left_out: dict[int, str] = {}
        self._tables: dict[str, Tensor] = {}

    def bytes(self) -> int:
        """What the tables take."""
        pixels = sum(height * width for height, width in self.sizes)
        return sum(pixels * source.factor**2 * BYTES[source.bits] for source in self.sources.values())

    def gather(self, coordinates: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Crops of every source by name: float32 (B, 3, h, w) on ``device``, from ``coordinates`` (B, 6), int64.

        Raises MemoryError before loading where the images do not fit, DamagedImage for one that is not whole.
        """
        if not self._tables:
            self._load(device if self.place == 'device' else torch.device('cpu'))
        for number in coordinates[:, 0].tolist() if self._left_out else ():
            if number in self._left_out:  # it was whole when its crop was drawn
                raise DamagedImage(self._left_out[number])
        crops = self._cut(coordinates, device) if self.place == 'host' else self._index(coordinates)
        return {name: _to_float(crop.to(device, non_blocking=True)) for name, crop in crops.items()}

    def names(self, coordinates: Tensor) -> list[str]:
        """What errors call the LQ images that ``coordinates`` (B, 6) lie in."""
        return [self.sources['lq'].where(number) for number in coordinates[:, 0].tolist()]

    def _cut(self, coordinates: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Crops (B, 3, h, w) as they are stored, from tables in the host's memory; pinned on their way to a GPU."""
        drawn = [(number, Crop(*crop)) for number, *crop in coordinates.tolist()]
        made = {}
        for name, source in self.sources.items():
            shape = (len(drawn), 3, self.patch * source.factor, self.patch * source.factor)
            made[name] = torch.empty(shape, dtype=DTYPES[source.bits], pin_memory=device.type == 'cuda')
            crops = made[name].numpy()
            for place, (number, crop) in enumerate(drawn):
                crops[place] = cut(self._image(name, number), crop, self.patch, source.factor)
        return made

    def _image(self, name: str, number: int) -> np.ndarray:
        """An image (H, W, 3) as it is stored."""
        factor = self.sources[name].factor
        height, width = (side * factor for side in self.sizes[number])
        start = self._begins[number] * factor**2
        return self._arrays[name][start : start + height * width].reshape(height, width, 3)

    def _index(self, coordinates: Tensor) -> dict[str, Tensor]:
        """Crops (B, 3, h, w) as they are stored, from tables on any device."""
        coordinates = coordinates.to(self._widths.device, non_blocking=True)
        pixels = {factor: self._pixels(coordinates, factor) for factor in {s.factor for s in self.sources.values()}}
        made = {}
        for name, source in self.sources.items():
            places = pixels[source.factor]
            crops = self._tables[name].index_select(0, places.flatten()).view(*places.shape, 3)
            made[name] = crops.permute(0, 3, 1, 2)
        return made

    def _load(self, home: torch.device) -> None:
        check_room(self.bytes(), home)
        areas = torch.tensor([height * width for height, width in self.sizes])
        starts = areas.cumsum(0) - areas
        total = int(areas.sum())
        tables = {
            name: torch.empty(total * source.factor**2, 3, dtype=DTYPES[source.bits], device=home)
            for name, source in self.sources.items()
        }

        def load(number: int) -> None:
            try:
                for name, source in self.sources.items():
                    pixels = torch.from_numpy(self._read(source, number)).view(-1, 3)
                    start = int(starts[number]) * source.factor**2
                    tables[name][start : start + len(pixels)].copy_(pixels)
            except DamagedImage as error:
                if not self.skipping:
                    raise
                self._left_out[number] = str(error)

        hidden = True if get_rank() else None  # None: hidden where there is no terminal
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding runs outside the interpreter's lock
            count = len(self.sizes)
            for _ in tqdm(pool.map(load, range(count)), 'decoding', count, unit='image', disable=hidden):
                pass
        self._starts, self._widths = starts.to(home), torch.tensor([width for _, width in self.sizes], device=home)
        self._begins = starts.tolist()
        if home.type == 'cpu':
            self._arrays = {name: table.numpy() for name, table in tables.items()}
        self._tables = tables

    def _read(self, source: ImageSource, number: int) -> np.ndarray:
        expected = tuple(side * source.factor for side in self.sizes[number])
        with source.image(number) as image:
            if image.shape[:2] != expected:
                raise ValueError(
                    f'{source.where(number)}: decoded to {image.shape[0]}x{image.shape[1]}, '
                    f'expected {expected[0]}x{expected[1]}: replace it'
                )
            if source.bits == 8:
                return np.array(image, order='C')
            return (image.astype(np.uint16, order='C') ^ np.uint16(HALF)).view(np.int16)

    def _pixels(self, coordinates: Tensor, factor: int) -> Tensor:
        """Where the pixels of the crops (B, side, side) lie in the tables of ``factor``, turned."""
        image, top, left, *turns = coordinates.unbind(1)
        hflip, vflip, rot90 = (turn.bool()[:, None] for turn in turns)
        side = self.patch * factor
        steps = torch.arange(side, device=coordinates.device)
        rows = (
            (top[:, None] * factor + torch.where(vflip, side - 1 - steps, steps)) * self._widths[image, None] * factor
        )
        columns = left[:, None] * factor + torch.where(hflip, side - 1 - steps, steps)
        columns += self._starts[image, None] * factor**2
        outer, inner = torch.where(rot90, columns, rows), torch.where(rot90, rows, columns)
        return outer[:, :, None] + inner[:, None, :]


def _to_float(crops: Tensor) -> Tensor:
    """Stored values in contiguous float32: 8 bits in [0, 1], 16 bits as the teacher cache means them."""
    values = crops.to(torch.float32, memory_format=torch.contiguous_format)
    # divided by a tensor on the device: by a number, CUDA multiplies with the reciprocal, and the last bit differs
    if crops.dtype == torch.uint8:
        return values.div_(torch.full((), 255.0, device=crops.device))
    return values.add_(HALF).div_(torch.full((), LEVELS, device=crops.device)).add_(LOWEST)


def get_rank() -> int:
    """Number of this process in a distributed run, 0 without one."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def publish(resident: Resident) -> str:
    """Make a data set known in this process; returns its name, unlike any other of this process."""
    name = f'resident {os.getpid()}.{next(_numbers)}'
    _published[name] = resident
    return name


def withdraw(name: str) -> None:
    """Forget a published data set, and with it its memory."""
    _published.pop(name, None)


def gather(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A collated batch as tensors on ``device``: gathered from resident data, or, for any other batch, moved there.

    Of resident data come ``lq``, ``gt`` and ``cached_<store>`` alone, as the dataset without ``resident`` gives them.
    Raises RuntimeError for data that another process published.
    """
    if 'resident' not in batch:
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
    name = batch['resident'][0]
    if name not in _published:
        raise RuntimeError(f'{name} is not held by this process: its dataset is gone, or was built in another process')
    return _published[name].gather(batch['coordinates'], device)


def origin_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a collated batch that says where its images come from, and holds none of them."""
    return {key: batch[key] for key in ('lq_path', 'gt_path', 'resident', 'coordinates') if key in batch}


def image_names(origin: Mapping[str, Any]) -> list[str]:
    """What ``origin_of`` a batch names: of each image the LQ path or key, and the GT's where it is another."""
    if 'resident' in origin:
        published = _published.get(origin['resident'][0])
        return [] if published is None else published.names(origin['coordinates'])
    lq, gt = ([str(path) for path in origin.get(key, ())] for key in ('lq_path', 'gt_path'))
    if not lq or not gt:
        return lq or gt
    return [own if own == other else f'{own} ({other})' for own, other in zip(lq, gt, strict=True)]


def check_room(needed: int, home: torch.device) -> None:
    """Raise MemoryError where ``needed`` bytes exceed what is free in the host's or the device's memory."""
    if home.type == 'cuda':
        free = torch.cuda.mem_get_info(home)[0]
        where, remedy = f'in the memory of {home}', 'take resident: host, resident_shard: true or fewer images'
    else:
        free = free_host_memory()
        where, remedy = "in the host's memory", 'take resident_shard: true, fewer images, or leave resident out'
    if needed > free:
        raise MemoryError(
            f'the decoded images take {needed / 2**30:.2f} GiB {where}, {free / 2**30:.2f} GiB are free: {remedy}'
        )


def free_host_memory() -> int:
    """Bytes that can still be had: what the system calls available, and no more than a container's limit leaves."""
    pages = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    info = Path('/proc/meminfo')
    lines = info.read_text().splitlines() if info.exists() else []
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable')), pages)
    limit, used = (Path('/sys/fs/cgroup') / name for name in ('memory.max', 'memory.current'))
    if limit.exists() and (most := limit.read_text().strip()) != 'max':
        available = min(available, int(most) - int(used.read_text()))
    return available
