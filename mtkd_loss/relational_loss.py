"""Distances between the relations that two networks see among the samples of a batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_loss.features import in_float32, unit_vectors


def pooled(feature: Tensor) -> Tensor:
    """Global average of a map: (B, C, H, W) to (B, C), in float32 or float64."""
    return in_float32(feature).mean(dim=(2, 3))


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the pairwise distances of two sets of samples, each over its mean distance.

    Relational knowledge distillation (Park et al., CVPR 2019, section 3.2.1, https://arxiv.org/abs/1904.05068), RKD-D;
    the mean over the pairs of different samples. The authors' code averages over the square matrix with its zero
    diagonal, which is (B - 1) / B of this.

    Args:
        student, teacher: (B, D); D may differ. The teacher gets no gradient.

    Two samples are one pair, which is its own mean: below 3 samples the value is zero, with a gradient of zero.
    """
    _require_equal_batch(student, teacher)
    if len(student) < 3:
        return _zero(student)
    return F.smooth_l1_loss(_distances(student), _distances(teacher.detach()))


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 between the cosines of the angles that triples of samples form.

    Relational knowledge distillation (Park et al., CVPR 2019, section 3.2.2), RKD-A; the mean over the triples of
    different samples. The authors' code averages over all B^3, which is (B - 1) (B - 2) / B^2 of this.

    Args:
        student, teacher: (B, D); D may differ. The teacher gets no gradient.

    Below 3 samples there is no triple: the value is zero, with a gradient of zero.
    """
    _require_equal_batch(student, teacher)
    if len(student) < 3:
        return _zero(student)
    angles = F.smooth_l1_loss(_cosines(student), _cosines(teacher.detach()), reduction='sum')
    return angles / (len(student) * (len(student) - 1) * (len(student) - 2) / 2)


def _distances(x: Tensor) -> Tensor:
    """Distances of the pairs i < j over their mean: (B * (B - 1) / 2)."""
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
    distances = torch.linalg.vector_norm(x[first] - x[second], dim=1)
    mean = distances.mean()
    return distances / mean.masked_fill(mean == 0, 1.0)


def _cosines(x: Tensor) -> Tensor:
    """Cosines at every vertex of the angles to the pairs i < j; zero where the vertex is i or j: (B, pairs)."""
    edges = unit_vectors(x[None] - x[:, None], dim=2)  # (vertex, other end, D)
    with torch.autocast(x.device.type, enabled=False):
        cosines = edges @ edges.transpose(1, 2)
    first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
    return cosines[:, first, second]


def _require_equal_batch(student: Tensor, teacher: Tensor) -> None:
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ValueError(
            f'relations need samples (B, D) of equal B: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}'
        )


def _zero(x: Tensor) -> Tensor:
    return (x * 0).sum()  # stays in the graph
