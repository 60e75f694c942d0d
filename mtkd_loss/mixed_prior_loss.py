"""Mixing of student and teacher features by random masks: the mathematics of MiPKD."""

import torch
from torch import Tensor


def random_mask(like: Tensor, ratio: float) -> Tensor:
    """True with probability ``ratio``, drawn for every sample, channel and position of ``like`` (B, C, H, W)."""
    return torch.rand(like.shape, device=like.device) < ratio


def mixed(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """``teacher`` where ``mask`` is true, ``student`` elsewhere; all (B, C, H, W)."""
    return torch.where(mask, teacher, student)


def root_mean_square(feature: Tensor, smallest: float = 1e-6) -> Tensor:
    """Of each image of ``feature`` (B, C, H, W), at least ``smallest``: (B, 1, 1, 1)."""
    return (feature.square().mean(dim=(1, 2, 3), keepdim=True) + smallest**2).sqrt()


def random_route(steps: int, ratio: float) -> list[bool]:
    """For each of ``steps``: whether it is taken from the student, with probability ``ratio``, at least once in all."""
    route = (torch.rand(steps) < ratio).tolist()
    if not any(route):
        route[int(torch.randint(steps, ()))] = True
    return route
