"""Tiles whose seams do not show, and the average over flips and transposes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import build_arch, small_network
from torch import Tensor, nn

from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.self_ensemble import self_ensemble
from mtkd_arch.tiling import run_tiled, seam_difference

# float32 convolutions choose their algorithm by size: sums in another order differ in the last digits
ROUNDING = 1e-6
# of the small EDSR: 3 x 3 each in conv_first, 2 x 2 in the body, after it, 1 + 1 before the shuffles (the second at
# twice the grid), conv_last at four times the grid: less than 9 LQ pixels to each side
RECEPTIVE_FIELD = 9


@pytest.fixture(scope='module')
def photo(photos: Path) -> Tensor:
    """A real photograph, (1, 3, 72, 96), RGB in [0, 1]."""
    image = cv2.resize(cv2.imread(str(photos / 'chelsea.png')), (96, 72), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))[None].float() / 255


def network_of(name: str, scale: int = 4) -> nn.Module:
    torch.manual_seed(3)
    return build_arch(small_network(name, scale)).eval().requires_grad_(False)


class Recorder:
    """Doubles an image by repeating its pixels; notes where each tile came from, by the ramp in its pixels."""

    def __init__(self, width: int) -> None:
        self.width, self.seen = width, []

    def __call__(self, lq: Tensor) -> Tensor:
        first = int(lq[0, 0, 0, 0])
        self.seen.append((first // self.width, first % self.width, *lq.shape[-2:]))
        return lq.repeat_interleave(2, -1).repeat_interleave(2, -2)


def ramp(height: int, width: int) -> Tensor:
    return torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize(('height', 'width'), [(72, 96), (71, 53), (40, 25)])
def test_tiles_of_a_convolutional_network_show_no_seam_when_they_overlap_by_what_it_sees(photo, scale, height, width):
    network, lq = network_of('edsr', scale), photo[..., :height, :width]
    tiled = run_tiled(network, lq, scale, tile=24, overlap=RECEPTIVE_FIELD)
    assert tiled.shape == (1, 3, scale * height, scale * width)
    torch.testing.assert_close(tiled, network(lq), rtol=0, atol=ROUNDING)


def test_tiles_without_overlap_do_show(photo):
    largest, mean = seam_difference(network_of('edsr'), photo, 4, tile=24, overlap=0)
    assert largest > 100 * ROUNDING
    assert 0 < mean < largest


@pytest.mark.parametrize('name', ['swinir', 'rcan'])
def test_a_network_that_sees_further_than_the_overlap_is_the_closer_the_more_it_overlaps(photo, name):
    def run(lq: Tensor) -> Tensor:
        return forward_padded(network, lq, 4, 8)

    network = network_of(name)
    mean = [seam_difference(run, photo, 4, tile=24, overlap=overlap, align=8)[1] for overlap in (0, 8, 24)]
    assert mean[0] > mean[1] > mean[2]


@pytest.mark.parametrize(('height', 'width'), [(72, 96), (69, 93)])
def test_tiles_of_window_attention_show_no_seam_where_all_windows_that_count_are_in_the_tile(photo, height, width):
    """Two blocks, the second with shifted windows, and three convolutions of 3 x 3 reach less than three windows."""

    def run(lq: Tensor) -> Tensor:
        return forward_padded(network, lq, 4, 8)

    network, lq = (
        build_arch(small_network('swinir', depths=[2])).eval().requires_grad_(False),
        photo[..., :height, :width],
    )
    assert seam_difference(run, lq, 4, tile=16, overlap=24, align=8)[0] < 10 * ROUNDING
    unaligned = run_tiled(run, lq, 4, tile=20, overlap=24)
    assert (unaligned - run(lq)).abs().max() > 100 * ROUNDING, 'alignment is not needed'


def test_every_tile_begins_and_ends_on_a_window_but_for_the_edge_of_the_image():
    recorder, lq = Recorder(53), ramp(37, 53)
    tiled = run_tiled(recorder, lq, 2, tile=13, overlap=3, align=8)
    torch.testing.assert_close(tiled, Recorder(53)(lq), rtol=0, atol=0)
    assert len(recorder.seen) == 3 * 4
    for top, left, height, width in recorder.seen:
        assert top % 8 == left % 8 == 0
        assert (top + height) % 8 == 0 or top + height == 37
        assert (left + width) % 8 == 0 or left + width == 53


@pytest.mark.parametrize(('height', 'width', 'calls'), [(8, 8, 1), (5, 3, 1), (1, 1, 1), (9, 8, 2), (8, 17, 3)])
def test_an_image_no_larger_than_a_tile_is_run_whole(height, width, calls):
    recorder, lq = Recorder(width), ramp(height, width)
    torch.testing.assert_close(run_tiled(recorder, lq, 2, tile=8, overlap=2), Recorder(width)(lq), rtol=0, atol=0)
    assert len(recorder.seen) == calls


def test_tile_zero_is_the_whole_image():
    recorder = Recorder(40)
    run_tiled(recorder, ramp(40, 40), 2, tile=0, overlap=8)
    assert recorder.seen == [(0, 0, 40, 40)]


@pytest.mark.parametrize('sizes', [(-1, 0, 1), (8, -1, 1), (8, 0, 0)])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(ValueError, match='expected tile >= 0'):
        run_tiled(Recorder(8), ramp(8, 8), 2, *sizes)


def test_a_network_of_another_scale_is_refused():
    with pytest.raises(ValueError, match=r'scale is 3, but a tile \(1, 1, 10, 10\) became \(1, 1, 20, 20\)'):
        run_tiled(Recorder(16), ramp(16, 16), 3, tile=8, overlap=2)


# Self-ensemble


@pytest.mark.parametrize('name', ['edsr', 'rcan', 'swinir'])
def test_the_self_ensemble_turns_with_the_image_exactly(photo, name):
    def run(lq: Tensor) -> Tensor:
        return forward_padded(network, lq, 4, 8)

    network, lq = network_of(name), photo[..., :30, :41]
    whole = self_ensemble(run, lq)
    for turn in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.mT, lambda x: x.mT.flip(-1)):
        # exactly: the same eight images go through the network, and the order of the sum does not show in float64
        torch.testing.assert_close(self_ensemble(run, turn(lq)), turn(whole), rtol=0, atol=0)
    assert (run(lq.flip(-1)) - run(lq).flip(-1)).abs().max() > 100 * ROUNDING, 'the network turns by itself'


def test_the_self_ensemble_is_the_mean_of_the_eight_turned_outputs(photo):
    network, lq = network_of('edsr'), photo[..., :24, :31]
    outputs = []
    for quarters in range(4):
        for flipped in (False, True):
            view = np.rot90(lq.numpy(), quarters, (-2, -1))
            view = view[..., ::-1] if flipped else view
            output = network(torch.from_numpy(view.copy())).numpy()
            outputs.append(np.rot90(output[..., ::-1] if flipped else output, -quarters, (-2, -1)))
    expected = torch.from_numpy(np.mean(outputs, axis=0, dtype=np.float64)).float()
    torch.testing.assert_close(self_ensemble(network, lq), expected, rtol=0, atol=ROUNDING)


def test_the_self_ensemble_of_pixel_repetition_is_itself():
    lq = ramp(5, 7)
    torch.testing.assert_close(self_ensemble(Recorder(7), lq), Recorder(7)(lq), rtol=0, atol=0)
