"""Damage for files, at places drawn from a seed, and what a reader made of it."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

BLOCK = 48
Damage = tuple[str, Callable[[bytes], bytes]]


def flipped(place: int, bits: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def zeroed(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes(min(BLOCK, len(data) - place)) + data[place + BLOCK :]


def cut(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place]


def damages(places: Sequence[int], count: int, seed: int, cuts: bool = True) -> Iterator[Damage]:
    """``count`` of them, each with its name: a bit or byte flipped, a block of zeros, or the end cut off."""
    draw = random.Random(seed)
    for number in range(count):
        place = draw.choice(places)
        kind = number % 6
        if kind == 5 and cuts:
            yield f'cut at {place}', cut(place)
        elif kind == 4:
            yield f'{BLOCK} zeros from {place}', zeroed(place)
        else:
            bits = 1 << draw.randrange(8) if kind % 2 else draw.randrange(1, 256)
            yield f'byte {place} changed by {bits}', flipped(place, bits)


def outcome(read: Callable[[], Sequence[np.ndarray]], expected: Sequence[np.ndarray], names: Sequence[str]) -> str:
    """What became of damaged data: ``named``, ``harmless``, or in words what was lost."""
    try:
        found = read()
    except Exception as error:
        what = f'{type(error).__name__}: {error}'
        known = isinstance(error, ValueError | OSError | KeyError)
        return 'named' if known and any(name in what for name in names) else f'not named: {what}'
    same = len(found) == len(expected) and all(map(np.array_equal, found, expected))
    return 'harmless' if same else 'wrong pixels in silence'


def rgb(sample: dict[str, Any], name: str) -> np.ndarray:
    """An image of a sample, float (3, H, W) in [0, 1], as uint8 (H, W, 3)."""
    return (sample[name].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
