"""Writes docs/options.md from the checks, registries and docstrings: ``make_options_reference.py [--check]``.

A test fails when the page and the code differ.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]

from options_reference.page import page  # noqa: E402  before this, the checkout need not be on the path

from mtkd_data.whole_files import write_atomically  # noqa: E402

PAGE = ROOT / 'docs/options.md'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='example:\n  python scripts/make_options_reference.py\nexit code: 0 done or up to date, 1 out of date',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 when the page is out of date')
    args = parser.parse_args(argv)
    fresh = page()
    stale = not PAGE.is_file() or PAGE.read_text() != fresh
    if args.check:
        if stale:
            print('docs/options.md is out of date: run python scripts/make_options_reference.py', file=sys.stderr)
        return int(stale)
    if stale:
        write_atomically(PAGE, fresh.encode())
    return 0


if __name__ == '__main__':
    sys.exit(main())
