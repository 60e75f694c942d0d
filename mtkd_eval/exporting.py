"""A network as the content of ONNX, TorchScript, torch.export and safetensors files, each compared with PyTorch."""

import copy
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd.checks import nearest
from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.taps import unwrapped
from mtkd_arch.weights import load_weights
from mtkd_eval.export_formats import (
    Function,
    least_side,
    onnx_bytes,
    onnx_session,
    program_bytes,
    read_program,
    read_torchscript,
    run_onnx,
    safetensors_bytes,
    torchscript_bytes,
)
from mtkd_eval.exportable import ExportableNetwork, is_mergeable
from mtkd_eval.image_sets import ImageSet
from mtkd_eval.loaded import LoadedNetwork, built, reads_own_weights
from mtkd_eval.stored import Figures, measure_stored
from mtkd_eval.target import TargetNetwork, own_part

Format = Literal['onnx', 'torchscript', 'export', 'safetensors']
SUFFIXES: dict[Format, str] = {
    'onnx': '.onnx',
    'torchscript': '.torchscript',
    'export': '.pt2',
    'safetensors': '.safetensors',
}
TOLERANCE = 1e-4  # of the range: a fortieth of a step of 8 bit; rounding of float32 stays below 1e-5
HALF_TOLERANCE = 1e-2  # of the range: 40 times what float16 changes in EDSR, RCAN, SwinIR and CRAFT (at most 2.7e-4)
PLAIN, MERGED = 'as the network is written', 'last upsampling stage and last convolution as one'
Size = tuple[int, int]


@dataclass(frozen=True)
class Exported:
    """A file's content with what is known of it.

    ``sizes`` are those it was compared at, (B, H, W); ``quality`` is that of ``measure_stored``, by test set.
    """

    format: Format
    data: bytes
    form: str
    takes: str
    difference: float
    sizes: tuple[tuple[int, int, int], ...]
    quality: Mapping[str, Figures] = field(default_factory=dict)


def export_network(
    loaded: LoadedNetwork,
    formats: Sequence[Format] = tuple(SUFFIXES),
    size: Size | None = None,
    half: bool = False,
    merged: bool = True,
    sets: Sequence[ImageSet] = (),
    facts: Mapping[str, Any] | None = None,
) -> list[Exported]:
    """The contents of the files; nothing is written.

    Args:
        loaded: the network, in the state ``load_network`` gives it.
        formats: which files. ONNX, TorchScript and ``torch.export`` take any batch, height and width, padding to the
            window included (``torch.export``: sides larger than the window), float32 RGB in [0, 1].
        size: height and width that the graphs are made for, where the network cannot be recorded for all at once.
        half: store the weights in safetensors as float16; the difference it makes is measured.
        merged: let ONNX compute the ends of EDSR, RCAN and SwinIR as one convolution: less work that no runtime finds
            by itself. The other formats keep the network's own modules.
        sets: where the network with the weights as safetensors store them is measured; the file keeps its PSNR.
        facts: what safetensors keep beside the weights: ``training``, ``licence``, and ``psnr_y`` of the weights as
            they came, which is left out where they are stored otherwise.

    Raises ValueError where half precision costs more than 0.005 dB on one of ``sets`` or differs by more than
    HALF_TOLERANCE, where weights stored as float32 differ at all, where a network cannot be recorded, or what was
    recorded differs from it by more than TOLERANCE; ImportError where a package is missing.
    """
    _check_request(loaded, formats, size, half)
    if sets and 'safetensors' not in formats:
        raise ValueError('--set measures the weights as safetensors store them: add the format safetensors')
    makers = {**_MAKERS, 'safetensors': partial(_safetensors, sets=sets, known=facts)}
    return [makers[name](loaded, size, half, merged) for name in dict.fromkeys(formats)]


def check_sizes(window: int, size: Size | None) -> tuple[tuple[int, int, int], ...]:
    """Two batches (B, H, W) to compare at: one of whole windows, one that is padded; of ``size`` two batch sizes."""
    if size is not None:
        return (1, *size), (3, *size)
    side = max(window, 8)
    return (1, 3 * side, 5 * side), (3, 4 * side + 5, 3 * side + 1)


