"""A study as a page: every figure from its JSON file, none typed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mtkd_eval.study.paces import of_one_place, paces
from mtkd_eval.study.statistics import (
    Interval,
    best,
    by_seed,
    gain,
    gains_over,
    image_gain,
    images_won,
    overall,
    set_mean,
    spread,
)
from mtkd_eval.tables import count

COMPARED_TARGETS = 2
DIRTY = '-dirty'
UNKNOWN = 'a precision that was not noted'
NONE = '–'  # noqa: RUF001  the dash of tables


def to_markdown(study: Mapping[str, Any], level: int = 2) -> str:
    """The tables of a study: its questions, every student, equal wall-clock time, teachers and targets."""
    parts = [f'{"#" * level} {study["title"]}', introduction(study)]
    head = '#' * (level + 1)
    if study['questions']:
        parts += [f'{head} Does it distil?', questions_table(study)]
    if study['reference'] and len({each['student'] for each in study['results']}) > 1:
        parts += [f'{head} Every method on every student', gains_table(study)]
    if study['networks']:
        parts += [f'{head} Teachers and targets', networks_table(study), targets_table(study)]
    for student, title in study['students'].items():
        if any(each['student'] == student and not each['clock'] for each in study['results']):
            parts += [f'{head} {title}', student_table(study, student), costs(study, student)]
    if any(each['clock'] for each in study['results']):
        parts += [f'{head} Equal wall-clock time', clock_table(study), caches_made(study)]
    return '\n\n'.join(part for part in parts if part) + '\n'


def introduction(study: Mapping[str, Any]) -> str:
    """What was run, where, and how to read it."""
    seeds = sorted({each['seed'] for each in study['results']})
    sets = '' if study['own_sets'] else f' --set {" ".join(study["given_sets"])}'
    text = [
        f'`python scripts/run_study.py {study["grid"]}{sets}`: x{study["scale"]}, '
        f'seeds {", ".join(map(str, seeds))}, {len(study["results"])} of {study["planned"]} runs.',
        "Figures are means over the seeds, ± half the width of Student's 95 % interval; PSNR-Y in dB, "
        f'{study["scale"]} pixels cropped. Gains are paired: with a seed every method has the same initial weights.',
        "`mean` is the mean of the test sets' means. No interval is widened for there being many.",
    ]
    made = [each.get('trained_on') or each['circumstances'] for each in study['results']]
    machines, versions = ({each[key] for each in made} for key in ('device', 'torch'))
    jobs = {f'{each.get("jobs", 1)} at a time on {each["threads"]} threads' for each in study['results']}
    text.append(
        f'Trained on: {" and ".join(sorted(machines))}{passes_of(made)}; '
        f'torch {", ".join(sorted(versions))}; {", ".join(sorted(jobs))}; code of {codes_of(made)}. '
        'The time of a step leaves out what was made once: caches and aggregators.'
    )
    return '\n'.join(text)


def passes_of(made: Sequence[Mapping[str, Any]]) -> str:
    """The precision of the passes, as far as it was noted."""
    counts = Counter(each.get('precision', UNKNOWN) for each in made)
    if len(counts) == 1:
        return ''.join(f'; passes in {name}' for name in counts if name != UNKNOWN)
    listed = ', '.join(f'{number} in {name}' for name, number in counts.most_common())
    return f'; passes of {listed}: a difference of two runs may hold that of their precisions'


def codes_of(made: Sequence[Mapping[str, Any]]) -> str:
    """The commits, and how many runs were made by something else than what these hold."""
    codes = [code_of(each) or 'unknown' for each in made]
    changed = sum(code.endswith(DIRTY) for code in codes)
    listed = ', '.join(sorted({code.removesuffix(DIRTY) for code in codes}))
    return listed + (f' ({changed} of {len(codes)} runs with changes to it that were not committed)' if changed else '')


def code_of(made: Mapping[str, Any]) -> str | None:
    """The commit that circumstances hold, outside a checkout the version; None where they hold neither."""
    return made.get('commit') or (f'version {made["mtkd"]}' if made.get('mtkd') else None)


def questions_table(study: Mapping[str, Any]) -> str:
    """Each question of the grid: one method against the best of others, chosen by the very figures compared."""
    lines = [
        '| question | student | against | seeds | gain, dB | images won | interval |',
        '|---|---|---|---:|---:|---:|---|',
    ]
    for title, question in study['questions'].items():
        for student in question.get('students') or study['students']:
            other = best(study['results'], student, question['best_of'])
            one = by_seed(study['results'], student, question['method'])
            if other is None or not one:
                continue
            against = by_seed(study['results'], student, other)
            found, won = gain(one, against), images_won(one, against)
            if found:
                lines.append(
                    f'| {title} | {study["students"][student]} | {study["methods"][other]["title"]} | '
                    f'{found.n} | {signed(found)} | {won[0]} of {won[1]} | {found.verdict or NONE} |'
                )
    return '\n'.join(lines)


def gains_table(study: Mapping[str, Any]) -> str:
    """Gains of all methods over the reference, a column per student; bold: the largest over as many seeds as any.

    A gain over fewer seeds says so.
    """
    reference, run = study['reference'], {each['student'] for each in study['results']}
    students = {name: title for name, title in study['students'].items() if name in run}
    cells = {
        (method, student): gain(
            by_seed(study['results'], student, method), by_seed(study['results'], student, reference)
        )
        for method in study['methods']
        for student in students
        if method != reference
    }
    most, largest = {}, {}
    for student in students:
        column = [found for (_, other), found in cells.items() if other == student and found]
        most[student] = max((found.n for found in column), default=0)
        largest[student] = max((found.mean for found in column if found.n == most[student]), default=None)
    lines = [
        f'| gain over {study["methods"][reference]["title"]}, dB | {" | ".join(students.values())} |',
        f'|---|{"---:|" * len(students)}',
    ]
    for method, part in study['methods'].items():
        row = [cells.get((method, student)) for student in students]
        if any(row):
            shown = [
                _gain_cell(found, most[student], largest[student]) for student, found in zip(students, row, strict=True)
            ]
            lines.append(f'| {part["title"]} | {" | ".join(shown)} |')
    return '\n'.join(lines)


def _gain_cell(found: Interval | None, most: int, largest: float | None) -> str:
    if found is None:
        return NONE
    if found.n < most:
        return f'{signed(found)}, {found.n} seed{"s" if found.n > 1 else ""}'
    return f'**{signed(found)}**' if found.mean == largest else signed(found)


def networks_table(study: Mapping[str, Any]) -> str:
    """Teachers and targets themselves."""
    sets = study['test_sets']
    lines = [f'| network | parameters | {" | ".join(sets)} | mean |', f'|---|---:|{"---:|" * (len(sets) + 1)}']
    for title, each in study['networks'].items():
        cells = [f'{set_mean(each, name):.2f}' for name in sets] + [f'{overall(each):.2f}']
        lines.append(f'| {title} | {count(each["parameters"])} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def targets_table(study: Mapping[str, Any]) -> str:
    """Each target against the best of its teachers, and against the first two above it of the same teachers.

    Those are, in the grids that ship, the plain mean and the aggregator that others are variants of.
    """
    networks = study['networks']
    targets = {
        title: names
        for title, part in study['targets'].items()
        if title in networks and (names := [name for name in part if name in networks])
    }
    lines = ['| target | against | gain per image, dB | images won | interval |', '|---|---|---:|---:|---|']
    above: list[str] = []
    for title, teachers in targets.items():
        strongest = max(teachers, key=lambda name: overall(networks[name]))
        for other in (strongest, *[each for each in above if targets[each] == teachers][:COMPARED_TARGETS]):
            found, won = image_gain(networks[title], networks[other])
            verdict = found.verdict or NONE
            lines.append(f'| {title} | {other} | {signed(found)} | {won} of {found.n} | {verdict} |')
        above.append(title)
    return '\n'.join(lines) if above else ''


def student_table(study: Mapping[str, Any], student: str) -> str:
    """All methods on one student, in the order of the grid; the best mean in bold."""
    sets, reference = study['test_sets'], study['reference']
    cells = {method: by_seed(study['results'], student, method) for method in study['methods']}
    means = {method: spread(cell).mean for method, cell in cells.items() if cell}
    over = f' | gain over {study["methods"][reference]["title"]}' if reference else ''
    step = ' | time of a step'
    lines = [
        f'| method | seeds | {" | ".join(sets)} | mean | SSIM{over}{step} |',
        f'|---|{"---:|" * (len(sets) + 4 + bool(over))}',
    ]
    for method, cell in cells.items():
        if not cell:
            continue
        row = [str(len(cell)), *(within(spread(cell, name)) for name in sets)]
        mean = f'{means[method]:.3f}'
        whole = len({len(each) for each in cells.values() if each}) == 1  # means over other seeds do not compare
        row.append(f'**{mean}**' if whole and means[method] == max(means.values()) else mean)
        row.append(f'{spread(cell, metric="ssim_y").mean:.4f}')
        if reference:
            found = gain(cell, cells[reference]) if cells[reference] and method != reference else None
            row.append(signed(found) if found else NONE)
        row.append(relative_time(cell, cells.get(reference) or {}))
        lines.append(f'| {study["methods"][method]["title"]} | {" | ".join(row)} |')
    return '\n'.join(lines)


def costs(study: Mapping[str, Any], student: str) -> str:
    """Size of a student, its steps, and the notes of the methods it was trained with."""
    first = next(each for each in study['results'] if each['student'] == student and not each['clock'])
    notes = [
        f'{study["methods"][name]["title"]}: {part["note"]}' for name, part in study['methods'].items() if part['note']
    ]
    size = (
        f'{count(first["parameters"])} parameters, {count(first["macs"])} MACs at 1280x720 output; '
        f'{first["iterations"]} steps.'
    )
    return '\n'.join([size, *(f'- {note}' for note in notes)] if student == next(iter(study['students'])) else [size])


def clock_table(study: Mapping[str, Any]) -> str:
    """Every method for the time that one of them takes, gains over that one at its own steps."""
    like = study['like']
    lines = [
        '| student | method | seeds | steps | mean | gain over ' + study['methods'][like]['title'] + ' |',
        '|---|---|---:|---:|---:|---:|',
    ]
    for student, title in study['students'].items():
        control = by_seed(study['results'], student, like)
        for method, part in study['methods'].items():
            cell = by_seed(study['results'], student, method, clock=True)
            found = gain(cell, control) if cell and control else None
            if found:
                steps = round(fmean(each['iterations'] for each in cell.values()))
                mean = within(spread(cell))
                lines.append(f'| {title} | {part["title"]} | {len(cell)} | {steps} | {mean} | {signed(found)} |')
    return '\n'.join(lines)


def caches_made(study: Mapping[str, Any]) -> str:
    """What equal time leaves out: how long the caches took, in steps of the reference with the first student too."""
    student, title = next(iter(study['students'].items()))
    cell = by_seed(study['results'], student, study['reference'])
    step = min(paces(cell.values()).values(), default=None)
    if not step:
        return ''
    lines = [
        f'- `{name}`: {seconds:.0f} s, as long as {seconds / step:.0f} steps'
        for name, seconds in study.get('cache_seconds', {}).items()
    ]
    head = f'Made once for all runs that read them, and not counted: caches, in steps of {title} without them.\n'
    return head + '\n'.join(lines) if lines else ''


def relative_time(cell: Mapping[int, Mapping[str, Any]], control: Mapping[int, Mapping[str, Any]]) -> str:
    """Seconds of a step in units of the reference's, on a machine that ran both."""
    times = of_one_place(cell.values(), control.values())
    return f'{times[0] / times[1]:.2f}' if times else NONE


