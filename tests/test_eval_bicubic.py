"""The bicubic reference: MATLAB's, and the published figures."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.utils.matlab_functions import imresize

from mtkd_eval.bicubic import BicubicUpsampling
from mtkd_eval.image_sets import find_sets
from mtkd_eval.load import load_network
from mtkd_eval.measure import RunSettings, make_runner, measure_set

PUBLISHED = {
    ('Set5', 2): 33.67,
    ('Set5', 3): 30.40,
    ('Set5', 4): 28.43,
    ('Set14', 2): 30.33,
    ('Set14', 3): 27.63,
    ('Set14', 4): 26.09,
}


def enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    """The formula, pixel by pixel: uint8 (H, W) to (scale * H, W), four taps, mirrored, rounded half up."""

    def kernel(x: float) -> float:
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    height = len(image)
    rows = []
    for position in range(scale * height):
        centre = (position + 0.5) / scale - 0.5
        total = np.zeros(image.shape[1])
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            mirrored = -1 - tap if tap < 0 else 2 * height - 1 - tap if tap >= height else tap
            total += kernel(centre - tap) * image[mirrored]
        # a sum of thirds that lies halfway must not fall below it by rounding
        rows.append(np.clip(np.floor(total + 0.5 + 1e-9), 0, 255))
    return np.array(rows, np.uint8)


@pytest.fixture
def photo(photos: Path) -> np.ndarray:
    return cv2.imread(str(photos / 'coffee.png'))[20:57, 30:83]


def run(image: np.ndarray, scale: int) -> np.ndarray:
    lq = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float() / 255
    output = BicubicUpsampling(scale)(lq)[0].numpy().transpose(1, 2, 0) * 255
    np.testing.assert_allclose(output, output.round(), rtol=0, atol=1e-4)  # levels / 255 * 255 in float32
    return output.round().astype(np.uint8)


@pytest.mark.parametrize('bright', [False, True])
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_every_level_is_that_of_the_formula_rounded_after_each_pass(
    photo: np.ndarray, scale: int, bright: bool
) -> None:
    image = np.where(photo > 90, 255, 0).astype(np.uint8) if bright else photo  # edges that overshoot the range
    found = run(image, scale)
    for channel in range(3):
        expected = enlarged(np.ascontiguousarray(enlarged(image[..., channel], scale).T), scale).T
        np.testing.assert_array_equal(found[..., channel], expected)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_it_is_basicsrs_but_for_the_rounding_between_the_passes(photo: np.ndarray, scale: int) -> None:
    expected = imresize(photo.astype(np.float32), scale).clip(0, 255)
    # half a level in the last pass, and half a level in the first times the second's weights, at most 1.4 in all
    assert np.abs(run(photo, scale) - expected).max() <= 0.5 + 0.5 * 1.4 + 1e-3


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (2, 3)])
def test_images_smaller_than_the_kernel_are_mirrored_too(shape: tuple[int, int]) -> None:
    assert (run(np.full((*shape, 3), 77, np.uint8), 4) == 77).all()


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_the_published_figures_are_reproduced(shared: Path, scale: int) -> None:
    run = make_runner(load_network('bicubic', scale=scale), torch.device('cpu'), RunSettings())
    for images in find_sets([str(shared / 'data/Set5'), str(shared / 'data/Set14')], {scale}):
        found = measure_set(run, images, torch.device('cpu'), RunSettings())
        # published figures have two digits
        assert found['mean']['psnr_y'] == pytest.approx(PUBLISHED[images.name, scale], abs=0.01)
        assert len(found['images']) == {'Set5': 5, 'Set14': 14}[images.name]
