"""Running a network over test sets: quality, time and memory of every image."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtkd_arch.frozen_network import FrozenNetwork, Precision
from mtkd_arch.self_ensemble import self_ensemble
from mtkd_arch.tiling import run_tiled
from mtkd_data.image_io import encode_png
from mtkd_data.whole_files import write_atomically
from mtkd_eval.image_sets import ImagePair, ImageSet, read_image
from mtkd_eval.loaded import LoadedNetwork
from mtkd_eval.memory import peak_memory
from mtkd_eval.perceptual import Perceptual
from mtkd_eval.target import TargetNetwork
from mtkd_model.image_metrics import psnr, ssim, to_8_bit
from mtkd_model.validation import to_host

METRICS = ('psnr_y', 'ssim_y', 'psnr_rgb', 'ssim_rgb', 'lpips')
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class RunSettings:
    """How networks are run; sizes in LR pixels, ``tile`` 0 for whole images."""

    precision: Precision = 'fp32'
    tile: int = 0
    overlap: int = 32
    self_ensemble: bool = False
    crop_border: int | None = None  # None: the scale
    repeats: int = 1  # timed runs of each image, after one that is not


def make_runner(loaded: LoadedNetwork, device: torch.device, settings: RunSettings) -> Run:
    """A function from (1, 3, H, W), RGB in [0, 1], on ``device`` to (1, 3, scale * H, scale * W), not clamped.

    Takes ``loaded.network`` over: to the device, in the precision asked for, tails merged.
    """
    network, precision = loaded.network, settings.precision
    if isinstance(network, TargetNetwork):
        network.set_precision(precision)
        precision = 'fp32'  # of what joins its networks
    frozen = FrozenNetwork(network, loaded.window, precision).to(device)

    def whole(lq: Tensor) -> Tensor:
        return frozen(lq, loaded.scale)

    def tiled(lq: Tensor) -> Tensor:
        return run_tiled(whole, lq, loaded.scale, settings.tile, settings.overlap, loaded.align)

    return (lambda lq: self_ensemble(tiled, lq)) if settings.self_ensemble else tiled


def measure_set(
    run: Run,
    images: ImageSet,
    device: torch.device,
    settings: RunSettings,
    lpips: Perceptual | None = None,
    save: Path | None = None,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    """Figures of one network on one set: ``images`` by name, ``mean`` of each metric, median seconds and peak bytes.

    Metrics are those of ``score``, time and memory those of ``timed``. With ``save`` the outputs are written there as
    PNG. Raises MemoryError, naming the image, where it does not fit in memory.
    """
    border = border_of(images, settings)
    rows = {}
    for index, pair in enumerate(images.pairs):
        lq, gt = read_pair(pair, images.scale, device)
        with _explained(pair, lq):
            if index == 0:
                run(lq)  # the first run also loads libraries, into memory too
            output, cost = timed(run, lq, device, settings.repeats)
        shown = to_8_bit(output)
        try:
            rows[pair.name] = {**score(shown, gt, border, lpips), **cost}
        except ValueError as error:
            raise ValueError(f'{pair.hr}: {error}') from error
        if save is not None:
            save.mkdir(parents=True, exist_ok=True)
            write_atomically(save / f'{pair.name}.png', encode_png(to_host(shown), 3))
        progress()
    return {'crop_border': border, 'mean': _means(rows), **_medians(rows), 'images': rows}


def border_of(images: ImageSet, settings: RunSettings) -> int:
    """Pixels cropped at each side before comparing."""
    return images.scale if settings.crop_border is None else settings.crop_border


def read_pair(pair: ImagePair, scale: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """LR image (1, 3, H, W) in [0, 1] and HR image (1, 3, scale * H, scale * W), uint8, cropped to it."""
    lq, hr = _tensor(read_image(pair.lq)), _tensor(read_image(pair.hr))
    height, width = lq.shape[-2:]
    lq = (lq.float() / 255).to(device)
    if device.type == 'cpu':
        lq = lq.contiguous(memory_format=torch.channels_last)
    return lq, hr[..., : height * scale, : width * scale].to(device)


def score(output: Tensor, gt: Tensor, border: int, lpips: Perceptual | None = None) -> dict[str, float | None]:
    """PSNR in dB and SSIM on Y and on RGB of two (1, 3, H, W) in [0, 255], ``border`` pixels cropped at each side.

    None where a metric has no finite value: PSNR of equal images, SSIM of images below its window.
    """
    figures = {
        'psnr_y': psnr(output, gt, border, True),
        'ssim_y': ssim(output, gt, border, True),
        'psnr_rgb': psnr(output, gt, border, False),
        'ssim_rgb': ssim(output, gt, border, False),
        'lpips': lpips(output, gt, border) if lpips is not None else math.nan,
    }
    return {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}


def timed(run: Run, lq: Tensor, device: torch.device, repeats: int) -> tuple[Tensor, dict[str, float | None]]:
    """The output, its ``peak_bytes``, and the median ``seconds`` of ``repeats`` further runs; None without any.

    The run whose memory is measured is not timed: it takes its memory anew, and prepares kernels for a new size.
    """
    with peak_memory(device) as peak:
        output = run(lq)
    seconds = [_clocked(run, lq, device) for _ in range(repeats)]
    return output, {'seconds': median(seconds) if seconds else None, 'peak_bytes': peak.bytes}


def _clocked(run: Run, lq: Tensor, device: torch.device) -> float:
    _synchronise(device)
    begun = time.perf_counter()
    run(lq)
    _synchronise(device)
    return time.perf_counter() - begun


def _synchronise(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _tensor(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) BGR to (1, 3, H, W) RGB."""
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))[None]


def _means(rows: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Mean over the images of a set; None where one of them has none."""
    columns = {metric: [row[metric] for row in rows.values()] for metric in METRICS}
    return {metric: None if None in values else fmean(values) for metric, values in columns.items()}


def _medians(rows: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    columns = {key: [row[key] for row in rows.values()] for key in ('seconds', 'peak_bytes')}
    return {key: None if None in values else median(values) for key, values in columns.items()}


@contextmanager
def _explained(pair: ImagePair, lq: Tensor) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and 'memory' not in str(error):
            raise
        size = 'x'.join(map(str, lq.shape[-2:]))
        raise MemoryError(f'{pair.lq} ({size}) does not fit in memory: take tiles, such as --tile 128') from error


@contextmanager
def repeatable() -> Iterator[None]:
    """Full float32 and the same algorithms in every run, whatever the size of the image."""
    backends, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = backends.benchmark, backends.deterministic, backends.allow_tf32, matmul.allow_tf32
    backends.benchmark, backends.deterministic, backends.allow_tf32, matmul.allow_tf32 = False, True, False, False
    try:
        yield
    finally:
        backends.benchmark, backends.deterministic, backends.allow_tf32, matmul.allow_tf32 = before
