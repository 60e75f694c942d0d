"""Results as Markdown, LaTeX, CSV and JSON: one table per scale, a row per network, best and second best marked."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mtkd_eval.measure import METRICS

Results = Mapping[str, Any]
Mark = Literal['', 'best', 'second']

TITLES = {'psnr_y': 'PSNR-Y', 'ssim_y': 'SSIM-Y', 'psnr_rgb': 'PSNR-RGB', 'ssim_rgb': 'SSIM-RGB', 'lpips': 'LPIPS'}
DIGITS = {'psnr_y': 2, 'psnr_rgb': 2, 'ssim_y': 4, 'ssim_rgb': 4, 'lpips': 4}
LOWER_IS_BETTER = ('lpips',)
MISSING = '–'  # noqa: RUF001  the dash of tables
LATEX_ESCAPES = str.maketrans({'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}) | {
    ord(character): f'\\{character}' for character in '&%$#_{}'
}


@dataclass(frozen=True)
class Column:
    """One column: its titles (set and quantity), its cells as text, and their marks."""

    group: str
    title: str
    cells: tuple[str, ...]
    marks: tuple[Mark, ...]


def to_json(results: Results) -> str:
    """Everything, per image too."""
    return json.dumps(results, indent=1, allow_nan=False) + '\n'


def to_csv(results: Results) -> str:
    """A line per network, set and image, and one for the mean, all digits; without marks."""
    fields = ['network', 'scale', 'parameters', 'macs', 'set', 'crop_border', 'image', *METRICS, 'seconds']
    file = io.StringIO()
    writer = csv.DictWriter(file, [*fields, 'peak_bytes'], lineterminator='\n')
    writer.writeheader()
    for network in results['networks']:
        shared = {'network': network['name'], **{key: network[key] for key in ('scale', 'parameters', 'macs')}}
        for name, found in network['sets'].items():
            shared |= {'set': name, 'crop_border': found['crop_border']}
            for image, row in found['images'].items():
                writer.writerow({**shared, 'image': image, **row})
            cost = {key: found[key] for key in ('seconds', 'peak_bytes')}
            writer.writerow({**shared, 'image': 'mean', **found['mean'], **cost})
    return file.getvalue()


def to_markdown(results: Results) -> str:
    """Tables for a page; the best in bold, the second best underlined."""
    wrap = {'best': '**{}**', 'second': '<u>{}</u>', '': '{}'}
    parts = []
    for scale, networks in by_scale(results).items():
        columns = columns_of(networks)
        titles = [' '.join(filter(None, (column.group, column.title))) for column in columns]
        lines = [f'| x{scale} | {" | ".join(titles)} |', f'|---|{"---:|" * len(columns)}']
        for row, network in enumerate(networks):
            cells = (wrap[column.marks[row]].format(column.cells[row]) for column in columns)
            lines.append(f'| {network["name"].replace("|", chr(92) + "|")} | {" | ".join(cells)} |')
        parts.append('\n'.join(lines))
    return '\n\n'.join([*parts, '\n'.join(f'- {note}' for note in notes_of(results))]) + '\n'


def to_latex(results: Results) -> str:
    """Tables for a paper (packages booktabs and graphicx); the best in bold, the second best underlined."""
    wrap = {'best': r'\textbf{{{}}}', 'second': r'\underline{{{}}}', '': '{}'}
    parts = ['% \\usepackage{booktabs}', *(f'% {note}' for note in notes_of(results))]
    for scale, networks in by_scale(results).items():
        columns = columns_of(networks)
        lines = [rf'\begin{{tabular}}{{l{"r" * len(columns)}}}', r'\toprule']
        lines.append(_latex_groups(columns))
        titles = ' & '.join(_latex(column.title) for column in columns)
        lines += [rf'$\times {scale}$ & {titles} \\', r'\midrule']
        for row, network in enumerate(networks):
            cells = (wrap[column.marks[row]].format(_latex(column.cells[row])) for column in columns)
            lines.append(f'{_latex(network["name"])} & {" & ".join(cells)} \\\\')
        parts += [*lines, r'\bottomrule', r'\end{tabular}', '']
    return '\n'.join(parts)


FORMATS: dict[str, Callable[[Results], str]] = {'md': to_markdown, 'csv': to_csv, 'json': to_json, 'tex': to_latex}


def by_scale(results: Results) -> dict[int, list[Mapping[str, Any]]]:
    """The networks by their scale, each in the order given: figures of different scales do not compare."""
    networks = results['networks']
    scales = sorted({network['scale'] for network in networks})
    return {scale: [network for network in networks if network['scale'] == scale] for scale in scales}


def columns_of(networks: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of a table of these networks, which were run on the same sets."""
    plain = [
        Column('', title, tuple(text(network[key]) for network in networks), ('',) * len(networks))
        for key, title, text in (('parameters', 'parameters', count), ('macs', 'MACs', count))
    ]
    for name in networks[0]['sets']:
        found = [network['sets'][name] for network in networks]
        for metric in METRICS:
            values = [each['mean'][metric] for each in found]
            cells = tuple(MISSING if value is None else f'{value:.{DIGITS[metric]}f}' for value in values)
            plain.append(Column(name, TITLES[metric], cells, ranks(cells, metric in LOWER_IS_BETTER)))
        for key, title, text in (('seconds', 's', seconds), ('peak_bytes', 'MiB', mebibytes)):
            cells = tuple(text(each[key]) for each in found)
            plain.append(Column(name, title, cells, ('',) * len(cells)))
    return plain


