"""FAKD: the student relates the positions of an image to each other as its teachers do."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mtkd_loss.feature_affinity_loss import feature_affinity
from mtkd_model.distillers.base import DISTILLER_REGISTRY
from mtkd_model.distillers.tap_pairs import PairedTapsDistiller
from mtkd_model.step import Step
from mtkd_model.teacher_weights import Teachers


@DISTILLER_REGISTRY.register()
class FAKDDistiller(PairedTapsDistiller):
    """``loss_weight * sum over teachers of weight * sum over taps of mean|A_S - A_T|``, A the spatial affinities.

    Feature-affinity based knowledge distillation (He et al., ICIP 2020, https://doi.org/10.1109/ICIP40778.2020.9190917),
    see ``feature_affinity``. The whole of FAKD is ``(1 - a) mean|S - G| + a mean|S - T|`` with a = 0.5 besides:
    ``pixel_opt`` and an OutputDistiller of weight 0.5 each. Its weight of 10 for images in [0, 255] is 10 / 255 here.
    The numbers of channels may differ, nothing is trained. FAKD's last tap of RCAN includes the long skip, ours
    (``body_taps``) does not.

    Args:
        taps: student module path -> ``<teacher>/<module path>``, or a list of them; None takes ``body_taps`` of both.
        teachers: a name, or names with weights; None is every teacher with equal weights that add up to 1.
        parts: number of default taps.
        loss_weight: factor of the term.

    Raises ValueError for taps whose maps differ in size, for an architecture without default taps, and for unknown
    teachers.
    """

    def __init__(
        self,
        taps: Mapping[str, str | Sequence[str]] | None = None,
        teachers: Teachers = None,
        parts: int = 3,
        loss_weight: float = 10 / 255,
    ) -> None:
        super().__init__(taps, teachers, parts, loss_weight)

    def forward(self, step: Step) -> Tensor:
        return self.loss_weight * sum(
            weight * feature_affinity(student, teacher) for student, teacher, weight in self.features(step)
        )
