"""A network as the bytes of an ONNX, TorchScript, torch.export or safetensors file, and those bytes run again."""

import contextlib
import importlib.util
import inspect
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mtkd_arch.tensor_file import CHECKSUM, checksum
from mtkd_arch.weights import DERIVED

Function = Callable[[Tensor], Tensor]

INPUT, OUTPUT = 'image', 'upscaled'
FACTS = 'mtkd.json'  # beside a program: name, scale, window, least side, size
OPSET = 17  # written by every torch from 2.4 on, read by onnxruntime from 1.13 on
_CHOOSES_RECORDER = 'dynamo' in inspect.signature(torch.onnx.export).parameters


def onnx_bytes(network: nn.Module, example: Tensor, dynamic: bool, metadata: Mapping[str, str]) -> bytes:
    """ONNX with any batch, and any height and width if ``dynamic``.

    Graphs of any size are recorded as TorchScript: ``torch.export`` limits sizes that are rounded up to a window.
    Those of one size go by ``torch.export`` where onnxscript is installed: TorchScript loses the shapes within the
    scan of MambaLiteSR. Raises ImportError without the package onnx.
    """
    onnx = _needed('onnx')
    by_program = not dynamic and importlib.util.find_spec('onnxscript') is not None and _CHOOSES_RECORDER
    model = _onnx_of_program(network, example) if by_program else _onnx_of_trace(network, example, dynamic)
    model = onnx.load_from_string(model)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _onnx_of_trace(network: nn.Module, example: Tensor, dynamic: bool) -> bytes:
    axes = {0: 'batch', 2: 'height', 3: 'width'} if dynamic else {0: 'batch'}
    outer = {0: 'batch', 2: 'upscaled_height', 3: 'upscaled_width'} if dynamic else {0: 'batch'}
    buffer, recorder = io.BytesIO(), {'dynamo': False} if _CHOOSES_RECORDER else {}
    with _quiet():
        torch.onnx.export(
            network,
            (example,),
            buffer,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: axes, OUTPUT: outer},
            opset_version=OPSET,
            **recorder,
        )
    return buffer.getvalue()


def _onnx_of_program(network: nn.Module, example: Tensor) -> bytes:
    with _quiet(), torch.no_grad():
        program = _program(network, example, {0: torch.export.Dim('batch')})
        names = {'input_names': [INPUT], 'output_names': [OUTPUT]}
        made = torch.onnx.export(program, (example,), dynamo=True, opset_version=18, verbose=False, **names)
    return made.model_proto.SerializeToString()


def torchscript_bytes(network: nn.Module, example: Tensor, facts: Mapping[str, Any]) -> bytes:
    """A traced TorchScript program; parameters and buffers move with ``.to()``."""
    buffer = io.BytesIO()
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(network, example, check_trace=False)
        torch.jit.save(traced, buffer, _extra_files={FACTS: json.dumps(facts)})
    return buffer.getvalue()


def program_bytes(network: nn.Module, example: Tensor, dynamic: bool, window: int, facts: Mapping[str, Any]) -> bytes:
    """A ``torch.export`` program; with a window above 1 it takes images larger than the window on both sides."""
    dim, buffer = torch.export.Dim, io.BytesIO()
    sides = {2: dim('height', min=least_side(window)), 3: dim('width', min=least_side(window))} if dynamic else {}
    with _quiet(), torch.no_grad():
        program = _program(network, example, {0: dim('batch'), **sides})
        torch.export.save(program, buffer, extra_files={FACTS: json.dumps(facts)})
    return buffer.getvalue()


def _program(network: nn.Module, example: Tensor, sizes: Mapping[int, Any]) -> torch.export.ExportedProgram:
    options: dict[str, Any] = {'strict': False}
    if 'prefer_deferred_runtime_asserts_over_guards' in inspect.signature(torch.export.export).parameters:
        options['prefer_deferred_runtime_asserts_over_guards'] = True  # sizes rounded up are beyond its proofs
    return torch.export.export(network, (example,), dynamic_shapes=(dict(sizes),), **options)


def least_side(window: int) -> int:
    """The least height and width a program of ``program_bytes`` takes."""
    return window + 1 if window > 1 else 1


def safetensors_bytes(
    weights: Mapping[str, Tensor], half: bool, metadata: Mapping[str, Any], derived: bool = False
) -> bytes:
    """The weights with their checksum; what follows from the sizes (masks and position indices of SwinIR) only with
    ``derived``.

    With ``half`` floating-point numbers are stored as float16. Raises ValueError where one is too large for it.
    """
    kept = {name: value.detach().cpu() for name, value in weights.items() if derived or not name.endswith(DERIVED)}
    if half:
        kept = {name: value.half() if value.is_floating_point() else value for name, value in kept.items()}
        for name, value in kept.items():
            if not value.isfinite().all():
                raise ValueError(f'{name} does not fit into float16 (largest number 65504): export it without --half')
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    texts[CHECKSUM] = checksum(kept, texts)
    return safetensors.torch.save({name: value.contiguous().clone() for name, value in kept.items()}, texts)


def onnx_session(data: bytes | str, device: str = 'cpu') -> Any:
    """An onnxruntime session of a file's bytes or path. Raises ImportError without the package onnxruntime."""
    runtime = _needed('onnxruntime')
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # failures are raised, and named by the caller
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = (
        ['CUDAExecutionProvider', 'CPUExecutionProvider'] if device.startswith('cuda') else ['CPUExecutionProvider']
    )
    providers = [name for name in wanted if name in runtime.get_available_providers()]
    return runtime.InferenceSession(data, options, providers=providers)


def run_onnx(session: Any) -> Function:
    """``session`` as a function of tensors; the result lies on the CPU."""
    name = session.get_inputs()[0].name
    return lambda image: torch.from_numpy(session.run(None, {name: image.float().cpu().numpy()})[0])


def read_torchscript(file: str | IO[bytes], device: str = 'cpu') -> tuple[Function, dict[str, Any]]:
    """A TorchScript program and what ``torchscript_bytes`` wrote beside it; {} for others. Runs what the file holds."""
    extra = {FACTS: ''}
    with _quiet():
        program = torch.jit.load(file, map_location=device, _extra_files=extra)
    return program, json.loads(extra[FACTS] or '{}')


def read_program(file: str | IO[bytes]) -> tuple[Function, dict[str, Any]]:
    """A ``torch.export`` program, on the CPU, and what ``program_bytes`` wrote beside it; {} for others.

    Reading may run code that the file holds.
    """
    extra = {FACTS: ''}
    with _quiet():
        program = torch.export.load(file, extra_files=extra)
    return program.module(), json.loads(extra[FACTS] or '{}')


def _needed(package: str) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise ImportError(f'ONNX needs the package {package}: pip install onnx onnxruntime') from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Recorders warn of every number they take for constant, which the comparison at other sizes settles."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
