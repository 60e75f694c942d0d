"""Sections whose ``type`` names a class: networks, losses, terms, data sets, metrics, optimizers, schedules."""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from basicsr.models import lr_scheduler
from basicsr.models.base_model import BaseModel

from mtkd import checks
from mtkd.schema.containers import OrDefault
from mtkd.schema.kinds import Anything, Context, Kind
from mtkd.schema.mismatch import mismatch
from mtkd.schema.problem import Problem, join, nearest_name, shown
from mtkd.schema.sections import Key, Section
from mtkd.schema.signatures import arguments_of, takes_others

Find = Callable[[], Mapping[str, Any]]
SUFFIX = '_basicsr'  # of names that BasicSR shares with others


@dataclass(frozen=True)
class Typed(Kind):
    """A mapping with a ``type``, which names one of ``classes()``, and what that class takes.

    ``section(name, class)`` is what a class takes besides ``type``; ``name`` is that of the definition in JSON Schema.
    """

    name: str
    classes: Find
    section: Callable[[str, Any], Section]
    parts = ('mapping',)

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping) and not any(True for _ in self.problems(value, '', Context()))

    def problems(self, value: Any, path: str, context: Context) -> Iterator[Problem]:
        if value is None:
            yield mismatch(value, path, self)
            return
        if not isinstance(value, Mapping) or 'type' not in value:
            expected = "a mapping with the key 'type'"
            yield Problem(path, f'{path} should be {expected}; it is {shown(value)}', value, expected, 'type')
            return
        found = self._class(value['type'])
        if found is None:
            yield self._unknown(value['type'], path)
            yield from Anything().problems({key: item for key, item in value.items() if key != 'type'}, path, context)
            return
        arguments = {key: item for key, item in value.items() if key != 'type'}
        yield from self.section(value['type'], found).problems(arguments, path, context)

    def _class(self, name: Any) -> Any:
        classes = self.classes()
        if not isinstance(name, str):
            return None
        return classes.get(name, classes.get(f'{name}{SUFFIX}'))

    def _unknown(self, name: Any, path: str) -> Problem:
        known = sorted(self.classes())
        nearest = nearest_name(name, known)
        return Problem(
            join(path, 'type'), checks.unknown_type(name, known, f'{path}.type'), name, 'a known type', nearest
        )

    def json(self) -> dict[str, Any]:
        return {'$ref': f'#/$defs/{self.name}'}

    def definition(self) -> dict[str, Any]:
        """What ``json`` refers to: the arguments by the type."""
        classes = self.classes()
        names = sorted(classes) + sorted(name.removesuffix(SUFFIX) for name in classes if name.endswith(SUFFIX))
        cases = []
        for name in names:
            section = self.section(name, self._class(name)).json()
            section['properties'] = {'type': True, **section['properties']}
            cases.append({'if': {'properties': {'type': {'const': name}}, 'required': ['type']}, 'then': section})
        return {'type': 'object', 'required': ['type'], 'properties': {'type': {'enum': names}}, 'allOf': cases}


def arguments_section(
    constructor: Any, without: tuple[str, ...] = (), kinds: Mapping[str, Kind] | None = None, **changes: Any
) -> Section:
    """The arguments of ``constructor`` as a section; ``kinds`` replaces what its hints say of some."""
    keys = dict(arguments_of(constructor, without))
    for name, kind in (kinds or {}).items():
        if name in keys and 'mapping' in str(keys[name].kind):
            keys[name] = Key(kind_or_null(kind, keys[name]), keys[name].default, keys[name].meaning)
    return Section(keys, **{'closed': not takes_others(constructor), 'cutoff': 0.5, **changes})


def kind_or_null(kind: Kind, key: Key) -> Kind:
    """``kind``, with null where ``key`` takes null."""
    return OrDefault(kind) if key.kind.accepts(None) else kind


def of_registry(registry: Any) -> dict[str, Any]:
    """The classes of one of BasicSR's registries by name."""
    return dict(iter(registry))


def mentions(kind: Any, key: str) -> bool:
    """Whether the source files of a class and its bases speak of ``key``: then it is no mistyped one."""
    return any(f"'{key}'" in text or f'"{key}"' in text for text in map(_source, _modules(kind)))


def _modules(kind: Any) -> list[str]:
    bases = kind.__mro__ if isinstance(kind, type) else (kind,)
    return [base.__module__ for base in bases if base is not object]


@functools.cache
def _source(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return ''


def optimizers() -> dict[str, Any]:
    """The optimizers that BasicSR's ``get_optimizer`` knows: Adam in release 1.4.2, more on its master."""
    names = re.findall(r"'(\w+)'", _between(inspect.getsource(BaseModel.get_optimizer), 'optim_type'))
    return {name: getattr(torch.optim, name) for name in names if isinstance(getattr(torch.optim, name, None), type)}


def schedulers() -> dict[str, Any]:
    """The schedules that BasicSR's ``setup_schedulers`` knows."""
    names = re.findall(r"'(\w+)'", _between(inspect.getsource(BaseModel.setup_schedulers), 'scheduler_type'))
    aliases = {'MultiStepLR': 'MultiStepRestartLR'}
    found = {name: getattr(lr_scheduler, aliases.get(name, name), None) for name in names}
    return {name: kind for name, kind in found.items() if kind is not None}


def _between(source: str, name: str) -> str:
    """The lines of ``source`` that compare ``name``."""
    return '\n'.join(line for line in source.splitlines() if re.search(rf'if {name}\b', line))


@dataclass(frozen=True)
class ModelType(Kind):
    """The name of a registered model."""

    classes: Find
    parts = ('text',)

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str) and value in self.classes()

    def problems(self, value: Any, path: str, context: Context) -> Iterator[Problem]:
        known = sorted(self.classes())
        if value not in known and f'{value}{SUFFIX}' not in known:
            message = checks.unknown_type(value, known, path)
            yield Problem(path, message, value, 'a known type', nearest_name(value, known))

    def json(self) -> dict[str, Any]:
        return {'enum': sorted(self.classes())}
