"""Numbers gone bad: a step that is not finite changes nothing, is counted and named; clipping; a batch in parts."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  before BasicSR, also in the processes that are spawned

# isort: split
import pytest
import torch
import torch.multiprocessing as mp
from basicsr.data import build_dataset
from basicsr.data.paired_image_dataset import PairedImageDataset
from conftest import cached, scratch, stage_one, write_option
from launching import model_of_process
from test_multi_teacher_model import batch, made
from torch import Tensor, nn
from torch.utils.data import default_collate

from mtkd_arch.weights import read_weights
from mtkd_data.resident import image_names, origin_of
from mtkd_model.acceleration import blend_unless
from mtkd_model.guarded_step import Undo, gated_step
from mtkd_model.multi_teacher_model import MultiTeacherSRModel
from mtkd_model.step_guard import DivergenceWatch, GuardOptions, guard_options

Options = dict[str, Any]
HINT = {'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1'}}
TERMS = {
    'at': {'type': 'ATDistiller', 'teachers': 'edsr'},
    'mkd': {'type': 'MKDDistiller', 'teachers': 'edsr', 'width': 4, 'kernels': 2},
    'self': {'type': 'SelfDistiller'},
}


def bad_batch(value: float = float('nan')) -> dict[str, Any]:
    """One pixel of one ground truth is no number; L1 has a finite gradient there."""
    data = batch()
    data['gt'][1, 0, 3, 3] = value
    return {**data, 'lq_path': ['LR/a.png', 'LR/b.png'], 'gt_path': ['HR/a.png', 'HR/b.png']}


def scaled(options: Options) -> MultiTeacherSRModel:
    """The model, whose losses are scaled so little that they do not overflow."""
    model = made(options)
    if model.precision.scaler.is_enabled():
        model.precision.scaler.load_state_dict({**model.precision.scaler.state_dict(), 'scale': 16.0})
    return model


def step(model: MultiTeacherSRModel, iteration: int, data: dict[str, Any]) -> None:
    model.feed_data(data)
    model.optimize_parameters(iteration)


def everything(model: MultiTeacherSRModel) -> dict[str, Tensor]:
    """A copy of all that a step may move."""
    nets = {'g': model.net_g, 'ema': model.net_g_ema, 'distill': model.distillers}
    found = {f'{n}.{key}': v for n, net in nets.items() if net is not None for key, v in net.state_dict().items()}
    for number, optimizer in enumerate(model.optimizers):
        for parameter, state in optimizer.state_dict()['state'].items():
            found |= {f'{number}.{parameter}.{name}': value for name, value in state.items()}
    return {name: value.clone() for name, value in found.items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# Steps left out


@pytest.mark.parametrize('changes', [{}, {'amp': 'fp16'}, {'clip_grad_norm': 0.1}, {'accumulate': 2}, 'fused'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.injects('fault', 'losses and gradients that are not finite')
def test_a_step_that_is_not_finite_leaves_no_trace(options: Options, changes: Any, value: float) -> None:
    options['train']['distill']['hint'] = HINT
    if changes == 'fused':
        options['train']['optim_g']['fused'] = True  # the way of a GPU
    else:
        options['train'] |= changes
    with_it, without = scaled(options), scaled(options)
    for model in (with_it, without):
        step(model, 1, batch())
    before = everything(with_it)
    step(with_it, 2, bad_batch(value))
    assert_equal(everything(with_it), before)
    for model in (with_it, without):
        step(model, 3, batch())
    assert with_it.get_current_log().pop('nonfinite') == 1
    assert 'nonfinite' not in without.get_current_log()
    assert_equal(everything(with_it), everything(without))
    assert not torch.equal(before['g.conv_first.weight'], everything(with_it)['g.conv_first.weight'])


@pytest.mark.parametrize('first', [True, False])
def test_what_a_term_trains_itself_is_taken_back(options: Options, first: bool) -> None:
    options['train']['distill'] = {'mkd': TERMS['mkd']}
    del options['aggregator']
    model = made(options)
    if not first:
        step(model, 1, batch())
    before = everything(model)
    assert (not first) == any(name.startswith('1.') for name in before)  # the Adam of the KRNets has a state
    step(model, 2, bad_batch())
    assert_equal(everything(model), before)
    step(model, 3, batch())
    changed = {name for name, value in everything(model).items() if not torch.equal(value, before.get(name, value))}
    assert any('krnets' in name for name in changed)


def test_running_statistics_are_taken_back() -> None:
    network, done = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), torch.tensor(False)
    undo = Undo([], [network])
    for skipped in (~done, done):
        before = copy.deepcopy(network.state_dict())
        undo.remember()
        network(torch.rand(2, 3, 8, 8))
        undo.put_back(skipped)
        kept = [torch.equal(value, before[name]) for name, value in network[1].state_dict(prefix='1.').items()]
        assert kept == [True, True, *[bool(skipped)] * 3]


def test_an_optimizer_that_has_not_stepped_yet_keeps_no_state_of_a_step_left_out() -> None:
    for fused in (True, False):
        parameter = nn.Parameter(torch.ones(3))
        parameter.grad = torch.full((3,), float('nan'))
        optimizer = torch.optim.Adam([parameter], 0.1, fused=fused)
        gated_step(optimizer, torch.tensor(True))
        assert parameter.tolist() == [1, 1, 1]
        assert all(not value.any() for state in optimizer.state.values() for value in state.values())
        parameter.grad = torch.ones(3)
        gated_step(optimizer, torch.tensor(False))
        assert parameter.tolist() == pytest.approx([0.9] * 3)  # Adam's first step is lr


def test_the_average_of_a_gpu_is_that_of_a_cpu() -> None:
    own, new = [torch.rand(5), torch.rand(2, 3)], [torch.rand(5), torch.rand(2, 3)]
    expected = [0.9 * a + 0.1 * b for a, b in zip(own, new, strict=True)]
    kept = [tensor.clone() for tensor in own]
    blend_unless(own, new, 0.9, torch.tensor(True))
    assert all(torch.equal(a, b) for a, b in zip(own, kept, strict=True))
    blend_unless(own, new, 0.9, torch.tensor(False))
    torch.testing.assert_close(own, expected)


# fp16


@pytest.mark.injects('fault', 'losses and gradients that are not finite')
def test_an_overflow_of_the_scale_is_no_fault_until_the_scale_is_one(options: Options) -> None:
    options['train'] |= {'amp': 'fp16', 'max_nonfinite': 1}
    options['train']['pixel_opt']['loss_weight'] = 1e38
    model = made(options)
    before = everything(model)
    for iteration in range(1, 4):  # more in a row than may not be finite
        step(model, iteration, batch())
    assert model.precision.scaler.get_scale() == 65536 / 8
    assert 'nonfinite' not in model.get_current_log()
    model.precision.scaler.update(1.0)
    step(model, 4, batch())  # the gradient overflows the 16 bits whatever the scale
    assert model.get_current_log()['nonfinite'] == 1
    with pytest.raises(FloatingPointError, match=r'2 steps in a row.*iteration 5: gradient of conv_first\.weight;'):
        step(model, 5, batch())
    assert_equal(everything(model), before)


@pytest.mark.injects('fault', 'losses and gradients that are not finite')
def test_a_bad_loss_leaves_the_scale_as_it_is(options: Options) -> None:
    options['train']['amp'] = 'fp16'
    model = made(options)
    step(model, 1, batch())
    for iteration, data in ((2, bad_batch()), (3, {**batch(), 'lq': batch()['lq'] * float('nan')})):
        step(model, iteration, data)  # the second has a bad gradient too, as an overflow
        assert model.precision.scaler.get_scale() == 65536
    assert model.get_current_log()['nonfinite'] == 2


# The end of a run


def poison(monkeypatch: pytest.MonkeyPatch, *keys: str) -> list[str]:
    """Make NaN of the training images ``keys``; the list of what is drawn fills in the order of the run."""
    original, drawn = PairedImageDataset.__getitem__, []

    def getitem(self: PairedImageDataset, index: int) -> dict[str, Any]:
        sample = original(self, index)
        if self.opt['phase'] == 'train':
            drawn.append(sample['lq_path'])
            if any(key in sample['lq_path'] for key in keys):
                sample['lq'] *= float('nan')
        return sample

    monkeypatch.setattr(PairedImageDataset, '__getitem__', getitem)
    return drawn


def log_of(experiment: Path) -> str:
    return next(experiment.glob('train_*.log')).read_text()


@pytest.mark.injects('fault', 'losses and gradients that are not finite')
def test_a_run_goes_on_over_a_bad_image_counts_and_names_it(
    options: Options, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    options['datasets']['train']['batch_size_per_gpu'] = 1
    options['train']['total_iter'] = 12
    drawn = poison(monkeypatch, 'chelsea')
    experiment = train(options)
    bad = drawn[:12].count('chelsea')
    assert 0 < bad < 12
    log = log_of(experiment)
    assert [float(count) for count in re.findall(r'nonfinite: (\S+)', log)][-1] == bad
    assert set(re.findall(r'step left out; iteration \d+: (.*?); images of the batch: (\S+)', log)) == {
        ('l_pix, l_wavelet', 'chelsea')
    }
    for kind in ('params', 'params_ema'):
        weights = read_weights(experiment / 'models/net_g_latest.pth', kind)
        assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(('limit', 'last'), [(2, 3), (0, 1)])
@pytest.mark.injects('fault', 'losses and gradients that are not finite')
def test_a_run_of_bad_steps_ends_with_iteration_term_and_images(
    options: Options, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, limit: int, last: int
) -> None:
    options['train'] |= {'max_nonfinite': limit, 'total_iter': 8}
    folders = ('dataroot_gt', 'dataroot_lq', 'io_backend')  # the error would keep an LMDB open
    options['datasets']['train'] |= {key: options['datasets']['val'][key] for key in folders}
    drawn = poison(monkeypatch, 'astronaut', 'chelsea', 'coffee', 'rocket')
    with pytest.raises(FloatingPointError) as caught:
        train(options)
    named = [f'{lq} ({lq.replace("LRbicx4", "GT")})' for lq in drawn[2 * last - 2 : 2 * last]]
    assert str(caught.value).startswith(
        f'loss or gradient not finite in {last} steps in a row, train.max_nonfinite is {limit}; '
        f'iteration {last}: l_pix, l_wavelet; images of the batch: {", ".join(named)}: lower'
    )


def test_a_good_step_ends_a_row(options: Options, messages: list[str]) -> None:
    options['train']['max_nonfinite'] = 1
    model = made(scratch(options))
    for iteration, data in enumerate((bad_batch(), batch(), bad_batch(), batch()), 1):
        step(model, iteration, data)
    assert model.get_current_log()['nonfinite'] == 2
    assert [message.partition(': l_pix; ')[::2] for message in messages] == [
        (
            f'ERROR loss or gradient not finite, step left out; iteration {iteration}',
            'images of the batch: LR/a.png (HR/a.png), LR/b.png (HR/b.png)',
        )
        for iteration in (1, 3)
    ]
    step(model, 5, bad_batch())
    with pytest.raises(FloatingPointError, match='2 steps in a row'):
        step(model, 6, bad_batch())


@pytest.mark.injects('fault', 'losses and gradients that are not finite')
def test_a_bad_gradient_of_a_finite_loss_is_named(options: Options, messages: list[str]) -> None:
    model = made(scratch(options))
    losses = model.compute_losses
    weight = model.net_g.body[1].conv1.weight
    # the derivative of the root at zero is infinite
    model.compute_losses = lambda iteration: {**losses(iteration), 'l_root': (weight - weight).sum().sqrt()}
    before = everything(model)
    step(model, 1, batch())
    assert_equal(everything(model), before)
    assert messages == [
        'WARNING loss or gradient not finite, step left out; iteration 1: gradient of body.1.conv1.weight; '
        'images of the batch: unknown'
    ]


def test_a_gpu_is_read_later_but_leaves_the_step_out_at_once(options: Options) -> None:
    options['train']['max_nonfinite'] = 1
    model = made(scratch(options))
    model.guard.read_every = 4  # as on a GPU
    step(model, 1, batch())
    before = everything(model)
    step(model, 2, bad_batch())
    assert_equal(everything(model), before)
    assert model.guard.nonfinite == 0
    step(model, 3, batch())
    step(model, 4, batch())
    step(model, 5, bad_batch())
    assert model.get_current_log()['nonfinite'] == 2  # the log reads what waits
    step(model, 6, bad_batch())
    step(model, 7, batch())
    with pytest.raises(FloatingPointError, match=r'2 steps in a row.*iteration 6: l_pix'):
        model.get_current_log()


@pytest.mark.parametrize('backend', ['disk', 'lmdb'])
@pytest.mark.parametrize('resident', [None, 'host'])
def test_the_images_of_a_batch_are_named(options: Options, backend: str, resident: str | None) -> None:
    opt = {**options['datasets']['train'], 'type': 'PairedCropDataset', 'scale': 4, 'phase': 'train'}
    if backend == 'disk':
        opt |= {key: options['datasets']['val'][key] for key in ('dataroot_gt', 'dataroot_lq', 'io_backend')}
    dataset = build_dataset({**opt, **({'resident': resident} if resident else {})})
    named = image_names(origin_of(default_collate([dataset[2], dataset[0]])))
    for name, number in zip(named, (2, 0), strict=True):
        assert dataset.pairs[number]['lq_path'] in name
    assert image_names(origin_of(batch())) == []


# Divergence


def test_a_loss_far_above_the_median_is_told_once_in_a_while() -> None:
    watch = DivergenceWatch(10, window=5, fewest=5, steps=2, quiet=6)
    losses = [1, 3, 2, 2, 2, 30, 2, 30, 30, 30, 1, 2, 3, 2, 30, 30]
    told = [watch.update(iteration, loss) for iteration, loss in enumerate(losses, 1)]
    assert told == [*[None] * 8, 2, *[None] * 6, 2]
    silent = DivergenceWatch(10, fewest=1, steps=1)
    assert [silent.update(iteration, loss) for iteration, loss in enumerate((-1.0, 100.0), 1)] == [None, None]


@pytest.mark.parametrize('factor', [5, None])
def test_divergence_is_warned_of_and_stops_nothing(options: Options, factor: int | None, messages: list[str]) -> None:
    options['train'] |= {'divergence_factor': factor, 'optim_g': {'type': 'Adam', 'lr': 0.0}}
    model = made(scratch(options))
    for iteration in range(1, 21):
        step(model, iteration, batch())
    usual = model.get_current_log()['l_pix']
    far = {**batch(), 'gt': batch()['gt'] + 100}
    for iteration in range(21, 26):
        step(model, iteration, far)
    loss = model.get_current_log()['l_pix']
    expected = (
        f'WARNING the loss diverges: iteration 23: {loss:.4g}, the median of those before is {usual:.4g} '
        f'(train.divergence_factor 5): l_pix {loss:.4g}'
    )
    assert messages == ([expected] if factor else [])


# Clipping


@pytest.mark.parametrize('amp', [None, 'fp16'])
def test_clipping_is_that_of_torch_over_student_and_terms(options: Options, amp: str | None) -> None:
    options['train'] |= {'amp': amp, 'distill': {'hint': HINT}}
    plain, most = scaled(options), 0.01
    options['train']['clip_grad_norm'] = most
    clipped = scaled(options)
    for model in (plain, clipped):
        step(model, 1, batch())
    parameters = [p for group in plain.optimizer_g.param_groups for p in group['params']]
    assert len(plain.optimizer_g.param_groups) == 2
    norm = torch.nn.utils.clip_grad_norm_(parameters, most)
    assert norm > 5 * most
    assert 'grad_norm' not in plain.get_current_log()
    assert clipped.get_current_log()['grad_norm'] == pytest.approx(norm.item(), rel=1e-5)
    own = [p for group in clipped.optimizer_g.param_groups for p in group['params']]
    for parameter, expected in zip(own, parameters, strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-5, atol=1e-8)


# A batch in parts


def in_parts(options: Options, count: int, data: dict[str, Any]) -> tuple[dict[str, Tensor], MultiTeacherSRModel]:
    """Gradients after one step in ``count`` parts."""
    options = copy.deepcopy(options)
    options['datasets']['train']['batch_size_per_gpu'] = 4
    options['train']['accumulate'] = count
    model = made(options)
    with torch.no_grad():  # away from the copy of SelfDistiller: the sign of a difference of nothing is rounding
        model.net_g.conv_last.bias += 0.05
    step(model, 1, data)
    nets = {'g': model.net_g, **({'distill': model.distillers} if model.distillers else {})}
    return {f'{n}.{name}': p.grad for n, net in nets.items() for name, p in net.named_parameters()}, model


@pytest.mark.parametrize('kind', ['scratch', 'cache', 'at', 'hint', 'self', 'stage one'])
@pytest.mark.parametrize('count', [2, 4])
def test_parts_make_the_step_of_the_whole_batch(options: Options, kind: str, count: int, tmp_path: Path) -> None:
    data = batch(4)
    options['train']['optim_g'] = {'type': 'Adam', 'lr': 0.001, 'eps': 1.0}  # else Adam makes much of rounding
    if kind == 'scratch':
        scratch(options)
    elif kind == 'stage one':
        stage_one(options)
    elif kind == 'cache':
        options = cached(options, tmp_path, resident='host')
        opt = {**options['datasets']['train'], 'scale': 4, 'phase': 'train'}
        dataset = build_dataset(opt)
        torch.manual_seed(0)
        data = default_collate([dataset[number] for number in range(4)])
    else:
        options['train']['distill'] = {'term': {**TERMS, 'hint': HINT}[kind]}
    (whole, one), (parts, other) = in_parts(options, 1, data), in_parts(options, count, data)
    assert other.lq.shape[0] == 4
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        if gradient is not None:  # a sum in another order, relative to the largest
            torch.testing.assert_close(parts[name], gradient, rtol=0, atol=max(1e-6, 2e-6 * gradient.abs().max()))
    one_log, other_log = one.get_current_log(), other.get_current_log()
    assert other_log == pytest.approx(one_log, rel=1e-5)
    for name, value in everything(one).items():
        torch.testing.assert_close(everything(other)[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_parts_compute_no_more_than_a_part_at_a_time(options: Options) -> None:
    seen = []
    options['datasets']['train']['batch_size_per_gpu'] = 4
    options['train']['accumulate'] = 2
    model = made(options)
    model.net_g.register_forward_hook(lambda _, inputs, output: seen.append((len(inputs[0]), len(output))))
    step(model, 1, batch(4))
    assert seen == [(2, 2), (2, 2)]


@pytest.mark.parametrize(
    ('train_opt', 'message'),
    [
        ({'accumulate': 3}, 'accumulate is 3, which does not divide the batch: .* now 2, to a multiple of it'),
        ({'accumulate': 0}, r'train\.accumulate is 0, expected a whole number, at least 1'),
        ({'max_nonfinite': 2.5}, r'train\.max_nonfinite is 2\.5, expected a whole number, at least 0'),
        ({'max_nonfinite': True}, r'train\.max_nonfinite is True, expected a whole number'),
        ({'clip_grad_norm': 0}, r'train\.clip_grad_norm is 0, expected null or a number above 0'),
        ({'clip_grad_norm': float('nan')}, r'train\.clip_grad_norm is nan, expected null or a number above 0'),
        ({'divergence_factor': 1}, r'train\.divergence_factor is 1, expected null or a number above 1'),
        ({'divergence_factor': '10'}, r"train\.divergence_factor is '10', expected null or a number"),
    ],
)
def test_options_that_cannot_be_are_refused(options: Options, train_opt: Options, message: str) -> None:
    options['train'] |= train_opt
    with pytest.raises(ValueError, match=message):
        made(scratch(options))
    assert guard_options({'accumulate': None, 'lr': 1}, 2) == GuardOptions()


def test_terms_that_need_the_whole_batch_are_refused_in_parts(options: Options) -> None:
    options['train'] |= {'accumulate': 2, 'distill': {'bi': TERMS['mkd']}}
    with pytest.raises(ValueError, match=r'train\.distill\.bi: MKDDistiller needs several images.* now 1, to at least'):
        made(options)
    options['datasets']['train']['batch_size_per_gpu'] = 4
    with pytest.raises(ValueError, match=r'train\.accumulate: train\.distill\.bi takes steps of its own'):
        made(options)


# Several processes


def _run_share(rank: int, world: int, option_file: str, results: str, port: int) -> None:
    """One process: a good step in two parts, then steps with one bad image in the last process alone."""
    model = model_of_process(rank, world, option_file, port, batch=8)
    data = {name: value.chunk(world)[rank] for name, value in batch(size=8).items()}
    synchronised = []
    for net in (model.net_g, model.distillers) if world > 1 else ():
        net.register_forward_pre_hook(lambda wrapped, _: synchronised.append(wrapped.require_backward_grad_sync))
    step(model, 1, data)
    bare = {'g': model.get_bare_model(model.net_g), 'distill': model.get_bare_model(model.distillers)}
    gradients = {f'{n}.{name}': p.grad.clone() for n, net in bare.items() for name, p in net.named_parameters()}
    after, in_first = copy.deepcopy(bare['g'].state_dict()), list(synchronised)
    error = ''
    try:
        for iteration in (2, 3):
            worse = {**data, 'gt': data['gt'].clone(), 'lq_path': [f'image of {rank}'] * len(data['gt'])}
            worse['gt'][0, 0, 0, 0] = float('inf') if rank == world - 1 else 0.0
            step(model, iteration, worse)
    except FloatingPointError as stopped:
        error = str(stopped)
    unmoved = all(torch.equal(value, after[name]) for name, value in bare['g'].state_dict().items())
    found = {'gradients': gradients, 'error': error, 'unmoved': unmoved, 'synchronised': in_first}
    torch.save(found, f'{results}{rank}.pth')
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.injects('fault', 'losses and gradients that are not finite')
def test_processes_agree_on_a_step_that_one_of_them_cannot_take_and_add_up_their_parts(
    options: Options, tmp_path: Path, free_port: int
) -> None:
    options['train'] |= {'max_nonfinite': 1, 'accumulate': 2}
    options['train']['distill']['hint'] = HINT
    option_file = str(write_option(options, tmp_path / 'option.yml'))
    _run_share(0, 1, option_file, str(tmp_path / 'one'), free_port)
    mp.spawn(_run_share, (2, option_file, str(tmp_path / 'two'), free_port), nprocs=2)
    one, first, last = (torch.load(tmp_path / f'{name}.pth', weights_only=True) for name in ('one0', 'two0', 'two1'))
    for name, gradient in one['gradients'].items():
        torch.testing.assert_close(first['gradients'][name], gradient, rtol=1e-4, atol=1e-5)
        assert torch.equal(first['gradients'][name], last['gradients'][name])
    assert first['synchronised'] == [False, False, True, True]  # student and term, with the last part alone
    assert first['unmoved']
    assert last['unmoved']
    assert '2 steps in a row' in first['error']
    assert 'iteration 3: a loss of another process; images of the batch: image of 0' in first['error']
    assert 'iteration 3: l_pix; images of the batch: image of 1' in last['error']
