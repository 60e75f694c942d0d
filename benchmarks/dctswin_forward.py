"""How much faster DCTSwin runs than the same network with an FFT-based DCT and attention written out.

Two baselines of the same weights: ``plain`` also runs every convolution of the upsampling on its own, as the released
network does; ``plain_attention`` shares all convolutions with DCTSwin, so it shows the part of the window attention.

``dctswin_bf16`` is ours in the precision that the option files give the aggregator.
"""

import argparse
import copy
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import record
from mtkd_arch.dctswin_arch import DCTSwin, DctWindowAttention
from mtkd_arch.frozen_network import FrozenNetwork

BATCH = (4, 9, 128, 128)  # crops of 128 pixels of three teachers
TOLERANCE = 1e-5
HALF_TOLERANCE = 1 / 255  # of bf16, one level of 8 bits


def fft_dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II of the last axis by an FFT of the same length (Makhoul 1980), as torch_dct does it."""
    size = x.shape[-1]
    rows = x.reshape(-1, size)
    reordered = torch.cat([rows[:, ::2], rows[:, 1::2].flip(1)], dim=1)
    spectrum = torch.view_as_real(torch.fft.fft(reordered, dim=1))
    angle = torch.arange(size, dtype=x.dtype, device=x.device) * (math.pi / (2 * size))
    result = spectrum[..., 0] * angle.cos() + spectrum[..., 1] * angle.sin()
    result[:, 0] /= math.sqrt(size)
    result[:, 1:] /= math.sqrt(size / 2)
    return result.view(x.shape)


def fft_idct(x: Tensor) -> Tensor:
    """Inverse of :func:`fft_dct`."""
    size = x.shape[-1]
    rows = x.reshape(-1, size).clone()
    rows[:, 0] *= math.sqrt(size)
    rows[:, 1:] *= math.sqrt(size / 2)
    mirrored = torch.cat([torch.zeros_like(rows[:, :1]), -rows.flip(1)[:, :-1]], dim=1)
    angle = torch.arange(size, dtype=x.dtype, device=x.device) * (math.pi / (2 * size))
    real = rows * angle.cos() - mirrored * angle.sin()
    imaginary = rows * angle.sin() + mirrored * angle.cos()
    spectrum = torch.view_as_complex(torch.stack([real, imaginary], dim=2))
    reordered = torch.fft.irfft(spectrum, n=size, dim=1)
    result = torch.empty_like(rows)
    result[:, ::2] = reordered[:, : (size + 1) // 2]
    result[:, 1::2] = reordered.flip(1)[:, : size // 2]
    return result.view(x.shape)


class PlainWindowAttention(DctWindowAttention):
    """The same attention with separable FFT-based DCTs and softmax(q k^T + bias) v written out."""

    def forward(self, windows: Tensor, mask: Tensor | None = None, kinds: Tensor | None = None) -> Tensor:
        count, tokens, dim = windows.shape
        qkv = self.qkv(_on_windows(fft_dct, windows)).view(count, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + self.position_bias()
        attended = (logits.softmax(-1) @ value).transpose(1, 2).reshape(count, tokens, dim)
        return _on_windows(fft_idct, self.proj(attended))


class PlainDCTSwin(DCTSwin):
    """The same network with the upsampling as its layers stand."""

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.conv_last(self.upsample(self.conv_before_upsample(x)))


def _on_windows(transform: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """Apply a 1-D transform to both axes of windows of tokens (M, N, C)."""
    side = math.isqrt(windows.shape[1])
    image = windows.view(-1, side, side, windows.shape[-1]).permute(0, 3, 1, 2)  # (M, C, side, side)
    image = transform(transform(image).transpose(-1, -2)).transpose(-1, -2)
    return image.permute(0, 2, 3, 1).reshape(windows.shape)


def build(device: torch.device) -> dict[str, nn.Module]:
    """The network at its published size, and the baselines with the same weights."""
    torch.manual_seed(0)
    network = DCTSwin(upscale=4, in_chans=9).to(device).eval()
    nn.init.normal_(network.conv_last.weight, std=0.02)  # it starts at zero, which would hide any difference
    plain_attention = copy.deepcopy(network)
    for module in plain_attention.modules():
        if type(module) is DctWindowAttention:
            module.__class__ = PlainWindowAttention
    plain = copy.deepcopy(plain_attention)
    plain.__class__ = PlainDCTSwin
    half = FrozenNetwork(copy.deepcopy(network), precision='bf16')
    return {'dctswin': network, 'dctswin_bf16': half, 'plain': plain, 'plain_attention': plain_attention}


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each network, what the plain ones take in units of ours, and how far the outputs are apart."""
    device = torch.device(args.device)
    networks = build(device)
    images = torch.rand(BATCH, device=device)
    outputs = {name: network(images) for name, network in networks.items()}
    apart = {name: (output - outputs['plain']).abs().max().item() for name, output in outputs.items()}
    for name, difference in apart.items():
        tolerance = HALF_TOLERANCE if name.endswith('bf16') else TOLERANCE
        if not difference <= tolerance:
            raise SystemExit(f'{name} differs by {difference:.1e}, expected at most {tolerance:.0e}')
    steps = {name: functools.partial(network, images) for name, network in networks.items()}
    times = record.interleaved(steps, args.runs, args.device, warmup=3)
    return {
        'what': f'DCTSwin at published size, input {BATCH}',
        **record.summaries(times),
        'largest_difference': apart,
        'to_plain': record.ratios(times, 'plain'),
        'plain_attention_to_ours': record.ratio(times['plain_attention'], times['dctswin']),
    }


def main(argv: list[str] | None = None) -> int:
    return record.run_part(argv, __doc__, measure, runs=20)


if __name__ == '__main__':
    sys.exit(main())
