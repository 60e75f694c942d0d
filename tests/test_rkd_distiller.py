"""RKD computes its formulas, also for batches too small to have relations, and learns where it should."""

import itertools
import logging

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

from mtkd_loss.relational_loss import pooled, relational_angle, relational_distance
from mtkd_model.distiller_bank import DistillerBank
from mtkd_model.distillers.rkd_distiller import RKDDistiller

PAIR = {'body': 'edsr/body'}


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def distance_oracle(student: np.ndarray, teacher: np.ndarray) -> float:
    pairs = list(itertools.permutations(range(len(student)), 2))
    own, theirs = (np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs]) for x in (student, teacher))
    return float(np.mean([huber(d) for d in own / own.mean() - theirs / theirs.mean()]))


def angle_oracle(student: np.ndarray, teacher: np.ndarray) -> float:
    def cosine(x: np.ndarray, i: int, j: int, k: int) -> float:
        one, other = x[i] - x[j], x[k] - x[j]
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

    triples = itertools.permutations(range(len(student)), 3)
    return float(np.mean([huber(cosine(student, *t) - cosine(teacher, *t)) for t in triples]))


# a right-angled triangle against an equilateral one, and against three points of a line
RIGHT = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # sides 3, 4, 5; cosines 0, .6, .8
EQUAL = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0**0.5]])  # cosines .5
LINE = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 3, 2; cosines 1, -1, 1


def test_triangles_give_the_values_found_by_hand() -> None:
    distance = 2 * 0.25**2 / 2 / 3  # 3/4, 4/4, 5/4 against 1, 1, 1
    angle = (0.5**2 + 0.1**2 + 0.3**2) / 2 / 3
    assert relational_distance(RIGHT, EQUAL).item() == pytest.approx(distance, rel=1e-5)
    assert relational_angle(RIGHT, EQUAL).item() == pytest.approx(angle, rel=1e-5)
    # 3/4, 1, 5/4 against 1/2, 3/2, 1; the linear part: |.6 + 1| - .5
    assert relational_distance(RIGHT, LINE).item() == pytest.approx((0.25**2 + 0.5**2 + 0.25**2) / 2 / 3, rel=1e-5)
    assert relational_angle(RIGHT, LINE).item() == pytest.approx((0.5 + 1.1 + 0.02) / 3, rel=1e-5)
    term = RKDDistiller(PAIR, loss_weight=0.1)
    losses = term(feature_step(RIGHT[..., None, None], EQUAL[..., None, None]))
    assert losses['distance'].item() == pytest.approx(0.1 * 25 * distance, rel=1e-5)
    assert losses['angle'].item() == pytest.approx(0.1 * 50 * angle, rel=1e-5)


@pytest.mark.parametrize('batch', [3, 4, 7])
def test_the_values_are_those_of_a_loop(batch: int) -> None:
    student, teacher = noise(batch, 5), noise(batch, 9, seed=5)
    own, theirs = student.double().numpy(), teacher.double().numpy()
    assert relational_distance(student, teacher).item() == pytest.approx(distance_oracle(own, theirs), rel=1e-5)
    assert relational_angle(student, teacher).item() == pytest.approx(angle_oracle(own, theirs), rel=1e-5)


@pytest.mark.parametrize('loss', [relational_distance, relational_angle])
def test_their_gradients_are_the_numeric_ones(loss) -> None:
    student, teacher = noise(4, 3).double().requires_grad_(), noise(4, 2, seed=5).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student)


@pytest.mark.parametrize('loss', [relational_distance, relational_angle])
def test_they_do_not_see_a_shift_a_scale_or_a_rotation(loss) -> None:
    samples = noise(5, 4)
    rotation = torch.linalg.qr(noise(4, 4, seed=6))[0]
    assert loss(samples, samples).item() == 0
    assert loss(samples, 3 * samples @ rotation + 2).item() == pytest.approx(0, abs=1e-10)  # float32, squared


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('loss', [relational_distance, relational_angle])
def test_a_batch_without_relations_gives_zero_with_a_gradient_of_zero(loss, batch: int) -> None:
    student = noise(batch, 4).requires_grad_()
    value = loss(student, noise(batch, 6, seed=5))
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize('samples', [torch.ones(4, 3), torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])])
@pytest.mark.parametrize('loss', [relational_distance, relational_angle])
def test_equal_samples_give_finite_values_and_gradients(loss, samples: torch.Tensor) -> None:
    student = samples.clone().requires_grad_()
    value = loss(student, noise(4, 3))
    value.backward()
    assert value.isfinite()
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize('loss', [relational_distance, relational_angle])
def test_autocast_does_not_round_the_relations(loss) -> None:
    student, teacher = noise(4, 8), noise(4, 8, seed=5)
    with torch.autocast('cpu', torch.bfloat16):
        value = loss(student, teacher)
    assert torch.equal(value, loss(student, teacher))


def test_features_are_averaged_over_their_positions_in_float32() -> None:
    feature = 60000 * torch.ones(2, 3, 5, 7)
    assert torch.equal(pooled(feature.half()), pooled(feature.half()[..., :1, :1]))
    feature = noise(2, 3, 5, 7)
    np.testing.assert_allclose(pooled(feature), feature.double().numpy().mean((2, 3)), atol=1e-6)


def test_one_image_trains_nothing_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    student, term = student_of('edsr'), RKDDistiller()
    step = built_step(term, student, ensemble(), image_batch(1, 3, 8, 16))
    logging.getLogger('basicsr').addHandler(caplog.handler)
    try:
        losses = term(step)
    finally:
        logging.getLogger('basicsr').removeHandler(caplog.handler)
    assert 'a batch of 1 has no relations' in caplog.text
    assert 'set batch_size_per_gpu to 3 or more' in caplog.text
    sum(losses.values()).backward()
    assert all(not parameter.grad.any() for name, parameter in student.named_parameters() if name.startswith('body'))


def test_taps_and_teachers_add_up_with_their_weights() -> None:
    student, teachers, lq = student_of('edsr'), ensemble(), image_batch(4, 3, 8, 16)
    term = RKDDistiller(None, {'edsr': 0.5, 'rcan': 2.0}, distance_weight=2.0, angle_weight=3.0, loss_weight=10.0)
    step = built_step(term, student, teachers, lq)
    own = step.student_taps['body.1'].detach().double().numpy().mean((2, 3))
    theirs = {path: tap.double().numpy().mean((2, 3)) for path, tap in step.teacher_taps.items()}
    assert set(theirs) == {'edsr/body.4', 'rcan/conv_after_body'}
    losses = term(step)
    for name, factor, oracle in (('distance', 2, distance_oracle), ('angle', 3, angle_oracle)):
        expected = 0.5 * oracle(own, theirs['edsr/body.4']) + 2 * oracle(own, theirs['rcan/conv_after_body'])
        # the samples differ little beside their mean, so float32 distances keep fewer digits
        assert losses[name].item() == pytest.approx(10 * factor * expected, rel=1e-3)


def test_maps_of_different_size_are_pooled_all_the_same() -> None:
    bank = DistillerBank({'rkd': {'type': 'RKDDistiller', 'taps': PAIR}})
    step = feature_step(noise(3, 8, 6, 6), noise(3, 5, 3, 3))
    bank.build(step)
    assert set(bank(step)) == {'l_rkd_distance', 'l_rkd_angle'}


def test_samples_of_two_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r'relations need samples \(B, D\) of equal B: student \(3, 4\), teacher \(2,'):
        relational_distance(noise(3, 4), noise(2, 4))
