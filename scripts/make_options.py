"""Writes the option files under options/ from scripts/option_templates: ``python scripts/make_options.py [--check]``.

A test fails when a file and its template differ, or there is none; files in options/own/ are nobody's but the user's,
and the grids of studies in options/study/ are written by hand.
"""

import argparse
import sys
from pathlib import Path

from option_templates import all_files

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtkd_data.whole_files import write_atomically

ROOT = Path(__file__).resolve().parents[1] / 'options'
BY_HAND = ('own/', 'study/')


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 when a file differs')
    args = parser.parse_args(argv)
    files = all_files()
    strays = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob('*.yml')} - files.keys()
    strays = {name for name in strays if not name.startswith(BY_HAND)}
    stale = [name for name, text in files.items() if not (ROOT / name).is_file() or (ROOT / name).read_text() != text]
    if args.check:
        for name in [*stale, *strays]:
            print(f'differs from its template: options/{name}', file=sys.stderr)
        return 1 if stale or strays else 0
    for name in stale:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(ROOT / name, files[name].encode())
    for name in strays:
        print(f'no template makes options/{name}; delete it?', file=sys.stderr)
    print(f'{len(files)} option files, {len(stale)} written')
    return 0


if __name__ == '__main__':
    sys.exit(main())
