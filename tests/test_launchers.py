"""Real processes: this project's launchers, those of others, a killed run that resumes, two processes by torchrun."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import basicsr
import cv2
import pytest
import torch
from conftest import write_option
from launching import TORCHRUN, environment, launch, newest_log

import mtkd

pytestmark = pytest.mark.slow

Options = dict[str, Any]
HINT_TERM = {'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1'}}
IMPORT_OF_THE_RELEASE = 'from torchvision.transforms.functional_tensor import rgb_to_grayscale\n'
IMPORT_OF_MASTER = 'from torchvision.transforms.functional import rgb_to_grayscale\n'


def option_for_testing(options: Options, weights: Path) -> Options:
    """An option that tests the student of ``options``."""
    dataset = {key: value for key, value in options['datasets']['val'].items() if key != 'phase'}
    return {
        **{key: options[key] for key in ('model_type', 'scale', 'num_gpu', 'manual_seed', 'network_g')},
        'name': 'toy_test',
        'datasets': {'test_1': dataset},
        'path': {'pretrain_network_g': str(weights), 'param_key_g': 'params_ema', 'strict_load_g': True},
        'val': {**options['val'], 'save_img': True, 'suffix': None},
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """BasicSR as its GitHub master has it: the installed release, and the one import that master corrects."""
    installed, copy = Path(basicsr.__file__).parent, tmp_path / 'checkout/basicsr'
    shutil.copytree(installed, copy, ignore=shutil.ignore_patterns('__pycache__'))
    changed = copy / 'data/degradations.py'
    changed.write_text(changed.read_text().replace(IMPORT_OF_THE_RELEASE, IMPORT_OF_MASTER))
    for path in copy.rglob('*.py'):
        texts = (path.read_text(), (installed / path.relative_to(copy)).read_text())
        lines = zip(*(text.splitlines(keepends=True) for text in texts), strict=True)
        found = [pair for pair in lines if pair[0] != pair[1]]
        assert found in ([], [(IMPORT_OF_MASTER, IMPORT_OF_THE_RELEASE)] if path == changed else []), path
    return copy.parent


def with_plugin_line(option_file: Path) -> Path:
    """All that an option file needs where the launchers are not this project's."""
    with option_file.open('a') as file:
        file.write('plugin: !!python/name:mtkd.__version__\n')
    return option_file


def check_training(experiment: Path) -> None:
    log = newest_log(experiment)
    assert 'iter:       4' in log
    assert all(f'{loss}: ' in log for loss in ('l_pix', 'l_wavelet'))
    assert '# psnr: ' in log
    assert 'End of training' in log
    for name in ('models/net_g_4.pth', 'models/net_g_latest.pth', 'training_states/4.state'):
        assert (experiment / name).is_file()


def check_results(results: Path) -> None:
    assert '# psnr: ' in newest_log(results)
    images = sorted((results / 'visualization/val').iterdir())
    assert len(images) == 4
    assert all(cv2.imread(str(path)).shape == (144, 192, 3) for path in images)


def test_the_launchers_train_and_test(options: Options, project: Path, tmp_path: Path) -> None:
    launch(tmp_path, project / 'basicsr/train.py', '-opt', write_option(options, tmp_path / 'train.yml'))
    experiment = project / 'experiments/toy'
    check_training(experiment)
    tested = option_for_testing(options, experiment / 'models/net_g_latest.pth')
    launch(tmp_path, project / 'basicsr/test.py', '-opt', write_option(tested, tmp_path / 'test.yml'))
    check_results(project / 'results/toy_test')


