"""The arguments of a registered class: names, types and defaults of its signature, meanings of its docstrings."""

import inspect
import re
from typing import NamedTuple

from mtkd.schema.signatures import arguments_of as schema_arguments
from options_reference.type_names import written_defaults, yaml_value

ENTRY = re.compile(r'^(\w+(?:, \w+)*): (.*)$')


class Argument(NamedTuple):
    """A row of a table."""

    name: str
    type: str
    default: str
    meaning: str


def arguments_of(kind: type) -> list[Argument]:
    """What an option of ``kind`` may say besides ``type``.

    Raises ValueError for an argument that neither its docstring nor one of its bases' explains.
    """
    kinds = schema_arguments(kind)
    written = written_defaults(kind.__init__)
    rows = []
    for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        default = 'required' if parameter.default is parameter.empty else yaml_value(parameter.default)
        if name in written:
            default += f' ({written[name]})'
        rows.append(Argument(name, str(kinds[name].kind), default, meaning_of(kind, name)))
    return rows


def meaning_of(kind: type, argument: str) -> str:
    """The sentence on ``argument`` in the docstring of ``kind`` or the nearest base that has one, as Markdown."""
    for base in kind.__mro__:
        meaning = documented(vars(base).get('__doc__') or '').get(argument)
        if meaning:
            return markdown(meaning).rstrip('.')
    raise ValueError(f'{kind.__name__}: the docstring says nothing about the argument {argument}, under Args')


def documented(docstring: str) -> dict[str, str]:
    """Meanings by argument of the section ``Args`` of a docstring.

    ``a, b: text`` is of both, and ``a: text; b: text`` in one line is of each its own.
    """
    lines = iter(inspect.cleandoc(docstring).splitlines())
    meanings: dict[str, str] = {}
    current: list[str] = []
    if not any(line.rstrip() == 'Args:' for line in lines):
        return meanings
    for line in lines:
        if line.strip() and not line.startswith(' '):
            break
        entry = ENTRY.match(line[4:])
        if entry:
            current = entry[1].split(', ')
            meanings |= dict.fromkeys(current, entry[2])
        elif line.strip():
            meanings |= {name: f'{meanings[name]} {line.strip()}' for name in current}
    for name, meaning in list(meanings.items()):
        head, *others = re.split(r'; (\w+): ', meaning)
        meanings[name] = head
        meanings |= dict(zip(others[::2], others[1::2], strict=True))
    return meanings


def markdown(text: str) -> str:
    """Text of a docstring as Markdown."""
    text = re.sub(r':\w+:`~?(?:[\w.]+\.)?(\w+)`', r'`\1`', ' '.join(text.split()))
    text = re.sub(r"``(\w+)='(\w+)'``", r'`\1: \2`', text).replace('``', '`')
    return re.sub(r'\bNone\b', '`null`', text)


def summary(kind: type) -> str:
    """The first paragraph of the docstring of ``kind``, as Markdown."""
    return markdown(inspect.cleandoc(kind.__doc__ or '').split('\n\n')[0])
