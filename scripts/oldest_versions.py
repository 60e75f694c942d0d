"""Print the oldest version of every package that setup.py allows, as pip's constraints: ``name==version`` lines."""

import argparse
import ast
from pathlib import Path

SETUP = Path(__file__).resolve().parents[1] / 'setup.py'


def oldest_versions(setup: str) -> list[str]:
    """``name==version`` of every requirement of ``install_requires``; ValueError for one without a lowest version."""
    keywords = [node for node in ast.walk(ast.parse(setup)) if isinstance(node, ast.keyword)]
    (required,) = (ast.literal_eval(node.value) for node in keywords if node.arg == 'install_requires')
    unbounded = [each for each in required if '>=' not in each]
    if unbounded:
        raise ValueError(f'setup.py: no lowest version (name>=version) for {", ".join(unbounded)}')
    return [each.replace('>=', '==') for each in required]


if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__).parse_args()
    print('\n'.join(oldest_versions(SETUP.read_text(encoding='utf-8'))))
