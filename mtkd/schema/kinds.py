"""What the value of an option may be: each kind checks a value, says itself in words and as JSON Schema."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mtkd.schema.mismatch import NUMBER_IN_A_STRING, leaves, mismatch, number_in_a_string
from mtkd.schema.problem import Problem

WITH_ARTICLE = ('whole number', 'number', 'path', 'list', 'mapping')


@dataclass(frozen=True)
class Context:
    """What decides on a section besides itself: whether it is of a training run, and the model's class, if known."""

    training: bool = True
    model: type | None = None


class Kind:
    """A kind of value. ``parts`` are the alternatives in words, ``accepts`` says yes or no, ``problems`` why not."""

    parts: tuple[str, ...] = ('anything',)

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is of this kind."""
        return True

    def problems(self, value: Any, path: str, context: Context) -> Iterator[Problem]:
        """What is wrong with ``value`` at ``path``."""
        if not self.accepts(value):
            yield mismatch(value, path, self)

    def json(self) -> dict[str, Any]:
        """This kind as JSON Schema."""
        return {}

    def __str__(self) -> str:
        return either(self.parts)

    @property
    def expected(self) -> str:
        """In words with articles, for a message."""
        return either([f'a {part}' if part.startswith(WITH_ARTICLE) else part for part in self.parts])


def either(parts: Any) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    parts = list(dict.fromkeys(parts))
    return parts[0] if len(parts) == 1 else f'{", ".join(parts[:-1])} or {parts[-1]}'


@dataclass(frozen=True)
class Anything(Kind):
    """No promise, save that a number should not have become text."""

    def problems(self, value: Any, path: str, context: Context) -> Iterator[Problem]:
        for where, leaf in leaves(value, path):
            if isinstance(leaf, str) and NUMBER_IN_A_STRING.fullmatch(leaf):
                yield number_in_a_string(leaf, where)


ANYTHING = Anything()


@dataclass(frozen=True)
class Null(Kind):
    parts: ClassVar[tuple[str, ...]] = ('null',)

    def accepts(self, value: Any) -> bool:
        return value is None

    def json(self) -> dict[str, Any]:
        return {'type': 'null'}


@dataclass(frozen=True)
class Text(Kind):
    """Text, or the path of a file; both are strings."""

    parts: tuple[str, ...] = ('text',)

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str)

    def json(self) -> dict[str, Any]:
        return {'type': 'string'}


@dataclass(frozen=True)
class Flag(Kind):
    parts: ClassVar[tuple[str, ...]] = ('true', 'false')

    def accepts(self, value: Any) -> bool:
        return isinstance(value, bool)

    def json(self) -> dict[str, Any]:
        return {'type': 'boolean'}


@dataclass(frozen=True)
class Number(Kind):
    """A finite number in a range; ``whole`` for whole ones, ``or_float`` where BasicSR's files say ``!!float 5e3``."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    whole: bool = False
    or_float: bool = False

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        name = 'whole number' if self.whole else 'number'
        if self.least is not None and self.most is not None:
            return (f'{name}, {self.least} to {self.most}',)
        limits = {'at least': self.least, 'at most': self.most, 'above': self.above, 'below': self.below}
        given = [f'{word} {limit}' for word, limit in limits.items() if limit is not None]
        return (f'{name}, {" and ".join(given)}' if given else name,)

    def accepts(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            return False
        if self.whole and not isinstance(value, int) and not (self.or_float and value == int(value)):
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def json(self) -> dict[str, Any]:
        limits = {
            'minimum': self.least,
            'maximum': self.most,
            'exclusiveMinimum': self.above,
            'exclusiveMaximum': self.below,
        }
        kind = 'integer' if self.whole else 'number'
        return {'type': kind, **{name: limit for name, limit in limits.items() if limit is not None}}


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # a huge int has no float


@dataclass(frozen=True)
class Choice(Kind):
    """One of some values."""

    values: tuple[Any, ...]

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(map(str, self.values))

    def accepts(self, value: Any) -> bool:
        return any(type(value) is type(known) and value == known for known in self.values)

    def json(self) -> dict[str, Any]:
        return {'enum': list(self.values)}
