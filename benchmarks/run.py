"""Every benchmark of speed, one after the other: one JSON, one table, two plots.

    python -m benchmarks.run                          # all parts, on the GPU if there is one
    python -m benchmarks.run --parts steps wavelet    # these alone; the others stay as they were measured last
    python -m benchmarks.run --show                   # table and plots again from the JSON

Results go to benchmarks/results/<device>.json and .md, docs/performance.md and docs/images/cost_of_teachers_*.png.
All figures are ratios within one run of one part, with the interquartile range; seconds say something about this
machine alone.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import record
from benchmarks.report import plot, table
from mtkd_data.whole_files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PARTS = ('steps', 'teachers', 'dctswin_forward', 'wavelet', 'precision', 'validation', 'loader', 'trainer')
START, END = '<!-- table: python -m benchmarks.run -->', '<!-- end of table -->'
WITH_IMAGES = ('loader', 'trainer')


def measure(part: str, args: argparse.Namespace) -> dict[str, Any] | None:
    """One part in a process of its own; None, with what it said, where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'figures.json'
        command = [sys.executable, '-m', f'benchmarks.{part}', '--device', args.device, '--json', str(path)]
        if part in WITH_IMAGES and args.images:
            command += ['--images', str(args.images)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            print(f'{part} failed:\n{(done.stdout + done.stderr)[-2000:]}', file=sys.stderr)
            return None
        return json.loads(path.read_text())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='default: all')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--images', type=Path, help="photographs for loader and trainer (default: scikit-image's)")
    parser.add_argument('--results', type=Path, default=ROOT / 'benchmarks/results', help='folder of JSON and table')
    parser.add_argument('--plots', type=Path, default=ROOT / 'docs/images', help='folder of the plots')
    parser.add_argument('--page', type=Path, default=ROOT / 'docs/performance.md', help='page that shows the tables')
    parser.add_argument('--show', action='store_true', help='measure nothing')
    args = parser.parse_args(argv)
    store = args.results / f'{args.device}.json'
    found = json.loads(store.read_text()) if store.is_file() else {}
    failed = []
    for number, part in enumerate([] if args.show else args.parts, start=1):
        print(f'[{number}/{len(args.parts)}] {part} ...', end=' ', flush=True)
        begun, figures = time.monotonic(), measure(part, args)
        print(f'{time.monotonic() - begun:.0f} s', flush=True)
        if figures is None:
            failed.append(part)
            continue
        found[part] = figures
        store.parent.mkdir(parents=True, exist_ok=True)
        # after each part: a long run may be cut short
        write_atomically(store, f'{json.dumps(found, indent=1)}\n'.encode())
    text = table(found, args.device)
    write_atomically(store.with_suffix('.md'), text.encode())
    plot(found, args.plots / f'cost_of_teachers_{args.device}.png')
    if args.page.is_file():
        tables = '\n'.join(path.read_text() for path in sorted(args.results.glob('c*.md')))  # cpu and cuda
        page = record.replace_between(args.page.read_text(), START, END, tables.rstrip('\n'))
        write_atomically(args.page, page.encode())
    print(text)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
