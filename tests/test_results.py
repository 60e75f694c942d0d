"""The published figures are those of the committed files, and nothing else."""

import json
from pathlib import Path

import pytest
from conftest import REPO

from mtkd_eval.study.report import gains_table, insert, to_markdown

STUDIES = sorted((REPO / 'benchmarks/results/study').glob('*.json'))
PAGE = REPO / 'docs/results.md'


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_the_results_page_says_what_the_files_say(path: Path) -> None:
    study = json.loads(path.read_text())
    page = PAGE.read_text()
    assert insert(page, study['name'], to_markdown(study)) == page, f'run_study.py {study["grid"]} --report --page'


def test_the_table_of_the_readme_is_that_of_the_study() -> None:
    study = json.loads((REPO / 'benchmarks/results/study/small_x4.json').read_text())
    assert gains_table(study) in (REPO / 'README.md').read_text()


def test_the_quickstart_table_of_the_readme_is_that_of_its_files() -> None:
    rows = {}
    for line in (REPO / 'README.md').read_text().splitlines():
        cells = [cell.strip(' *') for cell in line.strip('|').split('|')]
        rows[cells[0].partition(':')[0]] = cells[1:]
    for file, place in (('table', 2), ('set5', 4)):
        results = json.loads((REPO / f'benchmarks/results/quickstart/{file}.json').read_text())
        for network in results['networks']:
            (found,) = (each['mean'] for each in network['sets'].values())
            expected = [f'{found["psnr_y"]:.2f}', f'{found["ssim_y"]:.4f}']
            assert rows[network['name']][place : place + 2] == expected, network['name']
    for name in ('edsr', 'rcan', 'swinir'):
        card = (REPO / f'mtkd/pretrained/{name}_x4.md').read_text()
        psnr, ssim = rows[f'teacher {name}'][4:6]
        assert f'| Set5 | {psnr} | {ssim} |' in card
