"""Option mappings laid over each other, and the words in them that a study fills in."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

ITERATIONS = '$iterations'


def overlaid(base: Mapping[str, Any], *overlays: Mapping[str, Any] | None) -> dict[str, Any]:
    """``base`` with ``overlays`` on top, the last one winning; neither is changed.

    Mappings are merged key by key, everything else is replaced, ``~`` (None) takes a key away. A mapping whose ``type``
    changes is replaced whole: the arguments of one loss or network are not those of another.
    """
    result = deepcopy(dict(base))
    for overlay in overlays:
        for key, value in (overlay or {}).items():
            if value is None:
                result.pop(key, None)
            elif isinstance(value, Mapping):
                below = result.get(key)
                same = isinstance(below, Mapping) and value.get('type', below.get('type')) == below.get('type')
                result[key] = overlaid(below if same else {}, value)
            else:
                result[key] = deepcopy(value)
    return result


def filled_in(value: Any, iterations: int, weights_of: Callable[[str], str]) -> Any:
    """``value`` with ``$iterations`` replaced by the number, and strings ``@name`` by the weights of that network."""
    if isinstance(value, Mapping):
        return {key: filled_in(each, iterations, weights_of) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [filled_in(each, iterations, weights_of) for each in value]
    if value == ITERATIONS:
        return iterations
    return weights_of(value[1:]) if isinstance(value, str) and value.startswith('@') else value


def references(value: Any) -> set[str]:
    """The names that ``@name`` strings in ``value`` refer to."""
    if isinstance(value, Mapping):
        return set().union(*(references(each) for each in value.values())) if value else set()
    if isinstance(value, list | tuple):
        return set().union(*(references(each) for each in value)) if value else set()
    return {value[1:]} if isinstance(value, str) and value.startswith('@') else set()
