"""Known security flaws of the packages this one stands on: where each ends, and what it means here."""

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Advisory:
    """A flaw of ``package`` before version ``fixed`` (None: in every release), and its ``meaning`` for users here."""

    package: str
    fixed: str | None
    name: str
    meaning: str
    mend: str | None = None  # the function of mtkd.compat that keeps it away


ADVISORIES = (
    Advisory('torch', '2.6', 'CVE-2025-32434', 'a .pth can run code, even read as tensors alone'),
    Advisory('torch', '2.10', 'CVE-2026-24747', 'a made-up .pth can corrupt memory, even read as tensors alone'),
    Advisory(
        'basicsr', None, 'CVE-2024-27763', '--launcher slurm runs what SLURM_NODELIST holds',
        'keep_node_lists_from_the_shell',
    ),
    Advisory('opencv-python', '4.8.1.78', 'CVE-2023-4863', 'a made-up WebP image can corrupt memory'),
    Advisory('pyyaml', '5.4', 'CVE-2020-14343', 'an option file can run code; BasicSR reads them so by design'),
    Advisory('tqdm', '4.66.3', 'CVE-2024-34062', 'arguments of its own command line, which nothing here uses, are run'),
)  # fmt: skip


def open_here(version_of: Callable[[str], str] = importlib.metadata.version) -> list[Advisory]:
    """Those of this installation that no function of ours keeps away. A package that is not there has none."""
    found = []
    for advisory in ADVISORIES:
        try:
            version = version_of(advisory.package)
        except importlib.metadata.PackageNotFoundError:
            continue
        if advisory.mend is None and (advisory.fixed is None or numbers(version) < numbers(advisory.fixed)):
            found.append(advisory)
    return found


def numbers(version: str) -> tuple[int, ...]:
    """``2.10.1+cu128`` -> (2, 10, 1): the release alone, to compare."""
    return tuple(int(part) for part in re.match(r'\d+(?:\.\d+)*', version).group().split('.'))
