"""A network that only ever infers: frozen, in eval mode, padded to its window, in the precision asked for."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtkd_arch.merged_upsampling import merge_tails
from mtkd_arch.padding import pad_to_multiple
from mtkd_arch.taps import unwrapped

Precision = Literal['fp32', 'bf16', 'fp16', 'auto']
DTYPES = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}
PRECISIONS = (*DTYPES, 'auto')
# what enters and leaves the residual stream, and the image; with these in float32 so is the stream
FLOAT32_MODULES = ('conv_first', 'conv_after_body', 'conv_last')


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

    The weights stay float32; ``precision`` is that of autocast, and the output is float32 again. ``auto`` is bf16 where
    the device computes in it, else fp32. In half precision the convolutions at both ends of the body and the last one
    stay in float32, if they have BasicSR's names: then the sums along the skip connections do too, and bf16 costs the
    output a tenth of what it would. ``compile`` is ``torch.compile`` with its defaults, ``merged`` whether the tail
    runs as one, see ``merge_tails``.

    Raises ValueError for an unknown precision.
    """

    def __init__(
        self,
        network: nn.Module,
        window: int = 1,
        precision: Precision = 'fp32',
        channels_last: bool = True,
        compile: bool = False,
        merged: bool = True,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ValueError(f"precision '{precision}' is unknown; expected one of {', '.join(PRECISIONS)}")
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network
        if merged:
            merge_tails(network)
        self.window, self.precision = window, precision
        if precision != 'fp32':
            for name in FLOAT32_MODULES:
                module = getattr(unwrapped(network), name, None)
                if isinstance(module, nn.Conv2d):
                    _keep_in_float32(module)
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
        dtype = DTYPES[resolve_precision(self.precision, x.device)]
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            return forward_padded(self.network, x, scale, self.window).float()


def resolve_precision(precision: Precision | None, device: torch.device) -> str:
    """A key of ``DTYPES``: ``auto`` is bf16 where ``device`` computes in it, else fp32, as None is."""
    if precision == 'auto':
        return 'fp32' if best_dtype(device) is None else 'bf16'
    return precision or 'fp32'


def best_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where ``device`` has instructions for it, else None."""
    if device.type == 'cuda':
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == 'cpu' and any(
            getattr(torch.cpu, name, lambda: False)()
            for name in ('_is_avx512_bf16_supported', '_is_amx_tile_supported')
        )
    return torch.bfloat16 if native else None


def _keep_in_float32(module: nn.Module) -> None:
    forward = module.forward

    def in_float32(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    module.forward = in_float32
