"""Distance between the spatial affinities of two feature maps, without ever holding an affinity matrix."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtkd_loss.features import require_equal_maps, unit_vectors

CHUNK = 2**22  # affinities held at once, of each network: 16 MB


def feature_affinity(student: Tensor, teacher: Tensor, chunk: int = CHUNK) -> Tensor:
    """``mean|A_S - A_T|`` with A = F^T F, the cosines between the features of all pairs of positions of an image.

    FAKD (He et al., ICIP 2020, https://doi.org/10.1109/ICIP40778.2020.9190917): F (B, C, H * W) has norm 1
    over the channels at every position, so A is (B, H * W, H * W) whatever the number of channels.

    A is symmetric and seen a block of rows at a time, upper half only; the gradient with respect to F_S is gathered in
    the same pass. Memory is that of the features and of ``chunk`` affinities of each network, not of A. Affinities are
    computed in float32 (float64 for such features) under autocast too. There is no second derivative.

    Args:
        student, teacher: (B, C, H, W) of any range; the numbers of channels may differ. The teacher gets no gradient.
        chunk: affinities of each network held at once.

    Raises ValueError for maps of different size.
    """
    require_equal_maps(student, teacher, 'feature maps')
    unit_student, unit_teacher = (unit_vectors(x.flatten(2), dim=1) for x in (student, teacher.detach()))
    rows = max(chunk // (unit_student.shape[0] * unit_student.shape[2]), 1)
    return _AffinityDistance.apply(unit_student, unit_teacher.to(unit_student.dtype), rows)


class _AffinityDistance(torch.autograd.Function):
    """``mean|S^T S - T^T T|`` of S (B, C, N) and T (B, C', N); its gradient is ready when its value is."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, rows: int) -> Tensor:
        batch, _, positions = student.shape
        total = student.new_zeros(())
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        with torch.autocast(student.device.type, enabled=False):
            for start in range(0, positions, rows):
                difference = _rows(student, start, rows).sub_(_rows(teacher, start, rows))  # (B, rows, N - start)
                magnitude = torch.linalg.vector_norm(difference, 1, dim=1)
                total += 2 * magnitude.sum() - magnitude[:, :rows].sum()  # the square on the diagonal counts once
                if gradient is not None:
                    _add_gradient(gradient, student, difference.sign_(), start, rows)
        count = batch * positions**2
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(2 / count))
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx, factor: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return factor * gradient, None, None


def _rows(unit: Tensor, start: int, rows: int) -> Tensor:
    """Rows ``start`` to ``start + rows`` of the affinities, from the diagonal on: (B, rows, N - start)."""
    return unit[:, :, start : start + rows].transpose(1, 2) @ unit[:, :, start:]


def _add_gradient(gradient: Tensor, unit: Tensor, sign: Tensor, start: int, rows: int) -> None:
    """Add ``sum_j sign_ij s_j`` to the columns i of ``gradient``, as far as these rows and, mirrored, columns know."""
    gradient[:, :, start : start + rows] += unit[:, :, start:] @ sign.transpose(1, 2)
    gradient[:, :, start + rows :] += unit[:, :, start : start + rows] @ sign[:, :, rows:]
