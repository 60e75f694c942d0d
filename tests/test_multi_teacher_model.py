"""The training model: what moves, what does not, what is saved, and that two processes equal one."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  before BasicSR, also in the processes that are spawned

# isort: split
import pytest
import torch
import torch.multiprocessing as mp
from basicsr.utils.registry import MODEL_REGISTRY
from conftest import SMALL, scratch, small_network, stage_one, write_option
from launching import model_of_process

from mtkd.checks import left_of_start
from mtkd_arch.weights import read_metadata, read_weights
from mtkd_model.acceleration import moving_average
from mtkd_model.aggregation_model import AggregationModel
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

Options = dict[str, Any]
HINT = {'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1', 'conv_after_body': 'rcan/conv_after_body'}}


def made(options: Options) -> MultiTeacherSRModel:
    """The model of an option outside the trainer."""
    options = copy.deepcopy(options)
    options.update(dist=False, rank=0, world_size=1, is_train=True)
    torch.manual_seed(0)
    return MODEL_REGISTRY.get(options['model_type'])(options)


def batch(size: int = 2, lq: int = 16, scale: int = 4) -> dict[str, torch.Tensor]:
    """A batch of random images."""
    generator = torch.Generator().manual_seed(3)
    return {
        'lq': torch.rand(size, 3, lq, lq, generator=generator),
        'gt': torch.rand(size, 3, lq * scale, lq * scale, generator=generator),
    }


def stepped(model: MultiTeacherSRModel, data: dict[str, torch.Tensor], steps: int = 1) -> MultiTeacherSRModel:
    """``model`` after some steps on one batch."""
    model.feed_data(data)
    for iteration in range(1, steps + 1):
        model.optimize_parameters(iteration)
    return model


def test_a_step_moves_every_student_parameter_and_no_teacher_parameter(options: Options) -> None:
    model = made(options)
    teachers = copy.deepcopy(model.teachers.state_dict())
    student = copy.deepcopy(model.net_g.state_dict())
    stepped(model, batch())
    assert all(not torch.equal(student[name], value) for name, value in model.net_g.named_parameters())
    assert all(torch.equal(teachers[name], value) for name, value in model.teachers.state_dict().items())
    assert all(parameter.grad is None for parameter in model.teachers.parameters())


def test_the_log_names_every_loss(options: Options) -> None:
    options['train']['distill']['hint'] = HINT
    log = stepped(made(options), batch()).get_current_log()
    assert set(log) == {'l_pix', 'l_wavelet', 'l_hint'}
    assert all(value > 0 for value in log.values())


def test_the_losses_are_those_of_the_formula(options: Options) -> None:
    model = made(options)
    data = batch()
    model.feed_data(data)
    with torch.no_grad():
        losses = model.compute_losses(1)
        target, output = model.teachers(data['lq'])['target'], model.net_g(data['lq'])
    haar = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2
    corners = (output - target).unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)  # (B, C, h, w, 4)
    expected = (corners @ haar.T).abs().mean(dim=(0, 1, 2, 3)).sum()
    torch.testing.assert_close(losses['l_wavelet'], expected)
    torch.testing.assert_close(losses['l_pix'], 0.1 * (output - data['gt']).abs().mean())


@pytest.mark.parametrize('term', ['pixel_opt', 'wavelet', 'hint'])
def test_every_term_alone_moves_the_student(options: Options, term: str) -> None:
    terms = {'wavelet': options['train']['distill']['wavelet'], 'hint': HINT}
    options['train']['distill'] = {term: terms[term]} if term in terms else None
    if term != 'pixel_opt':
        del options['train']['pixel_opt']
    model = made(options)
    before = model.net_g.conv_first.weight.clone()
    stepped(model, batch())
    assert set(model.get_current_log()) == {'l_pix' if term == 'pixel_opt' else f'l_{term}'}
    assert not torch.equal(before, model.net_g.conv_first.weight)


def test_distiller_parameters_learn_in_a_group_of_their_own(options: Options) -> None:
    options['train']['distill']['hint'] = HINT
    options['train']['optim_distill'] = {'lr': 0.01}
    model = made(options)
    student, adapters = model.optimizer_g.param_groups
    assert (student['lr'], adapters['lr']) == (0.001, 0.01)
    assert len(adapters['params']) == 4  # weight and bias of two regressors
    before = [parameter.clone() for parameter in adapters['params']]
    stepped(model, batch())
    assert all(not torch.equal(old, new) for old, new in zip(before, adapters['params'], strict=True))


@pytest.mark.parametrize('student', SMALL)
def test_any_student_of_any_size_learns_from_teachers_of_all_kinds(options: Options, student: str) -> None:
    options['network_g'] = small_network(student)
    model = stepped(made(options), batch(lq=13), steps=2)
    assert model.output.shape == (2, 3, 52, 52)
    assert all(torch.isfinite(torch.tensor(value)) for value in model.get_current_log().values())


def test_a_batch_of_one_works(options: Options) -> None:
    options['train']['distill']['hint'] = HINT
    assert stepped(made(options), batch(size=1)).get_current_log()['l_wavelet'] > 0


def test_validation_pads_a_swinir_student_to_its_window(options: Options) -> None:
    options['network_g'] = small_network('swinir')
    model = made(scratch(options))
    model.feed_data(batch(size=1, lq=13))
    model.test()
    assert model.output.shape == (1, 3, 52, 52)
    assert model.net_g.training


@pytest.mark.parametrize(
    ('decay', 'iterations', 'said'),
    [
        (0.999, 3000, '5% of the averaged'),
        (0.999, 500000, ''),
        (0, 10, ''),
        (0.9977, 3000, ''),
        (0.99, 100, '37% of'),
        (0.9, 4, ''),
    ],
)
def test_an_average_that_never_forgets_its_random_start_is_told(
    options: Options, messages: list[str], decay: float, iterations: int, said: str
) -> None:
    options['train'].update(ema_decay=decay, total_iter=iterations)
    assert (said in left_of_start(options)) if said else left_of_start(options) == ''
    assert left_of_start({**options, 'path': {'pretrain_network_g': 'student.pth'}}) == ''
    made(options)
    assert messages == [f'WARNING {left_of_start(options)}'] * bool(said)


def test_the_decay_that_is_advised_forgets_the_start(options: Options) -> None:
    options['train'].update(ema_decay=0.999, total_iter=3000)
    advised = float(left_of_start(options).rpartition(': ')[2].split()[0])
    average, start, trained = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    average.load_state_dict(start.state_dict())
    for _ in range(3000):
        moving_average(average, trained, advised)
    left = (average.weight - trained.weight).norm() / (start.weight - trained.weight).norm()
    assert left.item() == pytest.approx(0.001, rel=0.1)


def test_building_and_checking_leave_the_random_state_alone(options: Options) -> None:
    options.update(is_train=True, auto_resume=False)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    MultiTeacherSRModel.check_options(options)
    assert torch.equal(torch.rand(1), expected)


def test_stage_one_trains_the_aggregator_and_stores_the_order_of_its_teachers(
    options: Options, train: Callable[..., Path]
) -> None:
    stage_one(options)['aggregator']['inputs'] = ['swinir', 'edsr', 'rcan']
    experiment = train(options)
    latest = experiment / 'models/net_g_latest.pth'
    assert read_metadata(latest)['inputs'] == ['swinir', 'edsr', 'rcan']
    assert not torch.equal(
        read_weights(experiment / 'models/net_g_2.pth', 'params')['conv_last.weight'],
        read_weights(latest, 'params')['conv_last.weight'],
    )


def test_the_aggregator_is_fed_in_the_order_of_its_inputs(options: Options) -> None:
    options = stage_one(options)
    model = made(options)
    assert isinstance(model, AggregationModel)
    data = batch()
    outputs = model.teachers(data['lq'])
    stacked = torch.cat([outputs[name] for name in ('edsr', 'rcan', 'swinir')], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model.predict(model.net_g, data['lq']), model.net_g(stacked))


def test_stage_two_takes_what_stage_one_wrote(options: Options, train: Callable[..., Path]) -> None:
    first = copy.deepcopy(options)
    stage_one(first)['name'] = 'stage_one'
    options['aggregator']['path'] = str(train(first) / 'models/net_g_latest.pth')
    assert (train(options) / 'models/net_g_latest.pth').is_file()


def test_a_checkpoint_has_student_average_and_adapters_apart(options: Options, train: Callable[..., Path]) -> None:
    options['train']['distill']['hint'] = HINT
    experiment = train(options)
    content = torch.load(experiment / 'models/net_g_4.pth', weights_only=True)
    assert set(content) == {'params', 'params_ema'}
    assert not any('regressor' in name or 'terms' in name for name in content['params'])
    adapters = read_weights(experiment / 'models/distill_4.pth', 'params')
    learnt = {name.removeprefix('terms.hint.regressors.') for name in adapters if 'hint' in name}
    assert learnt == {'0.weight', '0.bias', '1.weight', '1.bias'}
    assert not list(experiment.rglob('*.partial'))


def test_resuming_gives_the_run_that_was_never_stopped(
    options: Options, train: Callable[..., Path], tmp_path: Path
) -> None:
    # the sampler starts its epoch anew on resume, so all batches are made alike: one image, no augmentation
    options['train']['distill']['hint'] = HINT
    options['datasets']['train'].update(use_hflip=False, use_rot=False, gt_size=144, batch_size_per_gpu=1)
    lines = Path(options['datasets']['train']['dataroot_gt'], 'meta_info.txt').read_text().splitlines()
    listing = tmp_path / 'one.txt'
    listing.write_text(lines[0].replace('(144,192,3)', '(144,144,3)') + '\n')
    options['datasets']['train'] |= {
        'dataroot_gt': options['datasets']['val']['dataroot_gt'],
        'dataroot_lq': options['datasets']['val']['dataroot_lq'],
        'io_backend': {'type': 'disk'},
        'meta_info_file': str(listing),
    }
    square_crops(options, tmp_path)
    whole = read_weights(train(options) / 'models/net_g_latest.pth', 'params')
    first = copy.deepcopy(options)
    first['train']['total_iter'] = 2
    first['name'] = options['name'] = 'resumed'
    train(first)
    resumed = train(options, '--auto_resume') / 'models'
    after = read_weights(resumed / 'net_g_latest.pth', 'params')
    assert (resumed / 'net_g_4.pth').is_file()
    assert all(torch.equal(whole[name], after[name]) for name in whole)


def square_crops(options: Options, folder: Path) -> None:
    """Replace the training data by one image of exactly the patch size, so that a random crop has no choice."""
    import cv2

    for key, side in (('dataroot_gt', 144), ('dataroot_lq', 36)):
        name = sorted(Path(options['datasets']['train'][key]).iterdir())[0]
        (folder / key).mkdir()
        cv2.imwrite(str(folder / key / name.name), cv2.imread(str(name))[:side, :side])
        options['datasets']['train'][key] = str(folder / key)
    del options['datasets']['train']['meta_info_file']


def _train_share(rank: int, world: int, option_file: str, results: str, port: int) -> None:
    """One process: its share of the batch, one backward pass, gradients of student and adapters to a file."""
    model = model_of_process(rank, world, option_file, port)
    model.feed_data({name: value.chunk(world)[rank] for name, value in batch(size=4).items()})
    sum(model.compute_losses(1).values()).backward()
    gradients = {name: p.grad for name, p in model.get_bare_model(model.net_g).named_parameters()}
    gradients |= {name: p.grad for name, p in model.get_bare_model(model.distillers).named_parameters()}
    if rank == 0:
        torch.save(gradients, results)
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one_with_the_whole_batch(
    options: Options, tmp_path: Path, free_port: int
) -> None:
    options['train']['distill']['hint'] = HINT
    option_file = str(write_option(options, tmp_path / 'option.yml'))
    _train_share(0, 1, option_file, str(tmp_path / 'one.pth'), free_port)
    mp.spawn(_train_share, (2, option_file, str(tmp_path / 'two.pth'), free_port), nprocs=2)
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ('one.pth', 'two.pth'))
    assert one.keys() == two.keys()
    for name in one:  # means over 2 + 2 and over 4 samples differ by rounding alone
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
