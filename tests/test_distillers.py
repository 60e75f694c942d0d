"""Every term computes its formula, learns where it should, and names its losses and its mistakes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_arch, small_network
from torch import Tensor, nn

from mtkd_arch.taps import record_taps
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_model.distiller_bank import DistillerBank, trainable
from mtkd_model.distillers import DISTILLER_REGISTRY, Distiller
from mtkd_model.distillers.fitnet_distiller import FitNetDistiller
from mtkd_model.distillers.output_distiller import OutputDistiller
from mtkd_model.step import Step

KD = {'type': 'OutputDistiller', 'loss': {'type': 'L1Loss'}}


def images(value: float, *shape: int) -> Tensor:
    return torch.full(shape or (2, 3, 8, 8), value)


def step_of(**changes: Any) -> Step:
    """Constant images, whose distances anyone can compute."""
    values = {
        'lq': images(0.5, 2, 3, 2, 2),
        'gt': images(0.0),
        'student': images(0.5).requires_grad_(),
        'aggregated': images(0.75),
        'teachers': {'edsr': images(0.25), 'rcan': images(1.5)},
    }
    return Step(**{**values, **changes})


@pytest.fixture
def toys() -> Iterator[None]:
    """Distillers that exist for one test."""

    class TwoLossesDistiller(Distiller):
        """A dict of losses, a tap that others want too."""

        student_taps = ('body.-1', 'conv_after_body')
        teacher_taps = ('edsr/body.-1',)

        def forward(self, step: Step) -> dict[str, Tensor]:
            distance = (step.student - step.target).abs()
            return {'mean': self.loss_weight * distance.mean(), 'max': self.loss_weight * distance.max()}

    class WholeImageDistiller(Distiller):
        def forward(self, step: Step) -> Tensor:
            return (step.student - step.target).abs()

    class PickyDistiller(Distiller):
        def build(self, step: Step) -> None:
            raise ValueError('it does not suit me')

    toys = (TwoLossesDistiller, WholeImageDistiller, PickyDistiller)
    for toy in toys:
        DISTILLER_REGISTRY.register(toy)
    yield
    for toy in toys:
        del DISTILLER_REGISTRY._obj_map[toy.__name__]


# outputs


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        ({}, 0.25),  # |0.5 - 0.75|
        ({'teacher': 'edsr'}, 0.25),
        ({'teacher': 'rcan'}, 1.0),
        ({'loss_weight': 0.1}, 0.025),
        ({'loss': {'type': 'L1Loss', 'loss_weight': 2.0}, 'loss_weight': 3.0}, 1.5),
        ({'loss': {'type': 'MSELoss'}, 'teacher': 'rcan'}, 1.0),
        ({'loss': {'type': 'MSELoss'}}, 0.0625),
        ({'loss': {'type': 'WaveletLoss'}}, 0.5),  # a constant is in LL alone, twice as large
    ],
)
def test_the_output_term_is_the_loss_between_student_and_teacher(arguments: dict[str, Any], expected: float) -> None:
    term = OutputDistiller(**{'loss': {'type': 'L1Loss'}, **arguments})
    term.build(step_of())
    assert term(step_of()).item() == pytest.approx(expected, rel=1e-6)  # one float32 rounding or two


def test_the_output_term_pulls_the_student_towards_the_teacher_it_names() -> None:
    for teacher, sign in (('target', -1), ('edsr', 1)):
        step = step_of()
        OutputDistiller({'type': 'L1Loss'}, teacher)(step).backward()
        # d mean|s - t| / ds = sign(s - t) / number of values
        assert torch.allclose(step.student.grad, images(sign / (2 * 3 * 8 * 8)), rtol=1e-6, atol=0)


def test_the_output_term_has_no_taps_and_nothing_to_learn() -> None:
    term = OutputDistiller({'type': 'L1Loss'})
    assert (term.student_taps, term.teacher_taps, trainable(term)) == ((), (), [])


def test_an_unknown_teacher_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'rcam' is unknown: did you mean 'rcan'\? Available: target, edsr, rcan"):
        OutputDistiller({'type': 'L1Loss'}, 'rcam').build(step_of())


# FitNet


@pytest.fixture
def teachers() -> TeacherEnsemble:
    torch.manual_seed(0)
    networks = {'edsr': small_network('edsr', num_feat=12), 'swinir': small_network('swinir', embed_dim=16)}
    options = {name: {'network': network, 'path': None} for name, network in networks.items()}
    return TeacherEnsemble(options, 4, random_weights=True)


def run(student: nn.Module, teachers: TeacherEnsemble, term: Distiller, lq: Tensor) -> Step:
    """A step, made here with plain taps and nothing of the training model."""
    taps = {}
    with record_taps(student, term.student_taps) as student_taps:
        output = student(lq)
    for path in term.teacher_taps:
        name, _, module = path.partition('/')
        with record_taps(teachers.networks[name].network, [module]) as recorded:
            teachers.run_teacher(name, lq)
        taps[path] = recorded[module]
    return Step(lq, torch.zeros_like(output), output, output.detach(), {}, student_taps, taps)


@pytest.fixture
def lq() -> Tensor:
    return torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(1))


def regressed(weight: Tensor, bias: Tensor, feature: Tensor) -> np.ndarray:
    """A 1 x 1 convolution as a numpy loop over the output channels, in float64."""
    weight, bias, feature = (value.detach().double().numpy() for value in (weight, bias, feature))
    return np.stack(
        [
            bias[out] + sum(weight[out, c, 0, 0] * feature[:, c] for c in range(feature.shape[1]))
            for out in range(len(bias))
        ],
        axis=1,
    )


@pytest.mark.parametrize(('loss', 'power'), [(None, 2), ({'type': 'MSELoss'}, 2), ({'type': 'L1Loss'}, 1)])
def test_the_hint_is_the_distance_of_the_regressed_features(
    teachers: TeacherEnsemble, lq: Tensor, loss: dict[str, Any] | None, power: int
) -> None:
    torch.manual_seed(2)
    student = build_arch(small_network('edsr'))
    term = FitNetDistiller({'body.-1': 'edsr/body.-1', 'conv_first': 'edsr/body.0'}, loss, loss_weight=0.5)
    step = run(student, teachers, term, lq)
    term.build(step)
    assert [tuple(regressor.weight.shape) for regressor in term.regressors] == [(12, 8, 1, 1)] * 2
    expected = 0
    for regressor, (student_path, teacher_path, _) in zip(term.regressors, term.pairs, strict=True):
        own = regressed(regressor.weight, regressor.bias, step.student_taps[student_path])
        expected += (np.abs(own - step.teacher_taps[teacher_path].double().numpy()) ** power).mean()
    assert term(step).item() == pytest.approx(0.5 * expected, rel=1e-5)  # float32 against float64


def test_the_hint_is_zero_when_the_regressor_is_the_identity_and_the_features_are_equal() -> None:
    feature = torch.rand(2, 5, 4, 4)
    step = step_of(student_taps={'body': feature}, teacher_taps={'edsr/body': feature.clone()})
    term = FitNetDistiller({'body': 'edsr/body'})
    term.build(step)
    with torch.no_grad():
        term.regressors[0].weight.copy_(torch.eye(5).view(5, 5, 1, 1))
        term.regressors[0].bias.zero_()
    assert term(step).item() == 0
    with torch.no_grad():
        term.regressors[0].bias.fill_(0.5)
    assert term(step).item() == pytest.approx(0.25, rel=1e-6)


def test_the_gradient_of_the_hint_reaches_student_and_regressor_and_no_teacher(
    teachers: TeacherEnsemble, lq: Tensor
) -> None:
    torch.manual_seed(2)
    student = build_arch(small_network('edsr'))
    term = FitNetDistiller({'body.0': 'edsr/body.-1'})
    step = run(student, teachers, term, lq)
    term.build(step)
    term(step).backward()
    reached = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, _ in student.named_parameters() if name.startswith(('conv_first', 'body.0.'))}
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in student.named_parameters() if name in reached)
    assert all(parameter.grad.abs().sum() > 0 for parameter in term.parameters())
    assert len(trainable(term)) == 2
    assert all(parameter.grad is None for parameter in teachers.parameters())


@pytest.mark.parametrize('path', ['layers.-1', 'layers.0.residual_group.blocks.0', 'norm', 'conv_after_body'])
def test_a_swinir_student_is_tapped_at_its_tokens_or_maps(teachers: TeacherEnsemble, lq: Tensor, path: str) -> None:
    torch.manual_seed(2)
    student = build_arch(small_network('swinir'))
    term = FitNetDistiller({path: 'edsr/body.-1'}, {'type': 'L1Loss'})
    step = run(student, teachers, term, lq)
    term.build(step)
    own = step.student_taps[path]
    if own.dim() == 3:  # token 16 * row + column
        own = torch.stack([own[:, 16 * row : 16 * row + 16] for row in range(8)], dim=1).permute(0, 3, 1, 2)
    own = regressed(term.regressors[0].weight, term.regressors[0].bias, own)
    expected = np.abs(own - step.teacher_taps['edsr/body.-1'].double().numpy()).mean()
    assert term(step).item() == pytest.approx(expected, rel=1e-5)
    term(step).backward()
    assert student.conv_first.weight.grad.abs().sum() > 0


def test_a_swinir_teacher_is_tapped_at_its_tokens(teachers: TeacherEnsemble, lq: Tensor) -> None:
    term = FitNetDistiller({'body.-1': 'swinir/layers.-1'})
    step = run(build_arch(small_network('edsr')), teachers, term, lq)
    assert step.teacher_taps['swinir/layers.-1'].shape == (2, 128, 16)
    term.build(step)
    assert term.regressors[0].weight.shape == (16, 8, 1, 1)
    assert term(step).item() > 0


def test_maps_of_different_size_are_refused_with_both_sizes() -> None:
    step = step_of(student_taps={'up': images(0, 2, 5, 8, 8)}, teacher_taps={'edsr/body': images(0, 2, 6, 4, 4)})
    message = r'maps differ in size: student \(2, 5, 8, 8\), teacher \(2, 6, 4, 4\): .* instead of up and edsr/body'
    with pytest.raises(ValueError, match=message):
        FitNetDistiller({'up': 'edsr/body'}).build(step)


@pytest.mark.parametrize('taps', [{}, ['body'], 'body'])
def test_a_hint_without_pairs_is_refused(taps: Any) -> None:
    with pytest.raises(ValueError, match='taps should map student paths to <teacher>/<path>'):
        FitNetDistiller(taps)


def test_without_taps_the_hint_pairs_the_student_with_every_teacher_in_full(teachers: TeacherEnsemble) -> None:
    term = FitNetDistiller()
    term.choose_taps(build_arch(small_network('edsr')), teachers.bare())
    assert term.student_taps == ('body.0', 'body.1')
    assert term.teacher_taps == ('edsr/body.0', 'edsr/body.1', 'swinir/layers.0', 'swinir/layers.1')
    student, teacher = torch.rand(2, 5, 4, 4), torch.rand(2, 5, 4, 4)
    step = step_of(
        student_taps=dict.fromkeys(term.student_taps, student), teacher_taps=dict.fromkeys(term.teacher_taps, teacher)
    )
    term.build(step)
    alone = [(regressor(student) - teacher).square().mean().item() for regressor in term.regressors]
    assert len(alone) == 6
    assert term(step).item() == pytest.approx(sum(alone), rel=1e-5)


# the bank


def test_every_loss_is_named_after_its_term() -> None:
    bank = DistillerBank({'one': KD, 'other': {**KD, 'teacher': 'rcan', 'loss_weight': 0.5}})
    bank.build(step_of())
    losses = bank(step_of())
    assert {name: round(loss.item(), 6) for name, loss in losses.items()} == {'l_one': 0.25, 'l_other': 0.5}


@pytest.mark.usefixtures('toys')
def test_a_term_with_several_losses_names_each() -> None:
    bank = DistillerBank({'two': {'type': 'TwoLossesDistiller', 'loss_weight': 2.0}, 'kd': KD})
    bank.build(step_of())
    step = step_of()
    losses = bank(step)
    assert {n: round(loss.item(), 6) for n, loss in losses.items()} == {
        'l_two_mean': 0.5,
        'l_two_max': 0.5,
        'l_kd': 0.25,
    }
    sum(losses.values()).backward()
    assert step.student.grad.abs().sum() > 0


@pytest.mark.usefixtures('toys')
def test_taps_wanted_by_several_terms_are_taken_once() -> None:
    hint = {'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1', 'conv_first': 'rcan/body.0'}}
    bank = DistillerBank({'a': hint, 'b': {'type': 'TwoLossesDistiller'}, 'c': hint})
    assert bank.student_taps == ('body.-1', 'conv_first', 'conv_after_body')
    assert bank.teacher_taps == ('edsr/body.-1', 'rcan/body.0')
    assert bank.taps_of('edsr') == ('body.-1',)
    assert bank.taps_of('rcan') == ('body.0',)
    assert bank.taps_of('swinir') == ()


@pytest.mark.usefixtures('toys')
@pytest.mark.parametrize(
    ('term', 'message'),
    [
        ({'type': 'WholeImageDistiller'}, r'l_mine is \(2, 3, 8, 8\), a loss must be a scalar'),
        ({'type': 'PickyDistiller'}, 'it does not suit me'),
        ({**KD, 'teacher': 'swinir'}, "teacher 'swinir' is unknown"),
    ],
)
def test_a_misfit_found_while_building_names_its_term(term: dict[str, Any], message: str) -> None:
    bank = DistillerBank({'fine': KD, 'mine': term})
    with pytest.raises(ValueError, match=f'^train.distill.mine: {message}'):
        bank.build(step_of())


@pytest.mark.parametrize(
    ('term', 'message'),
    [
        ({'type': 'OutputDistillr'}, "type: unknown type 'OutputDistillr': did you mean 'OutputDistiller'"),
        ({**KD, 'wieght': 1}, "unknown key 'wieght' in train.distill.mine"),
        ({'type': 'OutputDistiller'}, "missing .* 'loss'"),
        ({**KD, 'loss': {'type': 'L1Los'}}, "unknown type 'L1Los': did you mean 'L1Loss'"),
        ({'type': 'FitNetDistiller', 'taps': {}}, 'taps should map'),
        ('OutputDistiller', "should be a mapping with the key 'type'"),
    ],
)
def test_a_bad_option_names_its_term(term: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        DistillerBank({'fine': KD, 'mine': term})
    assert 'train.distill.mine' in str(caught.value)
    assert 'train.distill.fine' not in str(caught.value)


@pytest.mark.parametrize('opt', [{}, None, [KD]])
def test_a_section_without_named_terms_is_refused(opt: Any) -> None:
    with pytest.raises(ValueError, match=r'train\.distill should be a mapping of named terms'):
        DistillerBank(opt)


@pytest.mark.parametrize('key', ['a.b', '', 3, 'items', 'forward'])
def test_a_key_that_cannot_name_a_module_is_refused(key: Any) -> None:
    with pytest.raises(ValueError, match=f'the name {key!r} will not do'):
        DistillerBank({key: KD})


@pytest.mark.parametrize('key', ['pix', 'percep', 'style'])
def test_a_key_may_not_hide_the_loss_to_the_ground_truth(key: str) -> None:
    with pytest.raises(
        ValueError, match=f'train.distill.{key}: l_{key} is the log entry of a loss to the ground truth'
    ):
        DistillerBank({key: KD})


@pytest.mark.usefixtures('toys')
def test_two_terms_may_not_give_a_loss_of_one_name() -> None:
    bank = DistillerBank({'two': {'type': 'TwoLossesDistiller'}, 'two_max': KD})
    with pytest.raises(
        ValueError, match=r'train\.distill\.two_max: l_two_max is a loss of train\.distill\.two already'
    ):
        bank.build(step_of())


@pytest.mark.parametrize(
    ('taps', 'message'),
    [
        ({'bdy.0': 'edsr/body.0'}, "student tap: 'bdy.0' does not exist: EDSR has no 'bdy': did you mean 'body'"),
        ({'body.0': 'edsr/body.9'}, "teacher tap: 'body.9' does not exist: body has no '9'"),
        ({'body.0': 'edr/body.0'}, r"teacher tap 'edr/body.0' should be <teacher>/<module path>: did you mean 'edsr'"),
        ({'body.0': 'body.0'}, r"teacher tap 'body.0' should be <teacher>/<module path>: .*Teachers: edsr, swinir"),
        ({'body.0': 'edsr/'}, r"teacher tap 'edsr/' should be <teacher>/<module path>"),
    ],
)
def test_a_tap_that_does_not_exist_names_its_term(
    teachers: TeacherEnsemble, taps: dict[str, str], message: str
) -> None:
    networks = {name: frozen.network for name, frozen in teachers.networks.items()}
    bank = DistillerBank({'kd': KD, 'hint': {'type': 'FitNetDistiller', 'taps': taps}})
    with pytest.raises(ValueError, match=f'^train.distill.hint: {message}'):
        bank.check_taps(build_arch(small_network('edsr')), networks)


def test_the_parts_of_all_terms_are_the_banks_and_survive_saving() -> None:
    feature = torch.rand(2, 5, 2, 2)
    step = step_of(student_taps={'body': feature}, teacher_taps={'edsr/body': feature})
    option = {'hint': {'type': 'FitNetDistiller', 'taps': {'body': 'edsr/body'}}, 'kd': KD}
    one, other = DistillerBank(option), DistillerBank(option)
    one.build(step)
    other.build(step)
    assert [name for name, _ in one.named_parameters()] == [
        'terms.hint.regressors.0.weight',
        'terms.hint.regressors.0.bias',
    ]
    assert trainable(one) == list(one.parameters())
    assert one(step)['l_hint'].item() != other(step)['l_hint'].item()
    other.load_state_dict(one.state_dict())
    assert one(step)['l_hint'].item() == other(step)['l_hint'].item()


def test_nothing_is_trainable_in_nothing_and_frozen_parts_are_left_out() -> None:
    assert trainable(None) == []
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    assert trainable(module) == list(module[0].parameters())
