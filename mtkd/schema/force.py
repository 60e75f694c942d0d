"""``--force_yml a:b=value``, as BasicSR means it, without running code."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import yaml

from mtkd.schema.problem import nearest_name, unknown_key


def forced_keys(entries: Iterable[str]) -> dict[str, str]:
    """The entries by the dotted path of what they change."""
    return {entry.partition('=')[0].strip().replace(':', '.'): entry for entry in entries}


def force(opt: Mapping[str, Any], entries: Iterable[str]) -> dict[str, Any]:
    """``opt`` with every entry ``section:key=value`` applied. Raises ValueError for one that names no section."""
    opt = deepcopy(dict(opt))
    for entry in entries:
        path, equals, text = entry.partition('=')
        keys = [key.strip() for key in path.split(':')]
        if not equals or not all(keys) or '=' in text:
            raise ValueError(f'--force_yml {entry}: expected section:key=value')
        section: Any = opt
        for number, key in enumerate(keys[:-1]):
            if not isinstance(section, Mapping) or key not in section:
                where = '.'.join(keys[:number]) or 'the option file'
                known = list(section) if isinstance(section, Mapping) else []
                raise ValueError(f'--force_yml {entry}: {unknown_key(key, where, nearest_name(key, known), known)}')
            section = section[key]
        if not isinstance(section, dict):
            raise ValueError(f'--force_yml {entry}: {".".join(keys[:-1])} is no section: it is {section!r}')
        section[keys[-1]] = forced_value(text.strip())
    return opt


def forced_value(text: str) -> Any:
    """``text`` as BasicSR reads it: ``~``, none, true, false, numbers, ``!!float 1e-4``, a list in brackets, else text.

    Raises ValueError for a list or number that cannot be read.
    """
    plain = {'~': None, 'none': None, 'true': True, 'false': False}
    if text.lower() in plain:
        return plain[text.lower()]
    if text.startswith('!!float'):
        return float(text.removeprefix('!!float'))
    if text.isascii() and text.isdigit():
        return int(text)
    if text.isascii() and text.replace('.', '', 1).isdigit():
        return float(text)
    if text.startswith('['):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f'{text} is no list: {error}') from error
    return text