def test_an_unmodified_checkout_needs_only_the_plugin_line(options: Options, checkout: Path, tmp_path: Path) -> None:
    def run(launcher: str, options: Options) -> None:
        option_file = with_plugin_line(write_option(options, tmp_path / 'option.yml'))
        launch(checkout, f'basicsr/{launcher}.py', '-opt', option_file, first=str(checkout))

    run('train', options)
    experiment = checkout / 'experiments/toy'
    check_training(experiment)
    assert f'plugin: {mtkd.__version__}' in newest_log(experiment)
    run('test', option_for_testing(options, experiment / 'models/net_g_latest.pth'))
    check_results(checkout / 'results/toy_test')
    assert f'plugin: {mtkd.__version__}' in newest_log(checkout / 'results/toy_test')


def test_a_checkout_of_the_release_trains_and_tests_by_our_command(options: Options, tmp_path: Path) -> None:
    folder, installed = tmp_path / 'release', Path(basicsr.__file__).parent
    shutil.copytree(installed, folder / 'basicsr', ignore=shutil.ignore_patterns('__pycache__'))

    def run(name: str, options: Options) -> str:
        option_file = write_option(options, tmp_path / 'option.yml')
        return launch(folder, '-m', 'mtkd', name, '-opt', option_file, first=str(folder))

    run('train', options)
    check_training(folder / 'experiments/toy')
    run('test', option_for_testing(options, folder / 'experiments/toy/models/net_g_latest.pth'))
    check_results(folder / 'results/toy_test')


def test_the_script_of_another_project_needs_only_the_plugin_line(
    options: Options, checkout: Path, tmp_path: Path
) -> None:
    (tmp_path / 'other/theirs').mkdir(parents=True)
    script = tmp_path / 'other/theirs/train.py'
    script.write_text(f'from basicsr.train import train_pipeline\n\ntrain_pipeline({str(tmp_path / "other")!r})\n')
    options['train']['total_iter'] = 1
    option_file = with_plugin_line(write_option(options, tmp_path / 'option.yml'))
    launch(tmp_path, script, '-opt', option_file, first=str(checkout))
    assert 'l_wavelet: ' in newest_log(tmp_path / 'other/experiments/toy')


@pytest.mark.parametrize('launcher', ['ours', 'of a checkout'])
def test_what_is_wrong_with_an_option_file_is_all_that_is_shown(
    options: Options, project: Path, checkout: Path, tmp_path: Path, launcher: str
) -> None:
    options['network_g']['num_feet'] = 8
    options['train']['total_iters'] = 3
    option_file = with_plugin_line(write_option(options, tmp_path / 'option.yml'))
    root, first = (project, '') if launcher == 'ours' else (checkout, str(checkout))
    done = subprocess.run(
        [sys.executable, root / 'basicsr/train.py', '-opt', option_file],
        cwd=root, env=environment(first), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    head, *problems = done.stderr.splitlines()
    assert head.startswith('error: '), done.stderr
    assert [key in problem for key, problem in zip(('num_feet', 'total_iters'), problems, strict=True)] == [True, True]
    assert not (root / 'experiments').exists()


def kill_when(command: list[str], folder: Path, reached: Callable[[], bool]) -> None:
    """Start ``command`` and end it by SIGKILL as soon as ``reached``."""
    with (folder / 'output.txt').open('w') as output:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=output, stderr=output)
    deadline = time.monotonic() + 120
    try:
        while not reached():
            assert process.poll() is None, (folder / 'output.txt').read_text()
            assert time.monotonic() < deadline, 'no checkpoints in time'
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def iterations(experiment: Path) -> list[int]:
    """Iterations of the training states on the disk."""
    return sorted(int(path.stem) for path in (experiment / 'training_states').glob('*.state'))


