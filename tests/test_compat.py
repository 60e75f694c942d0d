"""The mends of BasicSR: each does what it says, only where it is needed, and no harm when applied again."""

import importlib.util
import random
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import basicsr.test
import basicsr.train
import basicsr.utils.dist_util
import basicsr.utils.options
import numpy as np
import pytest
import torch
from basicsr.data import build_dataloader
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import MODEL_REGISTRY
from conftest import REPO, scratch, script_environment, write_option
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mtkd import compat
from mtkd.compat import loading, processes, starting

FUNCTIONAL_TENSOR = 'torchvision.transforms.functional_tensor'


def run_python(code: str, folder: Path, **environment: str) -> str:
    """What ``code`` prints in an interpreter of its own."""
    environment = {**script_environment(), **environment}
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_functional_tensor_is_restored_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from basicsr.data import degradations
    from torchvision.transforms import functional

    assert degradations.rgb_to_grayscale(torch.ones(3, 2, 2)).shape == (1, 2, 2)
    monkeypatch.delitem(sys.modules, FUNCTIONAL_TENSOR, raising=False)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    compat.restore_functional_tensor()
    assert sys.modules[FUNCTIONAL_TENSOR].rgb_to_grayscale is functional.rgb_to_grayscale


def test_functional_tensor_is_left_alone_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = types.ModuleType(FUNCTIONAL_TENSOR)
    monkeypatch.setitem(sys.modules, FUNCTIONAL_TENSOR, loaded)
    compat.restore_functional_tensor()
    assert sys.modules[FUNCTIONAL_TENSOR] is loaded
    monkeypatch.delitem(sys.modules, FUNCTIONAL_TENSOR)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: 'a spec')
    compat.restore_functional_tensor()
    assert FUNCTIONAL_TENSOR not in sys.modules


WITHOUT_PKG_RESOURCES = """
import sys, warnings

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'pkg_resources':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Blocker())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    import mtkd
    import torch
    from pytorch_wavelets import DTCWTForward
    DTCWTForward(J=2)(torch.zeros(1, 1, 16, 16))  # its tables are what pkg_resources is wanted for
print([str(warning.message) for warning in caught if 'pkg_resources' in str(warning.message)])
print('pkg_resources' in sys.modules)
"""


@pytest.mark.slow
def test_wavelets_import_without_pkg_resources_and_without_its_warning(tmp_path: Path) -> None:
    assert run_python(WITHOUT_PKG_RESOURCES, tmp_path).split() == ['[]', 'False']


def test_a_loaded_pkg_resources_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = types.ModuleType('pkg_resources')
    monkeypatch.setitem(sys.modules, 'pkg_resources', real)
    monkeypatch.delitem(sys.modules, 'pytorch_wavelets')
    compat.import_wavelets_without_pkg_resources()
    assert sys.modules['pkg_resources'] is real
    assert 'pytorch_wavelets' in sys.modules


def test_local_rank_with_a_dash_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ['train.py', '--local-rank=1', '--local-rank', '2', '--local_rank=3', '--local-ranks', 'a--local-rank']
    monkeypatch.setattr(sys, 'argv', argv)
    compat.accept_local_rank_with_a_dash()
    assert argv == ['train.py', '--local_rank=1', '--local_rank', '2', '--local_rank=3', *argv[5:]]
    assert argv[5:] == ['--local-ranks', 'a--local-rank']


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty experiment; the working directory is another one, and CUDA is out of reach."""

    def unreachable() -> None:
        raise AssertionError('CUDA was asked for')

    monkeypatch.setattr(torch.cuda, 'current_device', unreachable)
    root = tmp_path / 'root/experiments/toy'
    for folder in ('models', 'training_states'):
        (root / folder).mkdir(parents=True)
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    return root


def save_checkpoint(experiment: Path, iteration: int) -> Path:
    """A training state, and the network that belongs to it."""
    torch.save({'params': {'weight': torch.zeros(9)}}, experiment / f'models/net_g_{iteration}.pth')
    path = experiment / f'training_states/{iteration}.state'
    momentum = torch.full((9,), float(iteration))
    torch.save({'epoch': 0, 'iter': iteration, 'optimizers': [momentum], 'schedulers': []}, path)
    return path


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def resume_options(experiment: Path, **changes: Any) -> dict[str, Any]:
    """As BasicSR's parser gives them for ``--auto_resume``."""
    return {
        'model_type': 'SRModel',
        'auto_resume': True,
        'is_train': True,
        'network_g': {'type': 'EDSR'},
        'path': {'models': str(experiment / 'models'), 'training_states': str(experiment / 'training_states')},
        **changes,
    }


