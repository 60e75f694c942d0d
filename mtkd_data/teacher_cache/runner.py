"""Runs the frozen networks of an option file over whole images, for the teacher cache."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtkd.checks import require_keys, require_known_keys
from mtkd_arch.self_ensemble import self_ensemble
from mtkd_arch.teacher_ensemble_arch import AGGREGATOR_KEYS, TEACHER_KEYS, TeacherEnsemble
from mtkd_arch.tiling import check_tiles, run_tiled, seam_difference
from mtkd_data.teacher_cache.description import involved_teachers, teacher_order

AGGREGATOR_WINDOW = 8  # DCTSwin's default


class TeacherRunner:
    """The networks that make ``stores`` (``target``, teachers by name), on ``device``; no others are built.

    ``tile`` and ``overlap`` are of ``run_tiled``: the teachers and the
    aggregator go over a tile together. Raises whatever TeacherEnsemble raises.
    """

    def __init__(
        self,
        opt: Mapping[str, Any],
        stores: Sequence[str],
        device: torch.device,
        self_ensemble: bool = False,
        tile: int = 0,
        overlap: int = 0,
    ) -> None:
        check_tiles(tile, overlap)
        self.stores, self.scale, self.device = tuple(stores), opt['scale'], device
        self.self_ensemble, self.tile, self.overlap = self_ensemble, tile, overlap
        order = teacher_order(opt)
        teachers = {name: opt['teachers'][name] for name in involved_teachers(stores, order, opt['teachers'])}
        aggregator = opt.get('aggregator') if 'target' in stores else None
        self.ensemble = TeacherEnsemble(teachers, self.scale, aggregator).to(device)
        self.align = _common_window(self.ensemble, aggregator or {})

    @torch.no_grad()
    def run(self, lq: Tensor) -> dict[str, Tensor]:
        """``lq`` (3, H, W), RGB in [0, 1], to each store's float32 image (3, scale * H, scale * W), on the device.

        Raises MemoryError, with the remedy, where the device has too little memory.
        """
        with _exact_float32(self.device):
            try:
                images = self._ensembled(lq[None].to(self.device))[0].split(3)
            except torch.cuda.OutOfMemoryError as error:
                height, width = lq.shape[-2:]
                tile = self.tile // 2 if self.tile else max(height, width) // 2
                raise MemoryError(
                    f'an image of {height}x{width} needs more memory than {self.device} has: take --tile {tile} or less'
                ) from error
        return dict(zip(self.stores, images, strict=True))

    @torch.no_grad()
    def measure_seams(self, lq: Tensor) -> dict[str, Any] | None:
        """How far the tiled result is from the untiled one for ``lq`` (3, H, W), or the largest crop of it that fits.

        None where tiles have no seam in it, or no crop fits.
        """
        for side in (
            (math.inf, 2 * self.tile, self.tile + self.align) if self.device.type == 'cuda' else (2 * self.tile,)
        ):
            part = lq[:, : int(min(side, lq.shape[1])), : int(min(side, lq.shape[2]))]
            if not self.tile or max(part.shape[1:]) <= self.tile:
                return None
            try:
                with _exact_float32(self.device):
                    sizes = (self.scale, self.tile, self.overlap, self.align)
                    largest, mean = seam_difference(self._plain, part[None].to(self.device), *sizes)
            except torch.cuda.OutOfMemoryError:
                continue
            return {'largest': largest, 'mean': mean, 'height': part.shape[1], 'width': part.shape[2]}
        return None

    def _ensembled(self, lq: Tensor) -> Tensor:
        return self_ensemble(self._tiled, lq) if self.self_ensemble else self._tiled(lq)

    def _tiled(self, lq: Tensor) -> Tensor:
        return run_tiled(self._plain, lq, self.scale, self.tile, self.overlap, self.align)

    def _plain(self, lq: Tensor) -> Tensor:
        """All stores side by side: (B, 3 * stores, scale * H, scale * W)."""
        if 'target' in self.stores:
            outputs = self.ensemble(lq)
        else:
            outputs = {name: self.ensemble.run_teacher(name, lq) for name in self.stores}
        return torch.cat([outputs[name] for name in self.stores], dim=1)


def choose_precision(opt: Mapping[str, Any], precision: str | None, auto: str) -> dict[str, Any]:
    """The option file with ``precision`` for all its networks, or with their own for None; ``auto`` is what that is."""

    def chosen(given: Mapping[str, Any]) -> dict[str, Any]:
        asked = precision or given.get('precision', 'fp32')
        return {**given, 'precision': auto if asked == 'auto' else asked}

    changed = {**opt, 'teachers': {name: chosen(given) for name, given in opt['teachers'].items()}}
    if 'network' in (opt.get('aggregator') or {}):
        changed['aggregator'] = chosen(opt['aggregator'])
    return changed


def precision_of(opt: Mapping[str, Any], stores: Sequence[str]) -> str:
    """The one precision of all networks that make ``stores``, or ``name: precision`` of each where they differ."""
    names = involved_teachers(stores, teacher_order(opt), opt['teachers'])
    found = {name: opt['teachers'][name].get('precision', 'fp32') for name in names}
    if 'target' in stores and 'network' in (opt.get('aggregator') or {}):
        found['aggregator'] = opt['aggregator'].get('precision', 'fp32')
    values = set(found.values())
    return values.pop() if len(values) == 1 else ', '.join(f'{name}: {value}' for name, value in found.items())


def check_sections(opt: Mapping[str, Any]) -> None:
    """Raise ValueError where the option file lacks what a cache is made from, or has a key too many in it."""
    require_keys(opt, ('scale', 'datasets', 'teachers'), 'the option file')
    if not opt['teachers'] or not isinstance(opt['teachers'], Mapping):
        raise ValueError('the option file has an empty teachers section: there is nothing to cache')
    require_keys(opt['datasets'], ('train',), 'datasets')
    for name, given in opt['teachers'].items():
        require_known_keys(given, TEACHER_KEYS, f'teachers.{name}')
    require_known_keys(opt.get('aggregator') or {}, AGGREGATOR_KEYS, 'aggregator')


def _common_window(ensemble: TeacherEnsemble, aggregator: Mapping[str, Any]) -> int:
    windows = [frozen.window for frozen in ensemble.networks.values()]
    if ensemble.aggregator is not None:  # its windows lie on the grid of the LQ pixels
        windows.append(aggregator['network'].get('window_size', AGGREGATOR_WINDOW))
    return math.lcm(*windows)


@contextmanager
def _exact_float32(device: torch.device) -> Iterator[None]:
    """A cache is made once: no TF32 where float32 was asked for, and the same result each time."""
    if device.type != 'cuda':
        yield
        return
    products = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = products
