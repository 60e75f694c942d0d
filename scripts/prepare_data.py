"""Make a paired data set for BasicSR from a folder of HR images; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtkd_data.preparation.prepare import main

if __name__ == '__main__':
    sys.exit(main())
