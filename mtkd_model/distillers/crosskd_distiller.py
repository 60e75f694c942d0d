"""CrossKD: the student's features run through the rest of a teacher, whose output they should not change."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mtkd_arch.taps import find_module
from mtkd_loss.image_distance import mean_distance
from mtkd_model.distillers.base import DISTILLER_REGISTRY
from mtkd_model.distillers.tap_pairs import PairedTapsDistiller, TapPair
from mtkd_model.lq_maps import student_map, windows
from mtkd_model.step import Step
from mtkd_model.teacher_tails import replaced_output, tapped_channels
from mtkd_model.teacher_weights import Teachers, weights_of


@DISTILLER_REGISTRY.register()
class CrossKDDistiller(PairedTapsDistiller):
    """``loss_weight * sum over teachers w_T * sum over taps k of mean|T_tail,k(A_k(F_S^k)) - T|``.

    After "Dual Cross Knowledge Distillation for image super-resolution", whose abstract says that the student is
    cascaded into the teacher, so that the teacher's trained parameters are used directly. The formula is ours; the
    paper's was not at hand. T_tail,k is the frozen teacher behind its k-th tap, A_k a trained 1 x 1 convolution to
    its width, and T the teacher's own output. The gradient passes through the teacher to A_k and the student up to
    the tap. Long skips of the teacher that begin before the tap carry its own features.

    Each tap costs a whole forward pass of its teacher and a backward pass of the part behind the tap.

    Args:
        taps: student module path -> ``<teacher>/<module path>``, or a list of them. By default, in every teacher,
            after 1/3, 2/3 and 3/3 of both bodies (``body_taps``); equal pairs, of short bodies, count once.
        teachers: name -> weight, or one name; by default every (tapped) teacher with an equal share.
        loss_weight: factor of the term.

    Raises ValueError for taps that do not exist or are not of the size of the input, for unknown teachers, and for
    networks without a known body where ``taps`` is left open.
    """

    def __init__(
        self,
        taps: Mapping[str, str | Sequence[str]] | None = None,
        teachers: Teachers = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(taps, teachers, 3, loss_weight)

    def choose_taps(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        super().choose_taps(student, teachers)
        self._set_pairs(dict.fromkeys(self.pairs))
        self.teacher_taps = ()  # only their places count
        for pair in self.pairs:
            name, path = pair.place
            weights_of(name, teachers)  # refuses the unknown
            find_module(teachers[name], path, f"tap of teacher '{name}'")

    def build(self, step: Step) -> None:
        self.windows = windows(step)
        adapters = []
        for pair in self.pairs:
            name, path = pair.place
            own = student_map(step, pair.student, self.windows)
            try:
                channels = tapped_channels(step.teacher_networks[name], path, step.lq)
            except ValueError as error:
                raise ValueError(f'teacher tap {pair.teacher}: {error}: choose one before the upsampling') from error
            adapters.append(nn.Conv2d(own.shape[1], channels, 1))
        self.adapters = nn.ModuleList(adapters)

    def forward(self, step: Step) -> Tensor:
        return self.loss_weight * sum(
            pair.weight * self._distance(step, adapter, pair)
            for adapter, pair in zip(self.adapters, self.pairs, strict=True)
        )

    def _distance(self, step: Step, adapter: nn.Module, pair: TapPair) -> Tensor:
        name, path = pair.place
        feature = adapter(student_map(step, pair.student, self.windows))
        output = replaced_output(step.teacher_networks[name], {path: feature}, step.lq)
        return mean_distance(output, step.teachers[name])
