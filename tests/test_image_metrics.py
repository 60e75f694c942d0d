"""PSNR and SSIM of tensors against BasicSR's, which take NumPy images of 8 bit."""

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils import img2tensor, tensor2img
from torch import Tensor

from mtkd_model.image_metrics import luma, psnr, ssim, to_8_bit
from mtkd_model.validation import to_host

# what a published table shows is two digits of dB and four of SSIM
PSNR_TOLERANCE, SSIM_TOLERANCE = 1e-3, 1e-4


def tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) BGR or (H, W) of 8 bit as the (1, C, H, W) of whole numbers that validation has."""
    array = image[..., None] if image.ndim == 2 else image
    return to_8_bit(img2tensor(array.astype(np.float32) / 255, bgr2rgb=True, float32=True)[None])


def check(image: np.ndarray, image2: np.ndarray, border: int, y: bool, device: str = 'cpu') -> None:
    one, two = tensor(image).to(device), tensor(image2).byte().to(device)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # NumPy's, for the mean of nothing
        expected = [metric(image, image2, border, test_y_channel=y) for metric in (calculate_psnr, calculate_ssim)]
    found = [metric(one, two, border, y).item() for metric in (psnr, ssim)]
    assert found[0] == pytest.approx(expected[0], abs=PSNR_TOLERANCE, nan_ok=True)
    assert found[1] == pytest.approx(expected[1], abs=SSIM_TOLERANCE, nan_ok=True)


def enlarged(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """``image`` shrunk by four and enlarged again: as far from it as what a network gives."""
    small = cv2.resize(image, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(params=['astronaut', 'chelsea', 'coffee', 'rocket'])
def photo(photos: Path, request: pytest.FixtureRequest) -> np.ndarray:
    return cv2.imread(str(photos / f'{request.param}.png'))


@pytest.mark.parametrize('y', [False, True])
@pytest.mark.parametrize(('height', 'width', 'border'), [(144, 192, 0), (144, 192, 4), (101, 77, 3), (37, 192, 2)])
def test_both_metrics_equal_basicsrs(photo: np.ndarray, height: int, width: int, border: int, y: bool) -> None:
    image = photo[:height, :width]
    check(enlarged(image, height, width), image, border, y)


@pytest.mark.parametrize('y', [False, True])
@pytest.mark.parametrize('name', ['Set5', 'Set14'])
def test_both_metrics_equal_basicsrs_on_the_benchmarks(shared: Path, name: str, y: bool) -> None:
    folder = shared / 'data' / name
    for path in sorted((folder / 'HR').iterdir()):
        lq = cv2.imread(str(folder / 'LRbicx4' / f'{path.stem}x4.png'))
        height, width = 4 * lq.shape[0], 4 * lq.shape[1]
        result = cv2.resize(lq, (width, height), interpolation=cv2.INTER_CUBIC)
        check(result, cv2.imread(str(path))[:height, :width], 4, y)


@pytest.mark.parametrize('y', [False, True])
@pytest.mark.parametrize(('one', 'two'), [(0, 255), (254, 255), (128, 128), (0, 0)])
def test_constant_images_are_no_exception(one: int, two: int, y: bool) -> None:
    check(*(np.full((40, 31, 3), value, np.uint8) for value in (one, two)), 4, y)


def test_noise_on_a_flat_dark_ground_keeps_its_variance() -> None:
    # where x^2 - mean(x)^2 in float32 loses most: small differences far from the middle of the range
    generator = np.random.default_rng(0)
    one, two = (generator.integers(0, 3, (64, 64, 3)).astype(np.uint8) for _ in range(2))
    for offset in (0, 253):
        check(one + np.uint8(offset), two + np.uint8(offset), 0, False)


def test_nearly_grey_and_one_channel_images_equal_basicsrs(photo: np.ndarray) -> None:
    grey = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
    worse = enlarged(grey, *grey.shape)
    tinted = [np.stack([image, image, np.minimum(image, 254) + 1], axis=-1) for image in (worse, grey)]
    for y in (False, True):
        check(worse, grey, 4, y)
        check(*tinted, 4, y)


def test_an_image_equals_itself(photo: np.ndarray) -> None:
    image = tensor(photo)
    for y in (False, True):
        assert psnr(image, image, 4, y).item() == float('inf')
        assert ssim(image, image, 4, y).item() == 1


@pytest.mark.parametrize(('side', 'border'), [(3, 1), (10, 0), (11, 0), (12, 1), (18, 4), (19, 4)])
def test_tiny_images_give_what_basicsr_gives(photo: np.ndarray, side: int, border: int) -> None:
    for y in (False, True):
        check(photo[40 : 40 + side, 50 : 50 + side], photo[42 : 42 + side, 50 : 50 + side], border, y)


def test_one_level_in_one_pixel_counts_as_the_formula_says() -> None:
    # BasicSR rounds Y to float32 before it subtracts and is wrong by up to 3e-3 dB here
    one = np.full((16, 16, 3), 200, np.uint8)
    two = one.copy()
    two[5, 6, 0] += 1  # blue
    expected = 10 * np.log10(255**2 * 256 / (24.966 / 255) ** 2)
    assert psnr(tensor(one), tensor(two), 0, True).item() == pytest.approx(expected, abs=1e-5)


def test_a_batch_gives_what_its_images_give(photo: np.ndarray) -> None:
    one = torch.cat([tensor(photo), tensor(photo[::-1].copy())])
    two = torch.cat([tensor(enlarged(photo, 144, 192)), tensor(enlarged(photo[:, ::-1].copy(), 144, 192))])
    for metric in (psnr, ssim):
        each = torch.cat([metric(one[i : i + 1], two[i : i + 1], 4, True) for i in (0, 1)])
        torch.testing.assert_close(metric(one, two, 4, True), each, rtol=1e-6, atol=0)


def test_neither_image_is_changed(photo: np.ndarray) -> None:
    one, two = tensor(photo), tensor(enlarged(photo, 144, 192))
    before = one.clone(), two.clone()
    for y in (False, True):
        psnr(one, two, 0, y)
        ssim(one, two, 0, y)
    assert torch.equal(one, before[0])
    assert torch.equal(two, before[1])


def test_rounding_is_that_of_basicsr_at_halves_and_beyond_the_range() -> None:
    image = torch.linspace(-0.2, 1.2, 3 * 97 * 61).view(1, 3, 97, 61)
    image[0, :, 0] = (torch.arange(61) + 0.5) / 255
    np.testing.assert_array_equal(to_host(to_8_bit(image)), tensor2img([image]))
    np.testing.assert_array_equal(to_host(to_8_bit(image[:, :1])), tensor2img([image[:, :1]]))


def test_y_is_that_of_basicsr(photo: np.ndarray) -> None:
    from basicsr.metrics.metric_util import to_y_channel

    expected = to_y_channel(photo)[..., 0]
    np.testing.assert_allclose(luma(tensor(photo))[0, 0].numpy(), expected, rtol=0, atol=5e-5)  # float32 at 235


def test_images_of_different_sizes_are_refused() -> None:
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=r'images differ in shape: \(1, 3, 16, 16\), \(1, 3, 16, 20\)'):
            metric(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 20))


@pytest.mark.parametrize('border', [4, 6])
def test_a_border_as_large_as_the_image_is_refused(border: int) -> None:
    for metric in (psnr, ssim):  # BasicSR: NaN and an error of OpenCV
        with pytest.raises(ValueError, match=f'crop_border {border} leaves nothing of an image'):
            metric(torch.zeros(1, 3, 8, 16), torch.zeros(1, 3, 8, 16), border)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('tf32', [False, True])
def test_a_gpu_gives_basicsrs_numbers_whatever_tf32_says(photo: np.ndarray, tf32: bool) -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        for y in (False, True):
            check(enlarged(photo, 144, 192), photo, 4, y, 'cuda')
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, before
