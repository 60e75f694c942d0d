"""Contrastive distillation in a feature space: near the teacher, far from the negatives."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtkd_loss.features import in_float32

FIVE_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # relu1_1 ... relu5_1 of VGG19


def contrastive_ratio(student: Tensor, teacher: Tensor, negatives: Sequence[Tensor], eps: float = 1e-6) -> Tensor:
    """``mean|T - S| / mean over k of mean|N_k - S|`` of one feature, a scalar.

    Computed in float32 at least, whatever the inputs are: in half precision the means lose their value and ``eps``,
    below which the denominator does not go, is zero. All tensors are of one shape, (B, C, H, W) or (B, N, C), each
    negative holding one negative per sample.
    """
    student = in_float32(student)
    with torch.autocast(student.device.type, enabled=False):
        to_teacher = (in_float32(teacher) - student).abs().mean()
        to_negatives = sum((in_float32(negative) - student).abs().mean() for negative in negatives) / len(negatives)
        return to_teacher / to_negatives.clamp_min(eps)


def contrastive_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    negatives: Sequence[Sequence[Tensor]],
    weights: Sequence[float],
) -> Tensor:
    """``sum over i of weights_i * contrastive_ratio(S_i, T_i, N_i)``.

    CSD (Wang et al., IJCAI 2021, https://arxiv.org/abs/2105.11683). ``student`` and ``teacher`` hold the features of
    an encoder, ``negatives`` per feature the negatives. A ratio of means over the whole batch: it does not depend on
    the scale of the features, and is not the mean of its samples.
    """
    features = zip(weights, student, teacher, negatives, strict=True)
    return sum(weight * contrastive_ratio(own, other, against) for weight, own, other, against in features)


def other_samples(features: Tensor, count: int) -> list[Tensor]:
    """Up to ``count`` rearrangements of a batch in which no sample stands at its own place, nor any pair twice.

    At most B - 1 exist. The k-th is the batch moved on by k, so that the own sample is never a negative.
    """
    return [features.roll(shift, 0) for shift in range(1, min(count, len(features) - 1) + 1)]
