"""A network with its weights, ready to infer, and how it is built from an option."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  mends the upstream faults before BasicSR is imported

# isort: split
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from mtkd.checks import build, lookup
from mtkd_arch.feature_maps import window_in
from mtkd_arch.teacher_ensemble_arch import window_of
from mtkd_arch.weights import load_weights, read_weights
from mtkd_model.preflight import placed

PROBE_SIZE = 16


@dataclass(frozen=True)
class LoadedNetwork:
    """A network ready to infer: float32, on the CPU, in eval mode, without gradients, tails not merged.

    ``network`` takes (B, 3, H, W), RGB in [0, 1], H and W multiples of ``window`` (see ``forward_padded``), and gives
    (B, 3, scale * H, scale * W), not clamped. Tiles should begin on multiples of ``align``. ``source`` says where the
    weights came from, ``weights`` are the files, ``option`` is the network's own option where there is one, of a
    target that of the aggregator.
    """

    name: str
    network: nn.Module
    scale: int
    window: int
    align: int
    source: str
    weights: tuple[Path, ...] = ()
    option: Mapping[str, Any] | None = None


def built(
    option: Any, weights: Path, param_key: str | None, strict: bool, scale: int | None, name: str, where: str
) -> LoadedNetwork:
    """A network of the registry with its weights; one that reads them itself is given their path.

    ``where`` is what errors call it. Raises FileNotFoundError or ValueError for what does not fit.
    """
    if not weights.is_file():
        raise FileNotFoundError(f'{where}: no such weights file: {weights}')
    if reads_own_weights(option, where):
        own = {**option, 'path': str(weights), 'param_key': param_key}
        network = _built_from_own_file(own, weights, where)
        window = window_in(network)
    else:
        with placed(where):
            network = build(ARCH_REGISTRY, option, where)
        load_weights(network, read_weights(weights, param_key), strict, f'{where}: {weights}')
        window = window_of(option)
    return frozen(name, network, scale or 0, window, str(weights), window, (weights,), option)


def reads_own_weights(option: Any, where: str = 'network') -> bool:
    """Whether a network of this option builds itself from its file. Raises ValueError for a type that is unknown."""
    kind = option.get('type') if isinstance(option, Mapping) else None
    return kind is not None and getattr(lookup(ARCH_REGISTRY, kind, f'{where}.type'), 'reads_own_weights', False)


def _built_from_own_file(option: Mapping[str, Any], weights: Path, where: str) -> nn.Module:
    try:
        return build(ARCH_REGISTRY, option, where)
    except ValueError as error:
        if where != str(weights):  # the option names the kind
            raise
        raise ValueError(f'{error}. Or say which network it is, by a YAML file (--network)') from error


def frozen(
    name: str,
    network: nn.Module,
    scale: int,
    window: int,
    source: str,
    align: int = 1,
    weights: tuple[Path, ...] = (),
    option: Mapping[str, Any] | None = None,
) -> LoadedNetwork:
    """A LoadedNetwork that cannot be trained; a ``scale`` of 0 is unknown."""
    network = network.float().eval().requires_grad_(False)
    return LoadedNetwork(name, network, scale, window, align, source, weights, option)


@torch.no_grad()
def measured_scale(loaded: LoadedNetwork, source: str) -> int:
    """What the network upsamples by. Raises ValueError for one that does not turn RGB into larger RGB."""
    side = -(-PROBE_SIZE // loaded.window) * loaded.window
    probe = torch.full((1, 3, side, side), 0.5)
    try:
        output = loaded.network(probe)
    except Exception as error:  # whatever a network raises on an image it is not made for
        raise ValueError(f'{source}: {type(loaded.network).__name__} does not run on an RGB image: {error}') from error
    scale = output.shape[-1] // side
    if scale < 1 or output.shape != (1, 3, side * scale, side * scale):
        raise ValueError(
            f'{source}: {type(loaded.network).__name__} turns {tuple(probe.shape)} into {tuple(output.shape)}; '
            'expected RGB enlarged by a whole number'
        )
    if not output.isfinite().all():
        raise ValueError(f'{source}: {type(loaded.network).__name__} gives no numbers for a grey image')
    return scale
