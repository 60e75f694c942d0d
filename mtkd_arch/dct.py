"""Window DCT as a fixed matrix product, and the shift masks that go with it: pure functions, built once per network."""

import math
from typing import Literal

import torch
from torch import Tensor

DctKind = Literal['orthonormal', 'unnormalised']

# The released masks ask whether two DCT values of region indices (integers up to 8) are equal. In exact arithmetic
# distinct values are more than 1e-1 apart, and rounding in float64 stays below 1e-11.
_EQUAL = 1e-6


def dct_matrix(size: int, kind: DctKind = 'orthonormal') -> Tensor:
    """The DCT-II of ``size`` samples as a (size, size) float64 matrix: ``spectrum = matrix @ samples``.

    ``unnormalised``: ``X_k = 2 sum_n x_n cos(pi (2n + 1) k / (2 size))``, as SciPy's and torch_dct's ``norm=None``.
    ``orthonormal``: the same with rows scaled to length 1, so the inverse is the transpose.

    Raises:
        ValueError: if ``kind`` is neither.
    """
    if kind not in ('orthonormal', 'unnormalised'):
        raise ValueError(f"dct kind {kind!r} is unknown, expected 'orthonormal' or 'unnormalised'")
    frequency = torch.arange(size, dtype=torch.float64).unsqueeze(1)
    sample = torch.arange(size, dtype=torch.float64).unsqueeze(0)
    matrix = 2 * torch.cos(math.pi * (2 * sample + 1) * frequency / (2 * size))
    if kind == 'orthonormal':
        matrix = matrix / matrix.norm(dim=1, keepdim=True)
    return matrix


def inverse_dct_matrix(size: int, kind: DctKind = 'orthonormal') -> Tensor:
    """The inverse of :func:`dct_matrix`, (size, size) float64."""
    matrix = dct_matrix(size, kind)
    return (matrix / matrix.square().sum(1, keepdim=True)).T.contiguous()  # its rows are orthogonal


def transform_windows(windows: Tensor, matrix: Tensor) -> Tensor:
    """Multiply both axes of windows of row-major tokens (M, side ** 2, C) by a matrix (side, side).

    One axis at a time takes fewer operations than the (N, N) matrix of both, and neither step copies or permutes: the
    columns of a window are rows of (side, side * C).
    """
    side, channels = len(matrix), windows.shape[-1]
    lines = windows.reshape(-1, side, channels)
    lines = torch.bmm(matrix.expand(len(lines), -1, -1), lines)
    columns = lines.view(-1, side, side * channels)
    return torch.bmm(matrix.expand(len(columns), -1, -1), columns).view(windows.shape)


def relative_position_index(window_size: int) -> Tensor:
    """Row of the relative position bias table for each pair of tokens of a window, (N, N) (SwinIR's order)."""
    position = torch.arange(window_size)
    y, x = (axis.flatten() for axis in torch.meshgrid(position, position, indexing='ij'))
    side = 2 * window_size - 1
    return (y[:, None] - y[None] + window_size - 1) * side + (x[:, None] - x[None] + window_size - 1)


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """(B, H, W, C), sides multiples of ``window_size``, to windows of tokens (B * windows, N, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window_size, window_size, width // window_size, window_size, channels)
    return x.transpose(2, 3).reshape(-1, window_size * window_size, channels)


def merge_windows(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Inverse of :func:`partition_windows`: (B * windows, N, C) to (B, H, W, C)."""
    rows, columns, channels = height // window_size, width // window_size, windows.shape[-1]
    x = windows.view(-1, rows, columns, window_size, window_size, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def window_kinds(height: int, width: int, window_size: int, device: torch.device) -> Tensor:
    """Which of the four masks each window of a (height, width) token grid takes, (windows,).

    0: neither in the last row of windows nor in the last column, 1: last column, 2: last row, 3: both. A cyclic shift
    joins far ends of the image in the last row and column only, so four masks serve every size of image.
    """
    rows, columns = height // window_size, width // window_size
    last_row = torch.arange(rows, device=device) == rows - 1
    last_column = torch.arange(columns, device=device) == columns - 1
    return (2 * last_row.long()[:, None] + last_column.long()[None]).flatten()


def spatial_shift_masks(window_size: int, shift: int) -> Tensor:
    """The mask of Swin Transformer's shifted windows, (4, N, N), 0 or -100, in the order of :func:`window_kinds`."""
    return _mask_unequal(_region_windows(window_size, shift))


def released_shift_masks(window_size: int, shift: int) -> Tensor:
    """The mask of the released DCTSwin, (4, N, N) or (1, N, N) without a shift, 0 or -100.

    There the image of region indices goes through the same DCT as the features, and pairs of coefficients with
    different values are masked. Without a shift all regions are one, so only the DC token stands apart from the rest.

    Float64 with a tolerance gives the mask of exact arithmetic. The released code compared float32 FFT results for
    equality; on its window of 8 the FFT's zeros are exact too, so the masks agree (held by reference outputs).
    """
    regions = _region_windows(window_size, shift) if shift else torch.full((1, window_size**2), 8.0)
    matrix = dct_matrix(window_size, 'unnormalised')
    return _mask_unequal(transform_windows(regions.double().unsqueeze(-1), matrix).squeeze(-1))


def _region_windows(window_size: int, shift: int) -> Tensor:
    """Region indices 0..8 of the shifted image in windows, (4, N): a grid of two by two windows shows all kinds."""
    line = torch.zeros(2 * window_size)
    line[window_size:] = 1
    line[2 * window_size - shift :] = 2
    image = 3 * line[:, None] + line[None]
    return partition_windows(image[None, :, :, None], window_size).squeeze(-1)


def _mask_unequal(values: Tensor) -> Tensor:
    """-100 where two tokens of a window differ in value, (windows, N) to (windows, N, N) float32."""
    unequal = (values.unsqueeze(1) - values.unsqueeze(2)).abs() > _EQUAL
    return unequal.float() * -100
