"""Networks as functions that upscale one image: any that ``load_network`` knows, and ONNX graphs."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkd_arch.padding import pad_to_multiple
from mtkd_arch.self_ensemble import self_ensemble
from mtkd_arch.tiling import run_tiled
from mtkd_eval.choice import split_label
from mtkd_eval.export_formats import onnx_session, run_onnx
from mtkd_eval.load import load_network
from mtkd_eval.measure import Run, RunSettings, make_runner

PROBE = 16  # side of the image that tells the scale of an ONNX graph of any size


class Upscaler:
    """A network by its ``name``: called with (1, 3, H, W), RGB in [0, 1], it gives (1, 3, sH, sW) on the CPU."""

    def __init__(self, name: str, scale: int, device: torch.device, run: Run) -> None:
        self.name, self.scale, self.device, self._run = name, scale, device, run

    @torch.no_grad()
    def __call__(self, lq: Tensor) -> Tensor:
        return self._run(lq.to(self.device)).float().cpu()


def load_upscaler(
    text: str, option: str | None, param_key: str | None, device: torch.device, settings: RunSettings
) -> Upscaler:
    """``[LABEL=]NETWORK`` as ``load_network`` reads it, or an ``.onnx`` file. Raises what loading raises."""
    label, source = split_label(text)
    if source.endswith('.onnx'):
        return onnx_upscaler(label, Path(source), device, settings)
    loaded = load_network(source, option, param_key=param_key, name=label)
    return Upscaler(loaded.name, loaded.scale, device, make_runner(loaded, device, settings))


def onnx_upscaler(label: str | None, path: Path, device: torch.device, settings: RunSettings) -> Upscaler:
    """A graph as ``scripts/export.py`` writes it, or any other from RGB in [0, 1] to the same, enlarged.

    One of a fixed size is run on tiles that it takes. Raises FileNotFoundError, ValueError for what is no such graph
    or a ``settings.precision`` other than its own, ImportError without onnxruntime.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no such file: {path}')
    if settings.precision not in ('fp32', 'auto'):
        raise ValueError(f'{path}: an ONNX graph keeps its own precision: leave --precision {settings.precision} out')
    try:
        session = onnx_session(str(path), str(device))
    except ImportError:
        raise
    except Exception as error:  # the runtime has types of its own
        raise ValueError(f'{path} cannot be read as an ONNX graph: {str(error).splitlines()[0]}') from error
    facts = session.get_modelmeta().custom_metadata_map
    whole, size = run_onnx(session), _fixed_size(session, path)
    scale = _onnx_scale(whole, size or (PROBE, PROBE), path)
    overlap, tile = settings.overlap, settings.tile
    if size is not None:
        whole, tile, overlap = _of_one_size(whole, size, scale), *_tiles_within(size, tile, overlap)
    align = int(facts.get('window', 1)) if size is None else 1

    def tiled(lq: Tensor) -> Tensor:
        if size is not None and lq.shape[-2] <= size[0] and lq.shape[-1] <= size[1]:
            return whole(lq)
        return run_tiled(whole, lq, scale, tile, overlap, align)

    run = (lambda lq: self_ensemble(tiled, lq)) if settings.self_ensemble else tiled
    return Upscaler(label or facts.get('name', path.stem), scale, torch.device('cpu'), run)


def _fixed_size(session: Any, path: Path) -> tuple[int, int] | None:
    """Height and width of a graph that takes no others."""
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or (shape[1] not in (3, None) and not isinstance(shape[1], str)):
        raise ValueError(f'{path}: its input is {shape}, expected images (B, 3, H, W)')
    if isinstance(shape[2], int) != isinstance(shape[3], int):
        raise ValueError(f'{path}: only one side of its input {shape} is fixed; expected both or none')
    return (shape[2], shape[3]) if isinstance(shape[2], int) else None


def _onnx_scale(run: Run, size: tuple[int, int], path: Path) -> int:
    try:
        output = run(torch.full((1, 3, *size), 0.5))
    except Exception as error:  # the runtime has types of its own
        raise ValueError(f'{path} does not run on an RGB image of {size}: {str(error).splitlines()[0]}') from error
    scale = output.shape[-1] // size[1]
    if scale < 1 or output.shape != (1, 3, size[0] * scale, size[1] * scale):
        raise ValueError(f'{path} turns (1, 3, {size[0]}, {size[1]}) into {tuple(output.shape)}; expected larger RGB')
    return scale


def _of_one_size(run: Run, size: tuple[int, int], scale: int) -> Run:
    """``run`` for images up to ``size``, mirrored up to it."""

    def padded(lq: Tensor) -> Tensor:
        height, width = lq.shape[-2:]
        filled = pad_to_multiple(lq, max(size))[..., : size[0], : size[1]]
        return run(filled)[..., : height * scale, : width * scale]

    return padded


def _tiles_within(size: tuple[int, int], tile: int, overlap: int) -> tuple[int, int]:
    """Tile and overlap that, together, a graph of ``size`` takes; a tile of 0 is the largest."""
    side = min(size)
    if not tile:
        overlap = min(overlap, side // 4)
        tile = side - 2 * overlap
    if tile + 2 * overlap > side:
        given = f'tile {tile} with overlap {overlap} on both sides'
        raise ValueError(f'{given} is more than the {side} pixels the ONNX graph takes: lower them')
    return tile, overlap
