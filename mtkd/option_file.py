"""Option files as BasicSR reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  mends the upstream faults before BasicSR is imported

# isort: split
import yaml
from basicsr.utils.options import ordered_yaml


def read_option(path: Path) -> dict[str, Any]:
    """An option file as BasicSR reads it. Raises FileNotFoundError, or ValueError for what is no mapping."""
    if not path.is_file():
        raise FileNotFoundError(f'no such option file: {path}')
    try:
        with path.open() as file:
            opt = yaml.load(file, Loader=ordered_yaml()[0])
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path}: cannot be read as an option file: {error}') from error
    if not isinstance(opt, Mapping):
        raise ValueError(f'{path}: expected an option file, a mapping; it holds {type(opt).__name__}')
    return dict(opt)
