"""The nodes of a YAML file as values, without running anything in them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

import mtkd
from mtkd.schema.places import OptionFile, Place
from mtkd.schema.problem import Problem, join, shown

PLUGIN_TAG = 'tag:yaml.org,2002:python/name:mtkd.__version__'
STANDARD = 'tag:yaml.org,2002:'
PLAIN_TAGS = tuple(f'{STANDARD}{name}' for name in ('null', 'bool', 'int', 'float', 'str', 'timestamp', 'binary'))
NUMBER_TAGS = (f'{STANDARD}int', f'{STANDARD}float')
OCTAL = re.compile(r'[+-]?0[0-7_]+')
SEXAGESIMAL = re.compile(r'[+-]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?')
MOST_NODES = 50_000
DEEPEST = 40
LONGEST_NUMBER = 1000  # characters; Python takes minutes to read one of a million


class Walk:
    """Turns the nodes of a file into values, with their places."""

    def __init__(self, path: Path) -> None:
        self.file, self.count, self.above = OptionFile(path), 0, []
        self.constructor = yaml.SafeLoader('')

    def value(self, node: Node, path: str) -> Any:
        self.count += 1
        if self.count > MOST_NODES or len(self.above) > DEEPEST or node in self.above:
            self._problem(path, node, _too_large(path))
            return None
        if self.count == MOST_NODES:
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        kind = 'map' if isinstance(node, MappingNode) else 'seq'
        if node.tag != f'{STANDARD}{kind}':
            self._problem(path, node, _unknown_tag(node.tag))
            return None
        self.above.append(node)
        found = self._mapping(node, path) if isinstance(node, MappingNode) else self._sequence(node, path)
        self.above.pop()
        return found

    def _sequence(self, node: SequenceNode, path: str) -> list[Any]:
        found = []
        for number, item in enumerate(node.value):
            if self.count > MOST_NODES:  # said already
                break
            where = join(path, number)
            self._place(where, item, item)
            found.append(self.value(item, where))
        return found

    def _mapping(self, node: MappingNode, path: str) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key_node, item in node.value:
            if self.count > MOST_NODES:  # said already
                break
            key = self._key(key_node, path)
            where = join(path, key)
            if key in found:
                first = self.file.places[where].line
                self._problem(
                    where, key_node, f'{where} is given twice, first in line {first}: the latter would be taken'
                )
            self._place(where, key_node, item)
            found[key] = self.value(item, where)
        return found

    def _key(self, node: Node, path: str) -> Any:
        if node.tag.startswith(f'{STANDARD}python/'):
            self._problem(path, node, _unknown_tag(node.tag))
            return '?'
        if not isinstance(node, ScalarNode):
            self._problem(path, node, f'a key in {path or "the option file"} is a {node.id}: it should be text')
            return '?'
        if node.tag == f'{STANDARD}merge':
            self._problem(join(path, '<<'), node, "BasicSR's loader knows no merging by <<: write the keys out")
            return '<<'
        return self._scalar(node, join(path, _printable(node.value)))

    def _place(self, path: str, key: Node, item: Node) -> None:
        text = item.value if isinstance(item, ScalarNode) and item.style is None else None
        self.file.places[path] = Place(key.start_mark.line + 1, text)

    def _scalar(self, node: ScalarNode, path: str) -> Any:
        if (text := _printable(node.value)) != node.value:
            halved, node.value = node.value, text
            self._problem(path, node, f'{path} holds half a character, {shown(halved)}: write the whole one, unescaped')
            return text
        if node.tag == PLUGIN_TAG:
            return mtkd.__version__
        if node.tag not in PLAIN_TAGS:
            self._problem(path, node, _unknown_tag(node.tag))
            return None
        if node.tag in NUMBER_TAGS and len(node.value) > LONGEST_NUMBER:
            self._problem(path, node, f'{path} is a number of {len(node.value)} characters: {shown(node.value)}')
            return None
        try:
            value = self.constructor.construct_object(node)
        except (ValueError, yaml.YAMLError, OverflowError) as error:
            self._problem(
                path, node, f'{path} is {shown(node.value)}, which YAML 1.1 takes for something it is not: {error}'
            )
            return None
        except (AttributeError, LookupError):  # how PyYAML fails for a tag that does not fit
            self._problem(path, node, f'{path} is {shown(node.value)}, which is no {node.tag.replace(STANDARD, "!!")}')
            return None
        for message in _surprises(node, path, value):
            self._problem(path, node, message)
        return value

    def _problem(self, path: str, node: Node, message: str) -> None:
        given = node.value if isinstance(node, ScalarNode) else None
        where = f'{self.file.path}:{node.start_mark.line + 1}'
        self.file.problems.append(Problem(path, message, given, where=where))


def _printable(text: str) -> str:
    return text.encode('utf-8', 'backslashreplace').decode()  # halves of characters, as \\ud800 gives them, escaped


def _too_large(path: str) -> str:
    return f'{path or "the option file"} refers to itself, or is nested deeper than {DEEPEST} levels, or too long'


def _unknown_tag(tag: str) -> str:
    short = tag.replace(STANDARD, '!!')
    reason = 'it would run Python code' if 'python' in tag else 'it means nothing here'
    return f'the tag {short} is refused: {reason}; the one tag known is !!python/name:mtkd.__version__'


def _surprises(node: ScalarNode, path: str, value: Any) -> Iterator[str]:
    """Numbers that mean another thing in YAML 1.1 than they seem to."""
    if node.style is not None or isinstance(value, bool) or not isinstance(value, int | float):
        return
    if OCTAL.fullmatch(node.value):
        yield f'{path}: {node.value} is {value} in YAML 1.1, as a number that begins with 0 is octal: leave the 0 out'
    elif SEXAGESIMAL.fullmatch(node.value):
        yield f'{path}: {node.value} is {value} in YAML 1.1, as colons make it sexagesimal: put text in quotes'
