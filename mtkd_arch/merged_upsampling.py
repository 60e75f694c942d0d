"""The end of an upsampling network in one convolution: less work for the same result."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from basicsr.archs.edsr_arch import EDSR
from basicsr.archs.rcan_arch import RCAN
from basicsr.archs.swinir_arch import SwinIR
from torch import Tensor, nn

ENDING_LINEARLY = (EDSR, RCAN, SwinIR)  # conv_last(upsample(x)), nothing between


def merged_upsampling(x: Tensor, conv_up: nn.Conv2d, conv_last: nn.Conv2d, scale: int) -> Tensor:
    """``conv_last(pixel_shuffle(conv_up(x), scale))`` of two padded 3 x 3 convolutions, as one 5 x 5 convolution.

    Nothing nonlinear lies between the two, so their kernels compose: 64 channels become 3 * scale^2 at once, without
    the 64 * scale^2 in between, whose computation is a third of the network's. The result is the same up to rounding,
    gradients included. Only the border needs care: ``conv_last`` sees zeros around the image where the composed kernel
    continues the output of ``conv_up``, so the share of that ring, one pixel wide, is taken off again.

    Args:
        x: (B, C, h, w).

    Returns:
        (B, channels of conv_last, h * scale, w * scale).
    """
    height, width = x.shape[-2:]
    up, up_bias = conv_up.weight, conv_up.bias
    with torch.autocast(x.device.type, enabled=False):  # a kernel composed in 16 bit would be another network's
        last = _before_shuffle(conv_last.weight, scale)  # (out * scale^2, mid * scale^2, 3, 3)
        kernel = F.conv2d(up.transpose(0, 1), last.flip(2, 3), padding=2).transpose(0, 1)  # (out * scale^2, C, 5, 5)
        bias = F.linear(up_bias, last.sum((2, 3)), conv_last.bias.repeat_interleave(scale**2))
    x = F.pad(x, (2, 2, 2, 2))
    output = F.conv2d(x, kernel, bias)

    def ring(rows: slice, columns: slice) -> Tensor:
        return F.conv2d(x[..., rows, columns], up, up_bias)

    sides, ends = slice(1, height + 3), slice(None)  # the corners belong to the top and the bottom
    top = F.conv2d(ring(slice(0, 3), ends), last[:, :, :1])
    bottom = F.conv2d(ring(slice(height + 1, None), ends), last[:, :, 2:])
    left = F.conv2d(ring(sides, slice(0, 3)), last[..., :1], padding=(1, 0))
    right = F.conv2d(ring(sides, slice(width + 1, None)), last[..., 2:], padding=(1, 0))
    output[..., :1, :] -= top
    output[..., -1:, :] -= bottom
    output[..., :1] -= left
    output[..., -1:] -= right
    return F.pixel_shuffle(output, scale)


def merge_tails(network: nn.Module) -> None:
    """Let every EDSR, RCAN and SwinIR in ``network`` compute its last upsampling stage and last convolution as one.

    Module tree, parameters and results stay as they are, up to rounding; while a hook listens to one of the modules,
    as a tap does, they run one by one. Networks of other types and ends (``pixelshuffledirect``) are left alone.
    """
    for module in network.modules():
        if type(module) in ENDING_LINEARLY and _is_mergeable(module):
            tail = _Tail(module.upsample, module.upsample[-2], module.upsample[-1], module.conv_last)
            for part, kind in ((tail.conv_up, _Passing), (tail.shuffle, _PassingShuffle), (tail.conv_last, _Merging)):
                part.__class__, part.tail = kind, tail


@contextmanager
def tails_apart(network: nn.Module) -> Iterator[None]:
    """Within it, merged tails run module by module, as a network is published and as it trains on a GPU.

    They do so while a hook listens to them, see ``merge_tails``.
    """
    handles = [module.register_forward_hook(_listen) for module in network.modules() if hasattr(module, 'tail')]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _listen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Hear, and do nothing."""


def _is_mergeable(network: nn.Module) -> bool:
    upsample, last = getattr(network, 'upsample', None), getattr(network, 'conv_last', None)
    if not isinstance(upsample, nn.Sequential) or len(upsample) < 2 or type(upsample[-1]) is not nn.PixelShuffle:
        return False
    return all(
        type(conv) is nn.Conv2d and conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.bias is not None
        for conv in (upsample[-2], last)
    )


class _Tail:
    """The modules that run as one as long as nobody listens to them."""

    def __init__(self, upsample: nn.Module, conv_up: nn.Conv2d, shuffle: nn.PixelShuffle, conv_last: nn.Conv2d) -> None:
        self.upsample, self.conv_up, self.shuffle, self.conv_last = upsample, conv_up, shuffle, conv_last

    def is_heard(self) -> bool:
        modules = (self.upsample, self.conv_up, self.shuffle, self.conv_last)
        return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


class _Passing(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.tail.is_heard() else x


class _PassingShuffle(nn.PixelShuffle):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.tail.is_heard() else x


class _Merging(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.tail.is_heard():
            return super().forward(x)
        return merged_upsampling(x, self.tail.conv_up, self, self.tail.shuffle.upscale_factor)


def _before_shuffle(weight: Tensor, scale: int) -> Tensor:
    """Move a 3 x 3 convolution from behind a pixel shuffle to before it.

    (out, mid, 3, 3) to (out * scale^2, mid * scale^2, 3, 3). Along one axis, tap t of the fine position
    ``scale * q + a`` reads phase p of the coarse position ``q + d - 1`` where ``a + t - 1 = scale * (d - 1) + p``.
    """
    a, t, p, d = torch.meshgrid(*(torch.arange(n, device=weight.device) for n in (scale, 3, scale, 3)), indexing='ij')
    reads = (a + t - 1 == scale * (d - 1) + p).to(weight.dtype)
    moved = torch.einsum('omst,aspd,btqe->oabmpqde', weight, reads, reads)
    return moved.reshape(weight.shape[0] * scale**2, weight.shape[1] * scale**2, 3, 3)