def within(found: Interval) -> str:
    """``mean ± half width``."""
    return f'{found.mean:.2f}' + ('' if found.high is None else f' ± {found.high - found.mean:.2f}')


def signed(found: Interval) -> str:
    """``+mean [low, high]``."""
    return f'{found.mean:+.3f}' + ('' if found.low is None else f' [{found.low:+.3f}, {found.high:+.3f}]')


def insert(page: str, name: str, text: str) -> str:
    """``page`` with ``text`` between its comments ``<!-- study: name -->`` and ``<!-- end of study: name -->``.

    A page without them has both appended.
    """
    begin, end = f'<!-- study: {name} -->', f'<!-- end of study: {name} -->'
    if begin not in page or end not in page:
        return f'{page.rstrip()}\n\n{begin}\n{text}{end}\n'.lstrip()
    return page[: page.index(begin)] + f'{begin}\n{text}' + page[page.index(end) :]


def gains_of(study: Mapping[str, Any]) -> dict[str, Any]:
    """Gains with the titles of the grid, as ``plot.py gains`` draws them. Raises ValueError without a reference."""
    if not study['reference']:
        raise ValueError('a study without a `reference` has no gains')
    rows = gains_over(study['results'], study['reference'], list(study['students']), list(study['methods']))
    titled = [
        {**row, 'student': study['students'][row['student']], 'method': study['methods'][row['method']]['title']}
        for row in rows
    ]
    return {
        'gains': titled,
        'reference': study['methods'][study['reference']]['title'],
        'test_sets': ', '.join(study['test_sets']),
        'interval': '95 % over seeds, paired',
    }
