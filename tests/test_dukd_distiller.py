"""Views are undone in reverse order, zoomed images meet their formulas, and a step is one step."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from distilling import built, image_batch, narrow_student, small_ensemble, step_of, without_gradient
from test_multi_teacher_model import batch, made
from torch import Tensor

from mtkd_loss.data_upcycling import (
    TRANSFORMS,
    choose_transforms,
    inverse_transform,
    random_crops,
    transform,
    zoom_out,
)
from mtkd_model.distillers.dukd_distiller import DUKDDistiller

ALL = tuple(TRANSFORMS)
TEACHERS = small_ensemble('edsr', 'rcan', 'swinir')


def numpy_view(images: np.ndarray, name: str) -> np.ndarray:
    if name == 'invert':
        return 1 - images
    return {'hflip': images[..., ::-1], 'vflip': images[..., ::-1, :], 'transpose': images.swapaxes(-1, -2)}[name]


@pytest.mark.parametrize('names', [c for n in range(5) for c in itertools.permutations(ALL, n)])
def test_every_sequence_of_views_is_undone(names: tuple[str, ...]) -> None:
    images = image_batch(2, 3, 5, 7)
    view, expected = transform(images, names), images.numpy()
    for name in names:
        expected = numpy_view(expected, name)
    np.testing.assert_array_equal(view.numpy(), expected)
    torch.testing.assert_close(inverse_transform(view, names), images, rtol=0, atol=1e-7)  # 1 - (1 - x) rounds


def test_forward_order_would_not_undo_them() -> None:
    images, names = image_batch(1, 1, 4, 4), ('hflip', 'transpose')
    assert torch.equal(inverse_transform(transform(images, names), names), images)
    assert not torch.equal(transform(transform(images, names), names), images)


def test_all_subsets_of_views_come_up_and_none_of_them_changes_the_order() -> None:
    torch.manual_seed(0)
    drawn = {tuple(choose_transforms(ALL)) for _ in range(300)}
    assert drawn == {c for n in range(5) for c in itertools.combinations(ALL, n)}
    assert choose_transforms(()) == []


def test_crops_are_pieces_of_their_own_sample() -> None:
    images = torch.arange(3 * 6 * 5.0).view(3, 1, 6, 5)
    torch.manual_seed(0)
    for crop, image in zip(random_crops(images, 2, 3), images, strict=True):
        assert any(torch.equal(crop, image[:, t : t + 2, c : c + 3]) for t in range(5) for c in range(3))
    starts = {tuple(random_crops(images, 2, 3)[:, 0, 0, 0].tolist()) for _ in range(50)}
    assert len(starts) > 20  # places differ from draw to draw, and between the samples
    assert torch.equal(random_crops(images, 6, 5), images)


def test_zooming_out_shrinks_constants_to_themselves_and_drops_the_rest_of_odd_sides() -> None:
    small, shown = zoom_out(torch.full((1, 3, 13, 10), 0.25), 4)
    assert (small.shape, shown.shape) == ((1, 3, 3, 2), (1, 3, 12, 8))
    torch.testing.assert_close(small, torch.full_like(small, 0.25))


def test_zooming_out_is_bicubic_with_a_widened_kernel() -> None:
    image = image_batch(1, 1, 32, 32)
    small, _ = zoom_out(image, 4)

    def kernel(x: float) -> float:  # Keys with a = -0.5, as antialiased interpolation takes it
        x = abs(x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    weights = np.array([[kernel((4 * out + 1.5 - source) / 4) for source in range(32)] for out in range(8)])
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.clip(weights @ image[0, 0].double().numpy() @ weights.T, 0, 1)
    np.testing.assert_allclose(small[0, 0].numpy(), expected, atol=1e-5)


def constant(value: float) -> Any:
    return lambda *arguments: torch.full((len(arguments[-1]), 3, *(4 * s for s in arguments[-1].shape[-2:])), value)


def test_both_terms_by_hand() -> None:
    student, lq = narrow_student('edsr'), torch.full((2, 3, 16, 16), 0.5)
    term = built(DUKDDistiller('edsr', 2.0, 3.0, augmentations=[], loss_weight=0.5), student, TEACHERS, lq)
    step = step_of(term, student, TEACHERS, lq, iteration=0)
    object.__setattr__(step, 'run_student', constant(0.25))
    object.__setattr__(step, 'run_teacher', lambda name, images: constant({'edsr': 0.375}[name])(images))
    losses = {name: loss.item() for name, loss in term(step).items()}
    assert losses == {'zoom_in': 0.5 * 2 * 0.125, 'zoom_out': 0.5 * 3 * (0.25 + 0.125)}


def test_both_terms_are_those_of_the_formula() -> None:
    student, lq = narrow_student('rcan').eval(), image_batch(2, 3, 16, 20)
    weights = {'edsr': 0.25, 'swinir': 0.75}
    term = built(DUKDDistiller(weights), student, TEACHERS, lq)
    step = step_of(term, student, TEACHERS, lq, iteration=0)
    torch.manual_seed(5)
    losses = term(step)
    torch.manual_seed(5)
    crops = random_crops(step.gt, 16, 20)
    names = choose_transforms(ALL)
    assert names
    view = crops.numpy()
    for name in names:
        view = numpy_view(view, name)
    own = student(torch.from_numpy(np.ascontiguousarray(view))).detach().numpy()
    for name in reversed(names):
        own = numpy_view(own, name)
    expected = sum(w * np.abs(own - TEACHERS.run_teacher(n, crops).numpy()).mean() for n, w in weights.items())
    assert losses['zoom_in'].item() == pytest.approx(expected, rel=1e-5)
    small, _ = zoom_out(lq, 4)
    own = student(small).detach().numpy()
    expected = np.abs(own - lq.numpy()).mean()
    expected += sum(w * np.abs(own - TEACHERS.run_teacher(n, small).numpy()).mean() for n, w in weights.items())
    assert losses['zoom_out'].item() == pytest.approx(expected, rel=1e-5)


def test_zoom_in_is_zero_for_a_student_that_commutes_with_the_views_and_equals_the_teacher() -> None:
    def nearest(images: Tensor) -> Tensor:
        return images.repeat_interleave(4, -1).repeat_interleave(4, -2)

    student, lq = narrow_student('edsr'), image_batch(2, 3, 12, 9)
    term = built(DUKDDistiller(zoom_out_weight=0), student, TEACHERS, lq)
    step = step_of(term, student, TEACHERS, lq, iteration=0)
    object.__setattr__(step, 'run_student', nearest)
    object.__setattr__(step, 'run_teacher', lambda _, images: nearest(images))
    torch.manual_seed(0)
    for _ in range(20):
        losses = term(step)
        assert list(losses) == ['zoom_in']
        assert losses['zoom_in'].item() < 1e-6  # 1 - (1 - x) rounds


@pytest.mark.parametrize('size', [(1, 3, 33, 35), (2, 3, 32, 32)])
@pytest.mark.parametrize('name', SMALL)
def test_the_gradient_reaches_the_student_and_no_teacher(name: str, size: tuple[int, ...]) -> None:
    student, lq = narrow_student(name), image_batch(*size)
    term = built(DUKDDistiller(), student, TEACHERS, lq)
    for weight in ('zoom_in_weight', 'zoom_out_weight'):
        student.zero_grad()
        before = lq.clone()
        step = step_of(term, student, TEACHERS, lq)
        gt = step.gt.clone()
        losses = term(step)
        losses[weight.removesuffix('_weight')].backward()
        assert without_gradient(student) == []
        assert torch.equal(lq, before)
        assert torch.equal(step.gt, gt)
    assert all(parameter.grad is None for parameter in TEACHERS.parameters())
    assert list(term.parameters()) == []


def test_it_is_finite_under_autocast() -> None:
    student, lq = narrow_student('edsr'), image_batch(1, 3, 32, 32)
    term = built(DUKDDistiller(), student, TEACHERS, lq)
    with torch.autocast('cpu', torch.bfloat16):
        losses = term(step_of(term, student, TEACHERS, lq))
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())


def test_a_step_of_training_is_one_step_of_the_optimizer_on_a_fresh_gradient(options: dict[str, Any]) -> None:
    options['train']['distill'] = {'dukd': {'type': 'DUKDDistiller', 'teachers': 'edsr', 'augmentations': []}}
    options['train']['optim_g'] = {'type': 'Adam', 'lr': 0.0}  # stands still: equal draws must give equal gradients
    options['train']['ema_decay'] = 0
    model = made(options)
    model.feed_data(batch(lq=16))
    steps, gradients, run = [], [], model.optimizer_g.step
    model.optimizer_g.step = lambda *arguments: (steps.append(1), run(*arguments))[1]
    for iteration in (1, 2):
        torch.manual_seed(3)
        model.optimize_parameters(iteration)
        gradients.append(model.net_g.conv_first.weight.grad.clone())
    assert len(steps) == 2
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert set(model.get_current_log()) == {'l_pix', 'l_dukd_zoom_in', 'l_dukd_zoom_out'}


def test_a_patch_too_small_for_a_window_names_the_gt_size_it_needs() -> None:
    student, lq = narrow_student('edsr'), image_batch(1, 3, 16, 16)
    term = built(DUKDDistiller(), student, TEACHERS, lq)
    step = dataclasses.replace(step_of(term, student, TEACHERS, lq), patch=24)
    message = 'an LR patch of 24 zooms out to 6, below the window of teacher swinir, 8: set gt_size to at least 128'
    with pytest.raises(ValueError, match=message):
        term.build(step)
    term.build(dataclasses.replace(step, patch=32))
    DUKDDistiller('rcan').build(step)
    DUKDDistiller(zoom_out_weight=0).build(step)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'augmentations': ['rotate']}, "augmentation 'rotate' is unknown: .*Available: invert, hflip"),
        ({'augmentations': ['transpos']}, "did you mean 'transpose'"),
        ({'augmentations': 'invert'}, 'augmentations should be a list'),
        ({'zoom_in_weight': 0, 'zoom_out_weight': 0}, 'are both 0'),
        ({'teachers': 'rcam'}, "teacher 'rcam' is unknown: did you mean 'rcan'"),
        ({'teachers': 'target'}, "teacher 'target' is unknown"),
        ({'teachers': {}}, 'teachers should be a name or map'),
        ({'teachers': {'edsr': 'much'}}, "the weight of teacher 'edsr' should be a number"),
    ],
)
def test_bad_arguments_are_refused_before_training(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(DUKDDistiller(**arguments), narrow_student('edsr'), TEACHERS, image_batch(1, 3, 16, 16))
