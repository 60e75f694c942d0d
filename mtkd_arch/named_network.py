"""Networks that a weights file names itself: a section of an option file may leave its ``network`` out then.

Files that ``scripts/export.py`` writes as safetensors carry the network's option beside the weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtkd_arch.weights import read_metadata


def named_network(path: str | Path) -> dict[str, Any] | None:
    """The option (``type`` and arguments) of the network that the file says its weights are for; None if it does not.

    Raises FileNotFoundError, or ValueError for a file that cannot be read.
    """
    network = read_metadata(path).get('network')
    return dict(network) if isinstance(network, Mapping) and 'type' in network else None


def with_named_network(section: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """``section`` (a teacher, the aggregator) with the ``network`` its ``path`` names, where it gives none of its own.

    A section without ``path`` comes back as it is. Raises FileNotFoundError, or ValueError where the file does not say;
    both call the section ``where``.
    """
    if not isinstance(section, Mapping) or 'network' in section or not section.get('path'):
        return section
    try:
        network = named_network(section['path'])
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f'{where}.path: {error}') from error
    if network is None:
        raise ValueError(
            f"{where} lacks the key 'network', and {section['path']} does not name its own: give its type and arguments"
        )
    return {**section, 'network': network}


def with_named_networks(opt: Mapping[str, Any]) -> dict[str, Any]:
    """An option file in which every teacher and the aggregator has its ``network``; see ``with_named_network``."""
    teachers = opt.get('teachers')
    filled = dict(opt)
    if isinstance(teachers, Mapping):
        filled['teachers'] = {name: with_named_network(one, f'teachers.{name}') for name, one in teachers.items()}
    if opt.get('aggregator'):
        filled['aggregator'] = with_named_network(opt['aggregator'], 'aggregator')
    return filled
