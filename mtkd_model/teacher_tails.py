"""A frozen network with features from elsewhere inside it: the rest of it runs on them."""

from collections.abc import Mapping
from contextlib import ExitStack

from torch import Tensor, nn

from mtkd_arch.feature_maps import lq_map, window_in
from mtkd_arch.padding import pad_to_multiple
from mtkd_arch.taps import find_module, record_taps


def replaced_output(network: nn.Module, replacements: Mapping[str, Tensor], lq: Tensor) -> Tensor:
    """What ``network`` makes of ``lq`` when ``replacements`` stand in for the outputs of its modules at their paths.

    Works for any architecture: forward hooks replace the modules' outputs. The layers before them run as well, so the
    cost is one whole forward pass, though the backward pass covers the rest alone as long as the network is frozen.
    Skip connections that begin before a module bring the network's own features, computed from ``lq``.

    Args:
        network: in the mode it should run in; eval for a teacher.
        replacements: module path (negative numbers count from the end) -> (B, C, H, W), C being the channels of the
            module, also where its output is tokens; left unchanged.
        lq: (B, 3, H, W), RGB in [0, 1]; it and the replacements are mirror-padded to the window of the network.

    Returns:
        (B, 3, scale * H, scale * W), with gradient to the replacements.

    Raises ValueError for a path that does not exist or never runs, and a feature that does not fit.
    """
    height, width = lq.shape[-2:]
    window = window_in(network)
    padded = pad_to_multiple(lq, window)
    replaced = set()

    def hook_for(path: str, feature: Tensor):
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            replaced.add(path)
            return _in_place_of(output, feature, path)

        return hook

    with ExitStack() as hooks:
        for path, feature in replacements.items():
            if feature.shape[-2:] != (height, width):
                raise ValueError(
                    f'the feature {tuple(feature.shape)} is not of the size of the input, {height} x {width}'
                )
            hook = hook_for(path, pad_to_multiple(feature, window))
            hooks.enter_context(find_module(network, path).register_forward_hook(hook))
        output = network.forward(padded)  # not __call__: a compiled network would pass by the hooks
    for path in replacements:
        if path not in replaced:
            raise ValueError(f"'{path}' of {type(network).__name__} does not run: choose a module that does")
    scale = output.shape[-1] // padded.shape[-1]
    return output[..., : height * scale, : width * scale]


def tapped_channels(network: nn.Module, path: str, lq: Tensor) -> int:
    """Number of channels of the module at ``path``, by running ``network`` on ``lq``.

    Raises ValueError for a module that does not run or whose output is no map or tokens of the size of ``lq``.
    """
    padded = pad_to_multiple(lq, window_in(network))
    with record_taps(network, [path]) as features:
        network.forward(padded)
    if path not in features:
        raise ValueError(f"'{path}' of {type(network).__name__} does not run: choose a module that does")
    return lq_map(features[path], *padded.shape[-2:]).shape[1]


def _in_place_of(output: Tensor, feature: Tensor, path: str) -> Tensor:
    """``feature`` (B, C, H, W) in the layout and type of ``output``; a copy, since what follows may add in place."""
    feature = feature.flatten(2).transpose(1, 2) if output.dim() == 3 else feature
    if feature.shape != output.shape:
        raise ValueError(f"'{path}' gives {tuple(output.shape)}, its stand-in is {tuple(feature.shape)}")
    return feature.to(output.dtype, copy=True)
