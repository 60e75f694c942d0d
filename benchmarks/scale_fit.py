"""The constants of ``mtkd_eval.scale_model`` from measured points, and its predictions of the points not used for them.

Used are, from a cache, the smallest and the largest batch of one process and the largest of several; the passes of
the teachers alone, and the largest batch of several side by side with them; all sizes of all-reduce but the middle one.
Held out are other batches, all steps with teachers that exchange gradients, and larger numbers of processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mtkd_eval.scale_model import (
    Cluster,
    Costs,
    Line,
    Link,
    Run,
    all_reduce,
    buckets,
    step,
)

Found = Mapping[str, Any]
UNMEASURED = Link(float('inf'), 0.0)  # of one process


def seconds(found: Found, kind: str, variant: str, processes: int, size: int) -> float:
    """The fastest tenth of a measured point; raises KeyError where it was not measured."""
    for point in found['points']:
        if (point['kind'], point['variant'], point['processes'], point['size']) == (kind, variant, processes, size):
            return point['fastest_s']
    raise KeyError(f'{kind}, {variant}, {processes} processes, size {size} was not measured')


def counts(found: Found) -> list[int]:
    """The numbers of processes above one that were measured."""
    return sorted({point['processes'] for point in found['points'] if point['processes'] > 1})


def line(small: tuple[int, float], large: tuple[int, float]) -> Line:
    """Through two (patches, seconds); a time for no patches at all is never below zero."""
    slope = (large[1] - small[1]) / (large[0] - small[0])
    fixed = small[1] - slope * small[0]
    return Line(fixed, slope) if fixed >= 0 else Line(0.0, large[1] / large[0])


def link(times: Sequence[tuple[int, float]], processes: int) -> Link:
    """Latency and bandwidth from (bytes, seconds) of ring all-reduces, by least squares of the relative errors."""
    sizes, measured = np.array(times, dtype=float).T
    weighted = np.stack([1 / measured, sizes / measured], axis=1)
    (start, slope), *_ = np.linalg.lstsq(weighted, np.ones(len(sizes)), rcond=None)
    sends = 2 * (processes - 1)
    return Link(bandwidth=sends / processes / slope, latency=max(start, 0.0) / sends)


def held_out_size(found: Found) -> int:
    """The size of all-reduce that is predicted."""
    return sorted(found['sizes'])[len(found['sizes']) // 2]


def model_of(found: Found) -> tuple[Costs, Cluster]:
    """The constants of a measurement."""
    small, large = min(found['batches']), max(found['batches'])

    def through(kind: str, variant: str) -> Line:
        ends = [(size, seconds(found, kind, variant, 1, size)) for size in (small, large)]
        return line(*ends)

    costs = Costs(
        student=through('alone', 'cached'),
        teachers=through('teachers', 'online') if 'online' in found['variants'] else None,
        gradient_bytes=found['gradient_bytes'],
        loader_rate=found['loader_rate'],
    )
    between = Link(found['link_gbps'] * 1e9 / 8, found['link_latency_us'] / 1e6)
    if not counts(found):
        return costs, Cluster(UNMEASURED, between, found['gpus_per_node'])
    few = counts(found)[0]
    used = [size for size in found['sizes'] if size != held_out_size(found)]
    within = link([(size, seconds(found, 'all_reduce', 'cached', few, size)) for size in used], few)
    alone, apart, joined = (
        seconds(found, kind, 'cached', 1 if kind == 'alone' else few, large) for kind in ('alone', 'apart', 'joined')
    )
    gradients = all_reduce(costs.gradient_bytes, few, within, buckets(costs.gradient_bytes))
    flag = all_reduce(0, few, within)
    exposed = joined - apart - flag
    costs = replace(
        costs,
        crowding=max(1.0, apart / alone),
        overlap=min(1.0, max(0.0, 1 - exposed / gradients)),
        waiting=max(0.0, exposed - gradients) / apart,
    )
    if costs.teachers is not None:
        together = seconds(found, 'apart', 'online', few, large) - costs.crowding * costs.student.at(large)
        costs = replace(costs, crowding_of_teachers=max(1.0, together / costs.teachers.at(large)))
    return costs, Cluster(within, between, found['gpus_per_node'])


def run_of(found: Found, processes: int, patches: int) -> Run:
    """The run of the option file with as many patches in all, however many at a time."""
    run = found['run']
    share = run['batch'] / (processes * patches)  # fewer steps, and validations and checkpoints after as many patches
    return Run(
        iterations=max(1, round(run['iterations'] * share)),
        validated_every=run['val_freq'] and max(1, round(run['val_freq'] * share)),
        images=found['validation_images'],
        image_seconds=found['image_s'],
        saved_every=run['save_freq'] and max(1, round(run['save_freq'] * share)),
        saving=found['checkpoint_s'],
    )


def compared(what: str, measured: float, predicted: float, used: bool) -> dict[str, Any]:
    """A point with its error; ``used`` where a constant was taken from it."""
    error = 100 * (predicted / measured - 1)
    return {'what': what, 'measured': measured, 'predicted': predicted, 'error_percent': error, 'used': used}


def checks(found: Found) -> list[dict[str, Any]]:
    """Every measured step and all-reduce against its prediction."""
    costs, cluster = model_of(found)
    ends = min(found['batches']), max(found['batches'])
    few, rows = min(counts(found), default=0), []
    for point in found['points']:
        kind, variant, processes, size = (point[key] for key in ('kind', 'variant', 'processes', 'size'))
        number = f'{processes} process{"es" if processes > 1 else ""}'
        if kind in ('alone', 'joined'):
            last = processes == few and size == ends[1]
            used = variant == 'cached' and (size in ends if kind == 'alone' else last)
            predicted = step(
                costs, Cluster(cluster.within, cluster.within, processes), processes, size, variant == 'online'
            )
            rows.append(compared(f'step, {variant}, {number}, batch {size} each', point['fastest_s'], predicted, used))
        elif kind == 'all_reduce':
            predicted = all_reduce(size, processes, cluster.within)
            used = processes == few and size != held_out_size(found)
            what = f'all-reduce, {number}, {size / 2**20:g} MiB'
            rows.append(compared(what, point['fastest_s'], predicted, used))
    return rows
