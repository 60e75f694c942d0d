"""How long steps take: times of different machines do not compare."""

from collections.abc import Iterable, Mapping
from typing import Any


def paces(results: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], float]:
    """(device, threads) -> seconds of a step of the fastest of ``results`` there: other work can only slow one down."""
    found: dict[tuple[str, int], float] = {}
    for each in results:
        place = (each.get('trained_on') or each['circumstances'])['device'], each['threads']
        if seconds := each['step_seconds']:
            found[place] = min(seconds, found.get(place, seconds))
    return found


def of_one_place(one: Iterable[Mapping[str, Any]], other: Iterable[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Seconds of a step of both, on the machine where ``one`` is fastest of those that ran both; None without one."""
    own, others = paces(one), paces(other)
    place = min(own.keys() & others.keys(), key=lambda each: (own[each], each), default=None)
    return place and (own[place], others[place])
