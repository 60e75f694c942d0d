"""Which networks meet which test sets, checked before any of them runs."""

from collections.abc import Sequence
from pathlib import Path

from mtkd_eval.comparison import as_file_name
from mtkd_eval.image_sets import ImageSet
from mtkd_eval.load import LoadedNetwork, load_network

BICUBIC = 'bicubic'


def load_all(
    sources: Sequence[str], network: str | None, param_key: str | None, scales: Sequence[int]
) -> list[LoadedNetwork]:
    """The networks by ``[LABEL=]SOURCE``; ``bicubic`` is left to ``with_bicubic``, which knows the scales.

    Raises ValueError for one whose scale is not among ``scales``, where these are given.
    """
    loaded = []
    for text in sources:
        name, source = split_label(text)
        if source == BICUBIC:
            continue
        found = load_network(source, network, param_key=param_key, name=name)
        if scales and found.scale not in scales:
            raise ValueError(f'{source} upsamples by {found.scale}, but --scale is {", ".join(map(str, scales))}')
        loaded.append(found)
    return loaded


def split_label(text: str) -> tuple[str | None, str]:
    """``LABEL=SOURCE`` in its parts; a path that holds a ``=`` is no label."""
    label, separator, source = text.partition('=')
    if not separator or Path(text).exists():
        return None, text
    if not label or not source:
        raise ValueError(f'{text}: expected SOURCE or LABEL=SOURCE')
    return label, source


def with_bicubic(sources: Sequence[str], loaded: list[LoadedNetwork], sets: Sequence[ImageSet]) -> list[LoadedNetwork]:
    """All networks in the order of ``sources``, the bicubic one once per scale of the ``sets``."""
    others, ordered = iter(loaded), []
    for text in sources:
        name, source = split_label(text)
        if source == BICUBIC:
            scales = sorted({images.scale for images in sets})
            ordered += [load_network(BICUBIC, scale=scale, name=name) for scale in scales]
        else:
            ordered.append(next(others))
    return ordered


def check_names(networks: Sequence[LoadedNetwork], sets: Sequence[ImageSet]) -> None:
    """Raise ValueError for two networks, or two sets, of one scale and one file name, which would share a folder.

    Raises it for a network without a set of its scale as well.
    """
    seen: dict[tuple[str, int], LoadedNetwork] = {}
    for network in networks:
        other = seen.setdefault((as_file_name(network.name), network.scale), network)
        if other is not network:
            alike = '' if other.name == network.name else f" or '{other.name}', one as a file name"
            both = f'{other.source} and {network.source}'
            raise ValueError(f"two networks are called '{network.name}'{alike}: {both}: label them, LABEL=SOURCE")
        if all(images.scale != network.scale for images in sets):
            there = ', '.join(f'{images.name} (x{images.scale})' for images in sets)
            raise ValueError(f'{network.name} upsamples by {network.scale}, but there is no test set for it: {there}')
    known: dict[tuple[str, int], ImageSet] = {}
    for images in sets:
        other_set = known.setdefault((as_file_name(images.name), images.scale), images)
        if other_set is not images:
            raise ValueError(
                f"two test sets x{images.scale} are called '{other_set.name}' and '{images.name}', one as a file name: "
                'name them, NAME=HR,LR'
            )
