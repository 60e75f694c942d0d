"""MambaLiteSR: a small super-resolution student of low-rank state-space blocks."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from basicsr.archs.arch_util import default_init_weights
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from mtkd_arch.selective_scan import selective_scan

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


class LowRankLinear(nn.Sequential):
    """A linear map of at most ``rank``, as a product of two: ``rank * (in + out)`` weights instead of ``in * out``."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__(nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features))


class SelectiveScan2d(nn.Module):
    """Selective scans of a map (B, C, H, W) along rows and columns, each in both directions; their sum.

    Step sizes, input and output maps follow from the input at each position, by a projection for each direction.
    ``directions`` takes the first of: rows, rows from the end, columns, columns from the end.
    """

    def __init__(self, channels: int, state: int, directions: int, step_rank: int) -> None:
        super().__init__()
        self.state, self.directions = state, directions
        shape = (directions, channels)
        self.project = nn.Parameter(torch.empty(directions, step_rank + 2 * state, channels))
        self.step_weight = nn.Parameter(torch.empty(*shape, step_rank))
        steps = torch.exp(torch.rand(shape) * math.log(100) + math.log(0.001))  # 0.001 to 0.1, as in Mamba
        self.step_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))  # softplus gives them back
        self.decay_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(*shape, 1))
        self.direct = nn.Parameter(torch.ones(shape))
        nn.init.uniform_(self.project, -(channels**-0.5), channels**-0.5)
        nn.init.uniform_(self.step_weight, -(step_rank**-0.5), step_rank**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        lines = _lines(x, self.directions)  # (B, directions, C, H * W)
        steps, B, C = torch.split(
            torch.einsum('dpc,bdcl->bdpl', self.project, lines),
            [self.step_weight.shape[-1], self.state, self.state],
            dim=2,
        )
        delta = F.softplus(torch.einsum('dcr,bdrl->bdcl', self.step_weight, steps) + self.step_bias[..., None])
        chunk = max(math.isqrt(lines.shape[-1]), 1)
        scanned = selective_scan(lines, delta, -self.decay_log.exp(), B, C, self.direct, chunk)
        return _unlined(scanned, *x.shape[-2:])


class LowRankMambaBlock(nn.Module):
    """``x + mixer(norm(x))``: low-rank projection, depthwise convolution, 2-D selective scan, gate, projection."""

    def __init__(self, channels: int, expand: float, rank: int, state: int, directions: int) -> None:
        super().__init__()
        inner = int(channels * expand)
        self.norm = nn.LayerNorm(channels)
        self.project_in = LowRankLinear(channels, 2 * inner, rank)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scan = SelectiveScan2d(inner, state, directions, step_rank=math.ceil(channels / 16))
        self.scan_norm = nn.LayerNorm(inner)
        self.project_out = LowRankLinear(inner, channels, rank)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.permute(0, 2, 3, 1))  # (B, H, W, C)
        mixed, gate = self.project_in(tokens).chunk(2, dim=-1)
        mixed = F.silu(self.depthwise(mixed.permute(0, 3, 1, 2)))
        mixed = self.scan_norm(self.scan(mixed).permute(0, 2, 3, 1))
        return x + self.project_out(mixed * F.silu(gate)).permute(0, 3, 1, 2)


class ResidualMambaGroup(nn.Module):
    """Some blocks and a convolution within a skip connection."""

    def __init__(self, channels: int, num_block: int, **block: float) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(LowRankMambaBlock(channels, **block) for _ in range(num_block)))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks(x))


@ARCH_REGISTRY.register()
class MambaLiteSR(nn.Module):
    """Convolution, residual groups of low-rank Mamba blocks, convolution within a long skip, pixel-shuffle.

    After MambaLiteSR (Aalishah et al., 2025, https://arxiv.org/abs/2502.14090): state-space blocks with low-rank
    mixers and a reconstruction module, about 370 k parameters at x4. The paper was known to us second-hand only.
    Ours, therefore: where the ranks stand (the projections into and out of the mixer and that of the step sizes), the
    four scan directions, every default below (chosen to meet the published number of parameters: 366 k at x4), the
    norm behind the scan, and the scan itself in plain PyTorch. The paper's teacher is a larger network of the same
    kind: raise ``num_feat``, ``num_group`` or ``rank``. Its loss is convex, ``0.2 mean|S - T| + 0.8 mean|S - G|``:
    two weights in an option file.

    Args:
        num_in_ch, num_out_ch: image channels.
        num_feat: width.
        num_group, num_block: groups, and blocks in each.
        upscale: 2, 3, 4 or any other factor.
        expand: width within the mixer, in multiples of ``num_feat``.
        rank: of the projections into and out of the mixer.
        state: states per channel of the scan.
        directions: 1 to 4 scans over the map.

    RGB in [0, 1], (B, 3, H, W) of any size, to (B, 3, upscale * H, upscale * W), not clamped.
    Raises ValueError for sizes below 1 or more than four directions.
    """

    def __init__(
        self,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 60,
        num_group: int = 4,
        num_block: int = 2,
        upscale: int = 4,
        expand: float = 2.0,
        rank: int = 8,
        state: int = 8,
        directions: Literal[1, 2, 3, 4] = 4,
    ) -> None:
        super().__init__()
        _check_sizes(num_feat=num_feat, num_group=num_group, num_block=num_block, upscale=upscale, rank=rank)
        _check_sizes(state=state, directions=directions, num_feat_times_expand=int(num_feat * expand))
        if directions > 4:
            raise ValueError(f'MambaLiteSR: directions is {directions}; a map has four: 1 to 4 please')
        mean = RGB_MEAN if num_in_ch == num_out_ch == 3 else (0.0,)
        self.register_buffer('mean', torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        block = {'expand': expand, 'rank': rank, 'state': state, 'directions': directions}
        self.body = nn.Sequential(*(ResidualMambaGroup(num_feat, num_block, **block) for _ in range(num_group)))
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsample = nn.Sequential(
            nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, padding=1), nn.PixelShuffle(upscale)
        )
        default_init_weights([self.upsample[0]], 0.1)  # the first images are near the mean colour

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.conv_first(x - self.mean)
        return self.upsample(self.conv_after_body(self.body(shallow)) + shallow) + self.mean


def _lines(x: Tensor, directions: int) -> Tensor:
    rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
    return torch.stack([rows, rows.flip(-1), columns, columns.flip(-1)][:directions], dim=1)


def _unlined(lines: Tensor, height: int, width: int) -> Tensor:
    """Sum of the directions, each back in its place; the inverse of ``_lines``."""
    parts = [line.flip(-1) if index % 2 else line for index, line in enumerate(lines.unbind(1))]
    rows = sum(parts[:2]).unflatten(-1, (height, width))
    return rows + sum(parts[2:]).unflatten(-1, (width, height)).transpose(2, 3) if len(parts) > 2 else rows


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f'MambaLiteSR: {name} is {value}, expected at least 1')
