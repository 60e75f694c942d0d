"""The teachers stay as they were trained, in the order given, for images of any size."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import AGGREGATOR, SMALL, build_arch, small_network
from torch import Tensor, nn

from mtkd_arch.frozen_network import FrozenNetwork, forward_padded
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble

Options = dict[str, Any]
ORDER = ['edsr', 'rcan', 'swinir']


@pytest.fixture
def lq() -> Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def ensemble(teachers: Options, aggregator: Options) -> TeacherEnsemble:
    return TeacherEnsemble(teachers, 4, aggregator)


def loaded(opt: Options, path: str | Path, key: str = 'params') -> nn.Module:
    """The network of an option with the weights of a file, by BasicSR's means alone."""
    network = build_arch(opt)
    network.load_state_dict(torch.load(path, weights_only=True)[key])
    return network.eval().requires_grad_(False)


def near(one: Tensor, other: Tensor) -> bool:
    """Equal but for the order of float32 sums: kernels are chosen by alignment, the networks compute in 0-255."""
    return one.shape == other.shape and bool((one - other).abs().max() < 1e-5 * other.abs().max())


def random_teachers(names: list[str], scale: int = 4) -> Options:
    return {f'{name}_{i}': {'network': small_network(name, scale), 'path': None} for i, name in enumerate(names)}


