"""Running a network over a large image in tiles, each seen with its surroundings."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def run_tiled(
    network: Callable[[Tensor], Tensor], lq: Tensor, scale: int, tile: int, overlap: int, align: int = 1
) -> Tensor:
    """``network(lq)``, computed tile by tile.

    A tile of ``tile`` x ``tile`` pixels of ``lq`` is run together with ``overlap`` pixels around it, of which the
    result is cropped again. Beyond the image's own edges nothing is added: whatever padding the network does happens
    at the image's border, and nowhere else, so that the result is the untiled one wherever the overlap reaches as far
    as the network sees. It is not where a network sees the whole image (the channel attention of RCAN averages over
    it) or more than the overlap (SwinIR); :func:`seam_difference` measures it.

    Args:
        network: (B, C, h, w) to (B, C', scale * h, scale * w), for any h and w.
        lq: (B, C, H, W).
        scale: upsampling factor of the network.
        tile: side of a tile in pixels of ``lq``, 0 for the whole image; rounded up to a multiple of ``align``.
        overlap: pixels of ``lq`` around a tile, rounded up likewise.
        align: the window of the network; tiles begin on multiples of it, so that windows lie as in the whole image.

    Returns:
        (B, C', scale * H, scale * W).

    Raises:
        ValueError: for sizes that cannot be, and where the network upsamples by another factor.
    """
    check_tiles(tile, overlap, align)
    height, width = lq.shape[-2:]
    if tile == 0 or (height <= tile and width <= tile):
        return network(lq)
    tile, overlap = (-(-side // align) * align for side in (tile, overlap))
    output = None
    for top, bottom in _spans(height, tile):
        for left, right in _spans(width, tile):
            first_row, first_column = max(top - overlap, 0), max(left - overlap, 0)
            part = lq[..., first_row : min(bottom + overlap, height), first_column : min(right + overlap, width)]
            result = network(part)
            if result.shape[-2:] != (part.shape[-2] * scale, part.shape[-1] * scale):
                raise ValueError(f'scale is {scale}, but a tile {tuple(part.shape)} became {tuple(result.shape)}')
            if output is None:
                output = result.new_empty(*result.shape[:-2], height * scale, width * scale)
            rows = slice((top - first_row) * scale, (bottom - first_row) * scale)
            columns = slice((left - first_column) * scale, (right - first_column) * scale)
            output[..., top * scale : bottom * scale, left * scale : right * scale] = result[..., rows, columns]
    return output


def check_tiles(tile: int, overlap: int, align: int = 1) -> None:
    """Raise ValueError for sizes that cannot be."""
    if tile < 0 or overlap < 0 or align < 1:
        given = f'tile {tile}, overlap {overlap}, align {align}'
        raise ValueError(f'expected tile >= 0 (0: no tiles), overlap >= 0 and align >= 1, got {given}')


def seam_difference(
    network: Callable[[Tensor], Tensor], lq: Tensor, scale: int, tile: int, overlap: int, align: int = 1
) -> tuple[float, float]:
    """Largest and mean absolute difference of the tiled result from the untiled one; arguments as of ``run_tiled``."""
    difference = (run_tiled(network, lq, scale, tile, overlap, align) - network(lq)).abs()
    return difference.max().item(), difference.mean(dtype=torch.float64).item()


def _spans(length: int, tile: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the tiles along one side; the last may be shorter."""
    return ((start, min(start + tile, length)) for start in range(0, length, tile))
