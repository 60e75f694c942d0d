"""Every shipped option file: made from its template, readable by BasicSR, and able to train or test."""

import copy
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mtkd

# isort: split
import pytest
import torch
from basicsr.data import build_dataset
from basicsr.utils.options import parse_options
from basicsr.utils.registry import MODEL_REGISTRY
from conftest import REPO, build_arch, read_option, write_option
from torch.utils.data import default_collate

from mtkd_data.preparation.prepare import _parse as parse_prepare
from mtkd_data.teacher_cache.command import default_out
from mtkd_data.teacher_cache.command import main as cache_teachers
from mtkd_data.teacher_cache.plan import CacheSettings
from mtkd_eval.export import _parse as parse_export

sys.path.insert(0, str(REPO / 'scripts'))
import make_options

Options = dict[str, Any]
FOUND = (path.relative_to(REPO / 'options').as_posix() for path in (REPO / 'options').rglob('*.yml'))
FILES = sorted(name for name in FOUND if not name.startswith('study/'))  # grids of studies: test_study_grid.py
TRAINING = [name for name in FILES if not name.startswith('test/')]
NARROW = {'num_feat': 8, 'squeeze_factor': 4, 'embed_dim': 12}
ENCODER = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_block': 1, 'upscale': 2}


def narrowed(network: Options) -> Options:
    """The network of an option at full depth and a fraction of its width."""
    network = {key: NARROW.get(key, value) for key, value in network.items()}
    if 'network' in network:
        network['network'] = narrowed(network['network'])
    if 'num_heads' in network:
        network['num_heads'] = [2] * len(network['depths'])
    return network


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """``weights(network, **metadata)`` is a file of random weights for a network, made once."""
    folder = tmp_path_factory.mktemp('weights')
    files: dict[str, Path] = {}

    def make(network: Options, **metadata: Any) -> str:
        key = repr(sorted(network.items()))
        if key not in files:
            files[key] = folder / f'{len(files)}.pth'
            state = build_arch(network).state_dict()
            torch.save({'params': state, 'params_ema': state, 'mtkd': metadata}, files[key])
        return str(files[key])

    return make


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Options]:
    """``parsed(file)`` is an option file as BasicSR's own ``parse_options`` gives it."""

    def parse(name: str) -> Options:
        monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(REPO / 'options' / name)])
        return parse_options('.', is_train=not name.startswith('test/'))[0]

    return parse


