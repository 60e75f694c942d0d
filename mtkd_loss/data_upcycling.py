"""The image side of data upcycling (DUKD): invertible views, zoomed-in and zoomed-out images."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Augmentation = Literal['invert', 'hflip', 'vflip', 'transpose']
# each is its own inverse, so that undoing a sequence is applying it backwards
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    'invert': lambda images: 1 - images,
    'hflip': lambda images: images.flip(-1),
    'vflip': lambda images: images.flip(-2),
    'transpose': lambda images: images.transpose(-2, -1),
}


def transform(images: Tensor, names: Sequence[Augmentation]) -> Tensor:
    """``images`` (B, C, H, W), RGB in [0, 1], after the named transforms, one after the other."""
    for name in names:
        images = TRANSFORMS[name](images)
    return images


def inverse_transform(images: Tensor, names: Sequence[Augmentation]) -> Tensor:
    """Undo ``transform(images, names)``: the inverses in reverse order. Works on upsampled images alike."""
    return transform(images, names[::-1])


def choose_transforms(names: Sequence[Augmentation]) -> list[Augmentation]:
    """Each of ``names`` with probability 1/2, in their order, from torch's random state."""
    return [name for name, taken in zip(names, torch.rand(len(names)).tolist(), strict=True) if taken < 0.5]


def random_crops(images: Tensor, height: int, width: int) -> Tensor:
    """A crop (B, C, height, width) of ``images`` (B, C, H, W), at a place of its own for every sample."""
    rows, columns = images.shape[-2] - height + 1, images.shape[-1] - width + 1
    tops = torch.randint(rows, (len(images),)).tolist()
    lefts = torch.randint(columns, (len(images),)).tolist()
    crops = zip(images, tops, lefts, strict=True)
    return torch.stack([image[:, top : top + height, left : left + width] for image, top, left in crops])


def zoom_out(lq: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """``lq`` (B, C, H, W) made smaller by ``scale`` once more, and the part of ``lq`` it shows.

    Bicubic with antialiasing (``F.interpolate``; not bit for bit the function that made the data set), clamped to
    [0, 1] as stored images are. Sides that are no multiple of ``scale`` lose their last pixels.

    Returns:
        (B, C, H // scale, W // scale) and (B, C, scale * (H // scale), scale * (W // scale)).
    """
    height, width = lq.shape[-2] // scale, lq.shape[-1] // scale
    shown = lq[..., : height * scale, : width * scale]
    small = F.interpolate(shown, size=(height, width), mode='bicubic', antialias=True, align_corners=False)
    return small.clamp(0, 1), shown
