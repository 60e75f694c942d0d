"""FitNet hints: the student's features, mapped by a trained regressor, imitate a teacher's."""

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from mtkd.checks import build
from mtkd_model.distillers.base import DISTILLER_REGISTRY, Distiller
from mtkd_model.step import Step
from mtkd_model.taps import as_map


@DISTILLER_REGISTRY.register()
class FitNetDistiller(Distiller):
    """``loss_weight * sum over the pairs of loss(regressor(F_S), F_T)``.

    FitNets (Romero et al., ICLR 2015, eq. 3, https://arxiv.org/abs/1412.6550); there the hint loss is half the squared
    error, here the mean of whatever loss is named. Each regressor is a 1 x 1 convolution, since SR networks of one
    scale keep the size of the feature maps.

    Args:
        taps: student module path -> ``<teacher>/<module path>``.
        loss: option of a loss of BasicSR's registry, by default the mean squared error.
        loss_weight: factor of the term.

    Raises ValueError for an empty ``taps`` and for a pair whose maps differ in height or width.
    """

    def __init__(
        self, taps: Mapping[str, str], loss: Mapping[str, Any] | None = None, loss_weight: float = 1.0
    ) -> None:
        super().__init__(loss_weight)
        if not isinstance(taps, Mapping) or not taps or not all(isinstance(path, str) for path in taps.values()):
            raise ValueError(f'taps should map student paths to <teacher>/<path>; it is {taps!r}')
        self.taps = dict(taps)
        self.student_taps, self.teacher_taps = tuple(self.taps), tuple(self.taps.values())
        self.loss = build(LOSS_REGISTRY, loss or {'type': 'MSELoss'}, 'loss')

    def build(self, step: Step) -> None:
        regressors = []
        for (student_path, teacher_path), (student, teacher) in zip(self.taps.items(), _pairs(self, step), strict=True):
            if student.shape[2:] != teacher.shape[2:]:
                raise ValueError(
                    f'maps differ in size: student {student_path} {tuple(student.shape)}, '
                    f'teacher {teacher_path} {tuple(teacher.shape)}'
                )
            regressors.append(nn.Conv2d(student.shape[1], teacher.shape[1], 1))
        self.regressors = nn.ModuleList(regressors)

    def forward(self, step: Step) -> Tensor:
        pairs = zip(self.regressors, _pairs(self, step), strict=True)
        return self.loss_weight * sum(self.loss(regressor(student), teacher) for regressor, (student, teacher) in pairs)


def _pairs(distiller: FitNetDistiller, step: Step) -> list[tuple[Tensor, Tensor]]:
    height, width = step.lq.shape[-2:]
    return [
        (as_map(step.student_taps[student], height, width), as_map(step.teacher_taps[teacher], height, width))
        for student, teacher in distiller.taps.items()
    ]
