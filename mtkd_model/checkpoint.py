"""Writing checkpoints whole or not at all."""

import os
from pathlib import Path
from typing import Any

import torch


def save_whole(content: Any, path: str | Path) -> None:
    """``torch.save`` to a temporary name beside ``path``, flushed to the disk, then renamed over it.

    A process killed at any moment leaves the old file or the new one. Raises OSError when the disk refuses.
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        with partial.open('wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
