"""Distillation of outputs: plain knowledge distillation (KD) and MTKD are two option files over this file."""

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from mtkd.checks import build, nearest
from mtkd_model.distillers.base import DISTILLER_REGISTRY, Distiller
from mtkd_model.step import Step
from mtkd_model.teacher_weights import available_outputs


@DISTILLER_REGISTRY.register()
class OutputDistiller(Distiller):
    """``loss_weight * loss(student, teacher)`` on the output images.

    With WaveletLoss on the aggregated target this is stage 2 of MTKD (Jiang et al., ECCV 2024,
    https://arxiv.org/abs/2404.09571); with L1Loss on one teacher it is KD.

    Args:
        loss: option of any loss of BasicSR's registry that takes (prediction, target).
        teacher: ``target``, the aggregated one, or the name of a teacher.
        loss_weight: factor of the term.

    Raises ValueError for an unknown loss or teacher.
    """

    needs_networks = False

    def __init__(self, loss: Mapping[str, Any], teacher: str = 'target', loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.loss = build(LOSS_REGISTRY, loss, 'loss')
        self.teacher = teacher

    def build(self, step: Step) -> None:
        names = available_outputs(step)
        if self.teacher not in names:
            raise ValueError(
                f"teacher '{self.teacher}' is unknown: {nearest(self.teacher, names)}Available: {', '.join(names)}"
            )

    def forward(self, step: Step) -> Tensor:
        teacher = step.target if self.teacher == 'target' else step.teachers[self.teacher]
        return self.loss_weight * self.loss(step.student, teacher)