def ranks(cells: Sequence[str], lower_is_better: bool) -> tuple[Mark, ...]:
    """Marks by what is shown, so that equal cells share theirs; the second best only among at least three values."""
    shown = sorted({float(cell) for cell in cells if cell != MISSING}, reverse=not lower_is_better)
    if len([cell for cell in cells if cell != MISSING]) < 2:
        return ('',) * len(cells)
    marks: dict[float, Mark] = dict(zip(shown, ('best', 'second') if len(shown) > 2 else ('best',), strict=False))
    return tuple('' if cell == MISSING else marks.get(float(cell), '') for cell in cells)


def count(value: int | None) -> str:
    """A number with its SI prefix; a dash for none, and for nothing at all."""
    if not value:
        return MISSING
    for size, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if value >= 0.9995 * size:
            return f'{value / size:.3g} {prefix}'
    return str(value)


def seconds(value: float | None) -> str:
    return MISSING if value is None else f'{value:.3g}'


def mebibytes(value: float | None) -> str:
    return MISSING if value is None else f'{value / 2**20:.0f}'


def notes_of(results: Results) -> list[str]:
    """What a reader must know to compare the figures, a sentence each."""
    settings, made = results['settings'], results['circumstances']
    crop = settings['crop_border']
    how = [f'precision {settings["precision"]}', f'tiles of {settings["tile"]}' if settings['tile'] else 'whole images']
    how += ['self-ensemble of 8'] if settings['self_ensemble'] else []
    notes = [
        'PSNR in dB and SSIM of 8-bit images as BasicSR computes them, '
        f'{"scale" if crop is None else crop} pixels cropped at each side; means over a set.',
        f'MACs at 1280x720 output: {results["notes"]["macs"]}.',
        f'{results["notes"]["cost"]}; {made["device"]}, {made["threads"]} threads, torch {made["torch"]}, '
        f'{", ".join(how)}.',
    ]
    if results['notes']['lpips']:
        notes.append(f'No LPIPS: {results["notes"]["lpips"]}.')
    return notes + [f'{network["name"]}: {note}.' for network in results['networks'] for note in network['notes']]


def _latex_groups(columns: Sequence[Column]) -> str:
    """The line above the titles that names the sets, each over its columns."""
    cells, rules, at = [''], [], 2
    for group in dict.fromkeys(column.group for column in columns):
        width = sum(column.group == group for column in columns)
        cells.append(rf'\multicolumn{{{width}}}{{c}}{{{_latex(group)}}}')
        if group:
            rules.append(rf'\cmidrule(lr){{{at}-{at + width - 1}}}')
        at += width
    return f'{" & ".join(cells)} \\\\ {"".join(rules)}'


def _latex(text: str) -> str:
    return text.translate(LATEX_ESCAPES).replace(MISSING, '--')
