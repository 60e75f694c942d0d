"""CrossKD: the student's features run through the rest of a teacher, whose output they should not change."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from mtkd_loss.image_distance import mean_distance
from mtkd_model.default_taps import body_taps
from mtkd_model.distillers.base import DISTILLER_REGISTRY, Distiller
from mtkd_model.step import Step
from mtkd_model.taps import find_module
from mtkd_model.teacher_tails import map_of_tap, tail, tapped_channels, window_in
from mtkd_model.teacher_weights import Teachers, weights_of

Taps = Mapping[str, str | Sequence[str]]


@DISTILLER_REGISTRY.register()
class CrossKDDistiller(Distiller):
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

    def __init__(self, taps: Taps | None = None, teachers: Teachers = None, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.teachers = teachers
        self.pairs = None if taps is None else list(_pairs(taps))
        self.student_taps = tuple(dict.fromkeys(student for student, _, _ in self.pairs or ()))

    def choose_taps(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        tapped = teachers if self.pairs is None else dict.fromkeys(teacher for _, teacher, _ in self.pairs)
        for name in tapped:
            weights_of(name, teachers)  # refuses the unknown
        self.weights = weights_of(self.teachers, tapped)
        if self.pairs is None:
            self.pairs = [
                (own, name, path)
                for name in self.weights
                for own, path in zip(body_taps(student), body_taps(teachers[name]), strict=True)
            ]
        self.pairs = [pair for pair in dict.fromkeys(self.pairs) if pair[1] in self.weights]
        self.student_taps = tuple(dict.fromkeys(student for student, _, _ in self.pairs))
        for _, name, path in self.pairs:
            find_module(teachers[name], path, f"tap of teacher '{name}'")

    def build(self, step: Step) -> None:
        self.student_window = window_in(step.student_network)
        adapters = []
        for student, name, path in self.pairs:
            try:
                own = map_of_tap(step.student_taps[student], step.lq, self.student_window)
            except ValueError as error:
                raise ValueError(f"student tap '{student}': {error}: choose a module before the upsampler") from error
            try:
                channels = tapped_channels(step.teacher_networks[name], path, step.lq)
            except ValueError as error:
                raise ValueError(f"teacher tap '{name}/{path}': {error}: choose one before the upsampler") from error
            adapters.append(nn.Conv2d(own.shape[1], channels, 1))
        self.adapters = nn.ModuleList(adapters)

    def forward(self, step: Step) -> Tensor:
        return self.loss_weight * sum(
            self.weights[name] * self._distance(step, adapter, student, name, path)
            for adapter, (student, name, path) in zip(self.adapters, self.pairs, strict=True)
        )

    def _distance(self, step: Step, adapter: nn.Module, student: str, name: str, path: str) -> Tensor:
        feature = adapter(map_of_tap(step.student_taps[student], step.lq, self.student_window))
        return mean_distance(tail(step.teacher_networks[name], path, feature, step.lq), step.teachers[name])


def _pairs(taps: Taps) -> Iterator[tuple[str, str, str]]:
    """(student path, teacher, teacher path) of the ``taps`` argument."""
    if not isinstance(taps, Mapping) or not taps:
        raise ValueError(f'taps should map student paths to <teacher>/<path> or lists of them; it is {taps!r}')
    for student, paths in taps.items():
        for path in [paths] if isinstance(paths, str) else paths or [None]:
            if not isinstance(path, str) or not all(path.partition('/')):
                raise ValueError(f"taps: '{student}' should map to <teacher>/<path> or a list of them; it is {paths!r}")
            name, _, module = path.partition('/')
            yield student, name, module
