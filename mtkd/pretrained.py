"""The networks that ship with the plugin: weights in half precision that name their network, each with its card."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtkd_data.whole_files import whole_folder

FOLDER = Path(__file__).parent / 'pretrained'
SUFFIXES = ('.safetensors', '.md', '.json')
LONGEST_HEADER = 2**20  # bytes; ours have some thousand


@dataclass(frozen=True)
class Shipped:
    """A file of weights and what it says of itself; ``psnr_y`` in dB by test set."""

    path: Path
    network: str
    scale: int | None
    parameters: int
    psnr_y: dict[str, float]


def shipped_networks(folder: Path | None = None) -> list[Shipped]:
    """What ``folder`` (default FOLDER) holds, by name; nothing where there is none. ValueError for a damaged file."""
    return [describe(path) for path in sorted((folder or FOLDER).glob('*.safetensors'))]


def describe(path: Path) -> Shipped:
    """A safetensors file by its header alone. Raises ValueError for a file that has none."""
    header = _read_header(path)
    facts = {key: _parsed(text) for key, text in header.pop('__metadata__', {}).items()}
    network, quality = facts.get('network'), facts.get('psnr_y')
    return Shipped(
        path,
        str(network.get('type', 'unknown')) if isinstance(network, dict) else 'unknown',
        facts['scale'] if isinstance(facts.get('scale'), int) else None,
        sum(math.prod(tensor['shape']) for tensor in header.values()),
        quality if isinstance(quality, dict) else {},
    )


def table(networks: Sequence[Shipped]) -> str:
    """One line per network, columns aligned: file, network, scale, parameters, PSNR-Y of every set."""
    sets = list(dict.fromkeys(name for one in networks for name in one.psnr_y))
    lines = [['file', 'network', 'scale', 'parameters', *(f'PSNR-Y {name}' for name in sets)]]
    for one in networks:
        scale = 'unknown' if one.scale is None else f'x{one.scale}'
        quality = [f'{one.psnr_y[name]:.2f} dB' if name in one.psnr_y else '' for name in sets]
        lines.append([one.path.name, one.network, scale, f'{one.parameters:,}', *quality])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)


def copy_to(target: Path) -> list[Path]:
    """Copy all weights and cards that ship into the new folder ``target``, which appears when all of it is there.

    Raises FileExistsError for one that is there, FileNotFoundError where nothing ships.
    """
    files = sorted(path for path in FOLDER.glob('*') if path.suffix in SUFFIXES)
    if not any(path.suffix == '.safetensors' for path in files):
        raise FileNotFoundError(f'{FOLDER}: no networks ship with this version')
    with whole_folder(target) as made:
        for path in files:
            shutil.copyfile(path, made / path.name)
    return [target / path.name for path in files]


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open('rb') as file:
            length = int.from_bytes(file.read(8), 'little')
            if length > LONGEST_HEADER:
                raise ValueError('no header')
            return json.loads(file.read(length))
    except ValueError as error:
        raise ValueError(f'{path} is no safetensors file, or a damaged one: install the plugin again') from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
