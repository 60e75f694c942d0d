"""Check a paired data set: counts, keys, sizes, and that LR is the bicubic of GT; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtkd_data.preparation.verify import main

if __name__ == '__main__':
    sys.exit(main())
