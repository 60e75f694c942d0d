"""The parts of the pictures that compute: regions, logs, labels, gains, points."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from mtkd_eval.plots.bands import band_errors
from mtkd_eval.plots.curves import choose_panels, running_mean
from mtkd_eval.plots.gains import read_gains
from mtkd_eval.plots.labels import overlap, place_labels
from mtkd_eval.plots.regions import Region, check_inside, parse_region, spread_of_errors, widest_spreads
from mtkd_eval.plots.scatter import points_of
from mtkd_eval.plots.style import look
from mtkd_eval.plots.text import width_of, wrapped
from mtkd_eval.plots.training_log import parse_log, read_training


def photo(path: Path) -> Tensor:
    return torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy()).permute(2, 0, 1)[None].float()


@pytest.fixture
def noisy(photos: Path) -> tuple[Tensor, list[Tensor]]:
    """A photograph, and three versions that differ most where one of them has a disturbed square at (40, 100)."""
    gt = photo(photos / 'astronaut.png')
    generator = torch.Generator().manual_seed(1)
    versions = [(gt + 3 * torch.randn(gt.shape, generator=generator)).round().clamp(0, 255) for _ in range(3)]
    versions[1][..., 40:64, 100:124] += 40
    return gt, versions


def test_the_spread_of_errors_is_that_of_a_loop_over_windows(noisy: tuple[Tensor, list[Tensor]]) -> None:
    gt, versions = noisy
    spread = spread_of_errors(versions, gt, 24, border=4, step=5)
    weights = np.array([65.481, 128.553, 24.966]) / 255
    planes = [((version - gt)[0].permute(1, 2, 0).double().numpy() @ weights) ** 2 for version in versions]
    assert spread.shape == ((144 - 8 - 24) // 5 + 1, (192 - 8 - 24) // 5 + 1)
    for row, column in ((0, 0), (7, 19), (22, 32)):
        top, left = 4 + 5 * row, 4 + 5 * column
        means = [plane[top : top + 24, left : left + 24].mean() for plane in planes]
        # float32 luma, sums of 600 squares up to 1e3
        assert spread[row, column].item() == pytest.approx(max(means) - min(means), rel=1e-4)


def test_the_region_found_is_where_the_methods_differ(noisy: tuple[Tensor, list[Tensor]]) -> None:
    gt, versions = noisy
    spread = spread_of_errors(versions, gt, 24, border=4, step=4)
    ((value, region),) = widest_spreads(spread, 1, 24, border=4, step=4)
    assert region == Region(40, 100, 24)
    assert value == spread.max()


def test_regions_overlap_neither_each_other_nor_the_border(noisy: tuple[Tensor, list[Tensor]]) -> None:
    gt, versions = noisy
    found = [region for _, region in widest_spreads(spread_of_errors(versions, gt, 40, 4, 4), 50, 40, 4, 4)]
    assert 3 <= len(found) < 50  # there is no room for so many
    for index, one in enumerate(found):
        assert min(one.top, one.left) >= 4
        assert one.top + 40 <= 140
        assert one.left + 40 <= 188
        for other in found[:index]:
            assert abs(one.top - other.top) >= 40 or abs(one.left - other.left) >= 40


def test_an_image_below_the_size_has_no_region(noisy: tuple[Tensor, list[Tensor]]) -> None:
    gt, versions = noisy
    assert widest_spreads(spread_of_errors(versions, gt, 137, 4, 4), 1, 137, 4, 4) == []
    assert len(widest_spreads(spread_of_errors(versions, gt, 136, 4, 4), 1, 136, 4, 4)) == 1


def test_a_region_is_read_and_must_lie_inside() -> None:
    assert parse_region('Set5/baby:12,8,64') == ('Set5/baby', Region(12, 8, 64))
    assert parse_region('baby') == ('baby', None)
    for wrong in ('baby:1,2', 'baby:1,2,0', 'baby:-1,2,3', ''):
        with pytest.raises(ValueError, match='expected IMAGE:TOP,LEFT,SIZE'):
            parse_region(wrong)
    check_inside(Region(0, 10, 20), 'baby', 20, 30)
    with pytest.raises(ValueError, match='region baby:1,10,20 leaves the image, which has 20x30 pixels'):
        check_inside(Region(1, 10, 20), 'baby', 20, 30)


def test_the_means_of_the_maps_are_those_of_pywavelets(noisy: tuple[Tensor, list[Tensor]]) -> None:
    pywt = pytest.importorskip('pywt')
    gt, (_, version, _) = noisy
    row = band_errors('a', version, gt, signed=False, border=4, region=None)
    low, details = pywt.dwt2(((version - gt) / 255)[0].double().numpy(), 'haar')
    # pywt names the horizontal detail first, that is LH
    for band, expected in zip(('LL', 'LH', 'HL', 'HH'), (low, *details), strict=True):
        assert row.means[band] == pytest.approx(np.abs(expected).mean(), rel=1e-5)  # float32
        np.testing.assert_allclose(row.maps[band], np.abs(expected).mean(0), atol=1e-6)
    assert np.mean(row.maps['HH']) == pytest.approx(row.means['HH'], rel=1e-5)


def test_a_signed_map_keeps_the_sign_and_a_region_is_cut_first(noisy: tuple[Tensor, list[Tensor]]) -> None:
    gt, _ = noisy
    darker = (gt - 10).clamp(0, 255)
    row = band_errors('a', darker, gt, signed=True, border=4, region=Region(10, 20, 30))
    assert row.maps['LL'].shape == (15, 15)
    assert row.pixels.shape == (30, 30, 3)
    assert row.maps['LL'].max() <= 0
    # a constant difference of 10 levels: 2 * 10 * 219 / 255 / 255, less where it was clamped
    assert row.maps['LL'].min() == pytest.approx(-2 * 10 * 219 / 255 / 255, rel=1e-4)


LINE = (
    '2026-11-21 09:04:36,314 INFO: [quick..][epoch:  0, iter:{:8,d}, lr:(5.000e-04,)] {}l_pix: {:.4e} l_wavelet: {} \n'
)
CLOCK = '[eta: 0:01:13, time (data): 0.151 (0.001)] '
VALIDATION = '2026-11-21 09:04:47,088 INFO: Validation {}\n\t # psnr: {}\tBest: 28.4 @ 20 iter\n\t # ssim: 0.7702\n\n'


def test_a_log_gives_losses_rates_and_validation() -> None:
    text = LINE.format(900, CLOCK, 0.5, 'nan') + VALIDATION.format('Set 5', 28.25) + LINE.format(1200, '', 0.25, 2)
    log = parse_log(text)
    assert log.series == {
        'lr': {900: 5e-4, 1200: 5e-4},
        'l_pix': {900: 0.5, 1200: 0.25},
        'l_wavelet': {1200: 2.0},
        'psnr/Set 5': {900: 28.25},
        'ssim/Set 5': {900: 0.7702},
    }
    assert log.resumed is None


def test_a_validation_between_two_lines_lies_at_the_next_multiple_of_val_freq() -> None:
    text = '  val:[\n    val_freq: 250.0\n  ]\n' + LINE.format(200, CLOCK, 1, 1) + VALIDATION.format('a', 20)
    text += LINE.format(500, CLOCK, 1, 1) + VALIDATION.format('a', 21) + LINE.format(600, CLOCK, 1, 1)
    text += '2026 INFO: End of training. Time consumed: 0:04:59\n' + VALIDATION.format('a', 22)
    assert parse_log(text).series['psnr/a'] == {250: 20, 500: 21, 600: 22}


def test_validations_between_two_lines_are_counted() -> None:
    head = '  val:[\n    val_freq: 50.0\n  ]\n'
    text = head + ''.join(VALIDATION.format(name, at) for at in (50, 100, 150) for name in ('a', 'b'))
    text += LINE.format(200, CLOCK, 1, 1) + ''.join(VALIDATION.format(name, at) for at in (200, 250) for name in 'ab')
    for name in 'ab':
        assert parse_log(text).series[f'psnr/{name}'] == {at: at for at in (50, 100, 150, 200, 250)}
    total = '2026 INFO: Training statistics:\n\tTotal epochs: 3; iters: 270.\n'
    ended = total + text + '2026 INFO: End of training. Time consumed: 0:04:59\n' + VALIDATION.format('a', 270)
    assert parse_log(ended).series['psnr/a'] == {at: at for at in (50, 100, 150, 200, 250, 270)}
    resumed = head + '2026 INFO: Resuming training from epoch: 0, iter: 420.\n'
    resumed += VALIDATION.format('a', 450) + VALIDATION.format('a', 500)
    assert parse_log(resumed).series['psnr/a'] == {450: 450, 500: 500}


def test_logs_of_a_resumed_run_join_and_later_ones_win(tmp_path: Path) -> None:
    first = ''.join(LINE.format(at, CLOCK, 1, 1) for at in (10, 20, 30, 35))
    second = '2026 INFO: Resuming training from epoch: 0, iter: 20.\n' + LINE.format(30, CLOCK, 2, 2)
    (tmp_path / 'train_b_20261121_110000.log').write_text(first)
    (tmp_path / 'train_b_20261121_120000.log').write_text(second)
    (tmp_path / 'train_b_20261121_130000.log').write_text('it stopped at once\n')
    assert read_training(tmp_path)['l_pix'] == {10: 1, 20: 1, 30: 2}  # 35 was undone


def test_a_real_log_of_basicsr_is_read(options: dict[str, Any], train: Any) -> None:
    options['logger'] |= {'print_freq': 1}
    options['val']['val_freq'] = 2
    series = read_training(train(options))
    assert list(series['l_wavelet']) == [1, 2, 3, 4]
    assert list(series['psnr/val']) == [2, 4]
    assert 5 < series['psnr/val'][4] < 50


def test_logs_that_say_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='holds no train_'):
        read_training(tmp_path)
    with pytest.raises(FileNotFoundError, match='no such log or experiment folder'):
        read_training(tmp_path / 'none')
    (tmp_path / 'train_a.log').write_text('nothing\n')
    with pytest.raises(ValueError, match='no losses and no validation in train_a'):
        read_training(tmp_path)


def test_the_running_mean_is_symmetric_and_keeps_the_ends() -> None:
    values = np.array([4.0, 1, 7, 1, 0, 6])
    assert running_mean(values, 1).tolist() == values.tolist()
    # 3 around each, the value itself at both ends
    assert running_mean(values, 3) == pytest.approx([4, 4, 3, 8 / 3, 7 / 3, 6])
    assert running_mean(values[::-1], 5)[::-1] == pytest.approx(running_mean(values, 5))


def test_panels_are_chosen_by_pattern_validation_first() -> None:
    logs = {'a': {'lr': {1: 1.0}, 'l_pix': {1: 1.0}, 'psnr/x': {1: 1.0}}, 'b': {'l_at': {1: 1.0}, 'psnr/y': {1: 1.0}}}
    assert choose_panels(logs, ('psnr', 'l_*')) == ['psnr/x', 'psnr/y', 'l_pix', 'l_at']
    assert choose_panels(logs, ['lr', 'psnr/y']) == ['lr', 'psnr/y']
    with pytest.raises(ValueError, match='no curve ssim in the logs; there are psnr/x'):
        choose_panels(logs, ['ssim'])


def test_labels_of_points_in_one_place_do_not_overlap() -> None:
    rng = np.random.default_rng(1)
    points = [(200 + x, 300 + y) for x, y in rng.normal(0, 6, (14, 2))]
    sizes = [(60 + 3 * index, 18.0) for index in range(14)]
    inside = (0, 0, 700, 500)
    places = place_labels(points, sizes, inside, 8, taken=[(0, 250, 700, 252)])
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(places, sizes, strict=True)]
    for index, box in enumerate(boxes):
        assert overlap(box, inside) == pytest.approx(sizes[index][0] * 18)
        assert overlap(box, (0, 250, 700, 252)) == 0
        assert all(overlap(box, other) == 0 for other in boxes[:index])
        assert all(overlap(box, (x - 8, y - 8, x + 8, y + 8)) == 0 for x, y in points if (x, y) != points[index])


def test_a_lone_label_stands_beside_its_point() -> None:
    ((left, bottom),) = place_labels([(100, 100)], [(40, 10)], (0, 0, 200, 200), 5)
    assert (left, bottom) == (106.5, 95)
    ((left, _),) = place_labels([(180, 100)], [(40, 10)], (0, 0, 200, 200), 5)
    assert left == 180 - 6.5 - 40  # no room at the right


def test_texts_are_broken_where_they_must_and_nothing_is_lost() -> None:
    name = 'MTKD_edsr_x4 a-very_long_experiment_name_without_end'
    lines = wrapped(name, 1.2, 9)
    assert len(lines) > 1
    assert ''.join(lines) == name.replace(' ', '') or ' '.join(lines).replace(' ', '') == name.replace(' ', '')
    assert all(width_of(line, 9) <= 1.2 for line in lines)
    assert wrapped('short', 1.2, 9) == ['short']


def test_forty_nine_things_look_different() -> None:
    assert len({(look(index).colour, look(index).marker, str(look(index).dashes)) for index in range(49)}) == 49
    assert len({look(index).marker for index in range(7)}) == 7  # told apart in grey


def network(name: str, psnr: float | None, **changes: Any) -> dict[str, Any]:
    found = {'mean': {'psnr_y': psnr}, 'seconds': 0.5, 'images': {}}
    return {'name': name, 'scale': 4, 'parameters': 40_000, 'macs': 10**9, 'sets': {'Set5': found}} | changes


@pytest.mark.parametrize('nothing', [None, 0])  # 0 in tables of before
def test_points_have_their_cost_and_interpolation_has_none(nothing: int | None) -> None:
    rows = [
        network('bicubic', 28.4, parameters=nothing, macs=nothing),
        network('a', 29.0),
        network('b', 30.0, macs=None),
    ]
    panels, left_out = points_of({'networks': rows}, 'macs', 'psnr_y')
    assert [(point.name, point.x, point.y) for point in panels['Set5']] == [('bicubic', None, 28.4), ('a', 10**9, 29.0)]
    assert left_out == ['b: no macs on Set5']
    panels, left_out = points_of({'networks': rows}, 'seconds', 'psnr_y')
    assert [point.x for point in panels['Set5']] == [0.5, 0.5, 0.5]


def test_points_of_different_scales_are_not_compared() -> None:
    rows = [network('a', 29.0), network('b', 33.0, scale=2)]
    with pytest.raises(ValueError, match='several scales do not compare: give --scale, one of 2, 4'):
        points_of({'networks': rows}, 'macs', 'psnr_y')
    assert [point.name for point in points_of({'networks': rows}, 'macs', 'psnr_y', scale=2)[0]['Set5']] == ['b']
    with pytest.raises(ValueError, match='no results on Set14 at x4; there are Set5'):
        points_of({'networks': rows[:1]}, 'macs', 'psnr_y', ['Set14'], 4)
    with pytest.raises(ValueError, match='no network has both PSNR-Y and parameters: a: no PSNR-Y on Set5'):
        points_of({'networks': [network('a', None)]}, 'parameters', 'psnr_y')


ROW = {'student': 'EDSR', 'method': 'KD', 'mean': 0.1, 'low': 0.0, 'high': 0.2, 'n': 19}
WORDS = {'reference': 'scratch', 'test_sets': 'Set5', 'interval': '95%'}


def test_gains_are_sorted_by_mean_within_each_student(tmp_path: Path) -> None:
    rows = [
        ROW,
        {**ROW, 'method': 'AT', 'mean': 0.15},
        {**ROW, 'student': 'RCAN'},
        {**ROW, 'method': 'MTKD', 'mean': 0.2},
    ]
    (tmp_path / 'a.json').write_text(json.dumps({'gains': rows, **WORDS, 'more': 1}))
    found = read_gains(tmp_path / 'a.json').by_student()
    assert {student: [row.method for row in of] for student, of in found.items()} == {
        'EDSR': ['MTKD', 'AT', 'KD'],
        'RCAN': ['KD'],
    }


def test_a_single_difference_has_no_interval(tmp_path: Path) -> None:
    alone = {**ROW, 'low': None, 'high': None, 'n': 1}
    (tmp_path / 'a.json').write_text(json.dumps({'gains': [alone], **WORDS}))
    (row,) = read_gains(tmp_path / 'a.json').rows
    assert (row.mean, row.low, row.high, row.ends) == (0.1, None, None, (0.1, 0.1))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{', 'cannot be read as JSON'),
        ('[]', "expected the study.json of a study, or a list of rows under the key 'gains'"),
        ({'gains': [], **WORDS}, "expected the study.json of a study, or a list of rows under the key 'gains'"),
        ({'gains': [ROW]}, "a.json lacks the key 'reference'"),
        ({'gains': [{**ROW, 'lo': 1}], **WORDS}, "unknown key 'lo' in .*gains.0: did you mean 'low'"),
        ({'gains': [{'student': 'a'}], **WORDS}, "gains.0 lacks the key 'method'"),
        ({'gains': [{**ROW, 'mean': 'x'}], **WORDS}, 'gains.0: expected numbers of dB'),
        ({'gains': [{**ROW, 'high': None}], **WORDS}, 'gains.0: expected numbers of dB'),
        ({'gains': [{**ROW, 'high': 0.05}], **WORDS}, 'gains.0: expected low <= mean <= high, got 0.0, 0.1, 0.05'),
        ({'results': []}, "a.json lacks the key 'reference'"),
        ({'results': [1], **WORDS, 'students': {'a': 'A'}, 'methods': {}}, 'a.json: not as run_study.py writes it'),
        (
            {'results': [], **WORDS, 'reference': None, 'students': {}, 'methods': {}},
            'without a `reference` has no gains',
        ),
        ({'gains': [ROW, ROW], **WORDS}, 'gains.1: a second row of EDSR, KD'),
    ],
)
def test_what_is_no_list_of_gains_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / 'a.json').write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_gains(tmp_path / 'a.json')
