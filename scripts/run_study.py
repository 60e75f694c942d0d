"""Trains and compares everything in a grid file; see ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtkd_eval.study.command import main

if __name__ == '__main__':
    sys.exit(main())
