"""Taps: what a network computes inside, by module path, without touching the network."""

import contextlib
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from mtkd.checks import nearest


def unwrapped(network: nn.Module) -> nn.Module:
    """The network that ``network`` holds as ``wrapped``, as SpandrelTeacher does, else ``network`` itself."""
    return getattr(network, 'wrapped', network)


def find_module(network: nn.Module, path: str, where: str = 'tap') -> nn.Module:
    """The module at a dotted ``path``; a negative number counts from the end, as in ``body.-1.conv2``.

    Of a network that wraps another the paths are those of the one inside. Raises ValueError that names the part that
    does not exist and what there is instead.
    """
    module = network = unwrapped(network)
    for depth, part in enumerate(path.split('.')):
        children = dict(module.named_children())
        name = list(children)[int(part)] if _counts_from_the_end(part, children) else part
        if name not in children:
            parent = '.'.join(path.split('.')[:depth]) or type(network).__name__
            raise ValueError(
                f"{where}: '{path}' does not exist: {parent} has no '{part}': {nearest(part, children)}"
                f'Available: {", ".join(_shortened(list(children))) or "nothing"}'
            )
        module = children[name]
    return module


def _counts_from_the_end(part: str, children: dict[str, nn.Module]) -> bool:
    return part.startswith('-') and part[1:].isdigit() and 1 <= int(part[1:]) <= len(children)


def _shortened(names: list[str], count: int = 12) -> list[str]:
    return names if len(names) <= count else [*names[: count - 1], f'... {names[-1]}']


class _Complete(Exception):
    """Every tap has been reached: what the network would do from here on is of no use."""


@contextlib.contextmanager
def record_taps(
    network: nn.Module, paths: Iterable[str], stop_when_complete: bool = False, repeated: set[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Fill the yielded mapping with the outputs of the modules at ``paths`` during the forward passes inside.

    Outputs are cloned: EDSR and RCAN add their long skip in place, right into what was tapped. A network wrapped in
    DistributedDataParallel is tapped at its bare module. Of several forward passes the last counts.
    ``stop_when_complete`` ends the block as soon as every tap is there, without the rest of the forward pass: then a
    module that runs several times in one pass gives its first output. ``repeated`` takes the paths of such modules.
    """
    features: dict[str, Tensor] = {}

    def hook_for(path: str):
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"tap '{path}' gives a {type(output).__name__}, not a tensor: tap a module inside it")
            if repeated is not None and path in features:
                repeated.add(path)
            features[path] = output.clone()
            if stop_when_complete and len(features) == len(modules):
                raise _Complete

        return hook

    modules = {path: find_module(network, path) for path in paths}  # all of them, before the first hook
    handles = [module.register_forward_hook(hook_for(path)) for path, module in modules.items()]
    try:
        with contextlib.suppress(_Complete):
            yield features
    finally:
        for handle in handles:
            handle.remove()
