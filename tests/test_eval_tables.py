"""Tables of results: marks, groups, escapes, digits."""

import csv
import io
import json
from typing import Any

import pytest

from mtkd_eval.tables import count, ranks, to_csv, to_json, to_latex, to_markdown


def row(name: str, psnr: float | None, scale: int = 4, macs: int | None = 4_271_616_000) -> dict[str, Any]:
    mean = {'psnr_y': psnr, 'ssim_y': 0.81114, 'psnr_rgb': 26.5, 'ssim_rgb': 0.77, 'lpips': None}
    cost = {'seconds': 0.01234, 'peak_bytes': 7.5 * 2**20}
    found = {'crop_border': scale, 'mean': mean, **cost, 'images': {'baby': {**mean, **cost}}}
    return {
        'name': name,
        'scale': scale,
        'source': 'net.pth',
        'weights': [],
        'parameters': 40_323,
        'macs': macs,
        'notes': [],
        'sets': {'Set5': found},
    }


def results(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        'circumstances': {'device': 'CPU', 'threads': 1, 'torch': '2.4'},
        'settings': {'precision': 'fp32', 'tile': 0, 'self_ensemble': False, 'crop_border': None},
        'notes': {'macs': 'convolutions', 'cost': 'seconds', 'lpips': 'the package lpips is not installed'},
        'networks': list(rows),
    }


@pytest.mark.parametrize(
    ('cells', 'lower', 'marks'),
    [
        (('28.43', '29.18', '28.99'), False, ('', 'best', 'second')),
        (('0.3', '0.1', '0.2'), True, ('', 'best', 'second')),
        (('29.18', '29.18', '28.99', '28.43'), False, ('best', 'best', 'second', '')),
        (('29.18', '28.99'), False, ('best', '')),
        (('29.18',), False, ('',)),
        (('–', '29.18', '28.43', '28.99'), False, ('', 'best', '', 'second')),  # noqa: RUF001
        (('9.50', '10.10', '9.60'), False, ('', 'best', 'second')),  # as numbers, not as text
    ],
)
def test_best_and_second_best_are_marked_by_what_is_shown(cells, lower, marks) -> None:
    assert ranks(cells, lower) == marks


@pytest.mark.parametrize(
    ('value', 'shown'),
    [(40_323, '40.3 k'), (4_271_616_000, '4.27 G'), (999_600, '1 M'), (999_400, '999 k'), (0, '–'), (None, '–')],  # noqa: RUF001
)
def test_counts_have_three_digits_and_a_prefix(value, shown) -> None:
    assert count(value) == shown


def test_markdown_has_a_row_per_network_and_says_what_the_reader_must_know() -> None:
    lines = to_markdown(results(row('a', 28.434), row('b', 29.18), row('c|d', 28.99))).splitlines()
    assert lines[0].startswith('| x4 | parameters | MACs | Set5 PSNR-Y | Set5 SSIM-Y |')
    assert lines[2] == '| a | 40.3 k | 4.27 G | 28.43 | **0.8111** | **26.50** | **0.7700** | – | 0.0123 | 8 |'  # noqa: RUF001
    assert '| **29.18** |' in lines[3]
    assert lines[4].startswith('| c\\|d |')
    assert '<u>28.99</u>' in lines[4]
    assert {line.count('|') - line.count('\\|') for line in lines[:5]} == {lines[0].count('|')}
    assert '- No LPIPS: the package lpips is not installed.' in lines


def test_networks_of_different_scales_are_not_compared() -> None:
    page = to_markdown(results(row('a', 28.43), row('a', 33.67, scale=2), row('b', 29.0)))
    assert page.index('| x2 |') < page.index('| x4 |')
    assert '| 33.67 |' in page
    assert '**29.00**' in page


def test_latex_escapes_names_and_closes_what_it_opens() -> None:
    page = to_latex(results(row('net_g & 50%', 28.43), row('b', 29.18), row('c', 28.99)))
    assert r'net\_g \& 50\% &' in page
    assert r'\textbf{29.18}' in page
    assert r'\underline{28.99}' in page
    assert page.count(r'\begin{tabular}') == page.count(r'\end{tabular}') == 1
    columns = page.split(r'\begin{tabular}{')[1].split('}')[0]
    body = page.split(r'\midrule')[1].split(r'\bottomrule')[0].strip().splitlines()
    assert [line.replace(r'\&', '').count('&') for line in body] == [len(columns) - 1] * 3
    assert rf'\multicolumn{{{len(columns) - 3}}}{{c}}{{Set5}}' in page
    assert rf'\cmidrule(lr){{4-{len(columns)}}}' in page


def test_csv_has_every_image_and_all_digits() -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(results(row('a, b', 28.434567), row('c', None))))))
    assert [(line['network'], line['image']) for line in lines] == [
        ('a, b', 'baby'),
        ('a, b', 'mean'),
        ('c', 'baby'),
        ('c', 'mean'),
    ]
    assert lines[1]['psnr_y'] == '28.434567'
    assert lines[3]['psnr_y'] == ''
    assert lines[0]['macs'] == '4271616000'


def test_json_is_standard_json() -> None:
    assert json.loads(to_json(results(row('a', None))))['networks'][0]['sets']['Set5']['mean']['psnr_y'] is None
    with pytest.raises(ValueError, match='Out of range'):
        to_json(results(row('a', float('nan'))))
