"""Writing checkpoints whole or not at all, and removing old ones."""

from pathlib import Path
from typing import Any

import torch

from mtkd_data.whole_files import whole_file


def save_whole(content: Any, path: str | Path) -> None:
    """``torch.save`` to a `whole_file`: a process killed at any moment leaves the old file or the new one.

    Raises OSError when the disk refuses.
    """
    with whole_file(Path(path)) as file:
        torch.save(content, file)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while saving left in ``folder``; nobody may be saving into it."""
    for path in folder.glob('.*.partial'):
        path.unlink(missing_ok=True)


def remove_all_but_last(keep: int, models: Path, states: Path) -> None:
    """Remove states and numbered networks of all but the ``keep`` newest iterations that have a state.

    A state goes before its networks, so one that is there has all that belongs to it. Networks of newer iterations, and
    those without a number (``latest``, ``best``), stay.
    """
    numbers = sorted((int(path.stem) for path in states.glob('*.state') if path.stem.isdigit()), reverse=True)
    for number in numbers[keep:]:
        (states / f'{number}.state').unlink(missing_ok=True)
        for path in models.glob(f'*_{number}.pth'):
            path.unlink(missing_ok=True)
