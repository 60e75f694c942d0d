"""Where a network is tapped unless the option says so: after equal parts of its body."""

from collections.abc import Callable

from torch import nn

from mtkd_arch.taps import unwrapped

BODIES: dict[str, Callable[[nn.Module, int], tuple[str, ...]]] = {}  # class name -> taps for a number of parts


def body_taps(network: nn.Module, parts: int = 3) -> tuple[str, ...]:
    """Module paths of the features after 1/parts, 2/parts, ... of the body of ``network``, shallow to deep.

    The k-th tap is behind the first k/parts of the blocks, rounded to whole blocks (half up, at least one), so that
    the k-th taps of two networks of different depth belong together. A body with fewer blocks than parts gives a path
    more than once: it still has a k-th tap for every tap of a deeper teacher.

    A new architecture is one more entry of ``BODIES``, by the name of its class; subclasses are found too. Raises
    ValueError for one that is unknown or built otherwise than BasicSR's class of that name.
    """
    if parts < 1:
        raise ValueError(f'parts is {parts}, expected at least 1')
    network = unwrapped(network)
    names = [kind.__name__ for kind in type(network).__mro__]
    taps_of = next((BODIES[name] for name in names if name in BODIES), None)
    try:
        if taps_of is not None:
            return taps_of(network, parts)
    except (AttributeError, TypeError, ZeroDivisionError):  # a namesake with other parts inside
        pass
    raise ValueError(
        f'{names[0]} has no default taps (known: {", ".join(BODIES)}, as BasicSR builds them): name the taps in the '
        'option'
    )


def behind_parts(blocks: int, parts: int) -> list[int]:
    """Indices of the last blocks of the first 1/parts, 2/parts, ... of ``blocks``: 2, 6, 9 for 3 parts of 10."""
    if blocks < 1:
        raise ZeroDivisionError('a body without blocks has no parts')
    return [max((2 * k * blocks + parts) // (2 * parts), 1) - 1 for k in range(1, parts + 1)]


def _edsr(network: nn.Module, parts: int) -> tuple[str, ...]:
    """After residual blocks: (B, num_feat, H, W)."""
    return tuple(f'body.{block}' for block in behind_parts(len(network.body), parts))


def _rcan(network: nn.Module, parts: int) -> tuple[str, ...]:
    """After residual groups, the last one after the convolution behind them: (B, num_feat, H, W).

    FAKD taps 10 groups after 3, 7 and the tail with the long skip. BasicSR adds that skip, the output of
    ``conv_first``, outside of any module, so the last tap is the tail before the skip is added.
    """
    if not isinstance(network.conv_after_body, nn.Module):
        raise AttributeError('conv_after_body')
    groups = behind_parts(len(network.body), parts)[:-1]
    return (*(f'body.{group}' for group in groups), 'conv_after_body')


def _swinir(network: nn.Module, parts: int) -> tuple[str, ...]:
    """After residual Swin transformer blocks: tokens (B, H * W, embed_dim)."""
    return tuple(f'layers.{layer}' for layer in behind_parts(len(network.layers), parts))


BODIES.update(EDSR=_edsr, RCAN=_rcan, SwinIR=_swinir)
