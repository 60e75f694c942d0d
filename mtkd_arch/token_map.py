"""Features as maps, also where a network padded its input to its window."""

from torch import Tensor

LARGEST_WINDOW = 64


def token_map(feature: Tensor, height: int, width: int) -> Tensor:
    """A feature as a map (B, C, h, w), for an LQ of ``height`` x ``width``; h and w may be larger by its padding.

    Maps stay as they are. Tokens (B, h * w, C) are unfolded to the smallest size that is LQ's padded to a multiple of
    some window at its bottom and right.

    Raises ValueError for tokens of a number that no window explains, and for anything neither map nor tokens.
    """
    if feature.dim() == 4:
        return feature
    sizes = ((height + -height % window, width + -width % window) for window in range(1, LARGEST_WINDOW + 1))
    size = next((size for size in sizes if feature.dim() == 3 and size[0] * size[1] == feature.shape[1]), None)
    if size is None:
        raise ValueError(f'tokens {tuple(feature.shape)} do not make a map of {height} x {width}, padded or not')
    return feature.transpose(1, 2).unflatten(2, size)
