"""What makes a step fast leaves what is learned as it is: precision, layout, moving average, compilation."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.models.sr_model import SRModel
from conftest import build_arch, scratch, small_network
from test_multi_teacher_model import batch, made, stepped
from torch import nn

from mtkd_arch.frozen_network import FLOAT32_MODULES, FrozenNetwork, best_dtype
from mtkd_model.acceleration import (
    MixedPrecision,
    compile_mode,
    emulated_bf16,
    fused_where_possible,
    match_parameters,
    moving_average,
)

Options = dict[str, Any]
HINT = {'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1'}}


def gradients(options: Options, **train: Any) -> dict[str, torch.Tensor]:
    """The student's gradients of one step."""
    options = copy.deepcopy(options)
    options['train'] |= train
    model = made(options)
    stepped(model, batch())
    return {name: parameter.grad for name, parameter in model.net_g.named_parameters()}


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_points_the_gradient_the_same_way(options: Options, precision: str) -> None:
    whole, half = gradients(options), gradients(options, amp=precision)
    one, other = (torch.cat([value.flatten() for value in part.values()]) for part in (whole, half))
    # L1 has the sign of each error: those near zero flip, with 8 bits more than with 11
    assert torch.cosine_similarity(one, other, dim=0) > {'bf16': 0.95, 'fp16': 0.99}[precision]
    assert other.dtype == torch.float32


@pytest.mark.parametrize('native', [True, False])
def test_auto_is_bf16_where_the_device_computes_in_it_and_bf16_elsewhere_is_warned_of(
    options: Options, messages: list[str], monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr('mtkd_arch.frozen_network.best_dtype', lambda device: torch.bfloat16 if native else None)
    cpu = torch.device('cpu')
    assert MixedPrecision('auto', cpu).dtype is (torch.bfloat16 if native else None)
    assert MixedPrecision('bf16', cpu).dtype is torch.bfloat16  # as asked for, all the same
    told = 'train.amp is bf16, for which this CPU has no instructions'
    assert emulated_bf16('bf16', cpu).startswith(told) is not native
    assert not any(emulated_bf16(precision, cpu) for precision in (None, 'auto', 'fp16'))
    options['train']['amp'] = 'bf16'
    made(options)
    assert sum(told in message for message in messages) == (not native)


def test_a_step_whose_gradients_overflow_is_left_out_and_the_scale_halved(options: Options) -> None:
    options['train']['amp'] = 'fp16'
    options['train']['pixel_opt']['loss_weight'] = 1e38
    model = made(options)
    before, scale = copy.deepcopy(model.net_g.state_dict()), model.precision.scaler.get_scale()
    stepped(model, batch())
    assert model.precision.scaler.get_scale() == scale / 2
    assert all(torch.equal(value, before[name]) for name, value in model.net_g.state_dict().items())


def test_the_scale_of_the_losses_is_resumed(options: Options, train: Callable[..., Path]) -> None:
    options['train'] |= {'amp': 'fp16', 'total_iter': 2}
    experiment = train(options)
    state = torch.load(experiment / 'training_states/2.state', weights_only=True)
    model = made(options)
    model.opt['path']['models'] = str(experiment / 'models')
    model.resume_training({**state, 'scaler': {**state['scaler'], 'scale': 128.0}})
    assert model.precision.scaler.get_scale() == 128
    model.resume_training({key: value for key, value in state.items() if key != 'scaler'})  # BasicSR's own state


def test_an_unknown_precision_or_mode_is_named(options: Options) -> None:
    with pytest.raises(ValueError, match=r"train\.amp is 'fp6': .*expected one of bf16, fp16, auto"):
        MixedPrecision('fp6', torch.device('cpu'))
    with pytest.raises(ValueError, match=r"train\.compile is 'fast', expected true, false or one of default"):
        compile_mode('fast')
    assert [compile_mode(option) for option in (None, False, True, 'reduce-overhead')] == [
        None,
        None,
        'default',
        'reduce-overhead',
    ]


def test_a_compiled_student_is_refused_where_a_term_reaches_into_it(options: Options) -> None:
    options['train']['distill']['hint'] = HINT
    options['train']['compile'] = True
    with pytest.raises(ValueError, match=r'train\.compile: a term of train\.distill reaches into the networks'):
        made(options)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='torch.compile on a CPU needs a C++ compiler')
def test_a_compiled_student_learns_what_the_plain_one_does(options: Options) -> None:
    plain, compiled = gradients(options), gradients(options, compile=True)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-6)  # sums in another order


def test_the_moving_average_is_basicsrs_bit_for_bit() -> None:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 3)) for _ in range(2)]
    ours, theirs = copy.deepcopy(networks[1]), copy.deepcopy(networks[1])
    model = SRModel.__new__(SRModel)
    model.net_g, model.net_g_ema = networks[0], theirs
    for decay in (0.999, 0.5, 0):
        moving_average(ours, networks[0], decay)
        SRModel.model_ema(model, decay)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert torch.equal(ours[0].weight, networks[0][0].weight)


@pytest.mark.parametrize('student', ['edsr', 'rcan', 'swinir'])
def test_the_memory_layout_changes_neither_gradients_nor_files(
    options: Options, student: str, train: Callable[..., Path]
) -> None:
    options['network_g'] = small_network(student, **({'drop_path_rate': 0.0} if student == 'swinir' else {}))
    for name, value in gradients(options, channels_last=False).items():
        # sums in another order; L1's sign flips where an error is nearly zero
        torch.testing.assert_close(gradients(options)[name], value, rtol=1e-2, atol=1e-5)
    model = made(options)
    assert model.net_g.conv_first.weight.is_contiguous(memory_format=torch.channels_last)
    saved = torch.load(train(scratch(options)) / 'models/net_g_latest.pth', weights_only=True)
    assert all(value.is_contiguous() for value in saved['params'].values())