@pytest.fixture
def few_threads() -> Iterator[None]:
    """Two threads for the many small layers: more only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, 2))
    yield
    torch.set_num_threads(threads)


def toy(options: Options, data: Path, weights: Callable[..., str]) -> Options:
    """``options`` at narrow width, on the CPU, with files that exist."""
    options = copy.deepcopy(options)
    options.update(num_gpu=0, network_g=narrowed(options['network_g']))
    for teacher in options.get('teachers', {}).values():
        if 'network' in teacher:  # else the file of its weights names it, and is there
            teacher['network'] = narrowed(teacher['network'])
            teacher['path'] = weights(teacher['network'])
    if 'network' in options.get('aggregator', {}):
        aggregator = options['aggregator']
        aggregator['network'] = narrowed(aggregator['network'])
        aggregator['path'] = weights(aggregator['network'], inputs=list(aggregator['inputs']))
    if options['path'].get('pretrain_network_g'):
        options['path']['pretrain_network_g'] = weights(options['network_g'])
    for term in options.get('train', {}).get('distill', {}).values():
        if 'encoder' in term:  # VGG19, 550 MB that users fetch
            term['encoder'] = {'network': ENCODER, 'path': weights(ENCODER), 'taps': ['body.0', 'conv_after_body']}
    for dataset in options['datasets'].values():
        part = 'train' if dataset['phase'] == 'train' else 'val'
        end = '.lmdb' if part == 'train' else ''
        dataset.pop('filename_tmpl', None)
        dataset['dataroot_gt'] = str(data / part / f'GT{end}')
        dataset['dataroot_lq'] = str(data / part / f'LRbicx{options["scale"]}{end}')
    return options


def with_cache(options: Options, folder: Path) -> Options:
    """``options`` with the teacher cache that their header tells to make, if they train from one."""
    train_set = options['datasets'].get('train', {})
    if 'dataroot_cache' in train_set:
        train_set['dataroot_cache'] = str(folder / Path(train_set['dataroot_cache']).name)
        plain = json.loads(json.dumps({**options, 'plugin': None}))  # PyYAML writes no OrderedDict
        option_file = write_option(plain, folder / 'cache.yml')
        assert cache_teachers(['-opt', str(option_file), '--device', 'cpu']) == 0
    return options


def test_the_files_are_those_of_the_templates(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_options.main(['--check']) == 0, capsys.readouterr().err


def test_a_file_that_differs_from_its_template_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_options, 'ROOT', tmp_path)
    assert make_options.main(['--check']) == 1
    assert make_options.main([]) == 0
    assert make_options.main(['--check']) == 0
    (tmp_path / 'train_mtkd_x4.yml').write_text('name: else')
    (tmp_path / 'stray.yml').write_text('')
    capsys.readouterr()
    assert make_options.main(['--check']) == 1
    assert capsys.readouterr().err.splitlines() == [
        'differs from its template: options/train_mtkd_x4.yml',
        'differs from its template: options/stray.yml',
    ]


@pytest.mark.parametrize('name', ['edsr', 'rcan', 'swinir'])
def test_the_commands_at_the_head_of_a_shipped_teacher_can_be_pasted(name: str) -> None:
    head = (REPO / f'options/pretrained/train_{name}_x4.yml').read_text().partition('\nname:')[0]
    commands = head.replace('#', '').replace('\\\n', ' ').splitlines()
    data, train, out = (shlex.split(line)[1:] for line in commands if line.strip().startswith('python '))
    assert vars(parse_prepare(data[1:]))['compression_level'] == 0
    assert train == ['basicsr/train.py', '-opt', f'options/pretrained/train_{name}_x4.yml']
    assert str(vars(parse_export(out[1:]))['out']) == 'mtkd/pretrained'


def test_files_of_the_users_own_need_no_template(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(make_options, 'ROOT', tmp_path)
    assert make_options.main([]) == 0
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own/train_edsr_x4_sp.yml').write_text('name: mine')
    assert make_options.main(['--check']) == 0


@pytest.mark.parametrize('name', FILES)
def test_every_file_registers_the_plugin_and_has_a_name_of_its_own(name: str) -> None:
    options = read_option(REPO / 'options' / name)
    assert options['plugin'] == mtkd.__version__
    twins = {name, name.removeprefix('cached/'), f'cached/{name}'}  # the same experiment, from other data
    others = [read_option(REPO / 'options' / other)['name'] for other in FILES if other not in twins]
    assert options['name'] not in others


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_every_scale_has_data_roots_and_networks_of_its_own(scale: int) -> None:
    for name in [name for name in FILES if f'_x{scale}' in name]:
        options = read_option(REPO / 'options' / name)
        assert options['scale'] == scale
        networks = [options['network_g'], *(t['network'] for t in options.get('teachers', {}).values())]
        networks += [network['network'] for network in networks if 'network' in network]
        assert {network['upscale'] for network in networks} == {scale}
        for dataset in options['datasets'].values():
            assert f'LRbicx{scale}' in dataset['dataroot_lq']
        for metric in options['val']['metrics'].values():
            assert metric['crop_border'] == scale


def patch(options: Options) -> int:
    """The smallest ``gt_size`` that the windows of the networks and the terms allow."""
    scale = options['scale']
    zoomed_out = 'dukd' in options['train'].get('distill', {}) and options['network_g']['type'] == 'SwinIR'
    return scale * max(16, 8 * scale if zoomed_out else 0)  # two windows; DUKD's smaller images fill one


def two_steps(model: Any, train_set: Options) -> None:
    """Two optimizer steps on batches of two patches."""
    images = build_dataset(train_set)
    for iteration in (1, 2):
        model.update_learning_rate(iteration)
        samples = images[iteration], images[iteration + 1]
        model.feed_data(default_collate(samples))
        model.optimize_parameters(iteration)


@pytest.mark.parametrize('name', TRAINING)
def test_every_training_file_takes_two_steps(
    name: str,
    parsed: Callable[..., Options],
    data: Path,
    weights: Callable[..., str],
    few_threads: None,
    tmp_path: Path,
) -> None:
    options = with_cache(toy(parsed(name), data, weights), tmp_path)
    options['datasets']['train']['gt_size'] = patch(options)
    model = MODEL_REGISTRY.get(options['model_type'])(options)
    before = copy.deepcopy(model.net_g.state_dict())
    two_steps(model, options['datasets']['train'])
    log = model.get_current_log()
    terms = ['l_pix', *(f'l_{key}' for key in options['train'].get('distill', {}))]
    terms += ['l_heads'] if options['model_type'] == 'HierarchicalModel' else []
    assert {next(term for term in terms if entry.startswith(term)) for entry in log} == set(terms)
    log.pop('l_hkdsr_fusion', None)  # its weight is 0
    assert all(0 < value < 10 for value in log.values()), log
    assert any(not torch.equal(before[key], value) for key, value in model.net_g.state_dict().items())


@pytest.mark.parametrize('name', [name for name in TRAINING if name.startswith('cached/')])
def test_a_cached_file_differs_from_its_original_in_the_data_alone(name: str) -> None:
    ours, original = (read_option(REPO / 'options' / file) for file in (name, name.removeprefix('cached/')))
    train_set, plain = ours['datasets'].pop('train'), original['datasets'].pop('train')
    assert ours == original
    assert {key for key in train_set if train_set[key] != plain.get(key)} == {
        'name', 'type', 'dataroot_gt', 'dataroot_lq', 'dataroot_cache', 'dataset_enlarge_ratio', 'num_worker_per_gpu',
    }  # fmt: skip
    made = Path(train_set.pop('dataroot_cache'))
    stores = tuple(ours['teachers']) if 'aggregator' in name else ('target',)
    ours['datasets']['train'] = train_set
    assert default_out(ours, CacheSettings(stores=stores)) == made.absolute()  # cache_teachers.py would choose it


@pytest.mark.parametrize('name', [name for name in FILES if name.startswith('test/')])
def test_every_test_file_gives_an_image_of_the_right_size(
    name: str, parsed: Callable[..., Options], data: Path, weights: Callable[..., str], few_threads: None
) -> None:
    options = toy(parsed(name), data, weights)
    model = MODEL_REGISTRY.get(options['model_type'])(options)
    sample = build_dataset(options['datasets']['test_1'])[0]
    lq = sample['lq'][:, :20, :13].unsqueeze(0)
    model.feed_data({'lq': lq})
    model.test()
    assert model.output.shape == (1, 3, 20 * options['scale'], 13 * options['scale'])


METHODS = ('kd', 'at', 'fakd', 'dukd', 'crosskd', 'mkd', 'hkdsr', 'csd', 'mipkd', 'scratch')


def test_every_method_is_there_for_every_student_and_scale() -> None:
    files = {
        f'baselines/{m}/train_{s}_x{x}_{m}.yml' for m in METHODS for s in ('edsr', 'rcan', 'swinir') for x in (2, 3, 4)
    }
    assert files <= set(FILES)


@pytest.mark.parametrize('name', [name for name in FILES if name.startswith('baselines/')])
def test_a_baseline_differs_from_mtkd_in_teachers_and_losses_alone(name: str) -> None:
    student, scale = name.split('_')[1:3]
    infix = '' if student in ('edsr', 'mambalite') else f'{student}_'
    options = read_option(REPO / 'options' / name)
    mtkd_options = read_option(REPO / f'options/train_mtkd_{infix}{scale}.yml')
    assert len(options.get('teachers', {})) == (0 if 'scratch' in name or name.endswith('_teacher.yml') else 1)
    if student != 'mambalite' and options['model_type'] == 'MultiTeacherSRModel':
        assert options['network_g'] == mtkd_options['network_g']
    assert options['datasets'] == mtkd_options['datasets']
    for key in ('ema_decay', 'optim_g', 'scheduler', 'total_iter', 'warmup_iter'):
        assert options['train'][key] == mtkd_options['train'][key]


PUBLISHED = {  # millions of parameters, as the papers and design give them
    'teachers': {'edsr': 43.1, 'rcan': 15.6, 'swinir': 11.9},
    'train_mtkd_x4.yml': 1.5,
    'train_mtkd_rcan_x4.yml': 5.2,
    'train_mtkd_swinir_x4.yml': 0.93,
    'train_mtkd_aggregator_x4.yml': 1.336,
}


@pytest.mark.parametrize('name', [name for name in PUBLISHED if name != 'teachers'])
def test_the_networks_have_the_published_sizes(name: str) -> None:
    options = read_option(REPO / 'options' / name)
    found = {'student': options['network_g'], **{n: t['network'] for n, t in options['teachers'].items()}}
    expected = {'student': PUBLISHED[name], **PUBLISHED['teachers']}
    for part, network in found.items():
        millions = sum(parameter.numel() for parameter in build_arch(network).parameters()) / 1e6
        assert millions == pytest.approx(expected[part], rel=0.04), part