def check_image(batch: int, height: int, width: int) -> Tensor:
    """Smooth areas with some noise on them, (B, 3, H, W) in [0, 1], always the same."""
    source = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, height // 8 + 2, width // 8 + 2, generator=source)
    smooth = F.interpolate(coarse, size=(height, width), mode='bicubic')
    return (smooth + torch.rand(smooth.shape, generator=source) / 16).clamp(0, 1)


@torch.no_grad()
def difference(function: Function, loaded: LoadedNetwork, sizes: Sequence[tuple[int, int, int]]) -> float:
    """Largest absolute difference of ``function`` from ``loaded`` at ``sizes``. Raises ValueError for another shape."""
    found = []
    for size in sizes:
        image = check_image(*size)
        wanted, made = forward_padded(loaded.network, image, loaded.scale, loaded.window), function(image)
        if made.shape != wanted.shape:
            raise ValueError(f'{tuple(image.shape)} became {tuple(made.shape)}, expected {tuple(wanted.shape)}')
        found.append((made.float() - wanted).abs().nan_to_num(nan=torch.inf).max().item())
    return max(found)


def _onnx(loaded: LoadedNetwork, size: Size | None, half: bool, merged: bool) -> Exported:
    merged = merged and is_mergeable(loaded.network)
    facts = {'name': loaded.name, 'scale': str(loaded.scale), 'window': str(loaded.window)}

    def make(network: nn.Module, example: Tensor) -> bytes:
        return onnx_bytes(network, example, size is None, facts)

    def run(data: bytes) -> Function:
        return run_onnx(onnx_session(data))

    return _recorded('onnx', loaded, size, merged, make, run)


def _torchscript(loaded: LoadedNetwork, size: Size | None, half: bool, merged: bool) -> Exported:
    facts = _facts(loaded, size, least=1)

    def make(network: nn.Module, example: Tensor) -> bytes:
        return torchscript_bytes(network, example, facts)

    return _recorded('torchscript', loaded, size, False, make, lambda data: read_torchscript(io.BytesIO(data))[0])


def _program(loaded: LoadedNetwork, size: Size | None, half: bool, merged: bool) -> Exported:
    def make(network: nn.Module, example: Tensor) -> bytes:
        facts = _facts(loaded, size, 1 if size else least_side(loaded.window))
        return program_bytes(network, example, size is None, loaded.window, facts)

    return _recorded('export', loaded, size, False, make, lambda data: read_program(io.BytesIO(data))[0])


def _facts(loaded: LoadedNetwork, size: Size | None, least: int) -> dict[str, Any]:
    """What a program keeps for ``scripts/infer.py``; ``least`` is its least height and width."""
    return {'name': loaded.name, 'scale': loaded.scale, 'window': loaded.window, 'least': least, 'size': size}


def _recorded(
    name: Format,
    loaded: LoadedNetwork,
    size: Size | None,
    merged: bool,
    make: Callable[[nn.Module, Tensor], bytes],
    run: Callable[[bytes], Function],
) -> Exported:
    """A graph, recorded at a size other than those it is compared at unless ``size`` fixes it."""
    side, sizes = max(loaded.window, 8), check_sizes(loaded.window, size)
    network = ExportableNetwork(loaded.network, loaded.scale, loaded.window, merged)
    example = check_image(2, *(size or (2 * side + 3, 3 * side + 3)))
    remedy = 'give another --format' if size else 'record it for one size with --size HEIGHT WIDTH, or give --format'
    if (loaded.option or {}).get('type') == 'SpandrelTeacher':
        remedy += "; a network of BasicSR's own can be named with --network"
    try:
        data = make(network, example)
        found = difference(run(data), loaded, sizes)
    except ImportError:
        raise
    except Exception as error:  # recorders and runtimes raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        which = 'of this size' if size else 'of any size'
        raise ValueError(
            f'{loaded.name} cannot be exported as {name} for images {which} ({reason}): {remedy}'
        ) from error
    if found > TOLERANCE:
        shown = ', '.join('x'.join(map(str, one)) for one in sizes)
        raise ValueError(
            f'{loaded.name} as {name} differs from PyTorch by {found:.2g} of the range at {shown} (allowed: '
            f'{TOLERANCE:g}): {remedy}'
        )
    return Exported(name, data, MERGED if merged else PLAIN, _takes(name, loaded.window, size), found, sizes)


