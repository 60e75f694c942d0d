"""What a network computes inside as maps of the size of its input, whatever it padded that input to."""

from torch import Tensor, nn

LARGEST_WINDOW = 64


def window_in(network: nn.Module) -> int:
    """The multiple to which a network wants its input padded: the largest ``window_size`` of its modules, else 1."""
    sizes = (getattr(module, 'window_size', 1) for module in network.modules())
    return max(int(max(size)) if isinstance(size, tuple | list) else int(size) for size in sizes)


def as_map(feature: Tensor, height: int, width: int, window: int = 1) -> Tensor:
    """A feature as a map (B, C, h, w), padding included, for an LQ of ``height`` x ``width``.

    Maps stay as they are. Tokens (B, h * w, C) are unfolded to LQ's size padded to ``window``; where their number is
    another, as for a teacher whose option overrules the window in it, to that of the smallest window that explains it.

    Raises ValueError for tokens of a number that no window explains, and for anything neither map nor tokens.
    """
    if feature.dim() == 4:
        return feature
    sizes = (_padded(height, width, each) for each in (window, *range(1, LARGEST_WINDOW + 1)))
    size = next((size for size in sizes if feature.dim() == 3 and size[0] * size[1] == feature.shape[1]), None)
    if size is None:
        raise ValueError(f'tokens {tuple(feature.shape)} do not make a map of {height} x {width}, padded or not')
    return feature.transpose(1, 2).unflatten(2, size)


def unpadded_map(feature: Tensor, height: int, width: int, window: int = 1) -> Tensor:
    """The same without padding; a map that is no padded one, but twice as large as LQ, has been upsampled and stays."""
    unfolded = as_map(feature, height, width, window)
    size = tuple(feature.shape[2:])
    upsampled = feature.dim() == 4 and (size[0] >= 2 * height or size[1] >= 2 * width)
    return unfolded if upsampled and size != _padded(height, width, window) else unfolded[..., :height, :width]


def lq_map(feature: Tensor, height: int, width: int, window: int = 1) -> Tensor:
    """The same, of the size of LQ: raises ValueError for every other, such as one behind the upsampler."""
    unpadded = unpadded_map(feature, height, width, window)
    if unpadded.shape[2:] != (height, width):
        raise ValueError(f'the map {tuple(feature.shape)} is not of the size of the input, {height} x {width}')
    return unpadded


def _padded(height: int, width: int, window: int) -> tuple[int, int]:
    return height + -height % window, width + -width % window
