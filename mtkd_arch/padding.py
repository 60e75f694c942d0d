"""Padding to the window of a network, for images of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Mirror ``x`` at its bottom and right edges until both sides are multiples of ``multiple``.

    The same as ``F.pad(..., mode='reflect')`` wherever that is possible. Reflection needs more pixels than it adds;
    a smaller image is mirrored back and forth as often as needed, a single pixel is repeated.

    Args:
        x: (B, C, H, W), H and W at least 1.
        multiple: the size of the grid, at least 1.

    Returns:
        (B, C, H', W'), ``x`` itself where nothing is missing. Crop ``[..., :H, :W]`` to undo it.

    Raises:
        ValueError: if ``x`` is not 4-dimensional or empty, or ``multiple`` is below 1.
    """
    if x.dim() != 4 or min(x.shape[-2:]) < 1:
        raise ValueError(f'expected an image batch (B, C, H, W) with H, W >= 1, got {tuple(x.shape)}')
    if multiple < 1:
        raise ValueError(f'multiple is {multiple}, expected at least 1')
    height, width = x.shape[-2:]
    pad_h, pad_w = -height % multiple, -width % multiple
    if not (pad_h or pad_w):
        return x
    if pad_h < height and pad_w < width:
        return F.pad(x, (0, pad_w, 0, pad_h), mode='reflect')
    rows = _mirror_index(height, height + pad_h, x.device)
    columns = _mirror_index(width, width + pad_w, x.device)
    return x.index_select(-2, rows).index_select(-1, columns)


def _mirror_index(size: int, padded_size: int, device: torch.device) -> Tensor:
    """Source positions of a line of ``size`` pixels mirrored up to ``padded_size``: 0 1 2 1 0 1 2 ..."""
    if size == 1:
        return torch.zeros(padded_size, dtype=torch.long, device=device)
    position = torch.arange(padded_size, device=device) % (2 * size - 2)
    return torch.minimum(position, 2 * size - 2 - position)
