"""Which teachers a term listens to, and how much: the ``teachers`` argument that several methods share."""

from collections.abc import Collection, Mapping

from torch import Tensor

from mtkd.checks import nearest
from mtkd_model.step import Step

Teachers = Mapping[str, float] | str | None


def available_outputs(step: Step) -> tuple[str, ...]:
    """What a term can compare with: the ``target``, unless a cache lacks it, and each teacher by name."""
    return (*(['target'] if step.aggregated is not None else []), *step.teachers)


def weights_of(teachers: Teachers, available: Collection[str], target: bool = False) -> dict[str, float]:
    """Weight by teacher: of a mapping as it is, 1 for one name, and for None every teacher with an equal share.

    With ``target``, None is the aggregated target. Raises ValueError for a name that is not among the ``available``, a
    weight that is no finite number above zero and a mapping without teachers.
    """
    names = tuple(available)
    if teachers is None and not target:
        return {name: 1 / len(names) for name in names}
    teachers = 'target' if teachers is None else teachers
    weights = {teachers: 1.0} if isinstance(teachers, str) else teachers
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f'teachers should be a name or map names to weights; it is {teachers!r}')
    for name, weight in weights.items():
        if name not in names:
            raise ValueError(f"teacher '{name}' is unknown: {nearest(name, names)}Available: {', '.join(names)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float('inf'):
            raise ValueError(f"the weight of teacher '{name}' should be a number above zero; it is {weight!r}")
    return {name: float(weight) for name, weight in weights.items()}


def output_of(step: Step, name: str) -> Tensor:
    """The output of the teacher ``name``, or the target of that name."""
    return step.target if name == 'target' else step.teachers[name]
