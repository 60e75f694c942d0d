"""LPIPS, where its package is installed."""

import importlib
import warnings

import torch
from torch import Tensor


class Perceptual:
    """LPIPS with AlexNet (Zhang et al., CVPR 2018, https://arxiv.org/abs/1801.03924), version 0.1; lower is better.

    Raises ImportError with the reason where the package ``lpips`` is missing or its weights cannot be had.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            lpips = importlib.import_module('lpips')
        except ImportError as error:
            raise ImportError('the package lpips is not installed (pip install lpips)') from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # it asks torchvision for weights in a way that is outdated
                self.network = lpips.LPIPS(net='alex', verbose=False).eval().to(device)
        except Exception as error:  # of any of the libraries that fetch the weights
            raise ImportError(f'lpips cannot load its weights: {error}') from error

    @torch.no_grad()
    def __call__(self, output: Tensor, gt: Tensor, border: int) -> float:
        """Distance of two (1, 3, H, W), RGB in [0, 255], ``border`` pixels cropped at each side."""
        cropped = (image[..., border : -border or None, border : -border or None] for image in (output, gt))
        one, two = (image.float() / 127.5 - 1 for image in cropped)
        return self.network(one, two).item()


def perceptual(device: torch.device) -> tuple[Perceptual | None, str | None]:
    """LPIPS, or None and why not."""
    try:
        return Perceptual(device), None
    except ImportError as error:
        return None, str(error)
