"""Validation: images split over the processes, PSNR and SSIM computed where the output lies, one read-out at the end.

What it logs, saves and tracks is BasicSR's; so is the option section ``val``, to which it adds

- ``tile`` (LR pixels, default 0: whole images) and ``tile_overlap`` (default 32) for images that do not fit in memory,
- ``keep_images`` (default true): decoded images stay on the device between validations, up to 1 GiB for each set,
- ``pbar``: the progress bar, by default shown when stderr is a terminal.
"""

import functools
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from basicsr.metrics import calculate_metric
from basicsr.models.sr_model import SRModel
from basicsr.utils.dist_util import get_dist_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mtkd_arch.tiling import run_tiled
from mtkd_data.whole_files import write_atomically
from mtkd_model.image_metrics import psnr, ssim, to_8_bit

DEVICE_METRICS = {'calculate_psnr': psnr, 'calculate_ssim': ssim}
TILE_OVERLAP = 32
KEPT_BYTES = 2**30

Results = dict[int, dict[str, float]]  # index of the image: its metrics


class Pair(NamedTuple):
    """An image on the device, (1, C, H, W): ``lq`` float32 in [0, 1], ``gt`` uint8 where the set has one."""

    lq: Tensor
    gt: Tensor | None
    name: str


def validate(model: SRModel, loader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
    """Run ``model`` over the data set of ``loader``, set ``model.metric_results`` and the best so far; rank 0 logs.

    Every process takes part and ends with the same results. Raises what goes wrong in any of them in all of them.
    """
    dataset, metrics = loader.dataset, model.opt['val'].get('metrics')
    rank, world = get_dist_info() if model.opt['dist'] else (0, 1)
    work = functools.partial(_measure, model, dataset, range(rank, len(dataset), world), current_iter, save_img)
    found = _shared(work) if world > 1 else work()
    if metrics is None:
        return
    if not found:
        raise ValueError(f'the validation set {dataset.opt["name"]} is empty')
    name = dataset.opt['name']
    model._initialize_best_metric_results(name)
    # in the order of the images, so that the rounding is that of one process
    model.metric_results = {key: sum(found[index][key] for index in sorted(found)) / len(found) for key in metrics}
    for metric, value in model.metric_results.items():
        model._update_best_metric_result(name, metric, value, current_iter)
    if rank == 0:
        model._log_validation_metric_values(current_iter, name, tb_logger)


def _shared(work: Callable[[], Results]) -> Results:
    """The results of ``work`` in all processes; an error in one reaches all, since the others would wait for ever."""
    found, failure = {}, None
    try:
        found = work()
    except Exception as error:
        failure = error
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    message = f'{type(failure).__name__}: {failure}' if failure else None
    torch.distributed.all_gather_object(shares, (found, message))
    if failure is not None:
        raise failure
    for rank, (_, message) in enumerate(shares):
        if message is not None:
            raise RuntimeError(f'validation failed in process {rank}: {message}')
    return {index: values for share, _ in shares for index, values in share.items()}


def _measure(model: SRModel, dataset: Dataset, indices: range, current_iter: int | str, save_img: bool) -> Results:
    val = model.opt['val']
    metrics = val.get('metrics') or {}
    wants_host = save_img or any(opt['type'] not in DEVICE_METRICS for opt in metrics.values())
    pairs = _pairs(dataset, indices, model.device, val.get('keep_images', True))
    rows = []
    for pair in _with_progress(pairs, indices, val):
        output = to_8_bit(upscale(model, pair.lq))
        host = {'img': to_host(output)} if wants_host else {}
        if wants_host and pair.gt is not None:
            host['img2'] = to_host(pair.gt)
        rows.append({key: _value(opt, output, pair, host) for key, opt in metrics.items()})
        if save_img:
            save_image(host['img'], image_path(model.opt, dataset.opt['name'], pair.name, current_iter))
    return dict(zip(indices, _read_out(rows), strict=True))


def upscale(model: SRModel, lq: Tensor) -> Tensor:
    """The model's output for ``lq`` (1, C, H, W), in tiles if ``val.tile`` asks for them."""
    if lq.device.type == 'cpu':
        lq = lq.contiguous(memory_format=torch.channels_last)  # convolutions take a quarter less time so
    val = model.opt['val']
    if not val.get('tile'):
        return model.infer(lq)
    return run_tiled(model.infer, lq, model.scale, val['tile'], val.get('tile_overlap', TILE_OVERLAP), alignment(model))


def alignment(model: SRModel) -> int:
    """The multiple at which a tile may begin, so that the windows of every network in it lie as in the whole image."""
    teachers = getattr(model, 'teachers', None)
    windows = [network.window for network in teachers.networks.values()] if teachers is not None else []
    return math.lcm(model.window, *windows)


def _value(opt: Mapping[str, Any], output: Tensor, pair: Pair, host: dict[str, np.ndarray]) -> Tensor | float:
    if opt['type'] not in DEVICE_METRICS:
        return float(calculate_metric(dict(host), opt))
    if pair.gt is None:
        raise ValueError(f'{opt["type"]} needs the ground truth, which the validation set lacks for {pair.name}')
    try:
        return DEVICE_METRICS[opt['type']](output, pair.gt, opt['crop_border'], opt.get('test_y_channel', False))[0]
    except ValueError as error:
        raise ValueError(f'{opt["type"]} of output and ground truth of {pair.name}: {error}') from error


def _read_out(rows: list[dict[str, Tensor | float]]) -> list[dict[str, float]]:
    """All numbers on the host, in one transfer."""
    numbers = [value for row in rows for value in row.values() if isinstance(value, Tensor)]
    values = iter(torch.stack(numbers).tolist() if numbers else ())
    return [{key: next(values) if isinstance(value, Tensor) else value for key, value in row.items()} for row in rows]


def to_host(image: Tensor) -> np.ndarray:
    """(1, C, H, W) in whole numbers to uint8 (H, W, 3) BGR, or (H, W) of one channel, as BasicSR's tensor2img."""
    array = image[0].byte().permute(1, 2, 0).cpu().numpy()
    return array[..., 0] if array.shape[2] == 1 else np.ascontiguousarray(array[..., ::-1])


def image_path(opt: Mapping[str, Any], dataset: str, image: str, current_iter: int | str) -> Path:
    """Where BasicSR saves an image: by image and iteration in training, by data set and suffix in testing."""
    folder = Path(opt['path']['visualization'])
    if opt['is_train']:
        return folder / image / f'{image}_{current_iter}.png'
    return folder / dataset / f'{image}_{opt["val"].get("suffix") or opt["name"]}.png'


def save_image(image: np.ndarray, path: Path) -> None:
    """Write (H, W, 3) BGR or (H, W), uint8, as PNG, whole or not at all; makes the folders above it."""
    done, data = cv2.imencode('.png', image)
    if not done:
        raise ValueError(f'{path}: an image of {image.dtype} {image.shape} cannot be encoded as PNG')
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data.tobytes())


