"""Attention transfer (AT): the student looks where its teachers look."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from mtkd_loss.attention_transfer_loss import Norm, attention_transfer
from mtkd_model.distillers.base import DISTILLER_REGISTRY
from mtkd_model.distillers.tap_pairs import PairedTapsDistiller
from mtkd_model.step import Step
from mtkd_model.teacher_weights import Teachers


@DISTILLER_REGISTRY.register()
class ATDistiller(PairedTapsDistiller):
    """``loss_weight * sum over teachers of weight * sum over taps of mean (Q_S - Q_T)^2``, Q = normalise(sum_c |F|^p).

    Attention transfer (Zagoruyko and Komodakis, ICLR 2017, eq. 2, https://arxiv.org/abs/1612.03928), see
    ``attention_transfer``. The numbers of channels may differ, nothing is trained. The paper's weight for
    classification is 10^3; beside an L1 loss of images in [0, 1] instead of [0, 255] that is 10^3 / 255.

    Args:
        taps: student module path -> ``<teacher>/<module path>``, or a list of them; None takes ``body_taps`` of both.
        teachers: a name, or names with weights; None is every teacher with equal weights that add up to 1.
        parts: number of default taps.
        p: power of the activations.
        norm: mean squared (``l2``) or absolute (``l1``) difference of the maps.
        loss_weight: factor of the term.

    Raises ValueError for taps whose maps differ in size, for an architecture without default taps, and for unknown
    teachers, ``p`` or ``norm``.
    """

    equal_sizes = 'attention maps'

    def __init__(
        self,
        taps: Mapping[str, str | Sequence[str]] | None = None,
        teachers: Teachers = None,
        parts: int = 3,
        p: float = 2,
        norm: Norm = 'l2',
        loss_weight: float = 1000 / 255,
    ) -> None:
        super().__init__(taps, teachers, parts, loss_weight)
        if norm not in ('l1', 'l2'):
            raise ValueError(f"norm '{norm}' is unknown; expected l1 or l2")
        if not p >= 1:
            raise ValueError(f'p is {p}, expected at least 1')
        self.p, self.norm = p, norm

    def forward(self, step: Step) -> Tensor:
        return self.loss_weight * sum(
            weight * attention_transfer(student, teacher, self.p, self.norm)
            for student, teacher, weight in self.features(step)
        )
