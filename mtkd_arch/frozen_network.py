"""A network that only ever infers: frozen, in eval mode, padded to its window, in the precision asked for."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtkd_arch.padding import pad_to_multiple

Precision = Literal['fp32', 'bf16', 'fp16']
DTYPES = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def forward_padded(network: nn.Module, x: Tensor, scale: int, window: int) -> Tensor:
    """``network(x)`` for any height and width: mirror-padded to a multiple of ``window``, the result cropped.

    ``x`` is (B, C, H, W), the result (B, C', scale * H, scale * W). Raises ValueError when the network upsamples by
    another factor: cropping would hide it.
    """
    height, width = x.shape[-2:]
    padded = pad_to_multiple(x, window)
    output = network(padded)
    expected = (padded.shape[-2] * scale, padded.shape[-1] * scale)
    if output.shape[-2:] != expected:
        raise ValueError(
            f'{type(network).__name__} turns {tuple(padded.shape)} into {tuple(output.shape)}, '
            f'but scale is {scale}: expected {expected[0]} x {expected[1]}'
        )
    return output[..., : height * scale, : width * scale]


class FrozenNetwork(nn.Module):
    """Holds ``network`` for inference; ``train()`` does not reach it, no gradient is recorded in it.

    The weights stay float32; ``precision`` is that of autocast, and the output is float32 again. ``compile`` is
    ``torch.compile`` with its defaults. Raises ValueError for an unknown precision.
    """

    def __init__(
        self,
        network: nn.Module,
        window: int = 1,
        precision: Precision = 'fp32',
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if precision not in DTYPES:
            raise ValueError(f"precision '{precision}' is unknown; expected one of {', '.join(DTYPES)}")
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network
        self.window, self.dtype = window, DTYPES[precision]
        if compile:
            network.compile()
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> 'FrozenNetwork':
        """Stay in eval mode: a teacher in train mode drops paths and would be random."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor, scale: int = 1) -> Tensor:
        """``x`` (B, C, H, W), RGB in [0, 1], to float32 (B, C', scale * H, scale * W), not clamped."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype is not None):
            return forward_padded(self.network, x, scale, self.window).float()