def load_params(experiment: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(experiment / f'models/{name}.pth', weights_only=True)['params']


def test_a_killed_run_resumes_from_its_newest_whole_state(options: Options, project: Path, tmp_path: Path) -> None:
    options['train']['distill']['hint'] = HINT_TERM
    options['train']['total_iter'] = 100000
    options['datasets']['train']['dataset_enlarge_ratio'] = (
        10  # epochs of 20 iterations: the run is killed in a later one
    )
    experiment = project / 'experiments/toy'
    command = [str(project / 'basicsr/train.py'), '-opt', str(write_option(options, tmp_path / 'option.yml'))]
    kill_when([sys.executable, *command], tmp_path, lambda: len(iterations(experiment)) > 12)

    *_, whole, broken = iterations(experiment)
    state = experiment / f'training_states/{broken}.state'
    state.write_bytes(state.read_bytes()[:-100])
    adapters = {name: weight + 5 for name, weight in load_params(experiment, f'distill_{whole}').items()}
    torch.save({'params': adapters}, experiment / f'models/distill_{whole}.pth')  # told apart from newly made ones
    options['train']['total_iter'] = whole + 3
    write_option(options, tmp_path / 'option.yml')
    output = launch(tmp_path, *command, '--auto_resume')

    assert f'auto_resume skips {state}' in output
    log = newest_log(experiment)
    epoch = torch.load(experiment / f'training_states/{whole}.state', weights_only=True)['epoch']
    assert epoch > 0
    assert f'Resuming training from epoch: {epoch}, iter: {whole}.' in log
    assert f'Loading EDSR from {experiment}/models/net_g_{whole}.pth' in log
    assert all(f'{loss}: ' in log for loss in ('l_pix', 'l_wavelet', 'l_hint'))
    assert f'iter: {whole + 1:7,d}' in log
    assert f'iter: {whole:7,d}' not in log.partition('Start training')[2]
    assert [path.name for path in (project / 'experiments').iterdir()] == ['toy'], 'the run was archived'
    assert torch.load(state, weights_only=True)['iter'] == broken, 'the broken state was not written anew'
    for name, weight in load_params(
        experiment, f'distill_{broken}'
    ).items():  # two steps of Adam, each about lr = 0.001
        torch.testing.assert_close(weight, adapters[name], rtol=0, atol=0.05)


KEEP_WHAT_EACH_PROCESS_HAS = """
import runpy
import sys

import mtkd
import torch
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

def save(self, epoch, current_iter):
    parts = {'student': self.net_g, 'distillers': self.distillers}
    torch.save({name: part.state_dict() for name, part in parts.items()} | {'lq': self.lq}, f'{self.opt["rank"]}.pth')

MultiTeacherSRModel.save = save
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_student_and_adapters_stay_alike_in_two_processes(options: Options, project: Path, tmp_path: Path) -> None:
    options['train']['distill']['hint'] = HINT_TERM
    options['train']['total_iter'] = 3
    del options['val'], options['datasets']['val']
    script, option_file = tmp_path / 'keep.py', write_option(options, tmp_path / 'option.yml')
    script.write_text(KEEP_WHAT_EACH_PROCESS_HAS)
    launch(tmp_path, *TORCHRUN, script, project / 'basicsr/train.py', '-opt', option_file, '--launcher', 'pytorch')
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1))
    assert not torch.equal(first['lq'], second['lq']), 'both trained on the same images'
    assert {'student', 'distillers'} < first.keys()
    for part in ('student', 'distillers'):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(value, second[part][name]) for name, value in first[part].items()), part


def test_two_processes_train_validate_and_save_on_the_cpu(options: Options, project: Path, tmp_path: Path) -> None:
    options['train']['distill']['hint'] = HINT_TERM
    options['train']['total_iter'] = 3
    option_file = write_option(options, tmp_path / 'option.yml')
    launch(tmp_path, *TORCHRUN, project / 'basicsr/train.py', '-opt', option_file, '--launcher', 'pytorch')
    experiment = project / 'experiments/toy'
    (log_file,) = experiment.glob('*.log')
    log = log_file.read_text()
    assert 'World size (gpu number): 2' in log
    assert all(f'{loss}: ' in log for loss in ('l_pix', 'l_wavelet', 'l_hint'))
    assert '# psnr: ' in log
    for name in ('net_g_latest', 'distill_latest'):
        names = load_params(experiment, name)
        assert not any(key.startswith('module.') for key in names), 'the wrapper of DDP was saved'
