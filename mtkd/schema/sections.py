"""Sections of an option file: mappings of which the keys are known."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mtkd.schema.containers import MapOf, OrDefault
from mtkd.schema.kinds import Anything, Context, Kind, Number, Text
from mtkd.schema.mismatch import mismatch
from mtkd.schema.problem import Problem, join, nearest_name, no_text, shown, unknown_key
from mtkd.schema.words import kind_of_words

Table = Mapping[str, tuple[str, str, str]]  # key: (type, default, meaning)
CONDITION = re.compile(r'required (with|without) (\w+)')
# whole numbers that files of BasicSR write as `!!float 5e3`
WRITTEN_AS_FLOAT = ('total_iter', 'warmup_iter', 'val_freq', 'print_freq', 'save_checkpoint_freq')


@dataclass(frozen=True)
class Key:
    """A key of a section: the kind of its value, its default or ``required ...`` in words, and what it means."""

    kind: Kind
    default: str = 'null'
    meaning: str = ''

    def is_required(self, section: Collection[str], training: bool) -> bool:
        """Whether a section with these keys must have this one: always, in training, with or without another."""
        condition = CONDITION.match(self.default)
        if condition:
            return (condition[2] in section) == (condition[1] == 'with')
        return self.default == 'required' or (self.default == 'required in training' and training)


def keys_of(table: Table, kinds: Mapping[str, Kind] | None = None) -> dict[str, Key]:
    """The keys of a table of the code; ``kinds`` says more than its words where there is more to say.

    Null is let through where it is the default, and where a mapping or a text need not be given.
    """
    keys = {}
    for name, (words, default, meaning) in table.items():
        plain = kind_of_words(words)
        if name in WRITTEN_AS_FLOAT and isinstance(plain, Number):
            plain = replace(plain, or_float=True)
        kind = (kinds or {}).get(name, plain)
        optional = isinstance(plain, MapOf | Text) and not default.startswith(('required', "'"))
        if default == 'null' or optional:
            kind = OrDefault(kind)
        keys[name] = Key(kind, default, meaning)
    return keys


@dataclass(frozen=True)
class Section(Kind):
    """A mapping with ``keys``. A closed one has no others; in an open one a key is refused that is nearly a known one.

    ``cutoff`` is how alike is nearly, from 0 to 1; ``elsewhere`` tells keys that others know, by the key and the
    context; ``called`` is the name in messages, by default the dotted path.
    """

    keys: Mapping[str, Key]
    closed: bool = True
    cutoff: float = 0.8
    elsewhere: Callable[[str, Context], bool] | None = None
    called: str = ''
    parts = ('mapping',)

    def __hash__(self) -> int:
        return id(self)

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping) and not any(True for _ in self.problems(value, '', Context()))

    def problems(self, value: Any, path: str, context: Context) -> Iterator[Problem]:
        where = self.called or path
        if not isinstance(value, Mapping):
            yield self._no_mapping(value, path)
            return
        present = set(map(str, value))
        for key, item in value.items():
            if key in self.keys:
                yield from self.keys[key].kind.problems(item, join(path, key), context)
                continue
            for problem in self._unknown(key, item, path, context):
                present.add(problem.nearest)  # mistyped, but not missing
                yield problem
        for key, known in self.keys.items():
            if key not in present and known.is_required(present, context.training):
                yield Problem(path, f"{where} lacks the key '{key}'", None, known.kind.expected, key)

    def _no_mapping(self, value: Any, path: str) -> Problem:
        where, keys = self.called or path, ', '.join(self.keys)
        if value is None:
            return mismatch(value, where, self)
        expected = f'a mapping with keys among {keys}' if keys else 'a mapping'
        return Problem(path, f'{where} should be {expected}; it is {shown(value)}', value, expected)

    def _unknown(self, key: Any, item: Any, path: str, context: Context) -> Iterator[Problem]:
        where, place = self.called or path, join(path, key)
        if self.closed:
            nearest = nearest_name(key, self.keys)
            yield Problem(place, unknown_key(key, where, nearest, self.keys), key, 'a known key', nearest)
            return
        if not isinstance(key, str):
            yield no_text(key, path, where)
            return
        nearest = nearest_name(key, self.keys, self.cutoff)
        if nearest and nearest != str(key) and not (self.elsewhere and self.elsewhere(str(key), context)):
            yield Problem(
                place, f"unknown key '{key}' in {where}: did you mean '{nearest}'?", key, 'a known key', nearest
            )
        else:
            yield from Anything().problems(item, place, context)

    def json(self) -> dict[str, Any]:
        properties = {name: described(key) for name, key in self.keys.items()}
        return {'type': 'object', 'properties': properties, **_required(self.keys), **self._closing()}

    def _closing(self) -> dict[str, Any]:
        return {'additionalProperties': False} if self.closed else {}


def described(key: Key) -> dict[str, Any]:
    """JSON Schema of a key, with its meaning and default in words."""
    default = key.default if key.default.startswith('required') else f'default: {key.default}'
    text = f'{key.meaning} ({default})' if key.meaning else default
    schema = key.kind.json()
    if '$ref' in schema:  # other words beside a reference are for those who read its description
        return {'description': text, 'allOf': [schema]}
    return {'description': text, **schema}


def _required(keys: Mapping[str, Key]) -> dict[str, Any]:
    """What JSON Schema says of required keys; those of a training run are left to the whole."""
    schema: dict[str, Any] = {}
    always = [name for name, key in keys.items() if key.default == 'required']
    if always:
        schema['required'] = always
    for name, key in keys.items():
        condition = CONDITION.match(key.default)
        if condition and condition[1] == 'with':
            schema.setdefault('dependentRequired', {}).setdefault(condition[2], []).append(name)
        elif condition:
            schema.setdefault('allOf', []).append({'anyOf': [{'required': [name]}, {'required': [condition[2]]}]})
    return schema
