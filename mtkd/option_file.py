"""Option files and study grids, read without running anything in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  mends the upstream faults before BasicSR is imported

# isort: split
from mtkd.schema.problems import refuse
from mtkd.schema.reader import read


def read_option(path: Path) -> dict[str, Any]:
    """What BasicSR's loader reads from an option file, by a safe one that knows the tag of ``plugin:`` alone.

    Raises FileNotFoundError, or ValueError with the lines of what is wrong with the text, and for what is no mapping.
    """
    file = read(path)
    refuse(file.problems, str(path))
    if not isinstance(file.options, Mapping):
        raise ValueError(f'{path}: expected an option file, a mapping; it holds {type(file.options).__name__}')
    return dict(file.options)
