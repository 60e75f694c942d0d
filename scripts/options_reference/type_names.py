"""Types and defaults of Python in the words of an option file."""

import ast
import inspect
import textwrap
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

PLAIN = {
    int: 'whole number',
    float: 'number',
    str: 'text',
    Path: 'path',
    type(None): 'null',
    Any: 'anything',
}


def type_name(annotation: Any) -> str:
    """A type in plain words, ``Sequence[int] | None`` as ``list of whole numbers or null``.

    Raises ValueError for a type that has no words yet.
    """
    parts = list(dict.fromkeys(_alternatives(annotation)))
    if 'path' in parts and 'text' in parts:
        parts.remove('text')
    return parts[0] if len(parts) == 1 else f'{", ".join(parts[:-1])} or {parts[-1]}'


def _alternatives(annotation: Any) -> list[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return [str(argument) for argument in arguments]
    if origin in (Union, types.UnionType):
        return [part for argument in arguments for part in _alternatives(argument)]
    if annotation is Mapping or origin is Mapping:
        return [
            'mapping'
            if Any in arguments or not arguments
            else f'mapping of {_inner(arguments[0])} to {_inner(arguments[1])}'
        ]
    if origin is Sequence:
        inner = _inner(arguments[0])
        return [f'list of {inner}s' if inner.endswith('number') else f'list of {inner}']
    if annotation is bool:
        return ['true', 'false']
    if annotation in PLAIN:
        return [PLAIN[annotation]]
    raise ValueError(f'no words for the type {annotation!r}: add them to PLAIN')


def _inner(annotation: Any) -> str:
    name = type_name(annotation)
    return f'({name})' if ' or ' in name else name


def yaml_value(value: Any) -> str:
    """A default as it would stand in an option file."""
    if value is None:
        return 'null'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(map(yaml_value, value))}]'
    if isinstance(value, float):
        return f'{value:.4g}' if value >= 0.001 else f'{value:.8f}'.rstrip('0')
    return str(value)


def written_defaults(constructor: Any) -> dict[str, str]:
    """Defaults that the source writes as a formula, such as ``1000 / 255``, by argument."""
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(constructor))).body
    arguments = function.args.args
    defaults = zip(arguments[len(arguments) - len(function.args.defaults) :], function.args.defaults, strict=True)
    return {argument.arg: ast.unparse(node) for argument, node in defaults if isinstance(node, ast.BinOp)}
