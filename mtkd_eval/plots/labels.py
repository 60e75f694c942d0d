"""Labels beside points that overlap neither each other nor the points."""

from collections.abc import Sequence
from itertools import product

import numpy as np

Box = tuple[float, float, float, float]  # left, bottom, right, top
STEPS = 14  # how far, in line heights, a label may move up or down


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    inside: Box,
    radius: float,
    taken: Sequence[Box] = (),
) -> list[tuple[float, float]]:
    """Lower left corner of each label, all in pixels.

    Nearest free place first, from the topmost point down. A place is free when its label lies ``inside``, and touches
    no point (``radius`` around each), no label, nothing that is ``taken``, and no line from a label to its point. Where
    none is free, the one with the least overlap is taken.
    """
    order = sorted(range(len(points)), key=lambda index: (-points[index][1], points[index][0]))
    blocked = [(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    placed: dict[int, Box] = {}
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for index in order:
        others = [box for other, box in enumerate(blocked) if other != index] + [*taken, *placed.values()]
        candidates = [_box(points[index], sizes[index], radius, *shift) for shift in _shifts(sizes[index], radius)]
        costs = [_cost(points[index], box, others, list(placed.values()), lines, inside) for box in candidates]
        best = candidates[int(np.argmin(costs))]  # the first of equal ones, that is the nearest
        placed[index] = best
        lines.append((points[index], nearest_point(best, points[index])))
    return [placed[index][:2] for index in range(len(points))]


def nearest_point(box: Box, point: tuple[float, float]) -> tuple[float, float]:
    """Where a line from ``point`` meets the label."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def overlap(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _shifts(size: tuple[float, float], radius: float) -> list[tuple[int, float, float]]:
    """Sides (1 right, -1 left, 0 centred) with what to move by, near ones first."""
    line = size[1]
    near = [(1, 0.0, 0.0), (-1, 0.0, 0.0), (0, 0.0, line / 2 + radius), (0, 0.0, -line / 2 - radius)]
    steps = [sign * step * line / 2 for step in range(1, 2 * STEPS) for sign in (1, -1)]
    far = [(side, out * line, up) for side, out, up in product((1, -1), (0.0, 1.5, 4.0, 7.0), steps)]
    return near + sorted(far, key=lambda shift: (round(np.hypot(shift[1], shift[2]), 6), -shift[0]))


def _box(point: tuple[float, float], size: tuple[float, float], radius: float, side: int, out: float, up: float) -> Box:
    width, height = size
    gap = 1.3 * radius + out
    left = point[0] + (gap if side > 0 else -gap - width if side < 0 else -width / 2)
    bottom = point[1] + up - height / 2
    return left, bottom, left + width, bottom + height


def _cost(
    point: tuple[float, float],
    box: Box,
    others: Sequence[Box],
    labels: Sequence[Box],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    inside: Box,
) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    cost = 4 * (area - overlap(box, inside)) + sum(overlap(box, other) for other in others)
    end = nearest_point(box, point)
    cost += 0.3 * area * sum(_passes(line, box) for line in lines)
    return cost + 0.3 * area * sum(_passes((point, end), other) for other in labels)


def _passes(line: tuple[tuple[float, float], tuple[float, float]], box: Box) -> bool:
    """Whether a line goes through a box, looked at in 24 places."""
    along = np.linspace(0.0, 1.0, 24)
    x, y = (start + along * (end - start) for start, end in zip(*line, strict=True))
    return bool(((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])).any())
