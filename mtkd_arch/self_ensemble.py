"""The geometric self-ensemble: a network averaged over the eight symmetries of the square."""

from collections.abc import Callable

import torch
from torch import Tensor


def self_ensemble(network: Callable[[Tensor], Tensor], lq: Tensor) -> Tensor:
    """Mean of ``network`` over the flips and transposes of ``lq``, each result turned back.

    Enhanced Deep Residual Networks (Lim et al., CVPRW 2017, section 3.4, https://arxiv.org/abs/1707.02921), "+" in its
    tables: eight times the cost. The sum is taken in float64, where the order of float32 terms does not show, so that
    a flipped or transposed image gives exactly the flipped or transposed result.

    ``lq`` is (B, C, H, W), the result (B, C', scale * H, scale * W) in the precision of the network's output.
    """
    total, dtype = None, lq.dtype
    for transposed in (False, True):
        for flips in ((), (-1,), (-2,), (-2, -1)):
            view = _turn(lq, flips)
            output = network((view.mT if transposed else view).contiguous())
            dtype = output.dtype
            output = _turn(output.mT if transposed else output, flips).to(torch.float64)
            total = output if total is None else total + output
    return (total / 8).to(dtype)


def _turn(image: Tensor, flips: tuple[int, ...]) -> Tensor:
    return image.flip(flips) if flips else image
