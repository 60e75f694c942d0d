"""MATLAB's bicubic: against published LR images, against the formula in a slow loop, and its reach at borders."""

import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from mtkd_data.preparation.matlab_bicubic import imresize_bicubic, integer_weights, mod_crop

SHARED = Path(os.environ.get('MTKD_SHARED', Path(__file__).resolve().parents[2] / 'shared')) / 'data'


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def matlab_line(line: np.ndarray, scale: int) -> np.ndarray:
    """`imresize` of one line as MATLAB's source has it: one-based positions, float64, mirrored indices, then uint8."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    length, shrink, width = len(line), 1 / scale, 4 * scale
    mirrored = [*range(length), *reversed(range(length))]
    result = []
    for x in range(1, math.ceil(length * shrink) + 1):
        u = x / shrink + 0.5 * (1 - 1 / shrink)
        positions = [math.floor(u - width / 2) + tap for tap in range(width + 2)]
        weights = [shrink * kernel(shrink * (u - position)) for position in positions]
        pixels = [float(line[mirrored[(position - 1) % len(mirrored)]]) for position in positions]
        value = sum(w / sum(weights) * p for w, p in zip(weights, pixels, strict=True))
        result.append(min(255, max(0, math.floor(value + 0.5))))
    return np.array(result, np.uint8)


def matlab_imresize(image: np.ndarray, scale: int) -> np.ndarray:
    return np.apply_along_axis(matlab_line, 1, np.apply_along_axis(matlab_line, 0, image, scale), scale)


def published_pairs() -> list[tuple[Path, Path, int]]:
    return [
        (hr, SHARED / name / f'LRbicx{scale}' / f'{hr.stem}x{scale}{hr.suffix}', scale)
        for name in ('Set5', 'Set14')
        for hr in sorted((SHARED / name / 'HR').glob('*'))
        for scale in (2, 3, 4)
    ]


@pytest.mark.skipif(not (SHARED / 'Set14').is_dir(), reason='the published images of Set5 and Set14 are not here')
def test_all_57_published_lr_images_are_equal_pixel_for_pixel():
    pairs = published_pairs()
    assert len(pairs) == 57
    for hr, lr, scale in pairs:
        ours = imresize_bicubic(mod_crop(cv2.imread(str(hr), cv2.IMREAD_UNCHANGED), scale), scale)
        np.testing.assert_array_equal(ours, cv2.imread(str(lr), cv2.IMREAD_UNCHANGED), str(lr))


@pytest.mark.parametrize('scale', [2, 3, 4, 5, 8])
def test_noise_equals_the_matlab_formula_in_a_slow_loop(scale):
    image = noise(3 * scale, 5 * scale)
    np.testing.assert_array_equal(imresize_bicubic(image, scale), matlab_imresize(image, scale))


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_an_image_of_one_lr_pixel_is_mirrored_as_often_as_the_kernel_needs(scale):
    image = noise(scale, scale)
    np.testing.assert_array_equal(imresize_bicubic(image, scale), matlab_imresize(image, scale))


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_black_and_white_stripes_clip_instead_of_wrapping_round(scale):
    image = np.kron(np.random.default_rng(1).integers(0, 2, (12, 12)), np.full((scale, scale), 255)).astype(np.uint8)
    np.testing.assert_array_equal(imresize_bicubic(image, scale), matlab_imresize(image, scale))


def test_the_weights_of_scale_two_are_those_computed_by_hand():
    # kernel at 1/4, 3/4, 5/4, 7/4: 111/128, 29/128, -9/128, -3/128; half of each, over 256
    assert integer_weights(2) == (-3, (-3, -9, 29, 111, 111, 29, -9, -3), 256)


@pytest.mark.parametrize('scale', [2, 3, 4, 6, 7, 16, 20])
def test_a_constant_image_stays_constant_at_any_whole_scale(scale):
    for level in (0, 1, 128, 255):
        image = np.full((2 * scale, 3 * scale), level, np.uint8)
        np.testing.assert_array_equal(imresize_bicubic(image, scale), np.full((2, 3), level, np.uint8))


def test_a_half_is_rounded_up_as_matlab_does():
    assert imresize_bicubic(np.array([[1, 0], [1, 0]], np.uint8), 2)[0, 0] == 1  # the mean, 0.5


def test_each_pass_rounds_so_the_order_of_axes_matters():
    image = noise(48, 48)
    columns_first = imresize_bicubic(image.swapaxes(0, 1), 4).swapaxes(0, 1)
    assert (imresize_bicubic(image, 4) != columns_first).any()


def test_a_grey_image_equals_its_copy_in_a_colour_image_and_the_input_is_left_alone():
    image = noise(24, 36)
    before = image.copy()
    np.testing.assert_array_equal(imresize_bicubic(image[..., 1], 3), imresize_bicubic(image, 3)[..., 1])
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('scale', [2, 3, 4, 5, 8])
def test_beyond_two_lr_pixels_a_sub_image_shrinks_as_the_whole_does_and_within_them_it_does_not(scale):
    image = noise(16 * scale, 20 * scale)
    top, left, size = 3 * scale, 4 * scale, 9 * scale
    whole = imresize_bicubic(image, scale)[3:12, 4:13]
    alone = imresize_bicubic(image[top : top + size, left : left + size], scale)
    np.testing.assert_array_equal(whole[2:-2, 2:-2], alone[2:-2, 2:-2])
    for ring in (np.s_[1, 1:-1], np.s_[-2, 1:-1], np.s_[1:-1, 1], np.s_[1:-1, -2]):
        assert (whole[ring] != alone[ring]).any()
    first = integer_weights(scale)[0]
    assert scale + first < 0 <= 2 * scale + first  # LR pixel 1 reaches outside, LR pixel 2 does not


def test_mod_crop_cuts_bottom_and_right_only():
    image = noise(14, 17)
    np.testing.assert_array_equal(mod_crop(image, 4), image[:12, :16])
    np.testing.assert_array_equal(mod_crop(image[..., 0], 3), image[:12, :15, 0])


@pytest.mark.parametrize(
    ('image', 'scale', 'message'),
    [
        (np.zeros((8, 8), np.float32), 2, 'expected a uint8 image'),
        (np.zeros((1, 8, 8, 3), np.uint8), 2, r'got uint8 of shape \(1, 8, 8, 3\)'),
        (np.zeros((8, 8), np.uint8), 1, 'whole number of at least 2, got 1'),
        (np.zeros((8, 8), np.uint8), 2.5, 'got 2.5'),
        (np.zeros((8, 9), np.uint8), 2, '8x9 does not divide by scale 2: mod_crop it first'),
        (np.zeros((0, 8), np.uint8), 2, '0x8 does not divide'),
    ],
)
def test_what_cannot_be_shrunk_is_named(image, scale, message):
    with pytest.raises(ValueError, match=message):
        imresize_bicubic(image, scale)
