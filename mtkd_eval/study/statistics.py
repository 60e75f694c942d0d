"""What the figures of a study say: means, spread, and paired differences with confidence intervals. Pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from scipy import stats

CONFIDENCE = 0.95
Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; ``low`` and ``high`` are None for a single value."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def verdict(self) -> str | None:
        """Where the interval lies: above zero, below zero, or holds zero. None for a single value."""
        if self.low is None:
            return None
        return 'above zero' if self.low > 0 else 'below zero' if self.high < 0 else 'holds zero'


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean of independent ``values`` and Student's interval around it. Raises ValueError for none."""
    if not values:
        raise ValueError('an interval needs at least one value')
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def set_mean(result: Mapping[str, Any], test_set: str, metric: str = 'psnr_y') -> float:
    """The mean over the images of a test set."""
    return fmean(image[metric] for image in result['sets'][test_set].values())


def overall(result: Mapping[str, Any], metric: str = 'psnr_y') -> float:
    """The mean over the test sets of their means: a small set counts as much as a large one."""
    return fmean(set_mean(result, name, metric) for name in result['sets'])


def by_seed(results: Results, student: str, method: str, clock: bool = False) -> dict[int, Mapping[str, Any]]:
    """The results of one cell of the grid."""
    return {
        each['seed']: each
        for each in results
        if (each['student'], each['method'], bool(each['clock'])) == (student, method, clock)
    }


def gain(one: Mapping[int, Mapping[str, Any]], other: Mapping[int, Mapping[str, Any]]) -> Interval | None:
    """``one - other`` in dB, paired by seed, that is by the start. None without a seed in common."""
    seeds = sorted(one.keys() & other.keys())
    return interval([overall(one[seed]) - overall(other[seed]) for seed in seeds]) if seeds else None


def image_gain(one: Mapping[str, Any], other: Mapping[str, Any], metric: str = 'psnr_y') -> tuple[Interval, int]:
    """``one - other`` in dB, paired by image over all test sets, and on how many images ``one`` is better.

    For networks that are no sample of seeds: the interval is that of the images.
    """
    differences = [
        image[metric] - other['sets'][name][key][metric]
        for name, images in one['sets'].items()
        for key, image in images.items()
    ]
    return interval(differences), sum(difference > 0 for difference in differences)


def images_won(one: Mapping[int, Mapping[str, Any]], other: Mapping[int, Mapping[str, Any]]) -> tuple[int, int]:
    """On how many images ``one`` is better, the mean over the seeds compared, and of how many."""
    seeds = one.keys() & other.keys()
    places = {(name, image) for seed in seeds for name, images in one[seed]['sets'].items() for image in images}

    def mean(cell: Mapping[int, Mapping[str, Any]], name: str, image: str) -> float:
        return fmean(cell[seed]['sets'][name][image]['psnr_y'] for seed in seeds)

    return sum(mean(one, *place) > mean(other, *place) for place in places), len(places)


def spread(cell: Mapping[int, Mapping[str, Any]], test_set: str | None = None, metric: str = 'psnr_y') -> Interval:
    """Mean over the seeds with its interval, of one set or of all."""
    return interval(
        [overall(each, metric) if test_set is None else set_mean(each, test_set, metric) for each in cell.values()]
    )


def best(results: Results, student: str, methods: Sequence[str]) -> str | None:
    """The method of the highest mean over the seeds that all have; None while one has no result."""
    cells = {method: by_seed(results, student, method) for method in methods}
    seeds = set.intersection(*(set(cell) for cell in cells.values())) if cells else set()
    if not seeds:
        return None
    return max(methods, key=lambda method: fmean(overall(cells[method][seed]) for seed in seeds))


def gains_over(results: Results, reference: str, students: Sequence[str], methods: Sequence[str]) -> list[dict]:
    """A row per student and method: the gain over ``reference`` with its interval (the input of plot.py gains)."""
    rows = []
    for student in students:
        control = by_seed(results, student, reference)
        for method in methods:
            found = gain(by_seed(results, student, method), control)
            if method != reference and found:
                rows.append({'student': student, 'method': method, **asdict(found)})
    return rows
