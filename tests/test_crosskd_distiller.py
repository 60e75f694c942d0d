"""The tail of a teacher is the teacher behind a tap, and the student learns through it without moving it."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from distilling import built, image_batch, narrow_student, small_ensemble, step_of, without_gradient
from test_multi_teacher_model import batch, made, stepped
from torch import Tensor, nn

from mtkd_arch.feature_maps import lq_map, window_in
from mtkd_arch.taps import record_taps
from mtkd_arch.weights import read_weights
from mtkd_model.distiller_bank import trainable
from mtkd_model.distillers.crosskd_distiller import CrossKDDistiller
from mtkd_model.teacher_tails import replaced_output

TEACHERS = small_ensemble('edsr', 'rcan', 'swinir')
PATHS = {
    'edsr': ['conv_first', 'body.0', 'body.-1', 'body.0.conv1', 'body', 'conv_after_body'],
    'rcan': ['conv_first', 'body.0', 'body.-1', 'conv_after_body'],
    'swinir': ['conv_first', 'patch_embed', 'layers.0', 'layers.-1', 'norm', 'patch_unembed', 'conv_after_body'],
}


def own_feature(name: str, path: str, lq: Tensor) -> Tensor:
    network = TEACHERS.bare()[name]
    with record_taps(network, [path]) as taps:
        TEACHERS.run_teacher(name, lq)
    return lq_map(taps[path], *lq.shape[-2:], window_in(network))


@pytest.mark.parametrize('size', [(2, 3, 8, 16), (1, 3, 16, 8)])
@pytest.mark.parametrize(('name', 'path'), [(name, path) for name, paths in PATHS.items() for path in paths])
def test_the_teachers_own_feature_gives_the_teachers_own_output(name: str, path: str, size: tuple[int, ...]) -> None:
    lq = image_batch(*size)
    feature = own_feature(name, path, lq)
    before = feature.clone()
    output = replaced_output(TEACHERS.bare()[name], {path: feature}, lq)
    torch.testing.assert_close(output, TEACHERS.run_teacher(name, lq), rtol=1e-5, atol=1e-6)
    assert torch.equal(feature, before)  # although EDSR and RCAN add in place


@pytest.mark.parametrize('name', ['edsr', 'rcan'])
def test_the_tail_is_what_follows_the_tap_layer_by_layer(name: str) -> None:
    network, lq = TEACHERS.bare()[name], image_batch(1, 3, 7, 5)
    feature = torch.randn(1, 8, 7, 5, generator=torch.Generator().manual_seed(1))
    shallow = network.conv_first((lq - network.mean) * network.img_range)
    expected = network.conv_after_body(network.body[1](feature)) + shallow
    expected = network.conv_last(network.upsample(expected)) / network.img_range + network.mean
    torch.testing.assert_close(replaced_output(network, {'body.0': feature}, lq), expected)
    before = feature.clone()
    expected = network.conv_last(network.upsample(feature + shallow)) / network.img_range + network.mean
    torch.testing.assert_close(replaced_output(network, {'conv_after_body': feature}, lq), expected)
    assert torch.equal(feature, before)


def test_the_tail_of_a_swinir_takes_a_map_for_its_tokens() -> None:
    network, lq = TEACHERS.bare()['swinir'], image_batch(1, 3, 8, 8)
    feature = torch.randn(1, 12, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens = torch.stack([feature[0, :, row, column] for row in range(8) for column in range(8)])[None]
    shallow = network.conv_first((lq - network.mean) * network.img_range)
    deep = network.patch_unembed(network.norm(network.layers[1](tokens, (8, 8))), (8, 8))
    expected = network.upsample(network.conv_after_body(deep) + shallow) / network.img_range + network.mean
    torch.testing.assert_close(replaced_output(network, {'layers.0': feature}, lq), expected)


@pytest.mark.parametrize('name', SMALL)
def test_nothing_of_the_tail_stays_behind(name: str) -> None:
    network, lq = TEACHERS.bare()[name], image_batch(1, 3, 8, 8)
    expected = TEACHERS.run_teacher(name, lq)
    with pytest.raises(ValueError, match='its stand-in is'):
        replaced_output(network, {PATHS[name][1]: torch.zeros(1, 5, 8, 8)}, lq)
    assert torch.equal(TEACHERS.run_teacher(name, lq), expected)
    assert not any(module._forward_hooks for module in network.modules())


def test_the_term_is_zero_when_the_adapted_features_are_the_teachers_own() -> None:
    student, lq = copy.deepcopy(TEACHERS.bare()['edsr']).requires_grad_(True), image_batch(2, 3, 6, 7)
    term = built(CrossKDDistiller(teachers='edsr'), student, TEACHERS, lq)
    with torch.no_grad():
        for adapter in term.adapters:
            adapter.weight.copy_(torch.eye(8).view(8, 8, 1, 1))
            adapter.bias.zero_()
    assert term(step_of(term, student, TEACHERS, lq)).item() == pytest.approx(0, abs=1e-6)


def test_the_term_by_hand_where_the_tail_is_linear() -> None:
    student, teachers, lq = narrow_student('edsr'), small_ensemble('edsr'), image_batch(1, 3, 4, 4)
    network = teachers.bare()['edsr']
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    term = built(CrossKDDistiller({'body': 'edsr/conv_after_body'}, loss_weight=2), student, teachers, lq)
    step = step_of(term, student, teachers, lq)
    assert term(step).item() == 0  # a tail of zeros gives the mean colour whatever goes in, as the teacher does
    object.__setattr__(step, 'teachers', {'edsr': step.teachers['edsr'] + 0.25})
    assert term(step).item() == pytest.approx(0.5, rel=1e-6)


def test_the_term_is_that_of_the_formula_for_weighted_teachers() -> None:
    student, lq = narrow_student('rcan'), image_batch(2, 3, 8, 8)
    taps = {'conv_first': ['edsr/body.0', 'swinir/layers.0'], 'body.0': 'edsr/body.1'}
    term = built(CrossKDDistiller(taps, {'edsr': 0.25, 'swinir': 0.75}, 2.0), student, TEACHERS, lq)
    assert [tuple(adapter.weight.shape) for adapter in term.adapters] == [(8, 4, 1, 1), (12, 4, 1, 1), (8, 4, 1, 1)]
    step = step_of(term, student, TEACHERS, lq)
    expected = 0.0
    pairs = [('conv_first', 'edsr', 'body.0'), ('conv_first', 'swinir', 'layers.0'), ('body.0', 'edsr', 'body.1')]
    for adapter, (own, name, path) in zip(term.adapters, pairs, strict=True):
        feature, weight = step.student_taps[own].detach().numpy(), adapter.weight.detach().numpy()[..., 0, 0]
        adapted = np.einsum('oc,bchw->bohw', weight, feature) + adapter.bias.detach().numpy()[:, None, None]
        output = replaced_output(TEACHERS.bare()[name], {path: torch.from_numpy(adapted)}, lq).numpy()
        expected += {'edsr': 0.25, 'swinir': 0.75}[name] * np.abs(output - step.teachers[name].numpy()).mean()
    assert term(step).item() == pytest.approx(2 * expected, rel=1e-5)


@pytest.mark.parametrize('teacher', SMALL)
@pytest.mark.parametrize('name', SMALL)
def test_the_gradient_passes_through_a_teacher_that_stands_still(name: str, teacher: str) -> None:
    student, lq = narrow_student(name), image_batch(1, 3, 9, 13)
    term = built(CrossKDDistiller(teachers=teacher), student, TEACHERS, lq)
    before = copy.deepcopy(TEACHERS.state_dict())
    student.train()
    step = step_of(term, student, TEACHERS, lq)
    term(step).backward()
    reached = {n for n, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    behind = ('upsample.', 'conv_last.', 'conv_after_body.', 'norm.')  # the last tap; RCAN's is conv_after_body
    behind = behind[:2] if name == 'rcan' else behind
    assert {n for n, _ in student.named_parameters() if not n.startswith(behind)} == reached
    assert without_gradient(term) == []
    assert all(p.grad is None and not p.requires_grad for p in TEACHERS.parameters())
    assert all(not module.training for module in TEACHERS.networks.modules() if module is not TEACHERS.networks)
    assert all(torch.equal(before[n], value) for n, value in TEACHERS.state_dict().items())
    assert trainable(term) == list(term.parameters())


def test_the_head_of_the_teacher_leaves_no_graph() -> None:
    network, lq = TEACHERS.bare()['edsr'], image_batch(1, 3, 8, 8)
    with record_taps(network, ['body.0']) as taps:
        replaced_output(network, {'body.1': torch.zeros(1, 8, 8, 8, requires_grad=True)}, lq)
    assert not taps['body.0'].requires_grad


def test_it_is_finite_under_autocast() -> None:
    student, lq = narrow_student('swinir'), image_batch(1, 3, 8, 8)
    term = built(CrossKDDistiller(), student, TEACHERS, lq)
    with torch.autocast('cpu', torch.bfloat16):
        loss = term(step_of(term, student, TEACHERS, lq))
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(torch.isfinite(adapter.weight.grad).all() for adapter in term.adapters)


def test_adapters_are_trained_saved_and_resumed(options: dict[str, Any], tmp_path: Any) -> None:
    options['train']['distill'] = {'cross': {'type': 'CrossKDDistiller', 'teachers': 'rcan'}}
    options['path'] |= {'models': str(tmp_path), 'training_states': str(tmp_path)}
    model = made(options)
    before = copy.deepcopy(model.distillers.state_dict())
    stepped(model, batch())
    after = model.distillers.state_dict()
    assert len(model.optimizer_g.param_groups[1]['params']) == len(before) == 4  # equal pairs count once
    assert all(not torch.equal(before[name], value) for name, value in after.items())
    model.save(0, 1)
    saved = read_weights(tmp_path / 'distill_1.pth', 'params')
    assert all(torch.equal(saved[name], value) for name, value in after.items())


class Odd(nn.Module):
    """Its only block is not what ``body_taps`` knows."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.idle = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'taps': {}}, 'taps should map student paths'),
        ({'taps': ['body']}, 'taps should map student paths'),
        ({'taps': {'body': 'edsr'}}, "'' does not exist: EDSR has no ''"),
        ({'taps': {'body': []}}, 'taps should map student paths to <teacher>/<path>'),
        ({'taps': {'body': 'edr/body'}}, "teacher 'edr' is unknown: did you mean 'edsr'"),
        ({'taps': {'body': 'edsr/bdy'}}, "'bdy' does not exist: EDSR has no 'bdy': did you mean 'body'"),
        ({'taps': {'body': 'edsr/body'}, 'teachers': 'rcan'}, "teacher 'rcan' is unknown: Available: edsr"),
        ({'taps': {'conv_last': 'edsr/body'}}, 'student tap conv_last: the map .* is not of the size of the input'),
        ({'taps': {'body': 'edsr/conv_last'}}, 'teacher tap edsr/conv_last: the map .* is not of the size'),
        ({'taps': {'body': 'swinir/layers.0.residual_group.blocks.0.attn'}}, 'tokens .* do not make a map'),
        ({'teachers': 'rcam'}, "teacher 'rcam' is unknown: did you mean 'rcan'"),
    ],
)
def test_misfits_are_refused_before_training(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(CrossKDDistiller(**arguments), narrow_student('edsr'), TEACHERS, image_batch(2, 3, 16, 16))


def test_a_network_without_a_known_body_needs_taps() -> None:
    with pytest.raises(ValueError, match=r'Odd has no default taps .* name the taps in the option'):
        CrossKDDistiller().choose_taps(Odd(), TEACHERS.bare())


def test_a_module_that_never_runs_is_refused() -> None:
    network = TEACHERS.bare()['edsr']
    network.idle = nn.Identity()
    try:
        with pytest.raises(ValueError, match="'idle' of EDSR does not run"):
            replaced_output(network, {'idle': torch.zeros(1, 8, 8, 8)}, image_batch(1, 3, 8, 8))
    finally:
        del network.idle
