"""Distance between features seen through kernels that were made for each image: the loss of MKD."""

import torch.nn.functional as F
from torch import Tensor


def dynamic_convolution(feature: Tensor, kernels: Tensor) -> Tensor:
    """Every channel of every image convolved with that image's kernels, zeros around.

    ``feature`` (B, C, H, W) and ``kernels`` (B, N, k, k), k odd, to (B, N, C, H, W). As in torch, a kernel is not
    flipped.
    """
    batch, count, side, _ = kernels.shape
    channels_first = feature.transpose(0, 1)  # (C, B, H, W): the images become groups
    convolved = F.conv2d(channels_first, kernels.reshape(batch * count, 1, side, side), padding=side // 2, groups=batch)
    return convolved.unflatten(1, (batch, count)).permute(1, 2, 0, 3, 4)


def knowledge_representation(student: Tensor, teacher: Tensor, kernels: Tensor) -> Tensor:
    """``sum over the N kernels of mean|K_n * F_S - K_n * F_T|``, a scalar.

    MKD (Zhu, Liu, Chen 2022, https://arxiv.org/abs/2207.08356); only its abstract was readable to us, so the formula is
    ours. ``student`` and ``teacher`` are (B, C, H, W), ``kernels`` (B, N, k, k). A convolution is linear, so it is
    applied once, to the difference.
    """
    return dynamic_convolution(student - teacher, kernels).abs().mean(dim=(0, 2, 3, 4)).sum()
