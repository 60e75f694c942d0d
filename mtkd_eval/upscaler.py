"""Networks as functions that upscale one image: any that ``load_network`` knows, and exported programs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtkd_arch.padding import pad_to_multiple
from mtkd_arch.self_ensemble import self_ensemble
from mtkd_arch.tiling import run_tiled
from mtkd_eval.choice import split_label
from mtkd_eval.export_formats import onnx_session, read_program, read_torchscript, run_onnx
from mtkd_eval.load import load_network
from mtkd_eval.measure import Run, RunSettings, make_runner

PROBE = 16  # side of the image that tells the scale of a program of any size


class Upscaler:
    """A network by its ``name``: called with (1, 3, H, W), RGB in [0, 1], it gives (1, 3, sH, sW) on the CPU."""

    def __init__(self, name: str, scale: int, device: torch.device, run: Run) -> None:
        self.name, self.scale, self.device, self._run = name, scale, device, run

    @torch.no_grad()
    def __call__(self, lq: Tensor) -> Tensor:
        return self._run(lq.to(self.device)).float().cpu()


@dataclass(frozen=True)
class Program:
    """An exported file as a function; ``size`` is the only one it takes, ``least`` its least height and width."""

    run: Run
    device: torch.device
    name: str
    window: int = 1
    least: int = 1
    size: tuple[int, int] | None = None


def load_upscaler(
    text: str, option: str | None, param_key: str | None, device: torch.device, settings: RunSettings
) -> Upscaler:
    """``[LABEL=]NETWORK`` as ``load_network`` reads it, or an exported program. Raises what loading raises."""
    label, source = split_label(text)
    if Path(source).suffix in PROGRAMS:
        return program_upscaler(label, Path(source), device, settings)
    loaded = load_network(source, option, param_key=param_key, name=label)
    return Upscaler(loaded.name, loaded.scale, device, make_runner(loaded, device, settings))


def program_upscaler(label: str | None, path: Path, device: torch.device, settings: RunSettings) -> Upscaler:
    """A program as ``scripts/export.py`` writes it, or any other from RGB in [0, 1] to the same, enlarged.

    One of a fixed size is run on tiles that it takes. TorchScript runs on ``device``, ``torch.export`` on the CPU. Both
    are code, which reading them runs. Raises FileNotFoundError, ValueError for what is no such program or a
    ``settings.precision`` other than its own, ImportError without onnxruntime.
    """
    kind, read = PROGRAMS[path.suffix]
    if not path.is_file():
        raise FileNotFoundError(f'no such file: {path}')
    if settings.precision not in ('fp32', 'auto'):
        raise ValueError(f'{path}: {kind} keeps its own precision: leave --precision {settings.precision} out')
    program = read(path, device)
    size, run = program.size, _of_least_size(program)
    scale = _measured_scale(program, path)
    overlap, tile = settings.overlap, settings.tile
    if size is not None:
        run, tile, overlap = _of_one_size(run, size, scale), *_tiles_within(size, tile, overlap, kind)
    align = program.window if size is None else 1

    def tiled(lq: Tensor) -> Tensor:
        if size is not None and lq.shape[-2] <= size[0] and lq.shape[-1] <= size[1]:
            return run(lq)
        return run_tiled(run, lq, scale, tile, overlap, align)

    whole = (lambda lq: self_ensemble(tiled, lq)) if settings.self_ensemble else tiled
    return Upscaler(label or program.name, scale, program.device, whole)


def _read_onnx(path: Path, device: torch.device) -> Program:
    with _readable(path):
        session = onnx_session(str(path), str(device))
    facts = session.get_modelmeta().custom_metadata_map
    window, size = int(facts.get('window', 1)), _fixed_size(session, path)
    return Program(run_onnx(session), torch.device('cpu'), facts.get('name', path.stem), window, size=size)


def _read_torchscript(path: Path, device: torch.device) -> Program:
    with _readable(path):
        run, facts = read_torchscript(str(path), str(device))
        return _described(run, device, path, facts)


def _read_program(path: Path, device: torch.device) -> Program:
    with _readable(path):
        run, facts = read_program(str(path))
        return _described(_with_guards_named(run), torch.device('cpu'), path, facts)


PROGRAMS = {
    '.onnx': ('an ONNX graph', _read_onnx),
    '.torchscript': ('a TorchScript program', _read_torchscript),
    '.pt2': ('a torch.export program', _read_program),
}


def _described(run: Run, device: torch.device, path: Path, facts: dict[str, Any]) -> Program:
    size = tuple(facts['size']) if facts.get('size') else None
    return Program(run, device, facts.get('name', path.stem), facts.get('window', 1), facts.get('least', 1), size)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # runtimes have types of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'{path} cannot be read as {PROGRAMS[path.suffix][0]}: {reason}') from error


def _with_guards_named(run: Run) -> Run:
    """``torch.export`` asserts what it assumed of sizes: for the caller that is a failure like any other."""

    def guarded(lq: Tensor) -> Tensor:
        try:
            return run(lq)
        except AssertionError as error:
            raise RuntimeError(f'it was recorded for other sizes: {error}') from error

    return guarded


def _of_least_size(program: Program) -> Run:
    def checked(lq: Tensor) -> Tensor:
        height, width = lq.shape[-2:]
        if min(height, width) < program.least:
            least = f'{program.least} x {program.least}'
            raise RuntimeError(f'it takes images and tiles of at least {least} pixels, this is {height} x {width}')
        return program.run(lq)

    return checked


def _fixed_size(session: Any, path: Path) -> tuple[int, int] | None:
    """Height and width of a graph that takes no others."""
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or (shape[1] not in (3, None) and not isinstance(shape[1], str)):
        raise ValueError(f'{path}: its input is {shape}, expected images (B, 3, H, W)')
    if isinstance(shape[2], int) != isinstance(shape[3], int):
        raise ValueError(f'{path}: only one side of its input {shape} is fixed; expected both or none')
    return (shape[2], shape[3]) if isinstance(shape[2], int) else None


def _measured_scale(program: Program, path: Path) -> int:
    size = program.size or (max(PROBE, program.least),) * 2
    try:
        with torch.no_grad():
            output = program.run(torch.full((1, 3, *size), 0.5, device=program.device))
    except Exception as error:  # runtimes have types of their own
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


def _tiles_within(size: tuple[int, int], tile: int, overlap: int, kind: str) -> tuple[int, int]:
    """Tile and overlap that, together, a program of ``size`` takes; a tile of 0 is the largest."""
    side = min(size)
    if not tile:
        overlap = min(overlap, side // 4)
        tile = side - 2 * overlap
    if tile + 2 * overlap > side:
        given = f'tile {tile} with overlap {overlap} on both sides'
        raise ValueError(f'{given} is more than the {side} pixels that {kind} of this size takes: lower them')
    return tile, overlap
