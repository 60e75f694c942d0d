"""Relational knowledge distillation (RKD): the student arranges the images of a batch as its teachers do."""

from collections.abc import Mapping, Sequence

from basicsr.utils import get_root_logger
from torch import Tensor

from mtkd_loss.relational_loss import pooled, relational_angle, relational_distance
from mtkd_model.distillers.base import DISTILLER_REGISTRY
from mtkd_model.distillers.tap_pairs import PairedTapsDistiller
from mtkd_model.step import Step
from mtkd_model.teacher_weights import Teachers

SMALLEST_BATCH = 3


@DISTILLER_REGISTRY.register()
class RKDDistiller(PairedTapsDistiller):
    """``distance_weight * RKD-D + angle_weight * RKD-A`` of the features, averaged over their positions.

    Relational knowledge distillation (Park et al., CVPR 2019, https://arxiv.org/abs/1904.05068), see
    ``relational_distance`` and ``relational_angle``; summed over taps and, weighted, over teachers, times
    ``loss_weight``. 25 and 50 are the paper's for classification; beside an L1 loss of images in [0, 1] instead of
    [0, 255] the whole is divided by 255. Numbers of channels and sizes of maps may differ, nothing is trained.

    The relations are those within the batch of one process. A batch below 3 has none, neither normalised distances nor
    angles: both losses are zero then, and the log says so once.

    Args:
        taps: student module path -> ``<teacher>/<module path>``, or a list of them; None takes the last of the body.
        teachers: a name, or names with weights; None is every teacher with equal weights that add up to 1.
        parts: number of default taps.
        distance_weight, angle_weight: factors of the two losses, which the log has as ``distance`` and ``angle``.
        loss_weight: factor of both.

    Raises ValueError for an architecture without default taps and for unknown teachers.
    """

    equal_sizes = None

    def __init__(
        self,
        taps: Mapping[str, str | Sequence[str]] | None = None,
        teachers: Teachers = None,
        parts: int = 1,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        loss_weight: float = 1 / 255,
    ) -> None:
        super().__init__(taps, teachers, parts, loss_weight)
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, step: Step) -> dict[str, Tensor]:
        if step.iteration == 1 and len(step.lq) < SMALLEST_BATCH:
            get_root_logger().warning(
                f'RKDDistiller: a batch of {len(step.lq)} has no relations, the loss is zero: '
                f'set batch_size_per_gpu to {SMALLEST_BATCH} or more'
            )
        samples = [(pooled(student), pooled(teacher), weight) for student, teacher, weight in self.features(step)]
        losses = {
            'distance': (self.distance_weight, relational_distance),
            'angle': (self.angle_weight, relational_angle),
        }
        return {
            name: self.loss_weight * factor * sum(weight * loss(own, theirs) for own, theirs, weight in samples)
            for name, (factor, loss) in losses.items()
        }
