"""Every method in BasicSR's trainer: two processes against one, resuming, and real training on real photographs."""

import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  before BasicSR, also in the processes that are spawned

# isort: split
import pytest
import torch
import torch.multiprocessing as mp
from basicsr.utils.registry import MODEL_REGISTRY
from conftest import build_arch, read_option, scratch, small_network, write_option

from mtkd_arch.weights import read_weights
from mtkd_data.preparation.prepare import main as prepare
from mtkd_model.distillers import DISTILLER_REGISTRY

Options = dict[str, Any]
HIERARCHICAL = {'type': 'HierarchicalSR', 'upscale': 4, 'network': small_network('edsr', num_feat=12, num_block=3)}
KD = {'type': 'OutputDistiller', 'loss': {'type': 'L1Loss'}}
METHODS: dict[str, Options] = {  # the term, at published weights where there are any
    'KD': KD,
    'MTKD': {'type': 'OutputDistiller', 'loss': {'type': 'WaveletLoss'}},
    'FitNet': {'type': 'FitNetDistiller', 'taps': {'conv_after_body': 'edsr/conv_after_body'}, 'loss_weight': 0.001},
    'AT': {'type': 'ATDistiller', 'loss_weight': 3.92},
    'FAKD': {'type': 'FAKDDistiller'},
    'RKD': {'type': 'RKDDistiller'},
    'DUKD': {'type': 'DUKDDistiller', 'teachers': 'edsr'},
    'CrossKD': {'type': 'CrossKDDistiller'},
    'CSD': {'type': 'CSDDistiller', 'loss_weight': 0.784},
    'DCKD': {'type': 'DCKDDistiller', 'loss_weight': 0.1},
    'HKDSR': {'type': 'HKDSRDistiller', 'teachers': 'hkdsr'},
    'MKD': {'type': 'MKDDistiller', 'every': 2},
    'MiPKD': {'type': 'MiPKDDistiller'},
    'self': {'type': 'SelfDistiller', 'decay': 0.9},  # a short memory for a short run
}
FEATURES = ('AT', 'FAKD', 'RKD', 'CrossKD', 'MKD', 'MiPKD')  # their default is all teachers; one is enough here
PER_BATCH = ('RKD', 'DUKD', 'CSD', 'MKD', 'MiPKD', 'DCKD')  # compare samples of a process, or draw at random


