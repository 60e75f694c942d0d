"""FAKD computes its formula within bounded memory and learns where it should."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPO, script_environment
from distilling import (
    built_step,
    ensemble,
    feature_step,
    image_batch,
    noise,
    student_of,
)
from torch import Tensor

from mtkd_loss.feature_affinity_loss import feature_affinity
from mtkd_model.distiller_bank import DistillerBank
from mtkd_model.distillers.fakd_distiller import FAKDDistiller

PAIR = {'body': 'edsr/body'}


def oracle(student: np.ndarray, teacher: np.ndarray) -> float:
    """The formula as a loop over images and pairs of positions, in float64."""
    distances = []
    for features in zip(student, teacher, strict=True):
        columns = [[f[:, i, j] / np.linalg.norm(f[:, i, j]) for i, j in np.ndindex(f.shape[1:])] for f in features]
        own, theirs = columns
        distances += [abs(own[i] @ own[j] - theirs[i] @ theirs[j]) for i in range(len(own)) for j in range(len(theirs))]
    return float(np.mean(distances))


def dense(student: Tensor, teacher: Tensor) -> Tensor:
    own, theirs = (F.normalize(x.flatten(2), dim=1) for x in (student, teacher))
    return (own.transpose(1, 2) @ own - theirs.transpose(1, 2) @ theirs).abs().mean()


def value_and_gradient(loss: Any, student: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student, *others)
    return value.detach(), torch.autograd.grad(value, student)[0]


def test_two_positions_give_the_value_found_by_hand() -> None:
    student = torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]])  # units (.6, .8), (0, 1): cosine .8
    teacher = torch.tensor([[[[5.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]]])  # cosine 0
    assert feature_affinity(student, teacher).item() == pytest.approx(2 * 0.8 / 4, rel=1e-6)
    term = FAKDDistiller(PAIR, loss_weight=0.5)
    assert term(feature_step(student, teacher)).item() == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize('chunk', [1, 7, 50, 2**22])
def test_the_value_is_that_of_a_loop_whatever_the_chunk(chunk: int) -> None:
    student, teacher = noise(3, 4, 3, 5), noise(3, 7, 3, 5, seed=5)
    expected = oracle(student.double().numpy(), teacher.double().numpy())
    assert feature_affinity(student, teacher, chunk).item() == pytest.approx(expected, rel=1e-5)  # float32


@pytest.mark.parametrize('chunk', [1, 100, 999, 4000, 2**22])
def test_value_and_gradient_are_those_of_the_matrices_written_out(chunk: int) -> None:
    student, teacher = noise(2, 16, 9, 11), noise(2, 24, 9, 11, seed=5)
    for own, theirs in zip(
        value_and_gradient(feature_affinity, student, teacher, chunk),
        value_and_gradient(dense, student, teacher),
        strict=True,
    ):
        assert (own - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize('chunk', [1, 10, 2**22])
def test_its_gradient_is_the_numeric_one(chunk: int) -> None:
    student, teacher = noise(2, 3, 2, 3).double().requires_grad_(), noise(2, 4, 2, 3, seed=5).double()
    assert torch.autograd.gradcheck(lambda x: feature_affinity(3 * x, teacher, chunk), student)


def test_it_is_zero_without_a_gradient_when_student_equals_teacher() -> None:
    feature = noise(2, 16, 9, 11)
    value, gradient = value_and_gradient(feature_affinity, feature, feature.clone(), 500)
    assert value == 0
    assert gradient.abs().max() == 0


def test_it_does_not_see_the_scale_at_a_position_nor_a_rotation_of_the_channels() -> None:
    feature, scales = noise(2, 8, 4, 5), noise(2, 1, 4, 5, seed=6).exp()
    rotation = torch.linalg.qr(noise(8, 8))[0]
    rotated = torch.einsum('dc,bchw->bdhw', rotation, feature * scales)
    assert feature_affinity(feature, rotated).item() == pytest.approx(0, abs=1e-6)  # a few float32 roundings


def test_a_batch_is_the_mean_of_its_images() -> None:
    student, teacher = noise(4, 3, 3, 5), noise(4, 5, 3, 5, seed=5)
    single = [feature_affinity(student[i : i + 1], teacher[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(feature_affinity(student, teacher), torch.stack(single).mean())


def test_features_too_large_to_square_in_fp16_do_not_overflow() -> None:
    student, teacher = (200 * noise(2, 64, 6, 6, seed=seed) for seed in (2, 5))
    assert not dense_in_half(student, teacher).isfinite()
    halved = student.half().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        loss = feature_affinity(halved, teacher.half())
        loss.backward()
    assert loss.dtype == torch.float32
    assert halved.grad.isfinite().all()
    assert loss.item() == pytest.approx(dense(student, teacher).item(), rel=1e-3)  # fp16 features, float32 affinities


def test_autocast_does_not_round_the_affinities() -> None:
    student, teacher = noise(2, 16, 6, 6), noise(2, 16, 6, 6, seed=5)
    with torch.autocast('cpu', torch.bfloat16):
        value, gradient = value_and_gradient(feature_affinity, student, teacher)
    expected = value_and_gradient(feature_affinity, student, teacher)
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1])


def dense_in_half(student: Tensor, teacher: Tensor) -> Tensor:
    """What the fault is: affinities of raw features in fp16."""
    own, theirs = (x.half().flatten(2) for x in (student, teacher))
    return (own.transpose(1, 2) @ own - theirs.transpose(1, 2) @ theirs).abs().mean()


def test_a_dead_position_gives_a_finite_value_and_no_gradient() -> None:
    student = noise(1, 3, 4, 4)
    student[..., 1, 2] = 0
    value, gradient = value_and_gradient(feature_affinity, student, noise(1, 3, 4, 4, seed=5))
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient[..., 1, 2].abs().max() == 0
    assert gradient.abs().max() < 1


def test_the_gradient_of_a_weighted_sum_of_taps_is_weighted() -> None:
    student, teacher = noise(2, 3, 3, 4), noise(2, 3, 3, 4, seed=5)
    once = value_and_gradient(feature_affinity, student, teacher)[1]
    twice = value_and_gradient(lambda x: 3 * feature_affinity(x, teacher) - feature_affinity(x, teacher), student)[1]
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads the peak from /proc')
def test_three_taps_of_a_batch_of_16_take_less_than_400_mb_forward_and_backward() -> None:
    matrix = 16 * (48 * 48) ** 2 * 4 / 10**6
    assert 3 * matrix > 1000  # one affinity matrix per tap kept for the backward pass alone
    command = [sys.executable, 'benchmarks/fakd_memory.py', '--variant', 'chunked', '--runs', '0']
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO, env=script_environment(), check=True)
    figures = json.loads(done.stdout)
    assert 10 < figures['extra_mb'] < 400  # the gradients alone are 28 MB
    assert figures['largest_gradient'] > 0


def test_taps_and_teachers_add_up_with_their_weights() -> None:
    student, teachers, lq = student_of('swinir'), ensemble(), image_batch(2, 3, 8, 8)
    term = FAKDDistiller(teachers={'swinir': 0.5, 'rcan': 2.0}, parts=2, loss_weight=10.0)
    step = built_step(term, student, teachers, lq)
    taps = {**step.student_taps, **step.teacher_taps}
    maps = {  # token 8 * row + column
        path: (tap.transpose(1, 2).reshape(2, -1, 8, 8) if tap.dim() == 3 else tap).detach().double().numpy()
        for path, tap in taps.items()
    }
    expected = sum(
        weight * oracle(maps[own], maps[theirs])
        for own, theirs, weight in (
            ('layers.0', 'swinir/layers.1', 0.5),
            ('layers.1', 'swinir/layers.2', 0.5),
            ('layers.0', 'rcan/body.1', 2.0),
            ('layers.1', 'rcan/conv_after_body', 2.0),
        )
    )
    assert term(step).item() == pytest.approx(10 * expected, rel=1e-5)


def test_its_default_weight_is_the_papers_for_images_up_to_one() -> None:
    assert FAKDDistiller().loss_weight == pytest.approx(0.0392, rel=1e-3)


def test_maps_of_different_size_are_refused_with_both_sizes() -> None:
    student, teacher = noise(2, 8, 6, 6), noise(2, 8, 3, 3)
    message = r'feature maps differ in size: student \(2, 8, 6, 6\), teacher \(2, 8, 3, 3\)'
    with pytest.raises(ValueError, match=f'^{message}$'):
        feature_affinity(student, teacher)
    with pytest.raises(ValueError, match=f'^train.distill.fakd: {message}: name taps .* instead of body and edsr/body'):
        DistillerBank({'fakd': {'type': 'FAKDDistiller', 'taps': PAIR}}).build(feature_step(student, teacher))
    with pytest.raises(ValueError, match=r'should be two batches \(B, C, H, W\) of equal B'):
        feature_affinity(student, student[:1])
