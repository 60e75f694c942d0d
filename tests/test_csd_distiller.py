"""The student is drawn to the teacher and pushed from other samples, never its own, in a space that stands still."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, build_arch, small_network
from distilling import built, image_batch, narrow_student, small_ensemble, step_of, without_gradient
from test_multi_teacher_model import batch, made, stepped
from torch import Tensor

from mtkd_arch.taps import record_taps
from mtkd_loss.contrastive_loss import FIVE_WEIGHTS, contrastive_loss, contrastive_ratio, other_samples
from mtkd_model.distiller_bank import DistillerBank, trainable
from mtkd_model.distillers.csd_distiller import CSDDistiller
from mtkd_model.encoders import VGG19, VGG_TAPS, Encoder, build_encoder

TEACHERS = small_ensemble('edsr', 'rcan')


@pytest.fixture(scope='module')
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of VGG19's layout with random weights, and the classifier that is not needed."""
    path = tmp_path_factory.mktemp('vgg') / 'vgg19-dcbb9e9d.pth'
    torch.manual_seed(9)
    torch.save({**VGG19().state_dict(), 'classifier.6.bias': torch.zeros(1000)}, path)
    return path


def test_the_ratio_by_hand() -> None:
    student, teacher = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5)
    negatives = [torch.full((2, 1, 2, 2), 1.0), torch.full((2, 1, 2, 2), -3.0)]
    assert contrastive_ratio(student, teacher, negatives).item() == 0.25  # .5 / mean(1, 3)
    assert contrastive_loss([student] * 2, [teacher] * 2, [negatives] * 2, [1.0, 0.5]).item() == 0.375
    assert contrastive_ratio(student, student.clone(), negatives).item() == 0
    assert sum(FIVE_WEIGHTS) == pytest.approx(1.46875)


def test_the_gradient_of_the_ratio_is_that_of_the_formula() -> None:
    shapes = [(2, 2, 3, 2)] * 4
    student, teacher, *negatives = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes)
    assert torch.autograd.gradcheck(lambda s: contrastive_ratio(s, teacher.detach(), negatives), student)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_equal_negatives_and_low_precision_stay_finite(dtype: torch.dtype) -> None:
    student = torch.full((2, 4, 64, 64), 1e-4, dtype=dtype, requires_grad=True)
    for negative in (student.detach(), torch.full_like(student, 3e4)):
        loss = contrastive_ratio(student, torch.full_like(student, 2e4), [negative])
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(('size', 'count', 'expected'), [(2, 10, 1), (5, 10, 4), (5, 3, 3), (16, 10, 10)])
def test_the_own_sample_is_never_a_negative_and_no_sample_twice(size: int, count: int, expected: int) -> None:
    negatives = other_samples(torch.arange(size), count)
    assert len(negatives) == expected
    for sample in range(size):
        others = [negative[sample].item() for negative in negatives]
        assert sample not in others
        assert len(set(others)) == expected


def oracle(term: CSDDistiller, student: Tensor, teacher: Tensor, lq: Tensor, count: int) -> float:
    """The formula as loops over features, samples and their negatives, in float64."""
    enlarged = F.interpolate(lq, scale_factor=4, mode='bicubic')
    own, other, against = ([f.double().numpy() for f in term.encoder(i)] for i in (student.detach(), teacher, enlarged))
    total = 0.0
    for weight, s, t, n in zip(term.feature_weights, own, other, against, strict=True):
        size = len(s)
        near = np.mean([np.abs(t[b] - s[b]).mean() for b in range(size)])
        far = np.mean(
            [np.abs(n[(b - k) % size] - s[b]).mean() for b in range(size) for k in range(1, min(count, size - 1) + 1)]
        )
        total += weight * near / far
    return total


