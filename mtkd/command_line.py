"""What every command of the project does with errors and interrupts, and how it reads option files."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  mends the upstream faults before BasicSR is imported

# isort: split
import yaml
from basicsr.utils.options import ordered_yaml

ERRORS = (ValueError, OSError, MemoryError, ImportError)
GO_ON = 'the same command goes on from here'


def exit_code(command: Callable[[], int | None], interrupted: str = GO_ON) -> int:
    """Run ``command`` and give its exit code: its own or 0, 2 where it raised, 130 where the user stopped it.

    The message goes to stderr; ``interrupted`` says what state a stopped command leaves.
    """
    try:
        return command() or 0
    except ERRORS as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'interrupted: {interrupted}', file=sys.stderr)
        return 130


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
