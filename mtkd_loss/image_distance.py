"""L1 between two batches of images, safe in half precision."""

import torch.nn.functional as F
from torch import Tensor

from mtkd_loss.features import in_float32


def mean_distance(one: Tensor, other: Tensor) -> Tensor:
    """``mean|one - other|`` of two (B, C, H, W), in float32 at least: half precision loses a mean over many pixels."""
    return F.l1_loss(in_float32(one), in_float32(other))
