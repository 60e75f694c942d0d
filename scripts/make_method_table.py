"""Writes the overview table in docs/methods.md from the registry: ``python scripts/make_method_table.py [--check]``.

Taps and extra parameters are those of each method built at the small size of benchmarks/method_cost.py, the step cost
is what that benchmark measured last.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import method_cost, record  # noqa: E402  before this, the checkout need not be on the path
from mtkd_data.whole_files import write_atomically  # noqa: E402
from mtkd_model.distillers import DISTILLER_REGISTRY  # noqa: E402

PAGE = ROOT / 'docs/methods.md'
COSTS = ROOT / 'benchmarks/results/method_cost_cpu.json'
START, END = '<!-- table: scripts/make_method_table.py -->', '<!-- end of table -->'
HEAD = """\
| method | class | paper | taps | extra parameters | step cost |
|---|---|---|---|---|---|"""


def paper(documentation: str) -> str:
    """A link to the first paper that a class names by its address."""
    address = re.search(r'https://(?:arxiv\.org/abs|doi\.org)/[^\s,;)]+[^\s,;).]', documentation)
    if address is None:
        return 'see below'
    kind = 'arXiv' if 'arxiv' in address[0] else 'doi'
    return f'[{kind} {address[0].split("/", 4 if kind == "arXiv" else 3)[-1]}]({address[0]})'


def row(name: str, facts: dict[str, Any], cost: float | None) -> str:
    """One line of the table."""
    title = name.removesuffix('Distiller')
    documentation = DISTILLER_REGISTRY.get(name).__doc__ or ''
    extra = f'{facts["extra_parameters"] / 1000:.1f} k' if facts['extra_parameters'] else 'none'
    measured = '-' if cost is None else f'{cost:.1f} x'
    return (
        f'| {title} | `{name}` | {paper(documentation)} | {"yes" if facts["taps"] else "no"} | {extra} | {measured} |'
    )


def table() -> str:
    """The whole table, in the order of the names."""
    costs = json.loads(COSTS.read_text())['methods'] if COSTS.is_file() else {}
    rows = [
        row(name, method_cost.facts(model), costs.get(name, {}).get('ratio'))
        for name, model in method_cost.models()
        if name != 'scratch'
    ]
    return '\n'.join([HEAD, *rows])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 when the table is out of date')
    args = parser.parse_args(argv)
    page = PAGE.read_text()
    fresh = record.replace_between(page, START, END, table())
    if args.check:
        if fresh != page:
            print('docs/methods.md: the table is out of date: run python scripts/make_method_table.py', file=sys.stderr)
        return int(fresh != page)
    write_atomically(PAGE, fresh.encode())
    return 0


if __name__ == '__main__':
    sys.exit(main())
