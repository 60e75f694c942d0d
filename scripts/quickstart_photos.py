"""Makes the quickstart's data from photographs that ship inside scikit-image; see --help."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mtkd_data.preparation.quickstart_photos import main

if __name__ == '__main__':
    sys.exit(main())
