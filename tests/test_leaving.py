"""Asked by a signal, a training saves and leaves; old checkpoints go, the best stays."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO, Run, script_environment, write_option

from mtkd_model import leaving
from mtkd_model.checkpoint import remove_all_but_last
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

Options = dict[str, Any]
SIGNALS = ('SIGTERM', 'SIGINT', 'SIGUSR1')


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """What an exception held is freed, so that other tests can open the same LMDB."""
    yield
    gc.collect()


def handlers() -> list[Any]:
    return [signal.getsignal(getattr(signal, name)) for name in SIGNALS]


def weights(experiment: Path, iteration: int) -> dict[str, torch.Tensor]:
    return torch.load(experiment / f'models/net_g_{iteration}.pth', weights_only=True)['params_ema']


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize('name', SIGNALS)
@pytest.mark.injects('fault', 'signals that ask a training to leave')
def test_a_signal_saves_the_iteration_at_hand_and_the_run_goes_on_from_there(
    options: Options, train: Run, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options['datasets']['train']['type'] = 'PairedCropDataset'  # which can be opened twice in a process
    options['logger']['save_checkpoint_freq'] = 5
    options['train']['total_iter'] = 5
    options['name'] = 'whole'
    expected = weights(train(options), 5)
    before = handlers()
    options['name'] = 'left'
    optimize = MultiTeacherSRModel.optimize_parameters

    def optimize_and_signal(model: MultiTeacherSRModel, iteration: int) -> None:
        optimize(model, iteration)
        if iteration == 3:
            os.kill(os.getpid(), getattr(signal, name))

    monkeypatch.setattr(MultiTeacherSRModel, 'optimize_parameters', optimize_and_signal)
    with pytest.raises(SystemExit) as left:
        train(options)
    monkeypatch.setattr(MultiTeacherSRModel, 'optimize_parameters', optimize)
    assert left.value.code == leaving.LEFT == 75
    assert f'{name}: saving after this iteration' in capsys.readouterr().err
    assert handlers() == before
    experiment = train(options, '--auto_resume')
    assert sorted(path.name for path in (experiment / 'training_states').iterdir()) == ['3.state', '5.state']
    assert equal(weights(experiment, 5), expected)
    assert handlers() == before


@pytest.mark.injects('fault', 'signals that ask a training to leave')
def test_a_second_signal_does_what_it_did_before() -> None:
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job
    owner = type('Owner', (), {})()
    leaving.listen_for_signals(owner)
    os.kill(os.getpid(), signal.SIGINT)
    assert leaving.asked_to_leave(1, dist=False, device=torch.device('cpu'))
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    del owner
    assert not leaving.asked_to_leave(1, dist=False, device=torch.device('cpu'))
    signal.signal(signal.SIGINT, inherited)


def test_signals_do_again_what_they_did_when_the_model_is_gone() -> None:
    before, owner = handlers(), type('Owner', (), {})()
    leaving.listen_for_signals(owner)
    assert handlers() != before
    leaving.listen_for_signals(owner)
    del owner
    assert handlers() == before


@pytest.mark.slow
@pytest.mark.injects('fault', 'signals that ask a training to leave')
def test_a_job_whose_processes_all_get_the_signal_is_saved_too(options: Options, tmp_path: Path) -> None:
    options['train']['total_iter'] = 100000
    options['datasets']['train']['num_worker_per_gpu'] = 2
    options['logger'] |= {'save_checkpoint_freq': 100000, 'print_freq': 1}
    script = tmp_path / 'train.py'
    script.write_text((REPO / 'basicsr/train.py').read_text().replace('parents[1]', 'parents[0]'))
    command = [sys.executable, str(script), '-opt', str(write_option(options, tmp_path / 'option.yml'))]
    with (tmp_path / 'output.txt').open('w') as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=script_environment(), stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + 120
    while 'iter:       2' not in (tmp_path / 'output.txt').read_text():
        assert process.poll() is None, (tmp_path / 'output.txt').read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # the loader's workers too, as a batch system does
    assert process.wait(60) == leaving.LEFT, (tmp_path / 'output.txt').read_text()
    (state,) = (tmp_path / 'experiments/toy/training_states').iterdir()
    assert torch.load(state, weights_only=True)['iter'] >= 2


def test_only_the_last_checkpoints_stay(options: Options, train: Run) -> None:
    options['logger'] |= {'save_checkpoint_freq': 1, 'keep_last': 2}
    options['train']['distill']['hint'] = {'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1'}}
    experiment = train(options)
    assert {path.name for path in (experiment / 'training_states').iterdir()} == {'3.state', '4.state'}
    assert {path.name for path in (experiment / 'models').iterdir()} == {
        'net_g_3.pth', 'net_g_4.pth', 'net_g_latest.pth', 'distill_3.pth', 'distill_4.pth', 'distill_latest.pth',
    }  # fmt: skip


def test_networks_whose_state_is_still_to_come_stay(tmp_path: Path) -> None:
    models, states = tmp_path / 'models', tmp_path / 'states'
    models.mkdir()
    states.mkdir()
    for number in (1, 2, 3, 4):
        (models / f'net_g_{number}.pth').touch()
    for number in (1, 2, 3):
        (states / f'{number}.state').touch()
    (models / 'net_g_best.pth').touch()
    remove_all_but_last(1, models, states)
    assert {path.name for path in models.iterdir()} == {'net_g_3.pth', 'net_g_4.pth', 'net_g_best.pth'}
    assert [path.name for path in states.iterdir()] == ['3.state']


def test_the_best_weights_are_those_of_the_best_validation(
    options: Options, train: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtkd_model import validation

    values = iter([20.0, 25.0, 21.0, 24.0, 19.0])
    monkeypatch.setattr(validation, '_measure', lambda *arguments: {0: {'psnr': next(values)}})
    options['val']['val_freq'] = 1
    options['logger'] |= {'save_checkpoint_freq': 1, 'keep_best': 'psnr'}
    experiment = train(options)
    best = torch.load(experiment / 'models/net_g_best.pth', weights_only=True)['params_ema']
    assert equal(best, weights(experiment, 2))
    assert not equal(best, weights(experiment, 3))


@pytest.mark.parametrize(
    ('keeping', 'message'),
    [
        ({'keep_last': 0}, 'keep_last should be null or a whole number, at least 1; it is 0'),
        ({'keep_last': True}, 'keep_last should be null or a whole number, at least 1; it is True'),
        ({'keep_best': 'pnsr'}, "'pnsr' is no metric of val.metrics: did you mean 'psnr'"),
    ],
)
def test_a_mistake_in_what_to_keep_is_named_before_anything_is_made(
    options: Options, train: Run, tmp_path: Path, keeping: dict[str, Any], message: str
) -> None:
    options['logger'] |= keeping
    with pytest.raises(ValueError, match=message):
        train(options)
    assert not (tmp_path / 'experiments').exists()
