"""Writes the quickstart's table, comparison picture and training curves from its experiments."""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mtkd  # noqa: F401  first: it mends BasicSR, which the networks come from

# isort: split
import torch

from mtkd.option_file import read_option
from mtkd_data.command_line import exit_code
from mtkd_data.whole_files import check_place, write_atomically
from mtkd_eval.comparison import evaluate
from mtkd_eval.image_sets import find_sets
from mtkd_eval.load import load_network
from mtkd_eval.loaded import LoadedNetwork
from mtkd_eval.measure import RunSettings
from mtkd_eval.plots.command import main as plot
from mtkd_eval.tables import to_json, to_markdown

OPTIONS = Path('options/quickstart')
MTKD, SCRATCH = OPTIONS / 'train_mtkd.yml', OPTIONS / 'train_scratch.yml'
TARGET = f'{MTKD}:target'
REGIONS = ('chelsea:60,110,96', 'coffee:150,250,96', 'coins:60,90,96')  # an eye, a rim, fine relief
COLUMNS = {'student, scratch': SCRATCH, 'student, MTKD': MTKD, 'teacher target': TARGET}


def load_all() -> list[LoadedNetwork]:
    """The bicubic reference, both students, every teacher, and what the teachers agree on."""
    opt = read_option(MTKD)
    sources = {
        'bicubic': 'bicubic',
        'student, scratch': SCRATCH,
        'student, MTKD': MTKD,
        **{f'teacher {name}': f'{MTKD}:teachers.{name}' for name in opt['teachers']},
        'teacher target': TARGET,
    }
    return [load_network(source, scale=opt['scale'], name=name) for name, source in sources.items()]


def verdict(results: dict[str, Any]) -> str:
    """A sentence that says who won, by how much, and how little that proves."""
    (found, *_) = results['networks'][0]['sets'].items()
    name, photos = found[0], len(found[1]['images'])
    psnr = {network['name']: network['sets'][name]['mean']['psnr_y'] for network in results['networks']}
    gain = psnr['student, MTKD'] - psnr['student, scratch']
    won = f'beats the control by {gain:.2f} dB' if gain > 0 else f'does not beat the control: {gain:.2f} dB'
    return f'MTKD {won}; one run, one seed, {photos} held-out photographs.'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=Path('results/quickstart'), help='default: %(default)s')
    out = parser.parse_args(argv).out
    return exit_code(lambda: report(out))


def report(out: Path) -> int:
    """Write the table and the pictures into ``out``; the exit code. Raises what loading and writing raise."""
    check_place(out / 'table.md')
    networks, sets = load_all(), find_sets([str(MTKD)], ())
    results = evaluate(networks, sets, torch.device('cpu'), RunSettings(repeats=0), progress=None)
    table = f'{to_markdown(results)}\n{verdict(results)}\n'
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / 'table.md', table.encode())
    write_atomically(out / 'table.json', to_json(results).encode())
    print(table)
    named = [f'{label}={source}' for label, source in COLUMNS.items()]
    look = ['--region', *REGIONS, '--hide', 'lr', '--font', '13', '--device', 'cpu']
    curves = [f'{label}={out}/{log}.log' for label, log in zip(COLUMNS, ('scratch', 'mtkd'), strict=False)]
    sheet = ['sheet', *named, '--set', str(MTKD), *look, '--out', str(out / 'comparison.png')]
    return plot(sheet) or plot(['curves', *curves, '--show', 'psnr', '--out', str(out / 'curves.png')])


if __name__ == '__main__':
    sys.exit(main())
