"""A mistake in an option file."""

import difflib
import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

LONGEST_VALUE = 200


@dataclass(frozen=True)
class Problem:
    """One mistake: ``path`` is the dotted key, ``message`` a sentence that names it, ``where`` the file and line.

    ``given``, ``expected`` and ``nearest`` are the parts of the sentence: the value, what it should be, and the known
    name that is most like a mistyped one; the latter two may be empty.
    """

    path: str
    message: str
    given: Any = None
    expected: str = ''
    nearest: str = ''
    where: str = ''

    def __str__(self) -> str:
        return f'{self.where}: {self.message}' if self.where else self.message

    def at(self, where: str) -> 'Problem':
        """The same problem in a place, such as ``small.yml:12``."""
        return replace(self, where=where)


def shown(value: Any) -> str:
    """``value`` as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f'{text[:LONGEST_VALUE]}...'


def nearest_name(name: Any, known: Iterable[Any], cutoff: float = 0.5) -> str:
    """The best match for ``name`` among ``known``, or an empty string."""
    matches = difflib.get_close_matches(str(name), [str(key) for key in known], n=5, cutoff=cutoff)
    return max(matches, key=functools.partial(_likeness, str(name))) if matches else ''


def _likeness(one: str, other: str) -> float:
    """Similarity in [0, 2] that also sees swapped letters: EDRS is nearer to EDSR than to EDVR."""
    ordered = difflib.SequenceMatcher(None, one, other).ratio()
    return ordered + difflib.SequenceMatcher(None, sorted(one), sorted(other)).ratio()


def join(path: str, key: Any) -> str:
    """The dotted path of ``key`` in the section ``path``."""
    return f'{path}.{key}' if path else str(key)


def unknown_key(key: Any, where: str, nearest: str, known: Any) -> str:
    """The message for a key that a closed section does not know."""
    meant = f"did you mean '{nearest}'? " if nearest else ''
    return f"unknown key '{key}' in {where}: {meant}Known keys: {', '.join(map(str, known))}"


def no_text(key: Any, path: str, where: str) -> Problem:
    """The problem of a key that YAML reads as a number, a date or null."""
    return Problem(join(path, key), f'a key in {where} is {shown(key)}: it should be text', key, 'text')
