"""Distance between the spatial attention of two feature maps."""

from typing import Literal

from torch import Tensor

from mtkd_loss.features import in_float32, require_equal_maps, unit_vectors

Norm = Literal['l1', 'l2']


def attention_map(feature: Tensor, p: float = 2) -> Tensor:
    """``sum_c |F_c|^p`` of each image with Euclidean norm 1: (B, C, H, W) to (B, H * W), in float32 or float64."""
    return unit_vectors(in_float32(feature).abs().pow(p).sum(dim=1).flatten(1), dim=1)


def attention_transfer(student: Tensor, teacher: Tensor, p: float = 2, norm: Norm = 'l2') -> Tensor:
    """Mean squared (``l2``) or mean absolute (``l1``) difference of the attention maps of two features.

    Attention transfer (Zagoruyko and Komodakis, ICLR 2017, eq. 2, https://arxiv.org/abs/1612.03928). Equation 2
    takes the norm of the difference; its weight, 10^3 over the number of elements and the batch, makes a mean of it.

    Args:
        student, teacher: (B, C, H, W) of any range; the numbers of channels may differ.
        p: power of the activations.
        norm: distance between the maps.

    Raises ValueError for maps of different size.
    """
    require_equal_maps(student, teacher, 'attention maps')
    difference = attention_map(student, p) - attention_map(teacher.detach(), p)
    return difference.abs().mean() if norm == 'l1' else difference.square().mean()
