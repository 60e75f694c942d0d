"""The rest of a frozen network behind one of its modules, run on a feature that comes from elsewhere."""

from torch import Tensor, nn

from mtkd_arch.padding import pad_to_multiple
from mtkd_model.taps import as_map, find_module


def window_in(network: nn.Module) -> int:
    """The multiple to which a network wants its input padded: the largest ``window_size`` of its modules, else 1."""
    sizes = (getattr(module, 'window_size', 1) for module in network.modules())
    return max(int(max(size)) if isinstance(size, tuple | list) else int(size) for size in sizes)


def map_of_tap(feature: Tensor, lq: Tensor, window: int) -> Tensor:
    """A tap of a network that ran on ``lq`` (B, 3, H, W), padded to ``window``, as a map (B, C, H, W) without padding.

    Raises ValueError for a feature of another size, such as one behind the upsampler.
    """
    height, width = lq.shape[-2:]
    padded = (height + -height % window, width + -width % window)
    feature = as_map(feature, *padded)
    if feature.shape[-2:] != padded:
        raise ValueError(f'the map {tuple(feature.shape)} is not of the size of the input, {height} x {width}')
    return feature[..., :height, :width]


def tail(network: nn.Module, path: str, feature: Tensor, lq: Tensor) -> Tensor:
    """What ``network`` makes of ``lq`` when ``feature`` stands in for the output of its module at ``path``.

    Works for any architecture: a forward hook replaces the module's output. The layers before it run as well, so the
    cost is one whole forward pass, though the backward pass covers the rest alone as long as the network is frozen.
    Skip connections that begin before the module bring the network's own features, computed from ``lq``.

    Args:
        network: in the mode it should run in; eval for a teacher.
        path: module path; negative numbers count from the end.
        feature: (B, C, H, W), C being the channels of the module, also where its output is tokens; left unchanged.
        lq: (B, 3, H, W), RGB in [0, 1]; it and ``feature`` are mirror-padded to the window of the network.

    Returns:
        (B, 3, scale * H, scale * W), with gradient to ``feature``.

    Raises ValueError for a path that does not exist or never runs, and a feature that does not fit.
    """
    height, width = lq.shape[-2:]
    if feature.shape[-2:] != (height, width):
        raise ValueError(f'the feature {tuple(feature.shape)} is not of the size of the input, {height} x {width}')
    padded = pad_to_multiple(lq, window_in(network))
    feature = pad_to_multiple(feature, window_in(network))
    replaced = []

    def replace(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        replaced.append(_in_place_of(output, feature, path))
        return replaced[-1]

    with find_module(network, path).register_forward_hook(replace):
        output = network.forward(padded)  # not __call__: a compiled network would pass by the hook
    if not replaced:
        raise ValueError(f"'{path}' of {type(network).__name__} does not run: choose a module that does")
    scale = output.shape[-1] // padded.shape[-1]
    return output[..., : height * scale, : width * scale]


def tapped_channels(network: nn.Module, path: str, lq: Tensor) -> int:
    """Number of channels of the module at ``path``, by running ``network`` on ``lq``.

    Raises ValueError for a module whose output is no map or tokens of the size of ``lq``.
    """
    padded = pad_to_multiple(lq, window_in(network))
    outputs = []
    with find_module(network, path).register_forward_hook(lambda _module, _inputs, output: outputs.append(output)):
        network.forward(padded)
    if not outputs or not isinstance(outputs[-1], Tensor):
        found = type(outputs[-1]).__name__ if outputs else 'nothing'
        raise ValueError(
            f"'{path}' of {type(network).__name__} gives {found}, not a feature: choose a module inside it"
        )
    return map_of_tap(outputs[-1], padded, 1).shape[1]


def _in_place_of(output: Tensor, feature: Tensor, path: str) -> Tensor:
    """``feature`` (B, C, H, W) in the layout and type of ``output``; a copy, since what follows may add in place."""
    feature = feature.flatten(2).transpose(1, 2) if output.dim() == 3 else feature
    if feature.shape != output.shape:
        raise ValueError(f"'{path}' gives {tuple(output.shape)}, its stand-in is {tuple(feature.shape)}")
    return feature.to(output.dtype, copy=True)