def test_a_named_state_comes_back_on_the_cpu_with_its_network(experiment: Path) -> None:
    path = save_checkpoint(experiment, 2)
    opt = resume_options(experiment, auto_resume=False)
    opt['path']['resume_state'] = str(path)
    state = basicsr.train.load_resume_state(opt)
    assert state['iter'] == 2
    assert state['optimizers'][0].device.type == 'cpu'
    assert opt['path']['pretrain_network_g'] == str(experiment / 'models/net_g_2.pth')


def test_without_a_state_nothing_is_resumed(experiment: Path) -> None:
    assert starting.load_resume_state(resume_options(experiment)) is None
    assert starting.load_resume_state(resume_options(experiment, auto_resume=False)) is None
    gone = resume_options(experiment)
    gone['path']['training_states'] = str(experiment / 'nowhere')
    assert starting.load_resume_state(gone) is None


def test_auto_resume_takes_the_newest_state_of_the_experiment_not_of_the_working_directory(experiment: Path) -> None:
    decoy = Path.cwd() / 'experiments/toy'
    for folder in ('models', 'training_states'):
        (decoy / folder).mkdir(parents=True)
    save_checkpoint(decoy, 99)
    for iteration in (2, 10, 4):
        save_checkpoint(experiment, iteration)
    opt = resume_options(experiment)
    assert starting.load_resume_state(opt)['iter'] == 10
    assert opt['path']['resume_state'] == str(experiment / 'training_states/10.state')


@pytest.mark.parametrize(
    ('broken', 'damage'),
    [
        ('training_states/4.state', cut_short),
        ('models/net_g_4.pth', cut_short),
        ('models/net_g_4.pth', Path.unlink),
        ('models/distill_4.pth', Path.touch),
    ],
)
@pytest.mark.injects('fault', 'checkpoints and states that are cut short')
def test_auto_resume_passes_over_what_is_not_whole_and_names_it(
    experiment: Path, broken: str, damage: Callable[[Path], None]
) -> None:
    for iteration in (2, 4):
        save_checkpoint(experiment, iteration)
    damage(experiment / broken)
    with pytest.warns(UserWarning, match='is missing or cut short') as caught:
        state = starting.load_resume_state(resume_options(experiment))
    assert state['iter'] == 2
    assert str(experiment / broken) in str(caught[0].message)
    assert str(experiment / 'training_states/4.state') in str(caught[0].message)


class Payload:
    """Pickled into a state, it would make a file when that is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_state_that_holds_code_is_refused_without_running_it(experiment: Path, tmp_path: Path) -> None:
    save_checkpoint(experiment, 2)
    path = save_checkpoint(experiment, 4)
    torch.save({'epoch': 0, 'iter': 4, 'optimizers': Payload(tmp_path / 'ran'), 'schedulers': []}, path)
    opt = resume_options(experiment, auto_resume=False)
    opt['path']['resume_state'] = str(path)
    with pytest.raises(ValueError, match=rf'path\.resume_state: {path} cannot be read as tensors alone'):
        starting.load_resume_state(opt)
    with pytest.warns(UserWarning, match=r'4\.state'):
        assert starting.load_resume_state(resume_options(experiment))['iter'] == 2
    assert not (tmp_path / 'ran').exists()


@pytest.fixture
def refuser(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a model that refuses every option."""

    class Refuser:
        @classmethod
        def check_options(cls, opt: dict[str, Any]) -> None:
            raise ValueError(f'refused, is_train: {opt["is_train"]}')

    monkeypatch.setitem(MODEL_REGISTRY._obj_map, 'Refuser', Refuser)
    return 'Refuser'


