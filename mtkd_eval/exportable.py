"""Networks rewritten so that what records them, once, yields a graph for images of any size on any device."""

import copy

import torch
import torch.nn.functional as F
from basicsr.archs.swinir_arch import SwinTransformerBlock, WindowAttention, window_partition
from torch import Tensor, nn

from mtkd_arch.merged_upsampling import merge_tails

MASKED = -100.0  # what SwinIR adds to the attention between pixels that are no neighbours


class ExportableNetwork(nn.Module):
    """A copy of ``network`` with the padding to its window in it, free of decisions that depend on the image's size.

    Recorders (``torch.jit.trace``, ``torch.export``, ONNX) keep one path through the code: BasicSR's SwinIR would keep
    batch size, attention mask and device of the example. Here all of them follow from the input. Results equal
    ``forward_padded(network, ...)``. With ``merged`` the ends of EDSR, RCAN and SwinIR are one convolution.

    ``forward`` takes (B, 3, H, W), RGB in [0, 1], and gives (B, 3, scale * H, scale * W), not clamped. Where a network
    takes steps that depend on the size, as the scan of MambaLiteSR does, a graph still holds for one size only.
    """

    def __init__(self, network: nn.Module, scale: int, window: int, merged: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float().requires_grad_(False)
        self.scale, self.window = scale, window
        if merged:
            merge_tails(self.network)
        for module in self.network.modules():
            _buffer_plain_tensors(module)
            if type(module) in _ANY_SIZE:
                module.__class__ = _ANY_SIZE[type(module)]
            if isinstance(module, _AnySizeBlock):
                module.attn_mask = None  # of the training size, 1 MiB at 64 x 64 pixels, and not read any more
        self.eval()  # a recorder gives every part the mode of the whole

    def forward(self, image: Tensor) -> Tensor:
        if self.window == 1:
            return self.network(image)
        output = self.network(_mirrored(_mirrored(image, -2, self.window), -1, self.window))
        for dimension in (-2, -1):  # a slice would make torch.export ask whether there was anything to pad
            wanted = _positions(_side(image, dimension).repeat(self.scale))
            output = output.index_select(dimension, wanted)
        return output


def is_mergeable(network: nn.Module) -> bool:
    """Whether ``merge_tails`` changes anything in ``network``."""
    probe = copy.deepcopy(network)
    merge_tails(probe)
    return any(type(old) is not type(new) for old, new in zip(network.modules(), probe.modules(), strict=True))


class _AnySizeBlock(SwinTransformerBlock):
    def forward(self, x: Tensor, x_size: tuple[int, int]) -> Tensor:
        """(B, H * W, C) to the same."""
        height, width = x_size
        batch, _, channels = x.shape
        window, shift = self.window_size, self.shift_size
        image = self.norm1(x).view(batch, height, width, channels)
        mask = _shift_mask(image, window, shift) if shift else None
        if shift:
            image = torch.roll(image, (-shift, -shift), (1, 2))
        windows = window_partition(image, window).view(-1, window**2, channels)
        windows = self.attn(windows, mask=mask)
        image = windows.view(batch, height // window, width // window, window, window, channels).transpose(2, 3)
        image = image.reshape(batch, height, width, channels)
        if shift:
            image = torch.roll(image, (shift, shift), (1, 2))
        x = x + self.drop_path(image.reshape(batch, height * width, channels))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class _AnySizeAttention(WindowAttention):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(windows, N, C) to the same; ``mask`` is (windows of one image, N, N)."""
        _, pixels, channels = x.shape
        heads = self.num_heads
        query, key, value = self.qkv(x).view(-1, pixels, 3, heads, channels // heads).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        attention = query * self.scale @ key.transpose(-2, -1) + bias.view(pixels, pixels, heads).permute(2, 0, 1)
        if mask is not None:
            attention = attention.view(-1, mask.shape[0], heads, pixels, pixels) + mask[:, None]
            attention = attention.view(-1, heads, pixels, pixels)
        attention = self.attn_drop(self.softmax(attention))
        return self.proj_drop(self.proj((attention @ value).transpose(1, 2).reshape(-1, pixels, channels)))


_ANY_SIZE = {SwinTransformerBlock: _AnySizeBlock, WindowAttention: _AnySizeAttention}


def _shift_mask(image: Tensor, window: int, shift: int) -> Tensor:
    """0 between pixels that were neighbours before the shift, else MASKED: (windows, window^2, window^2)."""

    def bands(line: Tensor) -> Tensor:
        position, size = _positions(line), line.shape[0]
        return (position >= size - window).to(image.dtype) + (position >= size - shift).to(image.dtype)

    rows, columns = bands(image[0, :, 0, 0]), bands(image[0, 0, :, 0])
    region = (3 * rows[:, None] + columns)[None, :, :, None]
    region = window_partition(region, window).view(-1, window**2)
    return (region[:, None] != region[:, :, None]).to(image.dtype) * MASKED


def _mirrored(x: Tensor, dimension: int, multiple: int) -> Tensor:
    """One side as ``pad_to_multiple`` pads it, without asking how long it is."""
    line = _side(x, dimension)
    size = line.shape[0]
    padded = (size + multiple - 1) // multiple * multiple
    position = _positions(F.pad(line, (0, padded - size)))
    last = _positions(line)[-1:]
    position = position % (2 * last).clamp(min=1)  # 0 1 2 1 0 1 2 ...
    return x.index_select(dimension, torch.minimum(position, 2 * last - position))


def _side(x: Tensor, dimension: int) -> Tensor:
    """The pixels along one edge of ``x``: of (B, C, H, W) at dimension -2 (H,), at -1 (W,)."""
    return x[0, 0].select(-3 - dimension, 0)


def _positions(line: Tensor) -> Tensor:
    """0, 1, 2, ... along ``line``; unlike ``arange`` it leaves no device behind in a recorded graph."""
    return torch.ones_like(line, dtype=torch.long).cumsum(0) - 1


def _buffer_plain_tensors(module: nn.Module) -> None:
    """Mean colours that BasicSR keeps as plain attributes would stay on the device they were recorded on."""
    for name, value in list(vars(module).items()):
        if isinstance(value, Tensor):
            delattr(module, name)
            module.register_buffer(name, value, persistent=False)
