"""Attention transfer computes its formula and learns where it should."""

from typing import Any

import numpy as np
import pytest
import torch
from distilling import (
    built_step,
    ensemble,
    feature_step,
    image_batch,
    noise,
    student_of,
)

from mtkd_loss.attention_transfer_loss import attention_map, attention_transfer
from mtkd_model.distiller_bank import DistillerBank
from mtkd_model.distillers.at_distiller import ATDistiller

PAIR = {'body': 'edsr/body'}


def oracle(student: np.ndarray, teacher: np.ndarray, p: float, norm: str) -> float:
    """The formula as a loop over images and positions, in float64."""
    distances = []
    for own, theirs in zip(student, teacher, strict=True):
        maps = []
        for feature in (own, theirs):
            energy = [sum(abs(c) ** p for c in feature[:, i, j]) for i, j in np.ndindex(feature.shape[1:])]
            maps.append(np.array(energy) / np.sqrt(sum(e**2 for e in energy)))
        distances.append(np.abs(maps[0] - maps[1]) ** (2 if norm == 'l2' else 1))
    return float(np.mean(distances))


def test_two_positions_give_the_value_found_by_hand() -> None:
    student = torch.tensor([[[[1.0, 1.0]], [[1.0, -1.0]]]])  # energy 2, 2: map (1, 1) / sqrt(2)
    teacher = torch.tensor([[[[3.0, 0.0]]]])  # energy 9, 0: map (1, 0)
    half = 0.5**0.5
    assert attention_map(student).tolist() == [[pytest.approx(half), pytest.approx(half)]]
    expected = ((1 - half) ** 2 + half**2) / 2
    assert attention_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-6)
    assert attention_transfer(student, teacher, norm='l1').item() == pytest.approx(0.5, rel=1e-6)
    term = ATDistiller(PAIR, loss_weight=3.0)
    assert term(feature_step(student, teacher)).item() == pytest.approx(3 * expected, rel=1e-6)


@pytest.mark.parametrize('norm', ['l1', 'l2'])
@pytest.mark.parametrize('p', [1, 2, 3])
def test_the_value_is_that_of_a_loop(p: float, norm: Any) -> None:
    student, teacher = noise(3, 4, 3, 5), noise(3, 7, 3, 5, seed=5)
    expected = oracle(student.double().numpy(), teacher.double().numpy(), p, norm)
    assert attention_transfer(student, teacher, p, norm).item() == pytest.approx(expected, rel=1e-5)  # float32


def test_it_does_not_see_the_scale_of_the_features_nor_the_order_of_channels() -> None:
    feature = noise(2, 4, 3, 3)
    assert attention_transfer(feature, 7 * feature.flip(1)).item() == pytest.approx(0, abs=1e-12)
    assert attention_transfer(feature, feature).item() == 0
    assert attention_transfer(feature, torch.cat([feature, feature], dim=1)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('norm', ['l1', 'l2'])
def test_its_gradient_is_the_numeric_one(norm: Any) -> None:
    student, teacher = noise(2, 3, 2, 3).double().requires_grad_(), noise(2, 2, 2, 3, seed=5).double()
    assert torch.autograd.gradcheck(lambda x: attention_transfer(x, teacher, norm=norm), student)


def test_a_batch_is_the_mean_of_its_images() -> None:
    student, teacher = noise(4, 3, 3, 5), noise(4, 5, 3, 5, seed=5)
    single = [attention_transfer(student[i : i + 1], teacher[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(attention_transfer(student, teacher), torch.stack(single).mean())


def test_a_dead_map_gives_a_finite_value_and_no_gradient() -> None:
    student = torch.zeros(1, 3, 4, 4, requires_grad=True)
    loss = attention_transfer(student, noise(1, 3, 4, 4))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.abs().sum() == 0


def test_features_too_large_to_square_in_fp16_do_not_overflow() -> None:
    student, teacher = 400 * noise(2, 8, 6, 6), noise(2, 8, 6, 6, seed=5)
    halved = student.half().requires_grad_()
    loss = attention_transfer(halved, teacher.half())
    loss.backward()
    assert halved.grad.isfinite().all()
    assert loss.item() == pytest.approx(attention_transfer(student, teacher).item(), rel=1e-2)  # 11 bits


def test_taps_and_teachers_add_up_with_their_weights() -> None:
    student, teachers, lq = student_of('edsr'), ensemble(), image_batch(3, 3, 8, 16)
    term = ATDistiller(teachers={'edsr': 0.5, 'rcan': 2.0}, loss_weight=10.0)
    step = built_step(term, student, teachers, lq)
    own = [step.student_taps[path].detach().double().numpy() for path in ('body.0', 'body.0', 'body.1')]
    expected = 0.0
    for weight, paths in (
        (0.5, ('edsr/body.1', 'edsr/body.2', 'edsr/body.4')),
        (2.0, ('rcan/body.0', 'rcan/body.2', 'rcan/conv_after_body')),
    ):
        theirs = [step.teacher_taps[path].double().numpy() for path in paths]
        expected += weight * sum(oracle(s, t, 2, 'l2') for s, t in zip(own, theirs, strict=True))
    assert term(step).item() == pytest.approx(10 * expected, rel=1e-5)


def test_the_tail_of_rcan_is_tapped_before_the_skip_is_added_into_it() -> None:
    student, teachers, lq = student_of('rcan'), ensemble(), image_batch(3, 3, 8, 16)
    step = built_step(ATDistiller(teachers='rcan'), student, teachers, lq)
    rcan = teachers.bare()['rcan']
    with torch.no_grad():
        features = rcan.conv_first((lq - rcan.mean) * rcan.img_range)
        torch.testing.assert_close(step.teacher_taps['rcan/conv_after_body'], rcan.conv_after_body(rcan.body(features)))


def test_maps_of_different_size_are_refused_with_both_sizes() -> None:
    student, teacher = noise(2, 64, 16, 16), noise(2, 64, 32, 32)
    message = r'attention maps differ in size: student \(2, 64, 16, 16\), teacher \(2, 64, 32, 32\)'
    with pytest.raises(ValueError, match=f'^{message}$'):
        attention_transfer(student, teacher)
    with pytest.raises(ValueError, match=f'^train.distill.at: {message}: name taps .* instead of body and edsr/body'):
        DistillerBank({'at': {'type': 'ATDistiller', 'taps': PAIR}}).build(feature_step(student, teacher))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'norm': 'l3'}, "norm 'l3' is unknown; expected l1 or l2"),
        ({'p': 0}, 'p is 0, expected at least 1'),
        ({'taps': {}}, 'taps should map student paths'),
        ({'tap': PAIR}, "unknown key 'tap' in train.distill.at: did you mean 'taps'"),
    ],
)
def test_a_bad_option_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillerBank({'at': {'type': 'ATDistiller', **arguments}})
