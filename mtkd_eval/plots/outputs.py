"""What networks make of the images of test sets, for the pictures that show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtkd_arch.tiling import check_tiles
from mtkd_data.image_io import read_header
from mtkd_data.teacher_cache.command import choose_device
from mtkd_eval.choice import BICUBIC, check_names, load_all, split_label, with_bicubic
from mtkd_eval.image_sets import ImagePair, ImageSet, find_sets
from mtkd_eval.measure import Run, RunSettings, make_runner, read_pair, repeatable
from mtkd_model.image_metrics import to_8_bit


@dataclass(frozen=True)
class Networks:
    """Networks of one scale by their names, ready to run on the ``sets``."""

    runs: Mapping[str, Run]
    scale: int
    sets: tuple[ImageSet, ...]
    device: torch.device

    @torch.no_grad()
    def outputs(self, pair: ImagePair) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """LR, HR and each network's image, (1, 3, H, W), whole numbers in [0, 255], float32, on the CPU."""
        lq, gt = read_pair(pair, self.scale, self.device)
        with repeatable():
            made = {name: to_8_bit(run(lq)).cpu() for name, run in self.runs.items()}
        return to_8_bit(lq).cpu(), gt.float().cpu(), made

    def size(self, pair: ImagePair) -> tuple[int, int]:
        """Height and width of the HR image, as far as the LR image reaches."""
        header = read_header(pair.lq.read_bytes(), str(pair.lq))
        return header.height * self.scale, header.width * self.scale

    def pairs(self, names: Sequence[str] = ()) -> list[ImagePair]:
        """The images by these names (``IMAGE`` or ``SET/IMAGE``) in their order; all of them without names.

        Raises ValueError for a name that no image has, or that several have.
        """
        if not names:
            return [pair for images in self.sets for pair in images.pairs]
        return [self._pair(name) for name in names]

    def _pair(self, name: str) -> ImagePair:
        found = [(images.name, pair) for images in self.sets for pair in images.pairs]
        fitting = [pair for of, pair in found if name in (pair.name, f'{of}/{pair.name}')]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise ValueError(f'several sets have an image {name}: name one of {", ".join(_full_names(found, name))}')
        raise ValueError(f'no image {name} in the test sets; there are {", ".join(pair.name for _, pair in found)}')


def load_networks(given: Mapping[str, Any], bicubic: bool = False) -> Networks:
    """The networks and sets of a command line (see ``add_network_arguments``), all of one scale.

    ``bicubic`` puts the reference first where it was not asked for. Raises what loading raises, and ValueError for
    networks of several scales.
    """
    check_tiles(given['tile'], given['overlap'])
    settings = RunSettings(precision=given['precision'], tile=given['tile'], overlap=given['overlap'])
    device, sources = choose_device(given['device'], 0), list(given['networks'])
    if bicubic and BICUBIC not in [split_label(text)[1] for text in sources]:
        sources.insert(0, BICUBIC)
    loaded = load_all(sources, given['network'], given['param_key'], [given['scale']] if given['scale'] else [])
    scales = {network.scale for network in loaded} or ({given['scale']} - {None})
    if len(scales) != 1:
        by_scale = ', '.join(f'{network.name} x{network.scale}' for network in loaded) or 'bicubic alone: give --scale'
        raise ValueError(f'expected networks of one scale, got {by_scale}')
    sets = find_sets(given['sets'], scales)
    networks = with_bicubic(sources, loaded, sets)
    check_names(networks, sets)
    runs = {network.name: make_runner(network, device, settings) for network in networks}
    return Networks(runs, scales.pop(), tuple(sets), device)


def _full_names(found: Sequence[tuple[str, ImagePair]], name: str) -> list[str]:
    return [f'{of}/{pair.name}' for of, pair in found if pair.name == name]
