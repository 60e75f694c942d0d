"""Option files and study grids, read without running anything in them."""

from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  mends the upstream faults before BasicSR is imported
from mtkd.schema.reader import read


def read_option(path: Path) -> dict[str, Any]:
    """An option file by the safe reader: its one tag is that of the ``plugin:`` line.

    Raises FileNotFoundError, or ValueError for what is no mapping or has a mistake in its text, with the lines.
    """
    from mtkd.schema.problems import refuse  # here: the schema is made of all that is registered

    try:
        file = read(path)
    except ValueError as error:
        raise ValueError(f'cannot be read as an option file: {error}') from error
    refuse(file.problems, str(path))
    if not isinstance(file.options, dict):
        raise ValueError(f'{path}: expected an option file, a mapping; it holds {type(file.options).__name__}')
    return file.options
