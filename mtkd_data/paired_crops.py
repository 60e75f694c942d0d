"""What the paired data sets share: pairs as BasicSR lists them, crops cut in place, or all images held in memory.

BasicSR is imported where it is used: ``mtkd``, which mends it, registers these data sets while it is imported itself.
"""

import os
import weakref
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from mtkd_data import resident
from mtkd_data.crops import Crop, cut, draw_crop, to_float
from mtkd_data.dataset_keys import LOADER_KEYS, PAIR_KEYS, Keys
from mtkd_data.image_sizes import Size, sizes_of
from mtkd_data.image_store import FileStore, ImageSource, LmdbStore

NORMALISING = ('mean', 'std', 'color')


class PairedCrops(Dataset):
    """Base of PairedCropDataset, which says what a sample is, and CachedTeacherDataset.

    A subclass adds its keys to ``keys`` and its sources to ``others``. Raises ValueError, MemoryError or
    FileNotFoundError for what cannot be.
    """

    keys: ClassVar[Keys] = {**LOADER_KEYS, **PAIR_KEYS}
    draws_by_place: ClassVar[bool] = True  # so nobody needs to seed the global generators for it

    def __init__(self, opt: Mapping[str, Any]) -> None:
        from mtkd.checks import require_keys, require_known_keys

        where = f'the options of {type(self).__name__}'
        for key in NORMALISING:
            if opt.get(key) is not None:
                raise ValueError(f"unknown key '{key}' in {where}: images are RGB in [0, 1], leave it out")
        require_known_keys({key: value for key, value in opt.items() if key not in NORMALISING}, self.keys, where)
        require_keys(opt, ('dataroot_gt', 'dataroot_lq', 'io_backend', 'scale', 'phase'), where)
        self.opt, self.scale, self.training = opt, opt['scale'], opt['phase'] == 'train'
        self.pairs = _list_pairs(opt)
        lq_keys, gt_keys = ([pair[f'{kind}_path'] for pair in self.pairs] for kind in ('lq', 'gt'))
        self.lq = ImageSource(_store(opt, 'dataroot_lq'), lq_keys, 1)
        self.others = {'gt': ImageSource(_store(opt, 'dataroot_gt'), gt_keys, self.scale)}
        self.resident: str | None = None
        if self.training:
            self._prepare_training(where)
        elif opt.get('resident') is not None:
            raise ValueError(f"'resident' in {where}: it serves the phase train, this is {opt['phase']}: leave it out")

    @classmethod
    def check_options(cls, dataset_opt: Mapping[str, Any]) -> None:
        """Raise what building the dataset would raise. Nothing is written, nothing loaded into memory."""
        cls(deepcopy(dict(dataset_opt)))

    def _prepare_training(self, where: str) -> None:
        from mtkd.checks import require_keys

        opt = self.opt
        require_keys(opt, ('gt_size', 'use_hflip', 'use_rot'), where)
        if opt['gt_size'] < 1 or opt['gt_size'] % self.scale:
            raise ValueError(f'gt_size {opt["gt_size"]} in {where} is not a multiple of the scale {self.scale}')
        if opt.get('resident') not in (None, 'host', 'device'):
            raise ValueError(f"'resident' in {where}: expected host or device, got {opt['resident']!r}")
        if opt.get('resident_shard') and not opt.get('resident'):
            raise ValueError(f"'resident_shard' in {where}: expected 'resident: host' or 'device' beside it")
        self.patch = opt['gt_size'] // self.scale
        self.add_sources()
        # without either, sizes of files are checked one by one as they are read
        known = len(self.others) > 1 or opt.get('resident') or isinstance(self.lq.store, LmdbStore)
        self.sizes = self._check_sizes() if known else None
        if opt.get('resident'):
            self._publish(where)

    def add_sources(self) -> None:
        """Where a subclass adds to ``others`` and checks what it adds."""

    def _check_sizes(self) -> list[Size]:
        """Sizes of the LQ images. Raises ValueError for one below the patch, or another of the wrong size."""
        sizes = sizes_of(self.lq)
        for number, size in enumerate(sizes):
            self._check_patch(size, number)
        for source in self.others.values():
            for number, size in enumerate(sizes_of(source)):
                self._check_size(source, number, size, sizes[number])
        return sizes

    def _check_patch(self, size: Size, number: int) -> None:
        if min(size) < self.patch:
            raise ValueError(
                f'{self.lq.where(number)}: {size[0]}x{size[1]} is smaller than the patch of {self.patch}x{self.patch} '
                f'(gt_size {self.opt["gt_size"]}, scale {self.scale}): lower gt_size or remove it'
            )

    def _check_size(self, source: ImageSource, number: int, size: Size, lq_size: Size) -> None:
        expected = (lq_size[0] * source.factor, lq_size[1] * source.factor)
        if size != expected:
            raise ValueError(
                f'{source.where(number)}: {size[0]}x{size[1]}, expected {expected[0]}x{expected[1]}, {source.factor} '
                f'times its LQ image {self.lq.where(number)}: they do not belong together'
            )

    def _publish(self, where: str) -> None:
        from basicsr.utils.dist_util import get_dist_info

        rank, world = get_dist_info()
        self.share = range(rank, len(self), world) if self.opt.get('resident_shard') else range(len(self))
        if not self.share:
            raise ValueError(f'resident_shard in {where}: {len(self)} images for {world} processes: leave it out')
        kinds = {
            name: ImageSource(source.store, [source.keys[number] for number in self.share], source.factor, source.bits)
            for name, source in {'lq': self.lq, **self.others}.items()
        }
        sizes, skipping = [self.sizes[number] for number in self.share], bool(self.opt.get('skip_damaged'))
        images = resident.Resident(kinds, sizes, self.patch, self.opt['resident'], skipping)
        if self.opt['resident'] == 'host':
            # processes of torchrun, or of SLURM, on this machine will hold as much
            beside = int(os.environ.get('LOCAL_WORLD_SIZE') or os.environ.get('SLURM_NTASKS_PER_NODE') or '1')
            resident.check_room(images.bytes() * beside, torch.device('cpu'))
        self.resident = resident.publish(images)
        weakref.finalize(self, resident.withdraw, self.resident).atexit = False

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.resident is not None:
            return self._coordinates(index)
        images = self._crops(index) if self.training else self._whole(index)
        return {**{name: torch.from_numpy(image) for name, image in images.items()}, **self.pairs[index]}

    def image_of(self, index: int) -> int:
        """The image that a sample is cut from."""
        return int(index) if self.resident is None else self.share[self._place_in_share(index)]

    def _place_in_share(self, index: int) -> int:
        return index * len(self.share) // len(self)  # spreads the indices of all evenly over the share

    def _coordinates(self, index: int) -> dict[str, Any]:
        local = self._place_in_share(index)
        for source in (self.lq, *self.others.values()) if self.opt.get('skip_damaged') else ():
            source.check(self.share[local])  # later, in memory, an image could no longer be replaced
        crop = self._draw(self.sizes[self.share[local]], index)
        return {'resident': self.resident, 'coordinates': torch.tensor([local, *crop])}

    def _draw(self, size: Size, index: int) -> Crop:
        generator = index.generator() if hasattr(index, 'generator') else None  # a Place, see placed_sampler
        return draw_crop(*size, self.patch, self.opt['use_hflip'], self.opt['use_rot'], generator)

    def _crops(self, index: int) -> dict[str, np.ndarray]:
        with self.lq.image(index) as image:
            lq_size = image.shape[:2]
            self._check_patch(lq_size, index)
            crop = self._draw(lq_size, index)
            crops = {'lq': to_float(cut(image, crop, self.patch, 1))}
        rows = range(crop.top * self.scale, (crop.top + self.patch) * self.scale)
        for name, source in self.others.items():
            with source.image(index, rows) as image:
                self._check_size(source, index, image.shape[:2], lq_size)
                crops[name] = to_float(cut(image, crop, self.patch, self.scale))
        return crops

    def _whole(self, index: int) -> dict[str, np.ndarray]:
        """The pair as it is, the GT cut to ``scale`` times the LQ's size at the right and at the bottom."""
        with self.lq.image(index) as lq, self.others['gt'].image(index) as gt:
            gt = gt[: lq.shape[0] * self.scale, : lq.shape[1] * self.scale]
            return {'lq': to_float(lq.transpose(2, 0, 1)), 'gt': to_float(gt.transpose(2, 0, 1))}


def _list_pairs(opt: Mapping[str, Any]) -> list[dict[str, str]]:
    """``lq_path`` and ``gt_path`` of each pair, by BasicSR's own functions."""
    from basicsr.data import data_util

    roots, backend = [str(opt['dataroot_lq']), str(opt['dataroot_gt'])], opt['io_backend'].get('type')
    if backend == 'lmdb':
        return data_util.paired_paths_from_lmdb(roots, ['lq', 'gt'])
    if backend != 'disk':
        raise ValueError(f'io_backend: expected type lmdb or disk, got {backend!r}')
    template = opt.get('filename_tmpl', '{}')
    if opt.get('meta_info_file') is not None:
        return data_util.paired_paths_from_meta_info_file(roots, ['lq', 'gt'], opt['meta_info_file'], template)
    return data_util.paired_paths_from_folder(roots, ['lq', 'gt'], template)


def _store(opt: Mapping[str, Any], root: str) -> LmdbStore | FileStore:
    return LmdbStore(Path(opt[root])) if opt['io_backend']['type'] == 'lmdb' else FileStore()
