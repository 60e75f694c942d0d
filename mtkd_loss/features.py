"""What the losses on feature maps share."""

import torch
from torch import Tensor


def in_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is: squares of features overflow float16."""
    return x if x.dtype == torch.float64 else x.float()


def unit_vectors(x: Tensor, dim: int) -> Tensor:
    """``x`` over its Euclidean norm along ``dim``, in float32 or float64.

    A zero vector stays zero and gets no gradient; with an epsilon in the denominator its gradient would explode.
    """
    x = in_float32(x)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    dead = norm < torch.finfo(x.dtype).tiny ** 0.5
    return (x / norm.masked_fill(dead, 1.0)).masked_fill(dead, 0.0)


def require_equal_maps(student: Tensor, teacher: Tensor, what: str) -> None:
    """Raise ValueError unless two maps (B, C, H, W) are equal but for their channels."""
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f'{what} should be two batches (B, C, H, W) of equal B: student {tuple(student.shape)}, '
            f'teacher {tuple(teacher.shape)}'
        )
    if student.shape[2:] != teacher.shape[2:]:
        raise ValueError(f'{what} differ in size: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}')
