"""Reading network weights from any file the field publishes them in; never runs code from a file (``weights_only``)."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtkd_arch.tensor_file import explained, read_tensor_file
from mtkd_data.weights_path import weights_path

StateDict = dict[str, Tensor]
DERIVED = ('relative_position_index', 'attn_mask')
LARGEST_REPEATED = 2**24  # bytes
PARAM_KEYS = ('params_ema', 'params', 'state_dict', 'model', 'model_state_dict', 'params-ema', 'net')

# The layout of EDSR-PyTorch, which the authors' RCAN shares, and its names in BasicSR. The mean shifts are no weights
# in BasicSR. Order matters: RCAN's groups nest one `body` deeper than EDSR's blocks.
_HEAD_AND_TAIL = (
    (r'head\.0\.', 'conv_first.'),
    (r'tail\.0\.(\d+)\.', r'upsample.\1.'),
    (r'tail\.1\.', 'conv_last.'),
)
_RCAN_BODY = (
    (r'body\.(\d+)\.body\.(\d+)\.body\.([02])\.', r'body.\1.residual_group.\2.rcab.\3.'),
    (r'body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.0\.', r'body.\1.residual_group.\2.rcab.3.attention.1.'),
    (r'body\.(\d+)\.body\.(\d+)\.body\.3\.conv_du\.2\.', r'body.\1.residual_group.\2.rcab.3.attention.3.'),
    (r'body\.(\d+)\.body\.\d+\.', r'body.\1.conv.'),
)
_EDSR_BODY = (
    (r'body\.(\d+)\.body\.0\.', r'body.\1.conv1.'),
    (r'body\.(\d+)\.body\.2\.', r'body.\1.conv2.'),
)
_AFTER_BODY = ((r'body\.\d+\.(?=weight$|bias$)', 'conv_after_body.'),)


def read_weights(path: str | Path, param_key: str | None = None) -> StateDict:
    """``read_state_dict`` under BasicSR's names: those in the authors' EDSR and RCAN files are translated."""
    return translate_names(read_state_dict(path, param_key))


def read_state_dict(path: str | Path, param_key: str | None = None) -> StateDict:
    """The state dict in a ``.pth``, ``.pt`` or ``.safetensors`` file, on the CPU, under the names it has there.

    Without ``param_key`` the first of ``PARAM_KEYS`` (``params_ema``, ``params``, ...) is taken, or the file itself
    when it is a bare state dict. A ``module.`` prefix goes. ``path`` as of ``weights_path``.

    Raises FileNotFoundError, or ValueError for a file that is damaged, is no checkpoint, lacks ``param_key``, or holds
    what is not a number.
    """
    content = read_tensor_file(weights_path(path))
    weights = {_without_module(name): value for name, value in _select(content, param_key, path).items()}
    strange = [name for name, value in weights.items() if not _is_plain(value)]
    if strange:
        raise ValueError(f'{path} holds tensors without plain values of their own: {_first(strange)}')
    spoilt = [name for name, value in weights.items() if value.isnan().any()]
    if spoilt:
        raise ValueError(
            f'{path} holds values that are no numbers (NaN), as of a training gone wrong: {_first(spoilt)}'
        )
    return weights


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What this plugin stored beside the weights (the aggregator's ``inputs``, in an exported file its ``network``).

    Of a safetensors file the header alone is read, its texts as JSON where they are; empty for foreign files. Raises
    what ``read_state_dict`` raises.
    """
    path = weights_path(path)
    if path.suffix == '.safetensors':
        return {key: _parsed(text) for key, text in explained(path, _safetensors_header).items()}
    content = read_tensor_file(path)
    metadata = content.get('mtkd', {}) if isinstance(content, Mapping) else {}
    return dict(metadata) if isinstance(metadata, Mapping) else {}


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], strict: bool, where: str) -> None:
    """Load ``weights`` into ``network``.

    Attention masks and position indices of Swin networks follow from the sizes; the file's are ignored.

    Raises ValueError with the first names that are missing, unknown, of another shape or sort of number (whole ones or
    complex ones for floating-point ones), or hold infinities. ``strict=False`` allows
    missing and unknown names, never another shape or sort of number, and never a file of which nothing fits.
    """
    own = network.state_dict()
    fits = {name: value for name, value in weights.items() if not name.endswith(DERIVED)}
    fits |= {name: value for name, value in own.items() if name.endswith(DERIVED)}
    learned = [name for name in own if not name.endswith(DERIVED)]
    missing, unknown = sorted(own.keys() - fits.keys()), sorted(fits.keys() - own.keys())
    shapes = [
        f'{name}: network {tuple(own[name].shape)}, file {tuple(fits[name].shape)}'
        for name in own
        if name in fits and own[name].shape != fits[name].shape
    ]
    sorts = [
        f'{name}: network {own[name].dtype}, file {fits[name].dtype}'
        for name in own
        if name in fits and _sort_of(own[name]) != _sort_of(fits[name])
    ]
    infinite = [name for name, _ in network.named_parameters() if name in fits and fits[name].isinf().any()]
    problems = {'of another shape': shapes, 'of another sort of number': sorts, 'with infinite values': infinite}
    if strict or len(missing) == len(learned):
        problems |= {'missing in the file': missing, 'unknown to the network': unknown}
    if any(problems.values()):
        found = '; '.join(f'{len(names)} {what}: {_first(names)}' for what, names in problems.items() if names)
        raise ValueError(f'{where}: the weights do not fit {type(network).__name__}: {found}')
    network.load_state_dict(fits, strict=strict)


def translate_names(weights: StateDict) -> StateDict:
    """Names of the authors' EDSR and RCAN checkpoints turned into BasicSR's; others come back as they are."""
    if not any(name.startswith('head.0.') for name in weights):
        return weights
    rcan = any('conv_du' in name for name in weights)
    rules = (*_HEAD_AND_TAIL, *(_RCAN_BODY if rcan else _EDSR_BODY), *_AFTER_BODY)
    kept = {name: value for name, value in weights.items() if not name.startswith(('sub_mean.', 'add_mean.'))}
    return {_translate(name, rules): value for name, value in kept.items()}


def _translate(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _safetensors_header(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        return file.metadata() or {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _select(content: Any, param_key: str | None, path: str | Path) -> Mapping[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} holds a {type(content).__name__}, expected a state dict')
    if param_key is not None and param_key not in content:
        raise ValueError(f"{path} has no param_key '{param_key}'; its top-level keys: {_first(list(content))}")
    keys = PARAM_KEYS if param_key is None else (param_key,)
    weights = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    named = all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items())
    if not weights or not named:
        raise ValueError(f'{path} holds no state dict; its keys: {_first(list(weights))}')
    return weights


def _is_plain(value: Tensor) -> bool:
    if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
        return False
    size = value.numel() * value.element_size()  # a few bytes of a file can be repeated to any size
    return size <= max(value.untyped_storage().nbytes(), LARGEST_REPEATED)


def _sort_of(value: Tensor) -> tuple[bool, bool]:
    return value.is_floating_point(), value.is_complex()


def _without_module(name: str) -> str:
    return name.removeprefix('module.')


def _first(names: list[Any], count: int = 3) -> str:
    more = f', ... ({len(names) - count} more)' if len(names) > count else ''
    return ', '.join(str(name) for name in names[:count]) + more
