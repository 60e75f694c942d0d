"""Make a test set with HR and LR images from a folder of HR images; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtkd_data.preparation.test_set import main

if __name__ == '__main__':
    sys.exit(main())
