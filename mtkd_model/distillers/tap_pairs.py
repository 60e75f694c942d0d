"""What the methods share that compare a student's features with teachers': which pairs, and how they get them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mtkd_arch.default_taps import body_taps
from mtkd_model.distillers.base import Distiller
from mtkd_model.lq_maps import student_map, teacher_map, windows
from mtkd_model.step import Step
from mtkd_model.teacher_weights import Teachers, weights_of


class TapPair(NamedTuple):
    """A module path in the student, ``<teacher>/<module path>``, and the weight of that teacher."""

    student: str
    teacher: str
    weight: float

    @property
    def place(self) -> tuple[str, str]:
        """The teacher and the module path in it."""
        name, _, path = self.teacher.partition('/')
        return name, path


class PairedTapsDistiller(Distiller):
    """Base of methods that compare the k-th tap of the student with the k-th tap of each teacher.

    Args:
        taps: student module path -> ``<teacher>/<module path>``, or a list of them; None takes ``body_taps`` of both.
        teachers: a name, or names with weights; None is all of them (with ``taps``, all named there) with equal
            weights that add up to 1.
        parts: number of default taps of each network.
        loss_weight: factor of the term.

    Raises ValueError for ``taps`` or ``teachers`` of another form and teachers that only one of the two names.
    """

    equal_sizes: str | None = 'feature maps'  # what the message calls maps that must be of equal size; None: need not
    any_size = True  # else that of LQ

    def __init__(
        self,
        taps: Mapping[str, str | Sequence[str]] | None,
        teachers: Teachers,
        parts: int,
        loss_weight: float,
    ) -> None:
        super().__init__(loss_weight)
        self.teachers, self.parts = teachers, parts
        self.pairs: tuple[TapPair, ...] = ()
        self.windows: dict[str, int] = {}
        self.taps_are_named = taps is not None
        if self.taps_are_named:
            self._set_pairs(_named_pairs(taps, teachers))

    def choose_taps(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        if self.taps_are_named:
            return
        weights = weights_of(self.teachers, teachers)
        own = body_taps(student, self.parts)
        self._set_pairs(
            TapPair(path, f'{name}/{teacher_path}', weight)
            for name, weight in weights.items()
            for path, teacher_path in zip(own, body_taps(teachers[name], self.parts), strict=True)
        )

    def _set_pairs(self, pairs: Iterable[TapPair]) -> None:
        self.pairs = tuple(pairs)
        self.student_taps = tuple(dict.fromkeys(pair.student for pair in self.pairs))
        self.teacher_taps = tuple(dict.fromkeys(pair.teacher for pair in self.pairs))

    def build(self, step: Step) -> None:
        self.windows = windows(step)
        for pair, (student, teacher, _) in zip(self.pairs, self.features(step), strict=True):
            if self.equal_sizes and student.shape[2:] != teacher.shape[2:]:
                raise ValueError(
                    f'{self.equal_sizes} differ in size: student {tuple(student.shape)}, teacher '
                    f'{tuple(teacher.shape)}: name taps of one size instead of {pair.student} and {pair.teacher}'
                )

    def features(self, step: Step) -> list[tuple[Tensor, Tensor, float]]:
        """Maps (B, C, H, W) of student and teacher and the teacher's weight, one entry per pair."""
        return [
            (
                student_map(step, pair.student, self.windows, self.any_size),
                teacher_map(step, pair.teacher, self.windows, self.any_size),
                pair.weight,
            )
            for pair in self.pairs
        ]


def _named_pairs(taps: Mapping[str, str | Sequence[str]], teachers: Teachers) -> list[TapPair]:
    paths = {
        path: [theirs] if isinstance(theirs, str) else theirs
        for path, theirs in (taps.items() if isinstance(taps, Mapping) else ())
    }
    if not paths or not all(
        isinstance(p, list | tuple) and p and all(isinstance(t, str) for t in p) for p in paths.values()
    ):
        raise ValueError(f'taps should map student paths to <teacher>/<path>, or a list of them; it is {taps!r}')
    named = dict.fromkeys(path.partition('/')[0] for theirs in paths.values() for path in theirs)
    weights = weights_of(teachers, named)
    for name in named:
        if name not in weights:
            raise ValueError(f"taps name the teacher '{name}', teachers do not: name it in both or in neither")
    return [TapPair(own, path, weights[path.partition('/')[0]]) for own, theirs in paths.items() for path in theirs]