@pytest.fixture
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights of an encoder and of a teacher with heads."""
    folder = tmp_path_factory.mktemp('files')
    torch.manual_seed(7)
    for name, network in (('encoder', small_network('edsr')), ('hkdsr', HIERARCHICAL)):
        torch.save({'params': build_arch(network).state_dict()}, folder / f'{name}.pth')
    return {'encoder': str(folder / 'encoder.pth'), 'hkdsr': str(folder / 'hkdsr.pth')}


def with_method(options: Options, name: str, files: dict[str, str]) -> Options:
    """``options`` with one method as its only term."""
    options, term = copy.deepcopy(options), copy.deepcopy(METHODS[name])
    if name in FEATURES:
        term['teachers'] = 'edsr'
    if name in ('CSD', 'DCKD'):
        taps = ['body.0', 'body.-1', 'conv_after_body']
        term['encoder'] = {'network': small_network('edsr'), 'path': files['encoder'], 'taps': taps}
    if name == 'HKDSR':
        options['teachers']['hkdsr'] = {'network': copy.deepcopy(HIERARCHICAL), 'path': files['hkdsr']}
    options['name'] = name
    options['train']['distill'] = {'term': term}
    return options


def test_every_registered_method_is_among_those_tried_here() -> None:
    assert {term['type'] for term in METHODS.values()} == set(DISTILLER_REGISTRY.keys())


def images(size: int) -> dict[str, torch.Tensor]:
    """A batch of random images."""
    generator = torch.Generator().manual_seed(3)
    return {key: torch.rand(size, 3, side, side, generator=generator) for key, side in (('lq', 32), ('gt', 128))}


def _gradients(options: Options, share: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """Gradients of student and adapters after one backward pass from the same start."""
    torch.manual_seed(0)
    model = MODEL_REGISTRY.get(options['model_type'])(options)
    model.feed_data(share)
    torch.manual_seed(rank)  # what a method draws is drawn alike for a share, wherever it is computed
    sum(model.compute_losses(1).values()).backward()
    parts = {'student': model.get_bare_model(model.net_g), 'term': model.get_bare_model(model.distillers)}
    return {
        f'{part} {name}': parameter.grad.clone()
        for part, network in parts.items()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def _two_processes(rank: int, folder: str, names: list[str], port: int) -> None:
    """One of two processes: its share of the batch for every method in turn."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    share = {key: value.chunk(2)[rank] for key, value in images(4).items()}
    for name in names:
        options = read_option(Path(folder, f'{name}.yml'))
        options.update(dist=True, rank=rank, world_size=2, is_train=True)
        found = _gradients(options, share, rank)
        if rank == 0:
            torch.save(found, Path(folder, f'{name}.pth'))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one_with_every_method(
    options: Options, files: dict[str, str], tmp_path: Path, free_port: int
) -> None:
    # MKD learns its own part by the way, from the gradients of both: that has a test of its own
    names = [name for name in METHODS if name != 'MKD']
    for name in names:
        write_option(with_method(options, name, files), tmp_path / f'{name}.yml')
    mp.spawn(_two_processes, (str(tmp_path), names, free_port), nprocs=2)
    for name in names:
        found = torch.load(tmp_path / f'{name}.pth', weights_only=True)
        one = {**read_option(tmp_path / f'{name}.yml'), 'dist': False, 'rank': 0, 'world_size': 1, 'is_train': True}
        batch = images(4)
        if name in PER_BATCH:
            shares = [{key: value.chunk(2)[rank] for key, value in batch.items()} for rank in (0, 1)]
            halves = [_gradients(copy.deepcopy(one), share, rank) for rank, share in enumerate(shares)]
            expected = {key: (halves[0][key] + halves[1][key]) / 2 for key in halves[0]}
        else:
            expected = _gradients(one, batch, 0)
        assert found.keys() == expected.keys(), name
        for key, value in expected.items():  # sums in another order: rounding of float32
            torch.testing.assert_close(
                found[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name, k=key: f'{n} {k} {m}'
            )


@pytest.mark.parametrize('name', METHODS)
def test_every_method_trains_saves_and_resumes(
    options: Options, files: dict[str, str], train: Callable[..., Path], name: str
) -> None:
    options = with_method(options, name, files)
    options['datasets']['train']['gt_size'] = 128
    first = train(options)
    adapters = first / 'models/distill_4.pth'
    before = read_weights(adapters, 'params') if adapters.is_file() else {}
    options['train']['total_iter'] = 6
    experiment = train(options, '--auto_resume')
    log = '\n'.join(path.read_text() for path in experiment.glob('*.log'))
    assert 'Resuming training from epoch: 0, iter: 4' in log
    assert 'l_term' in log
    assert (experiment / 'models/net_g_6.pth').is_file()
    if before:
        after = read_weights(experiment / 'models/distill_6.pth', 'params')
        assert before.keys() == after.keys()


@pytest.mark.parametrize('names', [('FAKD', 'DUKD'), ('MTKD', 'AT'), ('KD', 'CrossKD', 'MiPKD', 'MKD')])
def test_methods_combine_in_one_option(
    options: Options, files: dict[str, str], train: Callable[..., Path], names: tuple[str, ...]
) -> None:
    options['datasets']['train']['gt_size'] = 128
    terms = {name: with_method(options, name, files)['train']['distill']['term'] for name in names}
    options['train']['distill'] = terms
    log = ''.join(path.read_text() for path in train(options).glob('*.log'))
    assert all(f'l_{name}' in log for name in names)


def test_a_student_can_teach_itself_without_teachers(options: Options, train: Callable[..., Path]) -> None:
    options = scratch(options)
    options['train']['distill'] = {'self': {'type': 'SelfDistiller'}}
    assert 'l_self' in ''.join(path.read_text() for path in train(options).glob('*.log'))


def _psnr(experiment: Path) -> list[float]:
    return [float(v) for v in re.findall(r'# psnr: ([\d.]+)', ''.join(p.read_text() for p in experiment.glob('*.log')))]


@pytest.fixture
def real(options: Options, shared: Path, tmp_path: Path) -> Options:
    """Options on T91 and Set5 with a teacher trained there for a while."""
    root = tmp_path / 't91'
    assert prepare(['--hr', str(shared / 'data/T91'), '--out', str(root), '--sub-image', '0', '--workers', '1']) == 0
    train_set, val = options['datasets']['train'], options['datasets']['val']
    train_set.update(dataroot_gt=str(root / 'GT.lmdb'), dataroot_lq=str(root / 'LRbicx4.lmdb'), gt_size=64)
    train_set['batch_size_per_gpu'] = 8
    val.update(name='Set5', dataroot_gt=str(shared / 'data/Set5/HR'), dataroot_lq=str(shared / 'data/Set5/LRbicx4'))
    val['filename_tmpl'] = '{}x4'
    options['network_g'] = small_network('edsr', num_feat=12, num_block=3)
    options['train'].update(total_iter=250, ema_decay=0.98)
    options['train']['optim_g']['lr'] = 0.002
    options['train']['scheduler']['milestones'] = [150, 200]
    options['train']['pixel_opt']['loss_weight'] = 1.0
    options['val']['val_freq'] = 1000
    options['logger'].update(print_freq=50, save_checkpoint_freq=1000)
    return options


@pytest.fixture(scope='module')
def learned(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """What the first test on real images trains for all: ``folder``, the ``teachers``, the PSNR of ``scratch``."""
    return {'folder': tmp_path_factory.mktemp('learned')}


def _learn(real: Options, train: Callable[..., Path], learned: Options) -> None:
    """A teacher, the same with heads, and the student from scratch."""
    teacher = scratch(copy.deepcopy(real))
    teacher.update(name='teacher', network_g=small_network('edsr', num_feat=24, num_block=6))
    heads = scratch(copy.deepcopy(real))
    heads.update(name='teacher with heads', model_type='HierarchicalModel')
    heads['network_g'] = {**HIERARCHICAL, 'network': teacher['network_g']}
    teachers, found = {}, {}
    for name, run in (('edsr', teacher), ('hkdsr', heads)):
        path = learned['folder'] / f'{name}.pth'
        experiment = train(run)
        shutil.copy(experiment / 'models/net_g_latest.pth', path)
        found[name] = _psnr(experiment)[-1]
        teachers[name] = {'network': run['network_g'], 'path': str(path), 'param_key': 'params_ema'}
    control = scratch(copy.deepcopy({**real, 'aggregator': None}))
    learned['scratch'] = _psnr(train({**control, 'name': 'scratch'}))[-1]
    assert min(found.values()) > learned['scratch'] - 1.5, 'a teacher diverges'
    learned['teachers'] = teachers


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_a_method_trains_on_real_images_and_does_not_diverge(
    name: str,
    real: Options,
    files: dict[str, str],
    train: Callable[..., Path],
    learned: Options,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if 'teachers' not in learned:
        _learn(real, train, learned)
    teachers = copy.deepcopy(learned['teachers'])
    del real['aggregator']
    run = with_method({**real, 'teachers': teachers}, name, files)
    run['teachers'] = {key: teachers[key] for key in (('hkdsr',) if name == 'HKDSR' else ('edsr',))}
    if name in ('CSD', 'DCKD'):  # an encoder that has learned: the teacher
        encoder = run['train']['distill']['term']['encoder']
        encoder.update(network=teachers['edsr']['network'], path=teachers['edsr']['path'], param_key='params_ema')
    found = _psnr(train(run))[-1]
    with capsys.disabled():
        print(f'\n{name}: {found:.2f} dB on Set5 x4 after 250 steps on T91, scratch {learned["scratch"]:.2f}, one seed')
    assert found > learned['scratch'] - 1.5, 'it diverges'