def refusal(error: type[Exception], *arguments: Any, **options: Any) -> str:
    with pytest.raises(error) as caught:
        TeacherEnsemble(*arguments, **options)
    return str(caught.value)


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """Warnings of BasicSR's logger, which does not propagate to pytest's."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger('basicsr').addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger('basicsr').removeHandler(handler)


# frozen


def test_no_teacher_wants_a_gradient(ensemble: TeacherEnsemble) -> None:
    assert len(list(ensemble.parameters())) > 100
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())


def test_eval_mode_survives_train_of_the_ensemble_and_of_its_parent(ensemble: TeacherEnsemble) -> None:
    parent = nn.ModuleDict({'teachers': ensemble})
    for module in (ensemble, parent):
        module.train()
        frozen = [*ensemble.networks.values(), ensemble.aggregator]
        assert all(not inner.training for network in frozen for inner in network.modules())


def test_a_teacher_that_drops_paths_gives_the_same_twice(lq: Tensor) -> None:
    opt = {'swinir': {'network': small_network('swinir', depths=[2, 2], drop_path_rate=0.9), 'path': None}}
    ensemble = TeacherEnsemble(opt, 4, random_weights=True).train()
    assert torch.equal(ensemble(lq)['swinir'], ensemble(lq)['swinir'])
    network = ensemble.networks['swinir'].network.train()
    assert not torch.equal(network(lq), network(lq)), 'in train mode it would be random'


def test_no_graph_is_recorded_even_for_an_input_that_wants_a_gradient(ensemble: TeacherEnsemble, lq: Tensor) -> None:
    outputs = ensemble(lq.requires_grad_())
    assert set(outputs) == {*ORDER, 'target'}
    for output in (*outputs.values(), ensemble.run_teacher('rcan', lq)):
        assert output.grad_fn is None
        assert not output.requires_grad
        (output * torch.ones_like(output, requires_grad=True)).sum().backward()  # no inference tensor either


def test_a_gradient_passes_through_a_frozen_network_called_outside_forward(
    ensemble: TeacherEnsemble, lq: Tensor
) -> None:
    network = ensemble.networks['rcan'].network
    output = network(lq.requires_grad_())
    output.square().mean().backward()
    assert lq.grad.abs().min(dim=1).values.max() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert near(output, ensemble(lq)['rcan'])


# target


def test_outputs_are_those_of_the_networks_in_the_files(
    ensemble: TeacherEnsemble, teachers: Options, lq: Tensor
) -> None:
    outputs = ensemble(lq)
    for name, opt in teachers.items():
        expected = loaded(opt['network'], opt['path'])(lq)
        assert near(outputs[name], expected)
        assert near(ensemble.run_teacher(name, lq), expected)


def test_without_an_aggregator_the_target_is_the_mean_of_the_teachers(teachers: Options, lq: Tensor) -> None:
    outputs = TeacherEnsemble(teachers, 4)(lq)
    mean = (outputs['edsr'].double() + outputs['rcan'].double() + outputs['swinir'].double()) / 3
    assert (outputs['target'] - mean).abs().max() < 1e-6  # float32 rounding of values near 1
    assert (outputs['edsr'] - outputs['rcan']).abs().max() > 1e-3, 'equal teachers prove nothing'


def test_the_mean_is_over_the_inputs_only(teachers: Options, lq: Tensor) -> None:
    outputs = TeacherEnsemble(teachers, 4, {'inputs': ['rcan']})(lq)
    assert torch.equal(outputs['target'], outputs['rcan'])


def test_the_target_is_the_aggregator_of_the_teachers_in_the_order_of_inputs(
    teachers: Options, aggregator: Options, aggregator_file: Path, lq: Tensor, tmp_path: Path
) -> None:
    network = loaded({**AGGREGATOR, 'upscale': 4}, aggregator_file, 'params_ema')
    content = torch.load(aggregator_file, weights_only=True)
    targets = []
    for order in (ORDER, ['swinir', 'edsr', 'rcan']):
        torch.save({**content, 'mtkd': {'inputs': order}}, tmp_path / 'aggregator.pth')
        listed = dict(reversed(list(teachers.items())))  # the order under teachers: is of no account
        ensemble = TeacherEnsemble(listed, 4, {**aggregator, 'inputs': order, 'path': str(tmp_path / 'aggregator.pth')})
        outputs = ensemble(lq)
        expected = network(torch.cat([outputs[name] for name in order], dim=1))
        assert near(outputs['target'], expected)
        targets.append(outputs['target'])
    assert (targets[0] - targets[1]).abs().max() > 1e-4, 'the order made no difference'


def test_another_order_than_the_aggregator_was_trained_with_is_refused(teachers: Options, aggregator: Options) -> None:
    message = refusal(ValueError, teachers, 4, {**aggregator, 'inputs': ['rcan', 'edsr', 'swinir']})
    assert "aggregator.inputs is ['rcan', 'edsr', 'swinir']" in message
    assert "was trained with ['edsr', 'rcan', 'swinir']" in message


def test_an_aggregator_file_without_an_order_is_taken_with_a_warning(
    teachers: Options, aggregator: Options, aggregator_file: Path, lq: Tensor, tmp_path: Path
) -> None:
    content = torch.load(aggregator_file, weights_only=True)
    torch.save({'params_ema': content['params_ema']}, tmp_path / 'foreign.pth')
    with logged() as messages:
        ensemble = TeacherEnsemble(teachers, 4, {**aggregator, 'path': str(tmp_path / 'foreign.pth')})
    assert len(messages) == 1
    assert 'foreign.pth does not say in which order its teachers were' in messages[0]
    assert str(ORDER) in messages[0]
    assert near(ensemble(lq)['target'], TeacherEnsemble(teachers, 4, aggregator)(lq)['target'])


def test_the_order_in_the_file_is_accepted_without_a_warning(teachers: Options, aggregator: Options) -> None:
    with logged() as messages:
        TeacherEnsemble(teachers, 4, aggregator)
    assert messages == []


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_any_number_of_teachers_works_with_and_without_an_aggregator(count: int, lq: Tensor) -> None:
    teachers = random_teachers(['edsr', 'rcan', 'swinir', 'edsr'][:count])
    network = {**AGGREGATOR, 'upscale': 4, 'in_chans': 3 * count}
    for aggregator in (None, {'network': network, 'inputs': list(teachers), 'path': None}):
        outputs = TeacherEnsemble(teachers, 4, aggregator, random_weights=True)(lq)
        assert list(outputs) == [*teachers, 'target']
        assert {tuple(output.shape) for output in outputs.values()} == {(2, 3, 64, 96)}


# sizes


@pytest.mark.parametrize('size', [(13, 21), (16, 17), (9, 8), (5, 3), (1, 1)])
def test_a_swinir_teacher_sees_whole_windows_and_its_output_is_cropped(
    teachers: Options, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    lq = torch.rand(1, 3, *size)
    network = loaded(teachers['swinir']['network'], teachers['swinir']['path'])
    to_windows = [(0, 0), (0, 0), (0, -size[0] % 8), (0, -size[1] % 8)]
    padded = torch.from_numpy(np.pad(lq.numpy(), to_windows, mode='reflect'))
    expected = network(padded)[:, :, : 4 * size[0], : 4 * size[1]]
    output = TeacherEnsemble(teachers, 4)(lq)['swinir']
    assert output.shape == (1, 3, 4 * size[0], 4 * size[1])
    assert near(output, expected)


def test_padding_is_torchs_reflection_where_that_exists(lq: Tensor) -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    FrozenNetwork(Spy(), window=10)(lq)
    assert torch.equal(seen[0], F.pad(lq, (0, 6, 0, 4), mode='reflect'))


def test_a_window_in_the_option_overrules_that_of_the_network() -> None:
    opt = {'a': {'network': small_network('swinir'), 'path': None, 'window': 16}, **random_teachers(['swinir', 'edsr'])}
    networks = TeacherEnsemble(opt, 4, random_weights=True).networks
    assert [networks[name].window for name in opt] == [16, 8, 1]


@pytest.mark.parametrize('scale', [2, 3])
def test_scales_other_than_four_give_their_sizes(scale: int, lq: Tensor) -> None:
    outputs = TeacherEnsemble(random_teachers(list(SMALL), scale), scale, random_weights=True)(lq)
    assert {tuple(output.shape) for output in outputs.values()} == {(2, 3, 16 * scale, 24 * scale)}


@pytest.mark.parametrize(('own', 'scale'), [(4, 2), (2, 4)])
@pytest.mark.parametrize('size', [(16, 24), (13, 21)])
def test_a_teacher_whose_output_is_too_large_or_too_small_is_named(
    own: int, scale: int, size: tuple[int, int], register: Callable[[type], None]
) -> None:
    @register
    class Enlarger(nn.Module):
        """Does not say its scale in the option."""

        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=own)

    ensemble = TeacherEnsemble(
        {'enlarger': {'network': {'type': 'Enlarger'}, 'path': None, 'window': 8}}, scale, None, True
    )
    with pytest.raises(ValueError, match=rf"teacher 'enlarger': Enlarger turns .* but scale is {scale}: expected"):
        ensemble(torch.rand(1, 3, *size))


def test_a_teacher_that_leaves_its_upscale_to_a_wrong_default_is_named(lq: Tensor) -> None:
    network = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1}  # upscale=4 by default
    ensemble = TeacherEnsemble({'edsr': {'network': network, 'path': None}}, 2, random_weights=True)
    with pytest.raises(ValueError, match=r"teacher 'edsr': EDSR turns .* but scale is 2: expected 32 x 48"):
        ensemble(lq)


def test_a_teacher_that_gives_other_channels_is_named(lq: Tensor, register: Callable[[type], None]) -> None:
    @register
    class Grey(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x[:, :1], scale_factor=4)

    ensemble = TeacherEnsemble({'grey': {'network': {'type': 'Grey'}, 'path': None}}, 4, random_weights=True)
    with pytest.raises(ValueError, match=r"teacher 'grey' turns \(2, 3, 16, 24\) into \(2, 1, 64, 96\)"):
        ensemble(lq)


@pytest.fixture
def register() -> Iterator[Callable[[type], None]]:
    """Registers an arch for one test."""
    names = []

    def add(cls: type) -> None:
        ARCH_REGISTRY.register(cls)
        names.append(cls.__name__)

    yield add
    for name in names:
        del ARCH_REGISTRY._obj_map[name]


# running


# The residual of these networks before the mean is added is below 1 (in units of the image range); bf16 keeps 8 bits of
# it, fp16 11, and a few dozen layers round: a bound of some ten units in the last place.
@pytest.mark.parametrize(('precision', 'tolerance'), [('bf16', 10 / 2**8), ('fp16', 10 / 2**11)])
@pytest.mark.parametrize('name', list(SMALL))
def test_half_precision_gives_float32_images_near_those_of_full_precision(
    teachers: Options, lq: Tensor, name: str, precision: str, tolerance: float
) -> None:
    full = TeacherEnsemble({name: teachers[name]}, 4)(lq)[name]
    output = TeacherEnsemble({name: {**teachers[name], 'precision': precision}}, 4)(lq)[name]
    assert output.dtype == torch.float32
    assert 0 < (output - full).abs().max() < tolerance


def test_an_outer_autocast_does_not_lower_the_precision_asked_for(teachers: Options, lq: Tensor) -> None:
    ensemble = TeacherEnsemble(teachers, 4)
    expected = ensemble(lq)['rcan']
    with torch.autocast('cpu', torch.bfloat16):
        output = ensemble(lq)['rcan']
    assert near(output, expected)


def test_channels_last_gives_equal_images(teachers: Options, lq: Tensor) -> None:
    ensemble = TeacherEnsemble({name: {**opt, 'channels_last': True} for name, opt in teachers.items()}, 4)
    weight = ensemble.networks['edsr'].network.conv_first.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    outputs, expected = ensemble(lq), TeacherEnsemble(teachers, 4)(lq)
    for name in teachers:
        assert near(outputs[name], expected[name])


def test_frozen_networks_pad_as_students_do(teachers: Options) -> None:
    torch.manual_seed(0)
    network, lq = loaded(teachers['swinir']['network'], teachers['swinir']['path']), torch.rand(1, 3, 11, 13)
    assert near(FrozenNetwork(network, 8)(lq, 4), forward_padded(network, lq, 4, 8))


def test_outputs_are_not_clamped(teachers: Options) -> None:
    lq = torch.cat([torch.full((1, 3, 8, 8), -9.0), torch.full((1, 3, 8, 8), 9.0)], dim=-1)
    expected = loaded(teachers['edsr']['network'], teachers['edsr']['path'])(lq)
    assert expected.min() < 0
    assert expected.max() > 1
    assert near(TeacherEnsemble(teachers, 4)(lq)['edsr'], expected)


# options


def test_the_ensemble_is_built_by_its_registered_name(lq: Tensor) -> None:
    opt = {'type': 'TeacherEnsemble', 'teachers': random_teachers(['edsr']), 'scale': 4, 'random_weights': True}
    assert build_arch(opt)(lq)['target'].shape == (2, 3, 64, 96)


@pytest.mark.parametrize('name', ['target', 'two words', 'a.b', 'a/b', '', 4, 'items', 'forward', '2x'])
def test_a_name_that_cannot_serve_is_refused(name: Any) -> None:
    message = refusal(ValueError, {name: {'network': small_network('edsr'), 'path': None}}, 4, random_weights=True)
    assert f'teachers: the name {name!r} will not do' in message


@pytest.mark.parametrize('teachers', [{}, None, [], ['edsr']])
def test_a_section_without_named_teachers_is_refused(teachers: Any) -> None:
    assert 'teachers should be a mapping of at least one named teacher' in refusal(ValueError, teachers, 4)


def test_an_input_that_is_no_teacher_names_the_nearest(teachers: Options) -> None:
    message = refusal(ValueError, teachers, 4, {'inputs': ['edsr', 'rcam']})
    assert "aggregator.inputs: no teacher 'rcam': did you mean 'rcan'? Teachers: edsr, rcan, swinir" in message


def test_an_input_named_twice_is_refused(teachers: Options) -> None:
    assert 'names a teacher twice' in refusal(ValueError, teachers, 4, {'inputs': ['edsr', 'rcan', 'edsr']})


def test_an_aggregator_of_other_channels_is_refused(teachers: Options, aggregator: Options) -> None:
    message = refusal(ValueError, teachers, 4, {**aggregator, 'inputs': ['edsr', 'rcan']})
    assert 'aggregator.network.in_chans is 9; 2 inputs of RGB make 6' in message


@pytest.mark.parametrize('key', ['network', 'inputs', 'path'])
def test_an_aggregator_that_lacks_a_key_is_refused_not_left_out(
    teachers: Options, aggregator: Options, key: str
) -> None:
    del aggregator[key]
    assert f"aggregator lacks the key '{key}'" in refusal(ValueError, teachers, 4, aggregator)


def test_a_mistyped_key_of_an_aggregator_is_refused_not_ignored(teachers: Options, aggregator: Options) -> None:
    aggregator['netwrok'] = aggregator.pop('network')
    message = refusal(ValueError, teachers, 4, aggregator)
    assert "unknown key 'netwrok' in aggregator: did you mean 'network'?" in message


def test_an_unknown_precision_lists_the_known(teachers: Options) -> None:
    teachers['edsr']['precision'] = 'half'
    assert "precision 'half' is unknown; expected one of fp32, bf16, fp16" in refusal(ValueError, teachers, 4)


def test_a_teacher_of_another_scale_is_refused_before_its_weights_are_read() -> None:
    opt = {'edsr': {'network': small_network('edsr', 2), 'path': 'nowhere.pth'}}
    assert 'teachers.edsr.network.upscale is 2, but scale is 4' in refusal(ValueError, opt, 4)


def test_random_weights_must_be_asked_for() -> None:
    assert 'teachers.edsr_0.path is empty' in refusal(ValueError, random_teachers(['edsr']), 4)


def test_param_key_and_strict_reach_the_file(tmp_path: Path, lq: Tensor) -> None:
    torch.manual_seed(5)
    averaged, last = (build_arch(small_network('edsr')) for _ in range(2))
    content = {'params': last.state_dict(), 'params_ema': averaged.state_dict()}
    torch.save(content, tmp_path / 'edsr.pth')
    opt = {'network': small_network('edsr'), 'path': str(tmp_path / 'edsr.pth')}
    for changes, source in (({}, averaged), ({'param_key': 'params'}, last)):
        with torch.no_grad():
            assert near(TeacherEnsemble({'edsr': {**opt, **changes}}, 4)(lq)['edsr'], source(lq))
    del content['params_ema']['conv_last.bias']
    torch.save(content, tmp_path / 'edsr.pth')
    assert 'missing in the file: conv_last.bias' in refusal(ValueError, {'edsr': opt}, 4)
    TeacherEnsemble({'edsr': {**opt, 'strict': False}}, 4)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_a_network_that_ends_in_half_precision_gives_float32_too(lq: Tensor, precision: str) -> None:
    network = nn.Conv2d(3, 3, 3, padding=1)
    with torch.autocast('cpu', torch.bfloat16):
        assert network(lq).dtype == torch.bfloat16
    assert FrozenNetwork(network, precision=precision)(lq).dtype == torch.float32
