"""Default taps of two networks belong together; the teachers of an option are found or refused."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import SMALL, build_arch, small_network
from distilling import TEACHERS, built_step, ensemble, image_batch, reached, student_of, total, without_gradient
from torch import Tensor, nn

from mtkd_arch import default_taps
from mtkd_arch.default_taps import behind_parts, body_taps
from mtkd_arch.taps import find_module
from mtkd_model.distiller_bank import DistillerBank, trainable
from mtkd_model.distillers import Distiller
from mtkd_model.distillers.at_distiller import ATDistiller
from mtkd_model.distillers.fakd_distiller import FAKDDistiller
from mtkd_model.distillers.rkd_distiller import RKDDistiller
from mtkd_model.multi_teacher_model import MultiTeacherSRModel
from mtkd_model.teacher_weights import weights_of

METHODS = (ATDistiller, FAKDDistiller, RKDDistiller)
TAILS = {  # the parameters behind the last default tap
    'edsr': ('conv_after_body', 'upsample', 'conv_last'),
    'rcan': ('upsample', 'conv_last'),
    'swinir': ('norm.', 'conv_after_body', 'upsample', 'conv_last'),
}


def network(name: str, depth: int) -> nn.Module:
    depths = {
        'edsr': {'num_block': depth},
        'rcan': {'num_group': depth},
        'swinir': {'depths': [1] * depth, 'num_heads': [2] * depth},
    }
    return build_arch(small_network(name, **depths[name]))


@pytest.mark.parametrize(
    ('name', 'depth', 'parts', 'expected'),
    [
        ('edsr', 16, 3, ('body.4', 'body.10', 'body.15')),
        ('edsr', 32, 3, ('body.10', 'body.20', 'body.31')),
        ('edsr', 2, 3, ('body.0', 'body.0', 'body.1')),
        ('edsr', 5, 1, ('body.4',)),
        ('rcan', 10, 3, ('body.2', 'body.6', 'conv_after_body')),
        ('rcan', 6, 3, ('body.1', 'body.3', 'conv_after_body')),
        ('rcan', 1, 1, ('conv_after_body',)),
        ('swinir', 6, 3, ('layers.1', 'layers.3', 'layers.5')),
        ('swinir', 4, 3, ('layers.0', 'layers.2', 'layers.3')),
        ('swinir', 4, 4, ('layers.0', 'layers.1', 'layers.2', 'layers.3')),
    ],
)
def test_the_body_is_tapped_after_equal_parts(name: str, depth: int, parts: int, expected: tuple[str, ...]) -> None:
    made = network(name, depth)
    assert body_taps(made, parts) == expected
    assert all(find_module(made, path) for path in expected)


@pytest.mark.parametrize('blocks', range(1, 12))
@pytest.mark.parametrize('parts', range(1, 5))
def test_the_parts_go_deeper_and_end_at_the_end(blocks: int, parts: int) -> None:
    indices = behind_parts(blocks, parts)
    assert len(indices) == parts
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] == blocks - 1
    assert all(abs(index + 1 - k * blocks / parts) <= 1 for k, index in enumerate(indices, start=1))


def test_an_unknown_architecture_asks_for_taps_in_the_option() -> None:
    for unknown in (nn.Linear(2, 2), type('EDSR', (nn.Module,), {})(), type('RCAN', (nn.Module,), {'body': [0]})()):
        with pytest.raises(
            ValueError, match=r'has no default taps .*EDSR, RCAN, SwinIR.*: name the taps in the option'
        ):
            body_taps(unknown)
    with pytest.raises(ValueError, match='parts is 0, expected at least 1'):
        body_taps(network('edsr', 2), 0)


def test_a_new_architecture_is_one_entry_and_a_subclass_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(nn.Sequential):
        pass

    monkeypatch.setitem(default_taps.BODIES, 'Mine', lambda made, parts: tuple(map(str, range(parts))))
    assert body_taps(Mine()) == ('0', '1', '2')
    assert body_taps(type('Child', (Mine,), {})()) == ('0', '1', '2')


def test_the_error_of_an_unknown_architecture_names_the_term() -> None:
    bank = DistillerBank({'at': {'type': 'ATDistiller'}})
    with pytest.raises(ValueError, match=r'^train\.distill\.at: Linear has no default taps'):
        bank.choose_taps(nn.Linear(2, 2), ensemble().bare())


# the pairs


def test_all_teachers_teach_by_default_with_weights_that_add_up_to_one() -> None:
    term = ATDistiller()
    term.choose_taps(student_of('edsr'), ensemble().bare())
    assert {pair.teacher.partition('/')[0] for pair in term.pairs} == {'edsr', 'rcan', 'swinir'}
    assert sum(pair.weight for pair in term.pairs) == pytest.approx(3)  # three taps
    assert term.student_taps == ('body.0', 'body.1')
    assert term.teacher_taps[:3] == ('edsr/body.1', 'edsr/body.2', 'edsr/body.4')


def test_named_taps_are_kept_and_may_have_several_teachers() -> None:
    taps = {'body.0': ['edsr/body.0', 'rcan/body.1'], 'body.1': 'edsr/body.-1'}
    term = ATDistiller(taps, {'edsr': 0.25, 'rcan': 2})
    term.choose_taps(student_of('edsr'), ensemble().bare())
    assert term.pairs == (
        ('body.0', 'edsr/body.0', 0.25),
        ('body.0', 'rcan/body.1', 2.0),
        ('body.1', 'edsr/body.-1', 0.25),
    )
    assert [pair.weight for pair in ATDistiller(taps).pairs] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ('taps', 'teachers', 'message'),
    [
        ({'body.0': 'rcan/body.0'}, 'edsr', "teacher 'edsr' is unknown: Available: rcan"),
        ({'a': 'edsr/a', 'b': 'rcan/b'}, 'edsr', "taps name the teacher 'rcan', teachers do not"),
        ({'body.0': []}, None, 'taps should map student paths to <teacher>/<path>'),
        ({'body.0': 3}, None, 'taps should map student paths to <teacher>/<path>'),
        (['body.0'], None, 'taps should map student paths to <teacher>/<path>'),
    ],
)
def test_taps_and_teachers_that_disagree_are_refused(taps: Any, teachers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ATDistiller(taps, teachers)


@pytest.mark.parametrize('size', [(8, 16), (13, 9), (9, 20)])
def test_padding_to_a_window_is_cut_off_the_taps(size: tuple[int, int]) -> None:
    student, teachers = student_of('swinir'), ensemble()
    taps = {'layers.-1': ['edsr/body.0', 'swinir/layers.0'], 'conv_after_body': 'swinir/conv_after_body'}
    term = ATDistiller(taps)
    step = built_step(term, student, teachers, image_batch(2, 3, *size))
    assert {tuple(feature.shape[2:]) for pair in term.features(step) for feature in pair[:2]} == {size}
    own, padded = term.features(step)[0][0], step.student_taps['layers.-1']
    width = size[1] + -size[1] % 8
    last = (size[0] - 1) * width + size[1] - 1
    assert torch.equal(own[:, :, -1, -1], padded[:, last])


# the methods that compare pairs and train nothing but the student


def check_it_moves_the_student_and_no_teacher(term: Distiller, name: str, lq: Tensor) -> None:
    """Every parameter up to the last tap gets a gradient, the teachers get none and keep no graph."""
    student, teachers = student_of(name), ensemble()
    step = built_step(term, student, teachers, lq)
    assert all(not value.requires_grad for value in step.teacher_taps.values())
    before = {name: value.clone() for name, value in (*step.student_taps.items(), *step.teacher_taps.items())}
    losses = term(step)
    after = {**step.student_taps, **step.teacher_taps}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    total(losses).backward()
    behind = {parameter for parameter, _ in student.named_parameters() if parameter.startswith(TAILS[name])}
    assert set(without_gradient(student)) == behind
    assert all(parameter.grad is None for parameter in teachers.parameters())
    assert trainable(term) == []
    assert not term.state_dict()


@pytest.mark.parametrize('student', SMALL)
@pytest.mark.parametrize('teacher', TEACHERS)
@pytest.mark.parametrize('method', METHODS)
def test_every_teacher_moves_every_student(method: type[Distiller], teacher: str, student: str) -> None:
    check_it_moves_the_student_and_no_teacher(method(teachers=teacher), student, image_batch(4, 3, 8, 16))


@pytest.mark.parametrize('student', SMALL)
@pytest.mark.parametrize(('method', 'batch'), [*zip(METHODS, (1, 1, 3), strict=True)])  # RKD relates three
def test_images_of_odd_size_will_do(method: type[Distiller], batch: int, student: str) -> None:
    check_it_moves_the_student_and_no_teacher(method(), student, image_batch(batch, 3, 9, 11))


@pytest.mark.parametrize('student', SMALL)
@pytest.mark.parametrize('make', [*METHODS, functools.partial(ATDistiller, norm='l1')])
def test_bf16_features_give_a_finite_float32_loss_and_gradients(make: Callable[[], Distiller], student: str) -> None:
    values = []
    for enabled in (False, True):
        network = student_of(student)
        with torch.autocast('cpu', torch.bfloat16) if enabled else contextlib.nullcontext():
            term = make()
            loss = total(term(built_step(term, network, ensemble(), image_batch(4, 3, 8, 16))))
        assert loss.dtype == torch.float32
        loss.backward()
        assert reached(network)
        values.append(loss.item())
    assert abs(values[0] - values[1]) < 0.2 * values[0]  # bf16 keeps 8 bits, through a whole network


@pytest.mark.parametrize('student', SMALL)
@pytest.mark.parametrize('method', ['ATDistiller', 'FAKDDistiller', 'RKDDistiller'])
def test_a_method_alone_trains_a_student_in_the_model(options: dict[str, Any], method: str, student: str) -> None:
    del options['train']['pixel_opt']
    options['network_g'] = small_network(student)
    options['train']['distill'] = {'term': {'type': method}}
    options.update(dist=False, rank=0, world_size=1, is_train=True)
    model = MultiTeacherSRModel(options)
    before = [parameter.clone() for parameter in model.net_g.conv_first.parameters()]
    model.feed_data({'lq': image_batch(4, 3, 9, 11), 'gt': torch.zeros(4, 3, 36, 44)})
    for iteration in (1, 2):
        model.optimize_parameters(iteration)
    assert len(model.optimizer_g.param_groups) == 1  # nothing but the student
    assert not model._has_distiller_parameters()
    log = model.get_current_log()
    assert all(name.startswith('l_term') and value > 0 for name, value in log.items())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.net_g.conv_first.parameters(), strict=True))


# teachers with weights


@pytest.mark.parametrize(
    ('teachers', 'expected'),
    [
        (None, {'edsr': 0.5, 'rcan': 0.5}),
        ('rcan', {'rcan': 1.0}),
        ({'rcan': 3, 'edsr': 0.1}, {'rcan': 3.0, 'edsr': 0.1}),
    ],
)
def test_teachers_are_named_by_name_mapping_or_not_at_all(teachers: Any, expected: dict[str, float]) -> None:
    weights = weights_of(teachers, ('edsr', 'rcan'))
    assert list(weights.items()) == list(expected.items())


@pytest.mark.parametrize(
    ('teachers', 'message'),
    [
        ('rcam', "teacher 'rcam' is unknown: did you mean 'rcan'. Available: edsr, rcan"),
        ({'edsr': 1, 'target': 1}, "teacher 'target' is unknown"),
        ({}, 'teachers should be a name or map names to weights; it is {}'),
        (['edsr'], 'teachers should be a name or map names'),
        ({'edsr': True}, "the weight of teacher 'edsr' should be a number"),
        ({'edsr': '1'}, "the weight of teacher 'edsr' should be a number above zero; it is '1'"),
        ({'edsr': 0}, "the weight of teacher 'edsr' should be a number above zero; it is 0"),
        (
            {'edsr': 1, 'rcan': -0.5},
            "the weight of teacher 'rcan' should be a number above zero; it is -0.5",
        ),
        ({'edsr': float('nan')}, "the weight of teacher 'edsr' should be a number above zero; it is nan"),
        ({'edsr': float('inf')}, "the weight of teacher 'edsr' should be a number above zero; it is inf"),
    ],
)
def test_bad_teachers_are_refused(teachers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weights_of(teachers, ('edsr', 'rcan'))


def test_every_small_network_of_the_tests_has_default_taps() -> None:
    assert all(len(body_taps(student_of(name))) == 3 for name in SMALL)
