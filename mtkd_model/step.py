"""What one training step offers to a distillation method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """One batch, seen by the student and its teachers. Images are RGB in [0, 1], (B, 3, H, W) for ``lq``.

    Args:
        lq, gt: input and ground truth.
        student: the student's output, with gradient.
        aggregated: the aggregated target (or the mean of the teachers), or what computes it when ``target`` is first
            asked for; None without teachers, or where a cache lacks it.
        teachers: each teacher's output by name; a teacher may run no further than to its taps if nothing asks for it.
        student_taps: the student's tapped features by module path, with gradient.
        teacher_taps: the teachers' tapped features by ``<teacher>/<module path>``.
        iteration: current iteration, from 1; 0 while the distillers are being built.
        scale: upsampling factor.
        patch: side of the LR patches trained on, also while the distillers are built with a smaller image.
        run_student: the student on another input, with gradient.
        run_teacher: a teacher, by name, on another input, without gradient.
        student_network: the student itself (not its wrapper), for methods that reach into it.
        teacher_networks: the teachers themselves by name, frozen; gradients may pass through them.
    """

    lq: Tensor
    gt: Tensor
    student: Tensor
    aggregated: Tensor | Callable[[], Tensor] | None
    teachers: Mapping[str, Tensor] = field(default_factory=dict)
    student_taps: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_taps: Mapping[str, Tensor] = field(default_factory=dict)
    iteration: int = 0
    scale: int = 1
    patch: int = 0
    run_student: Callable[[Tensor], Tensor] | None = None
    run_teacher: Callable[[str, Tensor], Tensor] | None = None
    student_network: nn.Module | None = None
    teacher_networks: Mapping[str, nn.Module] = field(default_factory=dict)

    @cached_property
    def target(self) -> Tensor | None:
        """The aggregated target, computed once."""
        return self.aggregated() if callable(self.aggregated) else self.aggregated