def _takes(name: Format, window: int, size: Size | None) -> str:
    if size is not None:
        return f'any batch, {size[0]} x {size[1]} pixels only'
    least = least_side(window) if name == 'export' else 1
    return 'any batch, height and width' + (f' of at least {least}' if least > 1 else '')


def _safetensors(
    loaded: LoadedNetwork,
    size: Size | None,
    half: bool,
    merged: bool,
    sets: Sequence[ImageSet] = (),
    known: Mapping[str, Any] | None = None,
) -> Exported:
    network, where = unwrapped(own_part(loaded.network)), f'{loaded.name} read back'
    facts = {**(known or {}), 'name': loaded.name, 'scale': str(loaded.scale), 'network': dict(loaded.option or {})}
    facts['network'].pop('path', None)
    if isinstance(loaded.network, TargetNetwork):
        facts['inputs'] = list(loaded.network.ensemble.inputs)
    derived = reads_own_weights(loaded.option)  # spandrel tells SwinIR, Swin2SR, DRCT and DAT by them
    data = safetensors_bytes(network.state_dict(), half, facts, derived)
    again = _read_back(data, loaded, where)
    sizes = check_sizes(loaded.window, size)
    found = difference(lambda image: forward_padded(again, image, loaded.scale, loaded.window), loaded, sizes)
    if half and not found < torch.inf:
        raise ValueError(f'{where} from float16 gives no numbers: export it without --half')
    if half and found > HALF_TOLERANCE:
        raise ValueError(
            f'{where} from float16 differs by {found:.2g} of the range (allowed: {HALF_TOLERANCE:g}): export it '
            'without --half'
        )
    if not half and found > 0:
        raise ValueError(
            f'{where} from safetensors differs by {found:.2g}: the network keeps state outside its weights'
        )
    form = 'weights as float16' if half else 'weights as float32'
    quality = measure_stored(replace(loaded, network=again), loaded, sets)
    if quality:
        facts['psnr_y'] = {name: round(one['psnr_y'], 3) for name, one in quality.items()}
    elif found > 0:
        facts.pop('psnr_y', None)  # of other weights
    if quality or found > 0:
        data = safetensors_bytes(network.state_dict(), half, facts, derived)
    return Exported('safetensors', data, form, 'weights with the name of their network', found, sizes, quality)


def _read_back(data: bytes, loaded: LoadedNetwork, where: str) -> nn.Module:
    """The network with the weights of a safetensors file, read as ``load_network`` reads it."""
    if not reads_own_weights(loaded.option):
        again = copy.deepcopy(loaded.network)
        load_weights(unwrapped(own_part(again)), safetensors.torch.load(data), True, where)
        return again
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'weights.safetensors'
        path.write_bytes(data)
        return built(loaded.option, path, None, True, loaded.scale, loaded.name, where).network


_MAKERS = {'onnx': _onnx, 'torchscript': _torchscript, 'export': _program, 'safetensors': _safetensors}


def _check_request(loaded: LoadedNetwork, formats: Sequence[str], size: Size | None, half: bool) -> None:
    for name in formats:
        if name not in _MAKERS:
            raise ValueError(f"format '{name}': {nearest(name, _MAKERS)}expected some of {', '.join(_MAKERS)}")
    if not formats:
        raise ValueError(f'no format given; expected some of {", ".join(_MAKERS)}')
    if size is not None and min(size) < 1:
        raise ValueError(f'size is {size}, expected height and width of at least 1')
    if half and 'safetensors' not in formats:
        raise ValueError('--half is how safetensors store the weights: add the format safetensors')
    part = own_part(loaded.network)
    if isinstance(loaded.network, TargetNetwork) and part is not None and set(formats) != {'safetensors'}:
        raise ValueError(
            f'{loaded.name} is what an aggregator makes of teachers: only --format safetensors can hold it'
        )
    if part is None or not loaded.weights:
        raise ValueError(f'{loaded.name} is no network of its own ({loaded.source}): export a student or a teacher')
