"""The number of processes changes neither the images nor the gradients of a training, nor whether it can go on."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_option
from launching import TORCHRUN, launch, newest_log

pytestmark = pytest.mark.slow

Options = dict[str, Any]
TOLERANCE = 1e-4  # of what a step moves: sums over a batch in another order, over three steps


@pytest.fixture
def options(options: Options) -> Options:
    options['train'] |= {'total_iter': 3, 'optim_g': {'type': 'Adam', 'lr': 0.1, 'eps': 1.0}}  # moves by the gradient
    options['train']['distill']['hint'] = {
        'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1'}, 'loss_weight': 0.00001,
    }  # fmt: skip
    options['logger']['save_checkpoint_freq'] = 1
    options['datasets']['train']['dataset_enlarge_ratio'] = 5  # epochs of five iterations
    del options['val'], options['datasets']['val']
    return options


def run(options: Options, root: Path, folder: Path, name: str, processes: int, *flags: str) -> Path:
    """Train with batches of four over all processes; the experiment."""
    options['name'] = name
    options['datasets']['train']['batch_size_per_gpu'] = 4 // processes
    option_file = write_option(options, folder / f'{name}.yml')
    distributed = (*TORCHRUN,) if processes == 2 else ()
    launcher = ('--launcher', 'pytorch') if processes == 2 else ()
    launch(folder, *distributed, root / 'basicsr/train.py', '-opt', option_file, *launcher, *flags)
    return root / 'experiments' / name


def furthest(one: Path, other: Path, iteration: int, of_other: int | None = None) -> float:
    """The largest difference between the weights of two experiments, or of two iterations."""
    found = []
    for part in ('net_g', 'distill'):
        first, second = (
            torch.load(path / f'models/{part}_{number}.pth', weights_only=True)['params']
            for path, number in ((one, iteration), (other, of_other or iteration))
        )
        assert first.keys() == second.keys()
        found += [(value - second[name]).abs().max().item() for name, value in first.items()]
    return max(found)


def test_two_processes_train_what_one_does_and_either_goes_on_from_the_other(
    options: Options,
    project: Path,
    tmp_path: Path,
) -> None:
    alone = run(options, project, tmp_path, 'alone', 1)
    together = run(options, project, tmp_path, 'together', 2)
    allowed = TOLERANCE * furthest(alone, alone, 3, 2)
    assert 0 < furthest(alone, together, 3) < allowed

    for name, source, processes in (('from_two', together, 1), ('from_one', alone, 2)):
        experiment = source.with_name(name)
        shutil.copytree(source, experiment)
        for path in [*experiment.rglob('*_3.pth'), *experiment.rglob('*_latest.pth'), *experiment.rglob('3.state')]:
            path.unlink()
        run(options, project, tmp_path, name, processes, '--auto_resume')
        assert f'now there are {processes}' in newest_log(experiment)
        assert furthest(experiment, alone, 3) < allowed
