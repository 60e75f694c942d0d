"""BasicSR's tester with this plugin registered: ``python basicsr/test.py -opt options/test/test_mtkd_x4.yml``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mtkd  # noqa: F401  registers the plugin and mends upstream before it is imported

# isort: split
from basicsr.test import test_pipeline

if __name__ == '__main__':
    test_pipeline(str(ROOT))