_kept: weakref.WeakKeyDictionary[Dataset, dict[tuple[int, torch.device], Pair]] = weakref.WeakKeyDictionary()


def _pairs(dataset: Dataset, indices: range, device: torch.device, keep: bool) -> Iterator[Pair]:
    kept = _kept.setdefault(dataset, {}) if keep else {}
    room = KEPT_BYTES - sum(_bytes(pair) for pair in kept.values())
    for index in indices:
        pair = kept.get((index, device)) or _read(dataset[index], device)
        if keep and (index, device) not in kept and room >= _bytes(pair):
            kept[index, device] = pair
            room -= _bytes(pair)
        yield pair


def _read(sample: Mapping[str, Any], device: torch.device) -> Pair:
    gt = to_8_bit(sample['gt'][None].to(device)).byte() if 'gt' in sample else None
    return Pair(sample['lq'][None].to(device), gt, Path(sample['lq_path']).stem)


def _bytes(pair: Pair) -> int:
    return sum(tensor.nbytes for tensor in (pair.lq, pair.gt) if tensor is not None)


def _with_progress(pairs: Iterator[Pair], indices: range, val: Mapping[str, Any]) -> Iterator[Pair]:
    shown = val.get('pbar') if get_dist_info()[0] == 0 else False
    # None lets tqdm look whether stderr is a terminal
    with tqdm(total=len(indices), unit='image', disable=None if shown is None else not shown) as bar:
        for pair in pairs:
            yield pair
            bar.update()
            bar.set_description(f'Test {pair.name}')
