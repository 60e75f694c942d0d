"""The tables of docs/scale.md from the JSON of ``benchmarks/scale.py``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.scale_fit import checks, model_of, run_of
from mtkd_eval.scale_model import Cluster, Link, all_reduce, buckets, efficiency, rate, run_seconds, step

PROCESSES = (1, 2, 4, 8, 16, 32, 64)
LINKS_GBPS = (10, 25, 100, 400)
MIB = 2**20
PARTS = ('weights', 'gradients', 'optimizer', 'average', 'buckets', 'activations', 'passing')
Found = Mapping[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown, numbers to the right."""
    lines = [f'| {" | ".join(head)} |', f'|---|{"---:|" * (len(head) - 1)}']
    return [*lines, *(f'| {" | ".join(row)} |' for row in rows), '']


def said(value: float) -> str:
    """Three figures, and no powers of ten."""
    return f'{value:.3g}' if value < 999.5 else f'{value:,.0f}'


def percent(share: float) -> str:
    """A share, whole per cents."""
    return f'{100 * share:.0f} %'


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for size, unit in ((86400, 'days'), (3600, 'h'), (60, 'min')):
        if seconds >= 2 * size:
            return f'{seconds / size:.3g} {unit}'
    return f'{seconds:.3g} s'


def circumstances(found: Found) -> list[str]:
    """Where, with what, and what else the machine had to do."""
    own = found['run']['lq']
    side = f'{found["lq"]}' if own == found['lq'] else f'{found["lq"]}, where the file has {own}'
    load = ' to '.join(f'{found["load"][when][0]:.1f}' for when in ('before', 'after'))
    return [
        f'`{found["option"]}`, LR patches of {side}, gradients of {found["gradient_bytes"] / MIB:.2f} MiB. '
        f'Measured on: {found["device"]}, {found["cores"]} cores, processes of {found["threads"]} thread each, '
        f'{found["backend"]}, torch {found["torch"]}; load average {load}.',
        '',
    ]


def constants(found: Found) -> list[str]:
    """What was measured, in the terms of the model."""
    costs, cluster = model_of(found)

    def of_line(name: str, value: Any) -> tuple[str, str]:
        return name, f'{1000 * value.fixed:.3g} ms + {1000 * value.per_patch:.3g} ms a patch'

    rows = [of_line('student', costs.student)]
    rows += [of_line('teachers and aggregator', costs.teachers)] if costs.teachers else []
    rows += [
        ('crowding, student', f'{costs.crowding:.3g}'),
        *([('crowding, teachers', f'{costs.crowding_of_teachers:.3g}')] if costs.teachers else []),
        ('waiting', f'{100 * costs.waiting:.3g} %'),
        ('overlap', f'{100 * costs.overlap:.3g} %'),
        ('bandwidth within a node', f'{cluster.within.bandwidth / 1e9:.3g} GB/s'),
        ('latency within a node', f'{1e6 * cluster.within.latency:.3g} us'),
        ('a validation image', f'{1000 * found["image_s"]:.3g} ms'),
        ('a checkpoint', f'{1000 * found["checkpoint_s"]:.3g} ms'),
    ]
    return table(('constant', 'value'), rows)


def against_measured(found: Found) -> list[str]:
    """Held-out points first, their errors in a line."""
    checked = checks(found)
    errors = [abs(row['error_percent']) for row in checked if not row['used']]
    cells = (
        (
            row['what'],
            said(1000 * row['measured']),
            said(1000 * row['predicted']),
            f'{row["error_percent"]:+.1f} %',
            'no' if row['used'] else 'yes',
        )
        for row in sorted(checked, key=lambda row: row['used'])
    )
    told = (
        f'Held-out points: the median error is {median(errors):.1f} %, the largest {max(errors):.1f} %.'
        if errors
        else ''
    )
    return [*table(('', 'measured, ms', 'predicted, ms', 'error', 'held out'), cells), told, '']


