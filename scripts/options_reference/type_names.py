"""Types and defaults of Python in the words of an option file."""

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mtkd.schema.signatures import kind_of_hint

__all__ = ['Literal', 'Mapping', 'Sequence', 'type_name', 'written_defaults', 'yaml_value']


def type_name(annotation: Any) -> str:
    """A type in plain words, ``Sequence[int] | None`` as ``list of whole numbers or null``, as the schema says it.

    Raises ValueError for a type that has no words yet.
    """
    return str(kind_of_hint(annotation))


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
