"""A super-resolution network with heads that turn features inside it into images: the teacher of HKDSR."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from mtkd.checks import build
from mtkd_arch.default_taps import body_taps
from mtkd_arch.feature_maps import as_map, lq_map, window_in
from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.taps import record_taps


class UpsamplingHead(nn.Sequential):
    """A convolution and a pixel shuffle: features (B, C, h, w) to details (B, 3, scale * h, scale * w).

    They are divided by the ``img_range`` of ``network``, as BasicSR's networks do with their output: the features of
    EDSR and RCAN are of the magnitude of 255. :func:`image_of` adds them to the upsampled LQ image.
    """

    def __init__(self, channels: int, scale: int, network: nn.Module) -> None:
        super().__init__(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.img_range = float(getattr(network, 'img_range', 1.0))

    def forward(self, feature: Tensor) -> Tensor:
        return super().forward(feature) / self.img_range


def upsampled(lq: Tensor, scale: int) -> Tensor:
    """``lq`` (B, 3, H, W) bicubic, (B, 3, scale * H, scale * W), in float32: what the heads' images start from."""
    return F.interpolate(lq.float(), scale_factor=scale, mode='bicubic', align_corners=False)


def image_of(head: UpsamplingHead, feature: Tensor, base: Tensor, window: int) -> Tensor:
    """The intermediate SR image (B, 3, s * H, s * W) that ``head`` makes of a tap, tokens or map, and of ``base``.

    ``base`` is the :func:`upsampled` LQ image, ``window`` that to which the network pads LQ: what padding added to the
    feature is cropped from the image. A long skip carries the coarse parts of an image past the body of EDSR, RCAN and
    SwinIR, so that features inside it hold the details alone.
    """
    convolution, shuffle = head
    height, width = base.shape[-2:]
    scale = shuffle.upscale_factor
    details = head(as_map(feature, height // scale, width // scale, window).to(convolution.weight.dtype))
    return base + details[..., :height, :width]


@ARCH_REGISTRY.register()
class HierarchicalSR(nn.Module):
    """``network`` with an :class:`UpsamplingHead` at each of ``taps``, which give intermediate SR images.

    HKDSR (Neurocomputing 554:126592, 2023, https://doi.org/10.1016/j.neucom.2023.126592) pre-trains its teacher with
    several intermediate upsampling layers. Its text was not readable to us, so the form of the heads, their places and
    the upsampled LQ that they add to are ours. ``forward`` gives the output of ``network`` alone, so that this is a
    teacher or a student like any other; it pads to the window of ``network`` by itself. :func:`strip_heads` takes the
    heads off.

    Args:
        network: option of the network, such as ``{type: EDSR, ...}``.
        upscale: its upsampling factor.
        taps: module paths in ``network``, first to last; None takes ``body_taps``, each once.
        frozen: leave ``network`` as it is, in eval mode, and train the heads alone.

    Raises ValueError for an unknown network or path, one that upsamples by another factor, and for ``taps: null``
    where ``network`` has no default taps.
    """

    def __init__(
        self, network: Mapping[str, Any], upscale: int, taps: Sequence[str] | None = None, frozen: bool = False
    ) -> None:
        super().__init__()
        self.network = build(ARCH_REGISTRY, network, 'network')
        self.frozen = frozen
        self.upscale, self.window = upscale, window_in(self.network)
        self.taps = tuple(dict.fromkeys(taps or body_taps(self.network)))
        side = max(self.window, 8)
        with torch.random.fork_rng(devices=[]), torch.no_grad(), record_taps(self.network, self.taps) as features:
            self(torch.zeros(1, 3, side, side))
        widths = [lq_map(features[path], side, side, self.window).shape[1] for path in self.taps]
        self.heads = nn.ModuleList(UpsamplingHead(channels, upscale, self.network) for channels in widths)
        if frozen:
            self.network.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> 'HierarchicalSR':
        super().train(mode)
        if self.frozen:
            self.network.eval()  # SwinIR's stochastic depth
        return self

    @property
    def tap_paths(self) -> tuple[str, ...]:
        """The module paths, seen from this module, whose outputs :meth:`intermediate` wants."""
        return tuple(f'network.{path}' for path in self.taps)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, 3, H, W), RGB in [0, 1], to (B, 3, upscale * H, upscale * W)."""
        return forward_padded(self.network, x, self.upscale, self.window)

    def intermediate(self, features: Mapping[str, Tensor], base: Tensor) -> list[Tensor]:
        """The heads' SR images from the ``features`` at :attr:`tap_paths`; ``base`` is the :func:`upsampled` LQ."""
        pairs = zip(self.heads, self.tap_paths, strict=True)
        return [image_of(head, features[path], base, self.window) for head, path in pairs]

    def forward_all(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output and the intermediate SR images, first to last, all (B, 3, upscale * H, upscale * W)."""
        with record_taps(self, self.tap_paths) as features:
            output = self(x)
        return output, self.intermediate(features, upsampled(x, self.upscale))


def strip_heads(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the network inside, without the heads; raises ValueError where there is none."""
    stripped = {name.removeprefix('network.'): v for name, v in state_dict.items() if name.startswith('network.')}
    if not stripped or not any(name.startswith('heads.') for name in state_dict):
        names = ', '.join(list(state_dict)[:3]) or 'none'
        raise ValueError(f'no weights of a HierarchicalSR (network.*, heads.*): the first names are {names}')
    return stripped
