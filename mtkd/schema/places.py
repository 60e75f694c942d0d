"""Where the keys of an option file stand, and its problems with their places."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtkd.schema.problem import Problem


@dataclass(frozen=True)
class Place:
    """Where the value of a key stands: the line of the key, from 1, and the value as it is written, if it is plain."""

    line: int
    text: str | None = None


@dataclass
class OptionFile:
    """What was read: the options, places by dotted path, and what is wrong with the text itself."""

    path: Path
    options: Any = None
    places: dict[str, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def located(self, problem: Problem) -> Problem:
        """``problem`` with file and line; that of the nearest section where the key itself is not in the file."""
        path = problem.path
        while path and path not in self.places:
            path = path.rpartition('.')[0]
        place = self.places.get(path, Place(1))
        return _as_written(problem, place if path == problem.path else None).at(f'{self.path}:{place.line}')


def _as_written(problem: Problem, place: Place | None) -> Problem:
    if (
        not place
        or place.text is None
        or not isinstance(problem.given, bool)
        or place.text.lower() in ('true', 'false')
    ):
        return problem
    message = problem.message.replace(f'; it is {problem.given}', f'; it is {problem.given}, written {place.text}')
    return Problem(problem.path, message, problem.given, problem.expected, problem.nearest)


def with_places(found: list[Problem], file: OptionFile, forced: Mapping[str, str] | None = None) -> list[Problem]:
    """The problems ``found`` in the options of ``file``, with their places; those of ``forced`` keys stand elsewhere.

    What is wrong with the text comes first; another problem of the same key would say the same again.
    """
    forced = forced or {}
    told = {problem.path for problem in file.problems}
    others = [problem for problem in found if problem.path not in told]
    return [
        *file.problems,
        *(p.at(f'--force_yml {forced[p.path]}') if p.path in forced else file.located(p) for p in others),
    ]
