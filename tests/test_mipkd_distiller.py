"""MiPKD: mixing by masks, routing through student or teacher, and what each of the two losses moves."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, small_network
from distilling import built_step, ensemble, image_batch, reached, student_of
from torch import Tensor, nn

from mtkd_arch.weights import read_weights
from mtkd_loss.mixed_prior_loss import mixed, random_mask, random_route, root_mean_square
from mtkd_model.distiller_bank import DistillerBank, trainable
from mtkd_model.distillers import mipkd_distiller
from mtkd_model.distillers.mipkd_distiller import MiPKDDistiller
from mtkd_model.lq_maps import teacher_map
from mtkd_model.teacher_tails import replaced_output


@pytest.fixture
def lq() -> Tensor:
    return image_batch(2, 3, 8, 16)


def small(**arguments: Any) -> MiPKDDistiller:
    return MiPKDDistiller(**{'width': 6, **arguments})


# mathematics


def test_a_mixture_takes_the_teacher_where_the_mask_is_true() -> None:
    student, teacher = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    mask = torch.tensor([True, False]).view(1, 2, 1, 1)
    assert mixed(student, teacher, mask).flatten().tolist() == [3.0, 2.0]


def test_masks_are_drawn_for_every_sample_channel_and_position() -> None:
    torch.manual_seed(0)
    mask = random_mask(torch.zeros(4, 8, 16, 16), 0.25)
    assert mask.float().mean().item() == pytest.approx(0.25, abs=0.02)  # 8192 draws: 4 standard deviations
    for axis in range(4):
        assert not (mask == mask.narrow(axis, 0, 1)).all()


def test_a_route_has_the_student_at_least_once() -> None:
    torch.manual_seed(0)
    assert random_route(3, 1.0) == [True] * 3
    never = [random_route(3, 0.0) for _ in range(50)]
    assert {sum(route) for route in never} == {1}
    assert {route.index(True) for route in never} == {0, 1, 2}
    assert np.mean([sum(random_route(10, 0.5)) for _ in range(400)]) == pytest.approx(5, abs=0.4)


def test_the_root_mean_square_is_per_image_and_finite_for_nothing() -> None:
    feature = torch.stack([torch.full((2, 2, 2), 3.0), torch.zeros(2, 2, 2)]).requires_grad_()
    size = root_mean_square(feature)
    torch.testing.assert_close(size.flatten(), torch.tensor([3.0, 1e-6]))
    (feature / size).sum().backward()
    assert torch.isfinite(feature.grad).all()


# the frozen teacher with other features inside


@pytest.mark.parametrize(('name', 'path'), [('edsr', 'body.2'), ('rcan', 'conv_after_body'), ('swinir', 'layers.1')])
@pytest.mark.parametrize('size', [(8, 16), (13, 9)])
def test_its_own_features_change_nothing(name: str, path: str, size: tuple[int, int]) -> None:
    teachers, lq = ensemble(), image_batch(2, 3, *size)
    term = small(taps={'body.0': f'{name}/{path}'})
    step = built_step(term, student_of('edsr'), teachers, lq)
    own = teacher_map(step, f'{name}/{path}', term.windows)
    output = replaced_output(step.teacher_networks[name], {path: own}, lq)
    assert output.shape == step.teachers[name].shape
    if size == (8, 16) or name != 'swinir':  # else the padding of the feature is mirrored, not computed
        torch.testing.assert_close(output, step.teachers[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(replaced_output(step.teacher_networks[name], {path: 0 * own}, lq), output)


def test_the_last_of_several_replacements_decides_where_no_skip_leads_around_it(lq: Tensor) -> None:
    teacher = ensemble().bare()['edsr']
    one, other = image_batch(2, 12, 8, 16), image_batch(2, 12, 8, 16, seed=2)
    with torch.no_grad():
        both = replaced_output(teacher, {'body.1': one, 'body.3': other}, lq)
        assert torch.equal(both, replaced_output(teacher, {'body.3': other}, lq))
        assert not torch.equal(both, replaced_output(teacher, {'body.1': one}, lq))
        assert torch.equal(teacher(lq), teacher(lq))
    assert not any(module._forward_hooks for module in teacher.modules())


def test_a_replacement_is_not_changed_by_what_adds_in_place(lq: Tensor) -> None:
    feature = image_batch(2, 8, 8, 16)
    before = feature.clone()
    replaced_output(ensemble().bare()['rcan'], {'conv_after_body': feature}, lq)
    assert torch.equal(feature, before)


# the term


def encoded(convolution: nn.Conv2d, feature: np.ndarray) -> np.ndarray:
    weight, bias = (value.detach().double().numpy() for value in (convolution.weight[..., 0, 0], convolution.bias))
    return np.einsum('oc,bchw->bohw', weight, feature) + bias[:, None, None]


def test_the_losses_are_those_of_the_formulas(lq: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = random_mask(torch.zeros(2, 6, 8, 16), 0.5)
    monkeypatch.setattr(mipkd_distiller, 'random_mask', lambda like, ratio: mask)
    monkeypatch.setattr(mipkd_distiller, 'random_route', lambda steps, ratio: [True, False][:steps])
    taps = {'body.0': 'edsr/body.1', 'body.1': ['edsr/body.3', 'rcan/body.1']}
    term = small(taps=taps, teachers={'edsr': 0.25, 'rcan': 2.0}, feature_weight=3.0, block_weight=5.0, loss_weight=0.1)
    step = built_step(term, student_of('edsr'), ensemble(), lq)
    pairs = [('body.0', 'edsr/body.1', 0.25), ('body.1', 'edsr/body.3', 0.25), ('body.1', 'rcan/body.1', 2.0)]
    feature, mixtures = 0, {}
    for mixer, (own, path, weight) in zip(term.mixers, pairs, strict=True):
        student, teacher = (f.detach().double().numpy() for f in (step.student_taps[own], step.teacher_taps[path]))
        sizes = [np.sqrt((f**2).mean(axis=(1, 2, 3), keepdims=True)) for f in (student, teacher)]
        codes = [encoded(mixer.encode_student, student / sizes[0]), encoded(mixer.encode_teacher, teacher / sizes[1])]
        mixture = encoded(mixer.decode, np.where(mask.numpy(), codes[1], codes[0]))
        feature += weight * np.abs(mixture - teacher / sizes[1]).mean()
        mixtures[path] = torch.from_numpy(mixture * sizes[1]).float()
    block = 0
    for name, path, weight in (('edsr', 'body.1', 0.25), ('rcan', 'body.1', 2.0)):
        output = replaced_output(step.teacher_networks[name], {path: mixtures[f'{name}/{path}']}, lq)
        block += weight * (output - step.teachers[name]).abs().mean().item()
    losses = term(step)
    assert set(losses) == {'feature', 'block'}
    assert losses['feature'].item() == pytest.approx(0.1 * 3 * feature, rel=1e-4)  # float32 against float64
    assert losses['block'].item() == pytest.approx(0.1 * 5 * block, rel=1e-3)


def test_the_published_weights_are_the_defaults() -> None:
    term = MiPKDDistiller()
    assert (term.feature_weight, term.block_weight, term.loss_weight) == (1.0, 0.1, 1.0)


def test_both_losses_are_zero_when_the_student_is_the_teacher_and_the_mixer_the_identity(lq: Tensor) -> None:
    teachers = ensemble(edsr=small_network('edsr'))
    student = copy.deepcopy(teachers.bare()['edsr'])
    term = small(width=8)
    step = built_step(term, student, teachers, lq)
    with torch.no_grad():
        for mixer in term.mixers:
            for convolution in (mixer.encode_student, mixer.encode_teacher, mixer.decode):
                convolution.weight.copy_(torch.eye(8).view(8, 8, 1, 1))
                convolution.bias.zero_()
    assert all(loss.item() < 1e-5 for loss in term(step).values())  # float32


@pytest.mark.parametrize('loss', ['feature', 'block'])
def test_each_loss_reaches_the_student_and_the_mixers_and_no_teacher(lq: Tensor, loss: str) -> None:
    student, teachers = student_of('edsr', num_block=3), ensemble()
    term = small(teachers='rcan', route_ratio=1.0)
    step = built_step(term, student, teachers, lq)
    term(step)[loss].backward()
    inside = {name for name, _ in student.named_parameters() if name.startswith(('conv_first', 'body'))}
    if loss == 'feature':
        assert reached(student) == inside
        assert reached(term) == {name for name, _ in term.named_parameters()}
    else:  # the last replaced module decides: RCAN's tail
        assert reached(student) == inside
        assert reached(term) == {name for name, _ in term.named_parameters() if name.startswith('mixers.2')}
    assert reached(teachers) == set()


def test_routes_differ_from_step_to_step(lq: Tensor) -> None:
    torch.manual_seed(0)
    term = small(teachers='edsr', mask_ratio=0.0)
    step = built_step(term, student_of('edsr', num_block=3), ensemble(), lq)
    losses = [term(step) for _ in range(12)]
    assert len({loss['feature'].item() for loss in losses}) == 1  # no mask, no chance
    assert len({round(loss['block'].item(), 7) for loss in losses}) == 3  # the last part of the student decides


def test_without_the_block_loss_the_teacher_does_not_run_again(lq: Tensor) -> None:
    term = small(block_weight=0.0)
    step = built_step(term, student_of('edsr'), ensemble(), lq)
    assert set(term(dataclasses.replace(step, teacher_networks={}))) == {'feature'}


@pytest.mark.parametrize('student', SMALL)
@pytest.mark.parametrize('size', [(2, 8, 16), (1, 13, 9)])
def test_any_student_learns_from_all_teachers_at_once(student: str, size: tuple[int, ...]) -> None:
    batch, height, width = size
    network = student_of(student)
    term = small()
    step = built_step(term, network, ensemble(), image_batch(batch, 3, height, width))
    for loss in term(step).values():
        network.zero_grad()
        loss.backward(retain_graph=True)
        assert torch.isfinite(loss)
        assert loss > 0
        assert 'conv_first.weight' in reached(network)


def test_bf16_autocast_is_finite(lq: Tensor) -> None:
    student, term = student_of('edsr'), small()
    with torch.autocast('cpu', torch.bfloat16):
        losses = term(built_step(term, student, ensemble(), lq))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


def test_the_mixers_learn_with_the_student_and_are_saved(lq: Tensor) -> None:
    bank = DistillerBank({'mipkd': {'type': 'MiPKDDistiller', 'teachers': 'edsr'}})
    built_step(bank, student_of('edsr'), ensemble(), lq)
    assert len(trainable(bank)) == 3 * 6
    assert {'terms.mipkd.mixers.0.decode.weight', 'terms.mipkd.mixers.2.encode_student.bias'} <= set(bank.state_dict())


def test_training_logs_both_losses_and_saves_the_mixers(options: dict[str, Any], train: Callable[..., Path]) -> None:
    options['train']['distill'] = {'mipkd': {'type': 'MiPKDDistiller', 'width': 4}}
    experiment = train(options)
    assert 'terms.mipkd.mixers.8.decode.weight' in read_weights(experiment / 'models/distill_4.pth', 'params')
    assert not any('mixers' in name for name in read_weights(experiment / 'models/net_g_4.pth', 'params'))
    log = next(experiment.glob('train_toy_*.log')).read_text()
    assert 'l_mipkd_feature: ' in log
    assert 'l_mipkd_block: ' in log


def test_the_taps_are_left_as_they_were(lq: Tensor) -> None:
    term = small()
    step = built_step(term, student_of('edsr'), ensemble(), lq)
    before = {path: value.clone() for path, value in (*step.student_taps.items(), *step.teacher_taps.items())}
    sum(term(step).values()).backward()
    after = {**step.student_taps, **step.teacher_taps}
    assert all(torch.equal(after[path], value) for path, value in before.items())


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'width': 0}, 'width is 0, expected at least 1'),
        ({'mask_ratio': 1.0}, 'mask_ratio is 1.0, expected 0 <= mask_ratio < 1: at 1 the student has no part'),
        ({'route_ratio': 1.5}, 'route_ratio is 1.5, expected a probability from 0 to 1'),
        ({'teachers': 'edr'}, "'edr' is unknown: did you mean 'edsr'"),
        ({'taps': {'upsample': 'edsr/body.0'}}, 'student tap upsample: .* choose one before the upsampling'),
        ({'taps': {'body.0': 'edsr/conv_last'}}, 'teacher tap edsr/conv_last: .* choose one before the upsampling'),
    ],
)
def test_misfits_are_refused(lq: Tensor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built_step(small(**arguments), student_of('edsr'), ensemble(), lq)
