"""Kinds of values that hold others, or are one of several."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtkd.schema.kinds import ANYTHING, Context, Kind
from mtkd.schema.mismatch import mismatch
from mtkd.schema.problem import Problem, join, no_text


@dataclass(frozen=True)
class ListOf(Kind):
    """A list of values of one kind, ``length`` of them if it is given; ``items`` says what they are in words."""

    item: Kind
    length: int | None = None
    items: str = ''

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        inner = self.items or re.sub(r'^((whole )?number)(?=$|,)', r'\1s', _inner(self.item))
        return (f'list of {inner}' if self.length is None else f'list of {self.length} {inner}',)

    def accepts(self, value: Any) -> bool:
        return (
            isinstance(value, list | tuple) and self.length in (None, len(value)) and all(map(self.item.accepts, value))
        )

    def problems(self, value: Any, path: str, context: Context) -> Iterator[Problem]:
        if not isinstance(value, list | tuple) or self.length not in (None, len(value)):
            yield mismatch(value, path, self)
            return
        for number, item in enumerate(value):
            yield from self.item.problems(item, join(path, number), context)

    def json(self) -> dict[str, Any]:
        length = {} if self.length is None else {'minItems': self.length, 'maxItems': self.length}
        return {'type': 'array', 'items': self.item.json(), **length}


@dataclass(frozen=True)
class MapOf(Kind):
    """A mapping of names to values of one kind; ``named`` says what they are in words."""

    value: Kind = ANYTHING
    named: str = ''

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.named:
            return (f'mapping of named {self.named}',)
        return ('mapping' if self.value == ANYTHING else f'mapping of text to {_inner(self.value)}',)

    def accepts(self, value: Any) -> bool:
        named = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        return named and all(map(self.value.accepts, value.values()))

    def problems(self, value: Any, path: str, context: Context) -> Iterator[Problem]:
        if not isinstance(value, Mapping):
            yield mismatch(value, path, self)
            return
        for key, item in value.items():
            if not isinstance(key, str):
                yield no_text(key, path, path)
            yield from self.value.problems(item, join(path, key), context)

    def json(self) -> dict[str, Any]:
        return {'type': 'object', 'additionalProperties': self.value.json()}


@dataclass(frozen=True)
class AnyOf(Kind):
    """One of several kinds."""

    kinds: tuple[Kind, ...]

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        parts = [part for kind in self.kinds for part in kind.parts]
        return tuple(part for part in parts if part != 'text' or 'path' not in parts)  # each path is text

    def accepts(self, value: Any) -> bool:
        return any(kind.accepts(value) for kind in self.kinds)

    def problems(self, value: Any, path: str, context: Context) -> Iterator[Problem]:
        if self.accepts(value):
            return
        inside = [kind for kind in self.kinds if _same_shape(kind, value)]
        if len(inside) == 1:
            yield from inside[0].problems(value, path, context)
        else:
            yield mismatch(value, path, self)

    def json(self) -> dict[str, Any]:
        return {'anyOf': [kind.json() for kind in self.kinds]}


@dataclass(frozen=True)
class OrDefault(Kind):
    """``kind``, or null, which stands for the default and is not worth a word."""

    kind: Kind

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.kind.parts

    def accepts(self, value: Any) -> bool:
        return value is None or self.kind.accepts(value)

    def problems(self, value: Any, path: str, context: Context) -> Iterator[Problem]:
        if value is not None:
            yield from self.kind.problems(value, path, context)

    def json(self) -> dict[str, Any]:
        return {'anyOf': [self.kind.json(), {'type': 'null'}]}


def _same_shape(kind: Kind, value: Any) -> bool:
    """Whether ``value`` is a container as ``kind`` is: what is wrong then lies inside."""
    if isinstance(value, Mapping):
        return isinstance(kind, MapOf)
    return isinstance(value, list) and isinstance(kind, ListOf)


def _inner(kind: Kind) -> str:
    return f'({kind})' if ' or ' in str(kind) else str(kind)