def test_options_are_checked_before_training_makes_folders(
    options: dict[str, Any], train: Callable[..., Path], tmp_path: Path, refuser: str
) -> None:
    with pytest.raises(ValueError, match='refused, is_train: True'):
        train({**options, 'model_type': refuser})
    assert {path.name for path in tmp_path.iterdir()} == {'option.yml'}


def test_options_are_checked_before_testing_makes_folders(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuser: str
) -> None:
    option_file = write_option({**options, 'model_type': refuser}, tmp_path / 'option.yml')
    monkeypatch.setattr(sys, 'argv', ['test.py', '-opt', str(option_file)])
    with pytest.raises(ValueError, match='refused, is_train: False'):
        basicsr.test.test_pipeline(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {'option.yml'}


def test_models_of_others_are_neither_checked_nor_refused(options: dict[str, Any], train: Callable[..., Path]) -> None:
    options = scratch({**options, 'model_type': 'SRModel', 'train_': 'a key that a check would refuse'})
    options['train']['total_iter'] = 1
    del options['val'], options['datasets']['val']
    experiment = train(options)
    assert (experiment / 'models/net_g_latest.pth').is_file()
    starting._check({'model_type': 'UnknownToUs'})  # BasicSR itself says that it does not know the name
    with pytest.raises(ValueError, match="did you mean 'SRModel'"):
        starting._check({'model_type': 'SRModell', 'plugin': '0.1.0'})


ONE_PROCESS_GROUP = """
import mtkd
import torch
from basicsr.utils.options import init_dist

init_dist('pytorch')
print(torch.distributed.get_backend(), torch.distributed.get_world_size())
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_without_cuda_the_processes_are_joined_by_gloo(tmp_path: Path) -> None:
    environment = {'RANK': '0', 'WORLD_SIZE': '1', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '0'}
    assert run_python(ONE_PROCESS_GROUP, tmp_path, **environment).split() == ['gloo', '1']


def test_with_cuda_or_slurm_upstream_joins_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert basicsr.utils.options.init_dist is basicsr.utils.dist_util.init_dist
    calls = []
    init_dist = processes._init_dist_anywhere(lambda *arguments, **options: calls.append((arguments, options)))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    init_dist('pytorch', timeout=5)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    init_dist('slurm', port=7)
    assert calls == [(('pytorch', 'nccl'), {'timeout': 5}), (('slurm', 'nccl'), {'port': 7})]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/group', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def model_on_cpu(**opt: Any) -> BaseModel:
    return BaseModel({'num_gpu': 0, 'is_train': True, **opt})


def test_a_distributed_network_on_the_cpu_is_wrapped(process_group: None) -> None:
    network = nn.Linear(2, 2)
    wrapped = model_on_cpu(dist=True, find_unused_parameters=True).model_to_device(network)
    assert isinstance(wrapped, DistributedDataParallel)
    assert wrapped.module is network
    assert wrapped.find_unused_parameters
    assert not model_on_cpu(dist=True).model_to_device(nn.Linear(2, 2)).find_unused_parameters


def test_a_network_of_one_process_is_left_to_upstream() -> None:
    network = nn.Linear(2, 2)
    assert model_on_cpu(dist=False).model_to_device(network) is network


def test_a_distributed_network_on_a_gpu_is_left_to_upstream() -> None:
    model = types.SimpleNamespace(opt={'dist': True}, device=torch.device('cuda'))
    model_to_device = processes._model_to_any_device(lambda self, net: (self, net))
    assert model_to_device(model, 'network') == (model, 'network')


class Draws(torch.utils.data.Dataset):
    """What the generators that BasicSR augments with give in a loader worker."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[float, float]:
        return np.random.rand(), random.random()  # noqa: NPY002


def draw_epochs(manual_seed: int) -> list[list[float]]:
    """The draws of two epochs, from two workers."""
    torch.manual_seed(manual_seed)
    loader_opt = {'phase': 'train', 'num_worker_per_gpu': 2, 'batch_size_per_gpu': 1}
    loader = build_dataloader(Draws(), loader_opt, num_gpu=0, seed=manual_seed)
    return [[float(draw) for batch in loader for draw in batch] for _ in range(2)]


def test_workers_draw_anew_in_each_epoch_and_alike_in_each_run() -> None:
    first, second = draw_epochs(5)
    assert len({*first, *second}) == 16, 'a draw came twice'
    assert draw_epochs(5) == [first, second]
    assert draw_epochs(6) != [first, second]


def test_ranks_of_one_torch_seed_draw_differently() -> None:
    torch.manual_seed(0)
    draws = set()
    for rank in (0, 1):
        loading.worker_init_fn(0, num_workers=2, rank=rank, seed=3)
        draws |= {np.random.rand(), random.random()}  # noqa: NPY002
    assert len(draws) == 4


def test_a_script_that_only_calls_the_trainer_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    script = types.ModuleType('__main__')
    script.train_pipeline = basicsr.train.train_pipeline
    monkeypatch.setitem(sys.modules, '__main__', script)
    compat.apply()
    assert not hasattr(script, 'make_exp_dirs')
    assert not hasattr(script, 'load_resume_state')


def test_a_script_that_is_the_trainer_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    script = types.ModuleType('__main__')
    calls = []
    script.train_pipeline = script.load_resume_state = lambda opt: None
    script.make_exp_dirs = calls.append
    monkeypatch.setitem(sys.modules, '__main__', script)
    compat.apply()
    compat.apply()
    assert script.load_resume_state is starting.load_resume_state
    script.make_exp_dirs({'is_train': True})
    assert calls == [{'is_train': True}]


def patched() -> list[Any]:
    return [
        sys.modules.get(FUNCTIONAL_TENSOR),
        sys.modules['pytorch_wavelets'],
        list(sys.argv),
        basicsr.train.load_resume_state,
        basicsr.train.make_exp_dirs,
        basicsr.train.EnlargedSampler,
        basicsr.train.build_dataloader,
        basicsr.test.make_exp_dirs,
        basicsr.utils.dist_util.init_dist,
        basicsr.utils.options.init_dist,
        BaseModel.model_to_device,
        basicsr.data.worker_init_fn,
    ]


def test_applying_twice_changes_nothing_more() -> None:
    once = patched()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compat.apply()
    assert patched() == once


def test_building_a_swinir_says_nothing_of_meshgrid_and_other_warnings_stay() -> None:
    code = (
        'import warnings, mtkd, torch\n'
        'from basicsr.archs.swinir_arch import SwinIR\n'
        'SwinIR(img_size=16, window_size=8, depths=[2], embed_dim=8, num_heads=[2])\n'
        "warnings.warn('torch.something: in an upcoming release')"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=REPO)
    assert 'meshgrid' not in done.stderr
    assert 'torch.something' in done.stderr


def launched(option_file: Path, monkeypatch: pytest.MonkeyPatch, text: str, *flags: str) -> None:
    """Let BasicSR's trainer read an option file of this text."""
    option_file.write_text(text)
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(option_file), *flags])
    basicsr.train.parse_options(str(option_file.parent))


@pytest.mark.injects('bad input', 'option files that are no options, or hold code')
def test_a_file_without_sections_that_basicsr_needs_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match='problems found in') as refused:
        launched(tmp_path / 'option.yml', monkeypatch, 'model_type: MultiTeacherSRModel\nname: toy\nscale: four\n')
    for key in ('num_gpu', 'path', 'datasets', 'scale'):
        assert key in str(refused.value)
    assert 'option.yml:3: ' in str(refused.value)
    with pytest.raises(ValueError, match=r'names no such section|unknown key'):
        launched(tmp_path / 'option.yml', monkeypatch, 'teachers: {}\n', '--force_yml', 'trian:total_iter=3')


@pytest.mark.injects('bad input', 'option files that are no options, or hold code')
def test_code_in_an_option_file_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = f'teachers: !!python/object/apply:os.mkdir [{tmp_path}/made]\n'
    with pytest.raises(ValueError, match='tag'):
        launched(tmp_path / 'option.yml', monkeypatch, text)
    assert not (tmp_path / 'made').exists()


def test_files_of_other_models_are_left_to_basicsr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match='num_gpu'):
        launched(tmp_path / 'option.yml', monkeypatch, 'model_type: SRGANModel\nmanual_seed: 1\n')
