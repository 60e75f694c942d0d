"""Reads an option file without running anything in it, and knows in which line each key stands.

BasicSR's own reader knows PyYAML's tags for Python, which can import modules and call what is in them. Here the one tag
known is that of the ``plugin:`` line.
"""

from pathlib import Path

import yaml

from mtkd.schema.places import OptionFile
from mtkd.schema.walk import Walk

LARGEST = 2**20  # bytes


def read(path: Path) -> OptionFile:
    """The option file ``path``; what is wrong with its text is in ``problems``, nothing of it is run.

    Raises FileNotFoundError, and ValueError with the line for a text that is no YAML at all.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no such option file: {path}')
    raw = path.read_bytes() if path.stat().st_size <= LARGEST else None
    if raw is None:
        raise ValueError(f'{path}: an option file of more than {LARGEST} bytes is none')
    try:
        return parse(raw.decode('utf-8-sig'), path)
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: cannot be read as text in UTF-8: {error}') from error


def parse(text: str, path: Path) -> OptionFile:
    """``read`` of a text; ``path`` is its name in messages."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(_syntax(error, path)) from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = 'it is nested too deeply' if isinstance(error, RecursionError) else error
        raise ValueError(f'{path}: cannot be read as YAML: {reason}') from error
    walk = Walk(path)
    if node is not None:
        walk.file.options = walk.value(node, '')
    return walk.file


def _syntax(error: yaml.MarkedYAMLError, path: Path) -> str:
    mark = error.problem_mark or error.context_mark
    line = f':{mark.line + 1}' if mark else ''
    tab = "'\\t'" in str(error.problem)
    reason = 'a tab: YAML is indented by spaces' if tab else ', '.join(filter(None, (error.context, error.problem)))
    return f'{path}{line}: cannot be read as YAML: {reason}'