@pytest.mark.parametrize(('size', 'count'), [(2, 10), (4, 10), (4, 2)])
def test_the_term_is_that_of_the_formula(encoder: dict[str, Any], size: int, count: int) -> None:
    student, lq = narrow_student('rcan'), image_batch(size, 3, 5, 7)
    term = CSDDistiller(encoder, negatives=count, feature_weights=[0.5, 2.0], loss_weight=0.78)
    built(term, student, TEACHERS, lq)
    step = step_of(term, student, TEACHERS, lq)
    expected = 0.78 * oracle(term, step.student, step.target, lq, count)
    assert term(step).item() == pytest.approx(expected, rel=1e-5)


def test_several_teachers_count_by_their_weights(encoder: dict[str, Any]) -> None:
    student, lq = narrow_student('edsr'), image_batch(3, 3, 8, 8)
    term = built(CSDDistiller(encoder, {'edsr': 0.25, 'rcan': 2.0}, loss_weight=1.0), student, TEACHERS, lq)
    step = step_of(term, student, TEACHERS, lq)
    expected = [oracle(term, step.student, step.teachers[name], lq, 10) for name in ('edsr', 'rcan')]
    assert term(step).item() == pytest.approx(0.25 * expected[0] + 2 * expected[1], rel=1e-5)


def test_vgg_gives_the_five_features_of_normalised_images(vgg_file: Path) -> None:
    encoder, images = build_encoder({'weights': str(vgg_file)}), image_batch(1, 3, 32, 16)
    layers, expected = encoder.network.features, []
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((images.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2)
    for index, layer in enumerate(layers):
        x = F.relu(x) if isinstance(layer, torch.nn.ReLU) else layer(x)
        if f'features.{index}' in VGG_TAPS:
            expected.append(x)
    features = encoder(images)
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 32, 16),
        (128, 16, 8),
        (256, 8, 4),
        (512, 4, 2),
        (512, 2, 1),
    ]
    for feature, value in zip(features, expected, strict=True):
        torch.testing.assert_close(feature, value)
    term = CSDDistiller({'weights': str(vgg_file)})
    assert term.feature_weights == FIVE_WEIGHTS
    built(term, narrow_student('edsr'), TEACHERS, image_batch(2, 3, 5, 5))
    loss = term(step_of(term, narrow_student('edsr'), TEACHERS, image_batch(2, 3, 5, 5)))
    assert torch.isfinite(loss)
    assert loss > 0


def test_it_is_zero_for_a_student_that_equals_its_teacher(encoder: dict[str, Any]) -> None:
    student, lq = copy.deepcopy(TEACHERS.bare()['edsr']), image_batch(2, 3, 8, 8)
    term = built(CSDDistiller(encoder, 'edsr'), student, TEACHERS, lq)
    assert term(step_of(term, student, TEACHERS, lq)).item() == 0


