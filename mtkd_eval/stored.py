"""What storing a network's weights in half precision costs on test sets."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from mtkd_eval.image_sets import ImageSet
from mtkd_eval.loaded import LoadedNetwork
from mtkd_eval.measure import RunSettings, make_runner, measure_set

MOST_LOST = 0.005  # dB of PSNR-Y, mean over a set: below what tables show
Figures = Mapping[str, float]


@torch.no_grad()
def measure_stored(stored: LoadedNetwork, loaded: LoadedNetwork, sets: Sequence[ImageSet]) -> dict[str, Figures]:
    """Mean ``psnr_y`` and ``ssim_y`` of ``stored`` by set, and ``lost``, the dB by which ``loaded`` is better.

    Raises ValueError for a loss above MOST_LOST.
    """
    quality = {}
    for images in sets:
        ours, theirs = (_mean(network, images) for network in (stored, loaded))
        lost = round(theirs['psnr_y'] - ours['psnr_y'], 4) + 0.0  # no -0.0
        if lost > MOST_LOST:
            raise ValueError(
                f'{loaded.name} as float16 loses {lost:.4f} dB on {images.name} (allowed: {MOST_LOST}): export it '
                'without --half'
            )
        quality[images.name] = {'psnr_y': ours['psnr_y'], 'ssim_y': ours['ssim_y'], 'lost': lost}
    return quality


def describe_stored(quality: Mapping[str, Figures]) -> str:
    """``Set5 31.93 dB (loses 0.0002)`` for each set."""
    return ', '.join(f'{name} {one["psnr_y"]:.2f} dB (loses {one["lost"]:.4f})' for name, one in quality.items())


def _mean(loaded: LoadedNetwork, images: ImageSet) -> Figures:
    own = replace(loaded, network=copy.deepcopy(loaded.network))  # the runner takes its network over
    settings = RunSettings(repeats=0)
    device = torch.device('cpu')
    mean = measure_set(make_runner(own, device, settings), images, device, settings)['mean']
    lacking = [key for key in ('psnr_y', 'ssim_y') if mean[key] is None]
    if lacking:
        raise ValueError(f'{images.name}: {lacking[0]} has no finite value for one of its images')
    return mean
