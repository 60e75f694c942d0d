"""The wavelet loss is what PyWavelets says it is, at every border, with the gradient that belongs to it."""

import warnings
from itertools import chain
from typing import Any, get_args

import numpy as np
import pytest
import pywt
import torch
from basicsr.losses import build_loss
from basicsr.utils.registry import LOSS_REGISTRY
from torch import Tensor

from mtkd_loss.wavelet_loss import BANDS, Mode, WaveletLoss, band_distances

MODES = get_args(Mode)
WAVES = ['haar', 'bior1.1', 'db2', 'sym4', 'bior2.2', 'coif1', 'rbio3.5']


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=dtype), torch.rand(*shape, generator=generator, dtype=dtype)


def bands_of_pywt(x: Tensor, wave: str, level: int, mode: str) -> dict[str, np.ndarray]:
    """Sub-bands by PyWavelets alone, under the names of ``band_distances``."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of levels that are all border
        low, *details = pywt.wavedec2(x.double().numpy(), wave, mode=mode, level=level, axes=(-2, -1))
    bands = {'LL': low}
    for number, (horizontal, vertical, diagonal) in zip(range(level, 0, -1), details, strict=True):
        bands |= {f'LH{number}': horizontal, f'HL{number}': vertical, f'HH{number}': diagonal}
    return bands


def loss_of_pywt(pred: Tensor, target: Tensor, wave: str = 'haar', level: int = 1, mode: str = 'symmetric') -> float:
    """Transforms both images, as the paper writes it, and compares the coefficients."""
    one, other = (bands_of_pywt(x, wave, level, mode) for x in (pred, target))
    return sum(np.abs(one[name] - other[name]).mean() for name in one)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('wave', WAVES)
@pytest.mark.parametrize('level', [1, 2, 3, 4])
@pytest.mark.parametrize('size', [(32, 48), (37, 29), (3, 6)])  # even, odd, and smaller than every filter but Haar
def test_it_is_the_distance_of_the_bands_of_pywavelets(mode: str, wave: str, level: int, size: tuple[int, int]) -> None:
    if mode == 'reflect' and min(size) == 3 and wave in ('haar', 'bior1.1') and level > 2:
        pytest.skip('a single pixel is left, which cannot be reflected')
    for batch in (1, 5):
        pred, target = images(batch, 3, *size)
        loss = WaveletLoss(wave=wave, level=level, mode=mode)(pred, target)
        # float32 filters and sums: relative 1e-5 is some hundred roundings
        assert loss.item() == pytest.approx(loss_of_pywt(pred, target, wave, level, mode), rel=1e-5)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('wave', WAVES)
def test_every_coefficient_is_that_of_pywavelets(mode: str, wave: str) -> None:
    x, _ = images(2, 3, 21, 14)
    loss = WaveletLoss(wave=wave, level=3, mode=mode)
    low, high = loss.transform(x)
    bands = bands_of_pywt(x, wave, 3, mode)
    # float32 sums of up to 12 x 12 products whose values reach 2 ^ 3
    np.testing.assert_allclose(low.numpy(), bands['LL'], atol=2e-5)
    for number, details in enumerate(high, start=1):
        for index, band in enumerate(BANDS[1:]):
            np.testing.assert_allclose(details[index].numpy(), bands[f'{band}{number}'], atol=2e-5)


def test_a_single_pixel_cannot_be_reflected_as_in_pywavelets() -> None:
    pred, target = images(1, 1, 3, 6)
    with pytest.raises(ValueError, match='greater than 1'):
        loss_of_pywt(pred, target, 'haar', 3, 'reflect')
    with pytest.raises(ValueError, match='one pixel cannot be reflected: take fewer levels'):
        WaveletLoss(wave='haar', level=3, mode='reflect')(pred, target)


def test_two_by_two_pixels_give_the_value_computed_by_hand() -> None:
    pred = torch.tensor([[[[1.0, 2.0], [4.0, 8.0]]]])
    # Haar on a block (a b; c d): LL (a+b+c+d)/2, LH (a+b-c-d)/2, HL (a-b+c-d)/2, HH (a-b-c+d)/2
    expected = 15 / 2 + 9 / 2 + 5 / 2 + 3 / 2
    # the filters are 1/sqrt(2) in float32, twice applied
    assert WaveletLoss()(pred, torch.zeros(1, 1, 2, 2)).item() == pytest.approx(expected, rel=1e-6)


def test_a_constant_difference_shows_in_the_approximation_alone() -> None:
    pred, target = torch.full((2, 3, 16, 16), 0.75), torch.full((2, 3, 16, 16), 0.5)
    for level in (1, 2, 3):  # the range doubles with every level
        assert WaveletLoss(level=level)(pred, target).item() == pytest.approx(0.25 * 2**level, rel=1e-5)


def test_every_wavelet_of_two_taps_is_haar_as_the_fast_path_takes_it_to_be() -> None:
    haar = pywt.Wavelet('haar').filter_bank
    two_taps = [name for name in pywt.wavelist(kind='discrete') if pywt.Wavelet(name).dec_len == 2]
    assert set(two_taps) >= {'haar', 'db1', 'bior1.1', 'rbio1.1'}
    for name in two_taps:
        np.testing.assert_array_equal(pywt.Wavelet(name).filter_bank, haar)


def test_equal_images_are_at_distance_zero() -> None:
    pred, _ = images(2, 3, 19, 16)
    assert WaveletLoss(wave='db2', level=2)(pred, pred.clone()).item() == 0


def test_the_transform_runs_once_on_the_difference() -> None:
    pred, target = images(2, 3, 16, 16)
    loss, seen = WaveletLoss(level=2), []
    loss.transform.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    loss(pred, target)
    assert len(seen) == 1
    assert torch.equal(seen[0], pred - target)


def test_the_inputs_are_left_as_they_were() -> None:
    pred, target = images(2, 3, 17, 16)
    copies = pred.clone(), target.clone()
    WaveletLoss(level=2, mode='periodization')(pred, target)
    assert torch.equal(pred, copies[0])
    assert torch.equal(target, copies[1])


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('wave', ['haar', 'db2', 'bior2.2'])
@pytest.mark.parametrize('size', [(6, 4), (5, 7)])
def test_the_gradient_is_that_of_finite_differences(mode: str, wave: str, size: tuple[int, int]) -> None:
    transform = WaveletLoss(wave=wave, level=1, mode=mode).double().transform
    x, _ = images(2, 1, *size, dtype=torch.float64)
    # linear, so finite differences are exact up to rounding; |x| and its kink are left to the next test
    assert torch.autograd.gradcheck(lambda x: (transform(x)[0], *transform(x)[1][0]), x.requires_grad_())


def test_gradcheck_of_the_paper_setting_in_float64() -> None:
    pred, target = images(2, 3, 8, 4, seed=3, dtype=torch.float64)
    for level in (1, 2):
        loss = WaveletLoss(level=level).double()
        low, high = loss.transform(pred - target)
        assert min(band.abs().min() for band in (low, *chain(*high))) > 1e-5, 'too near to the kink of |x|'
        assert torch.autograd.gradcheck(loss, (pred.requires_grad_(), target))


def test_a_batch_is_the_mean_of_its_samples() -> None:
    pred, target = images(5, 3, 18, 13)
    loss = WaveletLoss(wave='db2', level=2)
    samples = [loss(pred[i : i + 1], target[i : i + 1]).item() for i in range(5)]
    assert loss(pred, target).item() == pytest.approx(sum(samples) / 5, rel=1e-5)  # float32 sums


@pytest.mark.parametrize('sample', [0, 1, 4])
def test_every_sample_of_the_batch_counts_in_the_approximation(sample: int) -> None:
    pred, target = torch.zeros(5, 3, 16, 16), torch.zeros(5, 3, 16, 16)
    pred[sample] = 0.5  # constant: all of it is in the approximation
    assert WaveletLoss(level=2)(pred, target).item() == pytest.approx(0.5 * 4 / 5, rel=1e-5)


def test_band_weights_apply_at_all_levels_and_the_rest_weighs_one() -> None:
    pred, target = images(2, 3, 16, 16)
    low, high = WaveletLoss(level=2).transform(pred - target)
    parts = {name: value.item() for name, value in band_distances(low, high).items()}
    assert list(parts) == ['LL', 'LH1', 'HL1', 'HH1', 'LH2', 'HL2', 'HH2']
    loss = WaveletLoss(level=2, band_weights={'LL': 0, 'HH': 3})(pred, target).item()
    expected = sum({'L': 1, 'H': 1}[n[0]] * {'LL': 0, 'HH': 3}.get(n[:2], 1) * value for n, value in parts.items())
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('band', BANDS)
def test_the_weights_reach_the_band_of_their_name(band: str) -> None:
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing='ij')
    pattern = {'LL': 0 * rows, 'LH': rows, 'HL': columns, 'HH': rows + columns}[band]
    pred = (1.0 - 2.0 * (pattern % 2)).expand(1, 1, 8, 8)  # of one band alone; LH changes from row to row
    only = dict.fromkeys(BANDS, 0.0) | {band: 1.0}
    assert WaveletLoss(band_weights=only)(pred, torch.zeros(1, 1, 8, 8)).item() == pytest.approx(2, rel=1e-6)
    assert WaveletLoss()(pred, torch.zeros(1, 1, 8, 8)).item() == pytest.approx(2, rel=1e-6)


def test_loss_weight_and_sum_scale_as_they_should() -> None:
    pred, target = images(2, 3, 16, 16)
    mean = WaveletLoss()(pred, target).item()
    assert WaveletLoss(loss_weight=0.25)(pred, target).item() == pytest.approx(mean / 4, rel=1e-6)
    coefficients = 2 * 3 * 8 * 8  # in each band
    assert WaveletLoss(reduction='sum')(pred, target).item() == pytest.approx(mean * coefficients, rel=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'wave': 'har'}, "wave 'har' is unknown; expected one of .*haar"),
        ({'wave': 'morl'}, "wave 'morl' is unknown"),  # a continuous one
        ({'mode': 'mirror'}, "mode 'mirror' is unknown; expected one of zero, symmetric"),
        ({'reduction': 'none'}, "reduction 'none' is unknown; expected one of mean, sum"),
        ({'band_weights': {'LL': 1, 'LLH': 2}}, "band_weights 'LLH' is unknown; expected one of LL, LH, HL, HH"),
        ({'level': 0}, 'level is 0, expected at least 1'),
    ],
)
def test_a_bad_argument_says_what_was_expected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f'WaveletLoss: {message}'):
        WaveletLoss(**arguments)


def test_images_of_different_shape_are_refused_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r'prediction \(2, 3, 8, 8\), target \(1, 3, 8, 8\)'):
        WaveletLoss()(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_basicsr_builds_it_as_a_pixel_loss() -> None:
    pred, target = images(2, 3, 16, 16)
    opt = {'type': 'WaveletLoss', 'loss_weight': 0.5, 'wave': 'db2', 'level': 2}
    loss = build_loss(opt)
    assert type(loss) is LOSS_REGISTRY.get('WaveletLoss')
    assert loss(pred, target).item() == pytest.approx(0.5 * loss_of_pywt(pred, target, 'db2', 2), rel=1e-5)


@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_under_autocast_it_computes_in_float32_and_the_gradient_is_whole(half: torch.dtype) -> None:
    pred, target = images(2, 3, 17, 16)
    loss = WaveletLoss(level=2)
    expected = torch.autograd.grad(loss(pred.requires_grad_(), target), pred)[0]
    with torch.autocast('cpu', half):
        value = loss(pred, target)
    assert value.dtype == torch.float32
    assert torch.equal(torch.autograd.grad(value, pred)[0], expected)


def test_a_student_that_ends_in_bf16_gets_a_finite_loss_and_gradient() -> None:
    pred, target = images(2, 3, 16, 16)
    pred = pred.bfloat16().requires_grad_()
    loss = WaveletLoss()(pred, target)
    loss.backward()
    assert loss.item() == pytest.approx(loss_of_pywt(pred.detach().float(), target), rel=1e-5)
    assert pred.grad.isfinite().all()
    assert pred.grad.abs().sum() > 0


def test_the_filters_move_with_the_module_and_are_not_learned() -> None:
    loss = WaveletLoss(wave='db2')
    assert not list(loss.parameters())
    assert len(list(loss.buffers())) == 4
    assert all(buffer.device.type == 'meta' for buffer in WaveletLoss().to('meta').buffers())
    pred, target = images(1, 3, 16, 16, dtype=torch.float64)
    assert loss.double()(pred, target).dtype == torch.float64