def more_gpus(found: Found) -> list[str]:
    """As many patches for each process as the option file says, so a larger whole batch."""
    costs, cluster = model_of(found)
    patches = found['run']['batch']
    free = replace(costs, crowding=1.0, crowding_of_teachers=1.0, waiting=0.0)
    head = ['processes', 'whole batch']
    modes = [(False, 'cached'), *([(True, 'online')] if costs.teachers else [])]
    head += [
        f'{name}: {what}' for _, name in modes for what in ('step, ms', 'patches/s', 'efficiency', 'uncrowded', 'run')
    ]
    rows = []
    for processes in PROCESSES:
        row = [str(processes), str(processes * patches)]
        for online, _ in modes:
            at = costs, cluster, processes, patches, online
            whole = run_seconds(run_of(found, processes, patches), step(*at), processes)
            row += [said(1000 * step(*at)), said(rate(*at)), percent(efficiency(*at))]
            row += [percent(efficiency(free, *at[1:])), duration(whole)]
        rows.append(row)
    return table(head, rows)


def same_batch(found: Found) -> list[str]:
    """The whole batch of the option file, shared out."""
    costs, cluster = model_of(found)
    whole = found['run']['batch']
    modes = [(False, 'cached'), *([(True, 'online')] if costs.teachers else [])]
    head = ['processes', 'patches each', *(f'{name}: {what}' for _, name in modes for what in ('step, ms', 'speed-up'))]
    rows = []
    for processes in (number for number in PROCESSES if whole % number == 0):
        row = [str(processes), str(whole // processes)]
        for online, _ in modes:
            now = step(costs, cluster, processes, whole // processes, online)
            row += [said(1000 * now), f'{step(costs, cluster, 1, whole, online) / now:.2f}']
        rows.append(row)
    return table(head, rows)


def exchange_alone(found: Found) -> list[str]:
    """All-reduce of these gradients by links of given bandwidth: arithmetic, nothing measured."""
    size, latency = found['gradient_bytes'], found['link_latency_us'] / 1e6
    several = [number for number in PROCESSES if number > 1]
    rows = []
    for gbps in LINKS_GBPS:
        link = Cluster(Link(gbps * 1e9 / 8, latency), Link(gbps * 1e9 / 8, latency), 1).link(2)
        times = (1000 * all_reduce(size, number, link, buckets(size)) for number in several)
        rows.append((f'{gbps} Gb/s', *map(said, times)))
    return table(('link', *map(str, several)), rows)


def memory(found: Found) -> list[str]:
    """Predicted parts and sum of each configuration, and what the process took."""
    head = ('', *PARTS, 'predicted', 'measured', 'error', 'measured, memory held back')
    rows = []
    for row in found['memory']:
        what = (
            f'{row["variant"]}, {row["processes"]} process{"es" if row["processes"] > 1 else ""}, batch {row["batch"]}'
        )
        sizes = (row['parts'][part] for part in PARTS)
        error = 100 * (row['predicted'] / row['measured'] - 1)
        sums = (row['predicted'], row['measured'])
        rows.append(
            (
                what,
                *(f'{value / MIB:.1f}' for value in (*sizes, *sums)),
                f'{error:+.1f} %',
                f'{row["measured_as_is"] / MIB:.1f}',
            )
        )
    run = found['run']
    ready = f'{run["workers"]} loader workers hold {run["prefetched"] / MIB:.1f} MiB of batches ready, in host memory.'
    return [*table(head, rows), f'Beside that, the {ready}' if run['workers'] else 'There are no loader workers.', '']


def text_of(found: Found) -> str:
    """Everything about one option file."""
    parts = [
        circumstances(found),
        constants(found),
        ['Measured and predicted:', '', *against_measured(found)],
        [
            f'**As many patches for each process**; nodes of {found["gpus_per_node"]} processes like these, joined by '
            f'{found["link_gbps"]:g} Gb/s (given, not measured). Uncrowded: had each a device of its own and none to '
            'wait for. The run takes as many patches in all:',
            '',
            *more_gpus(found),
        ],
        ['**The same whole batch**, shared out:', '', *same_batch(found)],
        [
            f'**The exchange alone**, ms, over links of {found["link_latency_us"]:g} us; arithmetic:',
            '',
            *exchange_alone(found),
        ],
        ['**Memory** of a process, MiB:', '', *memory(found)] if found['memory'] else [],
    ]
    return '\n'.join(line for part in parts for line in part)