@pytest.mark.parametrize('name', SMALL)
def test_the_gradient_reaches_the_whole_student_and_neither_teacher_nor_encoder(
    encoder: dict[str, Any], name: str
) -> None:
    student, lq = narrow_student(name), image_batch(2, 3, 7, 9)
    term = built(CSDDistiller(encoder), student, TEACHERS, lq)
    before = lq.clone()
    term(step_of(term, student, TEACHERS, lq)).backward()
    assert without_gradient(student) == []
    assert torch.equal(lq, before)
    frozen = [*TEACHERS.parameters(), *term.encoder.network.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


def test_the_encoder_is_in_no_state_and_no_optimizer_yet_moves_along(encoder: dict[str, Any]) -> None:
    bank = DistillerBank({'csd': {'type': 'CSDDistiller', 'encoder': encoder}})
    assert list(bank.state_dict()) == list(bank.parameters()) == trainable(bank) == []
    network = bank.terms['csd'].encoder.network
    bank.train()
    assert not network.training
    bank.double()
    assert next(network.parameters()).dtype == torch.float64
    bank.load_state_dict({})
    assert copy.deepcopy(bank).terms['csd'].encoder.network is not network


def test_the_model_trains_with_it_and_saves_nothing_of_it(
    options: dict[str, Any], encoder: dict[str, Any], tmp_path: Path
) -> None:
    options['train']['distill'] = {'csd': {'type': 'CSDDistiller', 'encoder': encoder, 'loss_weight': 0.78}}
    options['path'] |= {'models': str(tmp_path), 'training_states': str(tmp_path)}
    model = made(options)
    before = model.net_g.conv_first.weight.clone()
    stepped(model, batch()).save(0, 1)
    assert set(model.get_current_log()) == {'l_pix', 'l_csd'}
    assert not torch.equal(before, model.net_g.conv_first.weight)
    assert not (tmp_path / 'distill_1.pth').exists()


def test_it_is_finite_under_autocast(encoder: dict[str, Any]) -> None:
    student, lq = narrow_student('edsr'), image_batch(2, 3, 8, 8)
    term = built(CSDDistiller(encoder), student, TEACHERS, lq)
    with torch.autocast('cpu', torch.bfloat16):
        loss = term(step_of(term, student, TEACHERS, lq))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(student.conv_first.weight.grad).all()


def test_a_batch_of_one_names_the_remedy(encoder: dict[str, Any]) -> None:
    student = narrow_student('edsr')
    term = built(CSDDistiller(encoder), student, TEACHERS, image_batch(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r'a batch of 1 has no other samples .* set batch_size_per_gpu to at least 2'):
        term(step_of(term, student, TEACHERS, image_batch(1, 3, 8, 8)))


def test_a_swinir_encoder_takes_images_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(build_arch(small_network('swinir', scale=2)).state_dict(), tmp_path / 'swinir.pth')
    option = {'network': small_network('swinir', scale=2), 'path': str(tmp_path / 'swinir.pth'), 'taps': ['layers.-1']}
    assert [tuple(f.shape) for f in build_encoder(option)(image_batch(1, 3, 9, 8))] == [(1, 16 * 8, 12)]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'network': None}, "encoder.network should be a mapping with the key 'type'"),
        ({'taps': []}, 'encoder.taps should be a list'),
        ({'taps': 'body'}, 'encoder.taps should be a list'),
        ({'taps': ['bdy']}, "encoder.taps: 'bdy' does not exist: .*did you mean 'body'"),
        ({'path': 'nowhere.pth'}, 'encoder.path: no such file: nowhere.pth: it should hold weights of EDSR'),
        ({'weights': 'vgg.pth'}, 'encoder needs either weights .* or network'),
        ({'pth': 'x'}, "unknown key 'pth' in encoder: did you mean 'path'"),
        ({'network': {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 9}}, 'the weights do not fit EDSR'),
    ],
)
def test_a_bad_encoder_is_refused(encoder: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder({**encoder, **changes})


def test_absent_weights_of_vgg_name_the_file_to_fetch() -> None:
    message = (
        'no such file: here/vgg.pth: fetch https://download.pytorch.org/models/vgg19-dcbb9e9d.pth and put it there'
    )
    with pytest.raises(ValueError, match=f'^train.distill.csd: encoder.weights: {message}'):
        DistillerBank({'csd': {'type': 'CSDDistiller', 'encoder': {'weights': 'here/vgg.pth'}}})


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'negatives': 0}, 'negatives is 0, expected a number of at least 1'),
        ({'feature_weights': [1.0]}, 'feature_weights should be a list of 2, one per feature'),
        ({'teachers': 'targt'}, "teacher 'targt' is unknown: did you mean 'target'"),
    ],
)
def test_bad_arguments_are_refused(encoder: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(CSDDistiller(encoder, **arguments), narrow_student('edsr'), TEACHERS, image_batch(2, 3, 8, 8))


def test_an_encoder_stops_at_its_last_tap() -> None:
    network = build_arch(small_network('edsr'))
    encoder = Encoder(network, ['body.-1', 'body.0'])
    images = torch.rand(1, 3, 8, 8)
    with record_taps(network, ['body.0', 'body.-1', 'conv_last']) as expected:
        network(images)
    with record_taps(network, ['conv_last']) as beyond:
        last, first = encoder(images)
    torch.testing.assert_close((first, last), (expected['body.0'], expected['body.-1']))
    assert not beyond
