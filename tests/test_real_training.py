"""Both stages on real photographs: training images from T91, validation on Set5, by the repository's own launcher."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import AGGREGATOR, REPO, script_environment, small_network, write_option

from mtkd_data.preparation.prepare import main as prepare

Options = dict[str, Any]
TEACHERS = {'edsr': {'num_feat': 24, 'num_block': 4}, 'rcan': {'num_feat': 24}, 'swinir': {'embed_dim': 24}}


@pytest.fixture(scope='module')
def t91(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T91 as LMDB and as folders, LR x4."""
    root = tmp_path_factory.mktemp('t91')
    for layout in ('lmdb', 'disk'):
        arguments = ['--hr', str(shared / 'data/T91'), '--out', str(root / layout), '--scale', '4', '--sub-image', '0']
        assert prepare([*arguments, '--format', layout, '--workers', '2']) == 0
    return root


@pytest.fixture
def real(options: Options, shared: Path, t91: Path) -> Options:
    """Stage-2 options on T91 and Set5 with teachers that are yet to be trained."""
    train, val = options['datasets']['train'], options['datasets']['val']
    train.update(dataroot_gt=str(t91 / 'lmdb/GT.lmdb'), dataroot_lq=str(t91 / 'lmdb/LRbicx4.lmdb'), gt_size=64)
    train['batch_size_per_gpu'] = 8
    val.update(name='Set5', dataroot_gt=str(shared / 'data/Set5/HR'), dataroot_lq=str(shared / 'data/Set5/LRbicx4'))
    val['filename_tmpl'] = '{}x4'
    options['network_g'] = small_network('edsr', num_feat=16)
    options['train']['scheduler']['milestones'] = [200, 250]
    options['train'].update(total_iter=300, ema_decay=0.98)
    options['train']['optim_g']['lr'] = 0.002
    options['val']['val_freq'] = 75
    options['logger'].update(print_freq=50, save_checkpoint_freq=1000)
    return options


def launched(options: Options, root: Path) -> list[float]:
    """Run the launcher of this repository below ``root``; the validation PSNR-Y values of its log."""
    (root / 'basicsr').mkdir(exist_ok=True)
    launcher = root / 'basicsr/train.py'
    launcher.write_text((REPO / 'basicsr/train.py').read_text())
    option_file = write_option(options, root / f'{options["name"]}.yml')
    command = [sys.executable, str(launcher), '-opt', str(option_file)]
    environment = {**script_environment(), 'OMP_NUM_THREADS': '2'}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return [float(value) for value in re.findall(r'# psnr: ([\d.]+)', result.stdout + result.stderr)]


def scratch_run(real: Options, name: str, network: Options) -> Options:
    """Options that train a network without teachers."""
    options = copy.deepcopy(real)
    del options['teachers'], options['aggregator'], options['train']['distill']
    options.update(name=name, network_g=network)
    options['train']['pixel_opt']['loss_weight'] = 1.0
    options['val']['val_freq'] = options['train']['total_iter']
    return options


@pytest.mark.slow
def test_both_stages_run_on_real_images_and_the_student_gets_better(
    real: Options, t91: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table: dict[str, list[float]] = {}
    for name, changes in TEACHERS.items():
        network = small_network(name, **changes)
        table[f'teacher {name}'] = launched(scratch_run(real, name, network), tmp_path)
        weights = tmp_path / f'experiments/{name}/models/net_g_latest.pth'
        real['teachers'][name] = {'network': network, 'path': str(weights), 'param_key': 'params_ema'}
    stage_one = scratch_run(real, 'aggregator', {**AGGREGATOR, 'upscale': 4})
    stage_one.update(model_type='AggregationModel', teachers=real['teachers'])
    stage_one['aggregator'] = {'inputs': ['edsr', 'rcan', 'swinir']}
    stage_one['train']['total_iter'] = stage_one['val']['val_freq'] = 60
    table['aggregator'] = launched(stage_one, tmp_path)
    real['aggregator']['path'] = str(tmp_path / 'experiments/aggregator/models/net_g_latest.pth')
    real['name'] = 'student'
    # the student reads the same images from folders: both of BasicSR's ways in are used
    real['datasets']['train'].update(
        dataroot_gt=str(t91 / 'disk/GT'), dataroot_lq=str(t91 / 'disk/LRbicx4'), io_backend={'type': 'disk'}
    )
    table['student, MTKD'] = launched(real, tmp_path)
    with capsys.disabled():
        print('\nSet5 x4, PSNR-Y (dB) at each validation:')
        for name, values in table.items():
            print(f'  {name:16}', ' '.join(f'{value:.2f}' for value in values))
    first, *_, last = table['student, MTKD']
    assert last > first + 0.5, 'the student does not learn'
    assert last > 26, 'far below bicubic (28.43): something is wrong'
