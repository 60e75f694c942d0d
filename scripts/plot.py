"""Pictures of results: comparison sheets, error maps, curves, scatter plots, gains; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mtkd  # noqa: F401  first: it mends BasicSR, which the networks come from

# isort: split
from mtkd_eval.plots.command import main

if __name__ == '__main__':
    sys.exit(main())
