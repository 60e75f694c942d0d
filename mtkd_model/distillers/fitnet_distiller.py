"""FitNet hints: the student's features, mapped by a trained regressor, imitate a teacher's."""

from collections.abc import Mapping, Sequence
from typing import Any

from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor, nn

from mtkd.checks import build
from mtkd_model.distillers.base import DISTILLER_REGISTRY
from mtkd_model.distillers.tap_pairs import PairedTapsDistiller
from mtkd_model.step import Step


@DISTILLER_REGISTRY.register()
class FitNetDistiller(PairedTapsDistiller):
    """``loss_weight * sum over the pairs of loss(regressor(F_S), F_T)``.

    FitNets (Romero et al., ICLR 2015, eq. 3, https://arxiv.org/abs/1412.6550); there the hint loss is half the squared
    error, here the mean of whatever loss is named. Each regressor is a 1 x 1 convolution, since SR networks of one
    scale keep the size of the feature maps. Every pair counts in full, whatever the number of teachers.

    Args:
        taps: student module path -> ``<teacher>/<module path>``, or a list of them; None takes ``body_taps`` of the
            student and of every teacher.
        loss: option of a loss of BasicSR's registry, by default the mean squared error.
        loss_weight: factor of the term.

    Raises ValueError for an empty ``taps``, for a pair whose maps differ in height or width, and for an architecture
    without default taps.
    """

    equal_sizes = 'maps'

    def __init__(
        self,
        taps: Mapping[str, str | Sequence[str]] | None = None,
        loss: Mapping[str, Any] | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(taps, None, 3, loss_weight)
        self.loss = build(LOSS_REGISTRY, loss or {'type': 'MSELoss'}, 'loss')

    def build(self, step: Step) -> None:
        super().build(step)
        self.regressors = nn.ModuleList(
            nn.Conv2d(student.shape[1], teacher.shape[1], 1) for student, teacher, _ in self.features(step)
        )

    def forward(self, step: Step) -> Tensor:
        pairs = zip(self.regressors, self.features(step), strict=True)
        return self.loss_weight * sum(
            self.loss(regressor(student), teacher) for regressor, (student, teacher, _) in pairs
        )
