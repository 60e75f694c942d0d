"""The negatives are what the student used to make; the history is frozen, follows slowly and is resumed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, build_arch, small_network
from distilling import built, image_batch, narrow_student, small_ensemble, step_of, without_gradient
from test_multi_teacher_model import batch, made, stepped

from mtkd_arch.weights import read_weights
from mtkd_model.distiller_bank import trainable
from mtkd_model.distillers.dckd_distiller import DCKDDistiller, noisy

TEACHERS = small_ensemble('edsr', 'rcan')


@pytest.mark.parametrize('size', [1, 3])
def test_the_term_is_that_of_the_formula(encoder: dict[str, Any], size: int) -> None:
    student, lq = narrow_student('edsr'), image_batch(size, 3, 5, 7)
    term = DCKDDistiller(encoder, noisy_negatives=2, feature_weights=[0.5, 2.0], loss_weight=0.1)
    built(term, student, TEACHERS, lq)
    former = build_arch(small_network('edsr', num_feat=6, num_block=1))
    former.load_state_dict(student.state_dict())
    with torch.no_grad():
        student.conv_last.bias.add_(10)
    step = step_of(term, student, TEACHERS, lq)
    torch.manual_seed(5)
    loss = term(step).item()
    torch.manual_seed(5)
    with torch.no_grad():
        negatives = [term.encoder(former(images)) for images in (lq, noisy(lq), noisy(lq))]
        own, target = term.encoder(step.student), term.encoder(step.target)
    expected = 0.0
    for feature, weight in enumerate((0.5, 2.0)):
        s, t, *far = (features[feature].double().numpy() for features in (own, target, *negatives))
        expected += weight * np.abs(t - s).mean() / np.mean([np.abs(n - s).mean() for n in far])
    assert loss == pytest.approx(0.1 * expected, rel=1e-5)


def test_noise_is_bounded_differs_by_sample_and_is_grey_in_half_of_them() -> None:
    images = torch.full((64, 3, 32, 32), 0.5)
    torch.manual_seed(0)
    noise = noisy(images) - images
    strengths = noise.std(dim=(1, 2, 3)) * 255
    assert 0.9 < strengths.min() < 5  # standard deviations of 1 to 30 of 255; the estimate errs by 2 %
    assert 25 < strengths.max() < 31
    grey = (noise == noise[:, :1]).all(dim=(1, 2, 3))
    assert 16 < grey.sum() < 48
    assert noisy(torch.ones(4, 3, 8, 8)).max() <= 1
    assert torch.equal(images, torch.full_like(images, 0.5))


def test_a_history_that_equals_the_student_does_not_blow_the_loss_up(encoder: dict[str, Any]) -> None:
    student, lq = narrow_student('edsr').eval(), image_batch(2, 3, 8, 8)
    term = built(DCKDDistiller(encoder), student, TEACHERS, lq)
    step = step_of(term, student, TEACHERS, lq)
    loss = term(step)
    loss.backward()
    assert torch.equal(term.history(lq, 4), step.student)
    assert 0 < loss < 100
    assert all(torch.isfinite(parameter.grad).all() for parameter in student.parameters())


def test_the_history_follows_at_its_pace(encoder: dict[str, Any]) -> None:
    student, lq = narrow_student('edsr'), image_batch(2, 3, 8, 8)
    term = built(DCKDDistiller(encoder, decay=0.25, every=3), student, TEACHERS, lq)
    first = student.conv_first.bias.detach().clone()
    with torch.no_grad():
        student.conv_first.bias.add_(1)
    for iteration, moved in ((0, 0.0), (1, 0.0), (2, 0.0), (3, 0.75), (4, 0.75), (6, 0.9375)):
        term(step_of(term, student, TEACHERS, lq, iteration))
        torch.testing.assert_close(term.history.frozen.network.conv_first.bias, first + moved)


@pytest.mark.parametrize('name', SMALL)
def test_the_gradient_reaches_the_whole_student_and_nothing_frozen(encoder: dict[str, Any], name: str) -> None:
    student, lq = narrow_student(name), image_batch(1, 3, 7, 9)
    term = built(DCKDDistiller(encoder, noisy_negatives=1), student, TEACHERS, lq)
    term.train()
    term(step_of(term, student, TEACHERS, lq)).backward()
    assert without_gradient(student) == []
    frozen = [*TEACHERS.parameters(), *term.encoder.network.parameters(), *term.history.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    assert all(not module.training for module in term.history.frozen.modules())
    assert trainable(term) == []


def test_it_is_finite_under_autocast(encoder: dict[str, Any]) -> None:
    student, lq = narrow_student('edsr'), image_batch(2, 3, 8, 8)
    term = built(DCKDDistiller(encoder), student, TEACHERS, lq)
    with torch.autocast('cpu', torch.bfloat16):
        loss = term(step_of(term, student, TEACHERS, lq))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(student.conv_first.weight.grad).all()


def test_the_history_is_saved_without_the_encoder_and_resumed(
    options: dict[str, Any], encoder: dict[str, Any], tmp_path: Path
) -> None:
    options['train']['distill'] = {'dckd': {'type': 'DCKDDistiller', 'encoder': encoder, 'every': 2}}
    options['path'] |= {'models': str(tmp_path), 'training_states': str(tmp_path)}
    model = stepped(made(options), batch(), steps=3)
    model.save(0, 3)
    saved = read_weights(tmp_path / 'distill_3.pth', 'params')
    assert {name.removeprefix('terms.dckd.history.frozen.network.') for name in saved} == set(model.net_g.state_dict())
    resumed = made(options)
    resumed.resume_training(torch.load(tmp_path / '3.state', weights_only=False))
    assert all(torch.equal(saved[name], value) for name, value in resumed.distillers.state_dict().items())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'noisy_negatives': 0}, 'noisy_negatives is 0, expected a number of at least 1'),
        ({'decay': 1}, 'decay is 1: the copy follows the student only'),
        ({'every': 0}, 'every is 0, expected a number of iterations'),
        ({'feature_weights': 3.0}, 'feature_weights should be a list of 2'),
        ({'teachers': 'rcam'}, "teacher 'rcam' is unknown: did you mean 'rcan'"),
    ],
)
def test_bad_arguments_are_refused(encoder: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(DCKDDistiller(encoder, **arguments), narrow_student('edsr'), TEACHERS, image_batch(2, 3, 8, 8))
