"""What to say of a value that is not of its kind, and what YAML 1.1 may have made of it."""

import datetime
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from mtkd.schema.problem import Problem, join, shown

NUMBER_IN_A_STRING = re.compile(r'[+-]?(\d+(\.\d*)?|\.\d+)[eE][+-]?0*\d{1,3}')  # a larger exponent is nobody's
LONGEST_NUMBER = 20  # digits


def leaves(value: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """The values that are no containers, by their dotted paths."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, join(path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves(item, join(path, number))
    else:
        yield path, value


def mismatch(value: Any, path: str, kind: Any) -> Problem:
    """``value`` is not of its ``kind``: the problem, with what YAML 1.1 may have made of it."""
    if isinstance(value, str) and NUMBER_IN_A_STRING.fullmatch(value) and 'number' in str(kind):
        return number_in_a_string(value, path)
    if value is None:
        message = f'{path} is empty: it should be {kind.expected}'
    else:
        message = f'{path} should be {kind.expected}; it is {shown(value)}{surprise(value, kind)}'
    return Problem(path, message, value, kind.expected)


def number_in_a_string(value: str, path: str) -> Problem:
    """YAML 1.1 read a number such as ``1e-4`` as a string."""
    number = positional(value)
    message = f"{path} is the string '{value}', not a number: YAML 1.1 wants {number} or !!float {value}"
    return Problem(path, message, value, 'a number', number)


def positional(text: str) -> str:
    """A number such as ``1e-4`` as YAML 1.1 takes it: 0.0001, or 1.0e-30 where that would be long."""
    number = Decimal(text)
    if abs(number.adjusted()) > LONGEST_NUMBER:
        return f'{number:.1e}'
    return f'{number:f}'


def surprise(value: Any, kind: Any) -> str:
    """What YAML 1.1 made of the text in the file, where that explains the mistake; else an empty string."""
    if isinstance(value, bool):
        return ': YAML 1.1 reads on, off, yes and no as true and false: put text in quotes'
    if isinstance(value, datetime.date):
        return ': YAML 1.1 reads it as a date: put text in quotes'
    if isinstance(value, str) and kind.accepts(_unquoted(value)):
        return f': write {value.lower()}, without quotes'
    return ''


def _unquoted(text: str) -> Any:
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    try:
        return int(text) if re.fullmatch(r'[+-]?\d{1,18}', text) else float(text)
    except ValueError:
        return text
