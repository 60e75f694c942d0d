"""Kinds of values from the words of the tables: ``whole number, at least 1``, ``null, bf16, fp16 or auto``."""

import functools
import re

from mtkd.schema.containers import AnyOf, ListOf, MapOf
from mtkd.schema.kinds import Anything, Choice, Flag, Kind, Null, Number, Text

PATH = Text(('path',))
PLAIN: dict[str, Kind] = {
    'anything': Anything(),
    'null': Null(),
    'text': Text(),
    'path': PATH,
    'mapping': MapOf(),
    'number above zero': Number(above=0),
}
ALTERNATIVES = re.compile(r', (?!at least|at most|above|below|-?\d)| or ')  # a comma before a limit belongs to it
LIMIT = re.compile(r'(at least|at most|above|below) (-?[\d.]+)')
LIMITS = {'at least': 'least', 'at most': 'most', 'above': 'above', 'below': 'below'}
VALUE = re.compile(r'[\w.-]+')


@functools.cache
def kind_of_words(words: str) -> Kind:
    """The kind that ``words`` of a table say; ``str`` of it gives the words back.

    Alternatives are parted by commas and ``or``; a single word that is no kind is a value. A range follows a number:
    ``number, above 0``, ``number, at least 0 and below 1``, ``whole number, 1 to 8``. Raises ValueError for words that
    say nothing here.
    """
    if words.startswith('list of '):
        return _list(words.removeprefix('list of '))
    parts = ALTERNATIVES.split(words)
    kinds: list[Kind] = []
    for part in parts:
        if part in ('true', 'false') and {'true', 'false'} <= set(parts):
            kind: Kind = Flag()
        else:
            kind = PLAIN.get(part) or _number(part) or _value(part, words)
        if kind not in kinds:
            kinds.append(kind)
    if len(kinds) > 1 and all(isinstance(kind, Choice) for kind in kinds):
        return Choice(tuple(value for kind in kinds for value in kind.values))
    return kinds[0] if len(kinds) == 1 else AnyOf(tuple(kinds))


def _list(items: str) -> ListOf:
    number, name, rest = re.fullmatch(r'(?:(\d+) )?((?:whole )?number)?(.*)', items, flags=re.DOTALL).groups()
    length = None if number is None else int(number)
    if name is None:
        return ListOf(Text(), length, items=rest)
    return ListOf(_number(name + rest.removeprefix('s')), length)


def _number(words: str) -> Number | None:
    name, _, limits = words.partition(', ')
    if name not in ('number', 'whole number'):
        return None
    between = re.fullmatch(r'(-?[\d.]+) to (-?[\d.]+)', limits)
    if between:
        return Number(_limit(between[1]), _limit(between[2]), whole=name == 'whole number')
    found = {LIMITS[word]: _limit(number) for word, number in LIMIT.findall(limits)}
    if limits and not found:
        raise ValueError(f'no range of numbers: {words!r}')
    return Number(**found, whole=name == 'whole number')


def _limit(text: str) -> float:
    return float(text) if '.' in text else int(text)


def _value(part: str, words: str) -> Choice:
    if not VALUE.fullmatch(part):
        raise ValueError(f'no kind of value is called {part!r}, in {words!r}')
    return Choice((part,))