def test_adam_is_fused_on_a_gpu_alone_and_only_if_nobody_said_otherwise() -> None:
    gpu, cpu = torch.device('cuda'), torch.device('cpu')
    assert fused_where_possible({'type': 'Adam', 'lr': 1}, gpu) == {'type': 'Adam', 'lr': 1, 'fused': True}
    assert fused_where_possible({'type': 'Adam', 'fused': False}, gpu) == {'type': 'Adam', 'fused': False}
    assert 'fused' not in fused_where_possible({'type': 'Adam', 'foreach': True}, gpu)  # torch takes one of the two
    assert fused_where_possible({'type': 'Adam', 'lr': 1}, cpu) == {'type': 'Adam', 'lr': 1}


class Stream(nn.Module):
    """A residual network that notes the type of its residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_first, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv_after_body, self.conv_last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.seen: dict[str, torch.dtype] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.conv_first(x)
        branch = self.body(first)
        stream = first + branch
        output = self.conv_last(self.conv_after_body(stream))
        self.seen = {'branch': branch.dtype, 'stream': stream.dtype, 'output': output.dtype}
        return output


@pytest.mark.parametrize(('precision', 'half'), [('bf16', torch.bfloat16), ('fp16', torch.float16)])
def test_in_half_precision_the_residual_stream_and_the_image_stay_float32(precision: str, half: torch.dtype) -> None:
    torch.manual_seed(0)
    network, x = Stream(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        whole = network(x)
    frozen = FrozenNetwork(copy.deepcopy(network), precision=precision)
    assert set(frozen.network.state_dict()) == set(network.state_dict())
    difference = (frozen(x) - whole).abs().max()
    assert frozen.network.seen == {'branch': half, 'stream': torch.float32, 'output': torch.float32}
    assert 0 < difference < 2**-8


def test_auto_takes_bf16_only_where_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 3, 16, 16)
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, '_is_avx512_bf16_supported', lambda native=native: native, raising=False)
        monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda: False, raising=False)
        frozen = FrozenNetwork(Stream(), precision='auto')
        frozen(x)
        assert frozen.network.seen['branch'] == expected
        assert (best_dtype(x.device) is not None) is native


def test_the_modules_kept_in_float32_are_those_of_basicsrs_networks() -> None:
    for name in ('edsr', 'rcan', 'swinir'):
        network = build_arch(small_network(name, **({'upsampler': 'pixelshuffle'} if name == 'swinir' else {})))
        assert all(isinstance(getattr(network, module), nn.Conv2d) for module in FLOAT32_MODULES)


def test_a_resumed_optimizer_has_the_layout_and_kernel_of_this_run() -> None:
    torch.manual_seed(0)
    saved, network = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    before = torch.optim.Adam(saved.parameters(), fused=True)
    saved(torch.rand(1, 4, 8, 8)).sum().backward()
    before.step()
    after = torch.optim.Adam(network.parameters())
    kernels = [group['fused'] for group in after.param_groups]
    after.load_state_dict(before.state_dict())
    match_parameters(after, kernels)
    moments = [after.state[network.weight][name] for name in ('exp_avg', 'exp_avg_sq')]
    assert all(moment.stride() == network.weight.stride() for moment in moments)
    assert torch.equal(moments[0], before.state[saved.weight]['exp_avg'])
    assert [group['fused'] for group in after.param_groups] == kernels == [None]


@pytest.mark.parametrize('layout', [True, False])
def test_a_run_goes_on_in_another_layout(options: Options, train: Callable[..., Path], layout: bool) -> None:
    scratch(options)['train']['channels_last'] = layout
    train(options)
    options['train'] |= {'channels_last': not layout, 'total_iter': 6}
    model = torch.load(train(options, '--auto_resume') / 'models/net_g_6.pth', weights_only=True)
    assert all(value.isfinite().all() for value in model['params'].values())


def test_a_compiled_teacher_is_refused_where_a_term_taps_it(options: Options) -> None:
    options['teachers']['edsr']['compile'] = True
    options['train']['distill']['hint'] = HINT
    with pytest.raises(ValueError, match=r'teachers\.edsr\.compile: a term of train\.distill taps this teacher'):
        made(options)


def test_looking_through_the_options_compiles_nothing(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, 'compile', lambda self, **how: compiled.append(type(self).__name__))
    options['train']['compile'] = options['teachers']['edsr']['compile'] = True
    options.update(is_train=True, auto_resume=False, dist=False)
    type(made(options)).check_options(options)
    assert compiled == ['EDSR', 'EDSR']  # teacher and student of the model that was made, none of the check's


def test_validation_runs_a_compiled_student_as_it_was_written(options: Options) -> None:
    options['train'] |= {'ema_decay': 0, 'compile': True}
    model, ran = made(options), []
    model.net_g._compiled_call_impl = lambda *_: ran.append('compiled')
    model.feed_data(batch())
    model.test()
    assert model.output.shape == (2, 3, 64, 64)
    assert not ran
    assert model.net_g._compiled_call_impl is not None


def test_the_averaged_student_has_the_layout_of_the_student(options: Options) -> None:
    model = made(options)
    pairs = zip(model.net_g.parameters(), model.net_g_ema.parameters(), strict=True)
    assert all(one.stride() == other.stride() for one, other in pairs)
