"""Several processes: every kind of training runs, goes on exactly, and ends when one of them dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import cached, script_environment, stage_one, write_option
from launching import TORCHRUN, environment, launch

pytestmark = pytest.mark.slow

Options = dict[str, Any]


def first_stage(options: Options, folder: Path) -> Options:
    return stage_one(options)


def from_a_cache(options: Options, folder: Path) -> Options:
    return cached(options, folder, '--stores', 'target', resident='host')


def bi_level(options: Options, folder: Path) -> Options:
    options['train']['distill'] |= {'mkd': {'type': 'MKDDistiller', 'teachers': 'edsr', 'every': 2}}
    return options


def random_masks(options: Options, folder: Path) -> Options:
    options['train']['distill'] |= {'mipkd': {'type': 'MiPKDDistiller', 'teachers': 'edsr'}}
    return options


@pytest.mark.parametrize('change', [first_stage, from_a_cache, bi_level, random_masks])
@pytest.mark.injects('kill', 'trainings by two processes, cut back and resumed, bit-equal')
def test_two_processes_go_on_exactly_where_they_were(
    options: Options, project: Path, tmp_path: Path, change: Callable[[Options, Path], Options]
) -> None:
    options = change(options, tmp_path)
    options['train']['total_iter'] = 3
    options['val']['val_freq'] = 2
    options['logger']['save_checkpoint_freq'] = 1
    command = (*TORCHRUN, project / 'basicsr/train.py', '-opt', write_option(options, tmp_path / 'option.yml'))
    experiment = project / 'experiments/toy'

    def weights() -> dict[str, Any]:
        paths = experiment.glob('models/*_3.pth')
        return {path.name: torch.load(path, weights_only=True)['params'] for path in paths}

    launch(tmp_path, *command, '--launcher', 'pytorch')
    expected = weights()
    for path in [*experiment.rglob('*_3.pth'), *experiment.rglob('*_latest.pth'), *experiment.rglob('3.state')]:
        path.unlink()
    assert '# psnr: ' in launch(tmp_path, *command, '--launcher', 'pytorch', '--auto_resume')
    found = weights()
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        assert all(torch.equal(value, found[name][key]) for key, value in content.items()), name


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_a_process_that_dies_ends_the_job_with_its_reason(options: Options, project: Path, tmp_path: Path) -> None:
    options['train']['total_iter'] = 100000
    option_file = write_option(options, tmp_path / 'option.yml')
    train = [str(project / 'basicsr/train.py'), '-opt', str(option_file), '--launcher', 'pytorch']
    output = tmp_path / 'output.txt'
    with output.open('w') as file:
        job = subprocess.Popen(
            [sys.executable, *TORCHRUN, *train], cwd=tmp_path, env=environment(), stdout=file, stderr=file
        )
    deadline = time.monotonic() + 120
    while 'iter:       2' not in output.read_text():
        assert job.poll() is None, output.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = subprocess.run(['pgrep', '-P', str(job.pid)], capture_output=True, text=True, check=True).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    assert job.wait(60) != 0  # a minute: beyond that it hangs
    assert 'exitcode  : -9' in output.read_text()


def test_two_groups_of_processes_meet_as_machines_do(
    options: Options, project: Path, tmp_path: Path, free_port: int
) -> None:
    del options['val'], options['datasets']['val']
    option_file = write_option(options, tmp_path / 'option.yml')
    train = [str(project / 'basicsr/train.py'), '-opt', str(option_file), '--launcher', 'pytorch']
    meeting = ['--rdzv_backend=c10d', '--rdzv_id=mtkd', f'--rdzv_endpoint=localhost:{free_port}']
    machine = [sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', '--nproc_per_node=1', *meeting, *train]
    groups = [
        subprocess.Popen(
            machine, cwd=tmp_path, env=script_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [group.communicate(timeout=180)[0] for group in groups]
    assert [group.returncode for group in groups] == [0, 0], said
    assert sum('End of training' in text for text in said) == 1  # rank 0 speaks
    state = torch.load(project / 'experiments/toy/training_states/4.state', weights_only=True)
    assert len(state['processes']) == 2
