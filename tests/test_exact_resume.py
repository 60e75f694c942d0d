"""A run that is killed and resumed is, bit for bit, the run that was not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO, WAVELET_TERM, Run, cached, script_environment, stage_one, write_option

from mtkd_data.placed_sampler import Place, PlacedSampler, SeededDataset, seed_of
from mtkd_model.training_state import random_state, set_random_state

Options = dict[str, Any]
HINT = {'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1'}}


def differences(one: Any, other: Any, at: str = '') -> list[str]:
    """Where two contents of checkpoints differ in any bit."""
    if isinstance(one, torch.Tensor):
        equal = one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        if one.keys() == other.keys():
            return [found for key, value in one.items() for found in differences(value, other[key], f'{at}/{key}')]
        equal = False
    elif isinstance(one, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for place, pair in pairs for found in differences(*pair, f'{at}/{place}')]
    else:
        equal = one == other
    return [] if equal else [at]


def content(experiment: Path, iteration: int) -> dict[str, Any]:
    """All that a run has on the disk at an iteration."""
    files = [*experiment.glob(f'models/*_{iteration}.pth'), experiment / f'training_states/{iteration}.state']
    return {path.name: torch.load(path, weights_only=True) for path in files}


def state_of(experiment: Path, iteration: int) -> dict[str, Any]:
    return torch.load(experiment / f'training_states/{iteration}.state', weights_only=True)


def cut_back(experiment: Path, iteration: int) -> None:
    """Leave what a run killed after the saving of ``iteration`` leaves."""
    for path in [*experiment.glob('models/*.pth'), *experiment.glob('training_states/*.state')]:
        number = path.stem.rpartition('_')[2]
        if not number.isdigit() or int(number) > iteration:
            path.unlink()


def losses(experiment: Path) -> dict[str, str]:
    """Iteration -> losses as logged, of all runs; the last word of each counts."""
    lines = [line for log in sorted(experiment.glob('*.log')) for line in log.read_text().splitlines() if 'l_' in line]
    found = {}
    for line in lines:
        if 'iter:' in line:
            found[line.partition('iter:')[2].partition(',')[0].strip()] = line.partition('] l_')[2]
    return found


def online(options: Options, folder: Path) -> Options:
    options['train']['distill'] |= {'hint': HINT, 'dukd': {'type': 'DUKDDistiller', 'teachers': 'edsr'}}
    options['train']['distill']['dukd']['zoom_out_weight'] = 0
    return options


def with_workers(options: Options, folder: Path) -> Options:
    options['datasets']['train']['num_worker_per_gpu'] = 2
    options['train']['distill']['mipkd'] = {'type': 'MiPKDDistiller', 'teachers': 'edsr'}
    return options


def bi_level(options: Options, folder: Path) -> Options:
    options['train']['distill'] = {'mkd': {'type': 'MKDDistiller', 'teachers': 'edsr', 'every': 2}}
    return options


def from_itself(options: Options, folder: Path) -> Options:
    options['train']['distill'] |= {'self': {'type': 'SelfDistiller', 'decay': 0.9}}
    options['train']['amp'] = 'bf16'
    return options


def resident(options: Options, folder: Path) -> Options:
    return cached(options, folder, '--stores', 'target', resident='host')


def aggregator(options: Options, folder: Path) -> Options:
    options['datasets']['train']['type'] = 'PairedCropDataset'
    return stage_one(options)


@pytest.mark.parametrize('change', [online, with_workers, bi_level, from_itself, resident, aggregator])
@pytest.mark.injects('kill', 'trainings of every kind, cut back in or between epochs and resumed, bit-equal')
def test_a_resumed_run_is_the_uninterrupted_one(
    options: Options, train: Run, tmp_path: Path, change: Callable[[Options, Path], Options]
) -> None:
    options['datasets']['train']['dataset_enlarge_ratio'] = 2  # epochs of four iterations
    options = change(options, tmp_path)
    options['train'] |= {'total_iter': 7}
    options['logger'] |= {'save_checkpoint_freq': 1}
    options['val']['val_freq'] = 2
    experiment = train(options)
    whole, logged = content(experiment, 7), losses(experiment)
    assert len(logged) == 7
    for iteration in (2, 4) if change is online else (3,):  # 4 ends an epoch
        cut_back(experiment, iteration)
        assert train(options, '--auto_resume') == experiment
        assert not differences(content(experiment, 7), whole), f'resumed from {iteration}'
        again = losses(experiment)  # a log of the same second is written over the older one
        assert {str(later) for later in range(iteration + 1, 8)} <= again.keys()
        assert again == {number: logged[number] for number in again}


def test_a_validation_that_a_killed_run_did_not_come_to_is_made_up_for(options: Options, train: Run) -> None:
    options['logger'] |= {'save_checkpoint_freq': 1}
    options['val']['val_freq'] = 2
    experiment = train(options)
    best = state_of(experiment, 3)['best_metric_results']
    assert best['val']['psnr']['iter'] == 2
    cut_back(experiment, 2)
    assert state_of(experiment, 2)['best_metric_results'] == {}  # the trainer saves before it validates
    options['val']['val_freq'] = 100
    train(options, '--auto_resume')
    assert state_of(experiment, 3)['best_metric_results'] == best


def test_the_test_above_sees_a_single_bit(options: Options, train: Run) -> None:
    options['logger'] |= {'save_checkpoint_freq': 1}
    experiment = train(options)
    whole = content(experiment, 4)
    changed = content(experiment, 4)
    next(iter(changed['net_g_4.pth']['params_ema'].values())).view(-1).view(torch.int32)[0] ^= 1
    assert differences(whole, content(experiment, 4)) == []
    assert differences(whole, changed)


def test_images_and_crops_do_not_depend_on_workers_or_what_came_before(options: Options, train: Run) -> None:
    options['logger'] |= {'save_checkpoint_freq': 4}
    weights = []
    for workers, kind in ((0, 'PairedImageDataset'), (2, 'PairedImageDataset'), (1, 'PairedCropDataset')):
        options['name'] = f'{kind}_{workers}'
        options['datasets']['train'] |= {'num_worker_per_gpu': workers, 'type': kind}
        weights.append(content(train(options), 4)['net_g_4.pth'])
    assert differences(weights[0], weights[1]) == []
    assert differences(weights[0], weights[2]) == []


def test_a_state_of_an_older_version_is_still_gone_on_with(options: Options, train: Run) -> None:
    experiment = train(options)
    cut_back(experiment, 2)
    path = experiment / 'training_states/2.state'
    state = torch.load(path, weights_only=True)
    for key in ('processes', 'best_metric_results'):
        del state[key]
    torch.save(state, path)
    train(options, '--auto_resume')
    assert (experiment / 'models/net_g_4.pth').is_file()
    log = max(experiment.glob('*.log'), key=lambda each: each.stat().st_mtime_ns).read_text()
    assert 'The state is of an older version' in log


def test_the_best_result_is_remembered(options: Options, train: Run) -> None:
    options['val']['val_freq'] = 1
    experiment = train(options)
    cut_back(experiment, 2)
    best = torch.load(experiment / 'training_states/2.state', weights_only=True)['best_metric_results']
    assert best['val']['psnr']['iter'] == 1  # saved before the validation of iteration 2
    train(options, '--auto_resume')
    later = torch.load(experiment / 'training_states/4.state', weights_only=True)['best_metric_results']
    assert later['val']['psnr']['val'] >= best['val']['psnr']['val']


class Numbers(torch.utils.data.Dataset):
    """As many samples as asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[int, float, float]:
        import random

        return index, random.random(), torch.rand(()).item()


def test_the_order_is_that_of_basicsr_and_a_start_leaves_out_what_was_seen() -> None:
    from basicsr.data.data_sampler import EnlargedSampler

    samplers = [PlacedSampler(Numbers(5), 2, rank, ratio=3) for rank in (0, 1)]
    for rank, sampler in enumerate(samplers):
        upstream = EnlargedSampler(Numbers(5), 2, rank, ratio=3)
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            upstream.set_epoch(epoch)
            assert list(sampler) == list(upstream)
        sampler.start_at(1, 6)
        assert list(sampler) == list(upstream)[3:]
        sampler.set_epoch(2)
        upstream.set_epoch(2)
        assert list(sampler) == list(upstream)
    with pytest.raises(ValueError, match=r'5 samples of epoch 0 .* 2 processes cannot share'):
        samplers[0].start_at(0, 5)


def test_two_processes_draw_together_what_one_draws_alone() -> None:
    alone = PlacedSampler(Numbers(6), 1, 0)
    shares = [PlacedSampler(Numbers(6), 2, rank) for rank in (0, 1)]
    together = [place for pair in zip(*shares, strict=True) for place in pair]
    assert [(int(place), place.seed) for place in together] == [(int(place), place.seed) for place in alone]
    assert len({place.seed for place in alone}) == 6


def test_seeds_differ_by_run_epoch_and_place() -> None:
    seeds = {seed_of(run, epoch, place) for run in range(4) for epoch in range(4) for place in range(500)}
    assert len(seeds) == 4 * 4 * 500


def test_a_sample_is_that_of_its_place_and_the_generators_are_left_as_they_were() -> None:
    data = SeededDataset(Numbers(3))
    before = random_state(torch.device('cpu'))
    first = data[Place(2, 77)]
    assert differences(random_state(torch.device('cpu')), before) == []
    assert (data[Place(1, 77)][1:], data[Place(2, 77)]) == (first[1:], first)
    assert data[Place(2, 78)][1:] != first[1:]
    assert (len(data), data.count) == (3, 3)


def test_random_states_come_back(tmp_path: Path) -> None:
    import random

    import numpy as np

    device = torch.device('cpu')
    random.gauss(0, 1)
    torch.save(random_state(device), tmp_path / 'state.pth')
    draws = [(random.gauss(0, 1), random.random(), np.random.rand(), torch.rand(3).tolist()) for _ in range(2)]  # noqa: NPY002
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True), device)
    assert [(random.gauss(0, 1), random.random(), np.random.rand(), torch.rand(3).tolist()) for _ in range(2)] == draws  # noqa: NPY002


KILLED_AGAIN_AND_AGAIN = '''
"""Run a training in forked processes that are killed at random moments, then to its end; says how often and where."""
import json, os, random, signal, sys, time
from pathlib import Path

import mtkd
from basicsr.train import train_pipeline

root, option_file, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
states = root / 'experiments/toy/training_states'
draw = random.Random(int(sys.argv[4]))

def newest():
    return max((int(path.stem) for path in states.glob('*.state') if path.stem.isdigit()), default=0)

def run(dies_at=None):
    pid = os.fork()
    if pid:
        return pid
    sys.argv = ['train.py', '-opt', option_file, '--auto_resume']
    if dies_at is not None:
        calls, fsync = [], os.fsync
        def dying(descriptor):
            calls.append(descriptor)
            if len(calls) >= dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)
        os.fsync = dying
    log = os.open(root / 'output.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    try:
        train_pipeline(str(root))
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

happened = []
for number in range(kills):
    saving = number % 4 == 0
    before, begun = newest(), time.monotonic()
    pid = run(draw.randint(1, 8) if saving else None)
    if not saving:
        goal = before + draw.randint(0, 2)
        while newest() < goal and time.monotonic() - begun < 60:
            if os.waitpid(pid, os.WNOHANG)[0]:
                raise SystemExit(f'it ended by itself: {(root / "output.txt").read_text()}')
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.3) if goal > before else draw.uniform(0, 1.5))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), (root / 'output.txt').read_text()
    happened.append({'saving': saving, 'newest state': newest()})
_, status = os.waitpid(run(), 0)
assert os.waitstatus_to_exitcode(status) == 0, (root / 'output.txt').read_text()
print(json.dumps(happened))
'''


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_as_if_it_had_not(
    options: Options, train: Run, tmp_path: Path, tally: Any
) -> None:
    options['train']['distill'] = {'wavelet': dict(WAVELET_TERM), 'hint': HINT}
    options['train']['total_iter'] = 300
    options['logger'] |= {'save_checkpoint_freq': 1, 'print_freq': 50}
    options['datasets']['train']['dataset_enlarge_ratio'] = 5  # epochs of ten iterations
    expected = content(train(options), 300)

    root = tmp_path / 'killed'
    root.mkdir()
    script = tmp_path / 'again.py'
    script.write_text(KILLED_AGAIN_AND_AGAIN)
    command = [sys.executable, str(script), str(root), str(write_option(options, tmp_path / 'option.yml')), '20', '5']
    done = subprocess.run(command, cwd=REPO, env=script_environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    killed = json.loads(done.stdout.splitlines()[-1])
    assert len(killed) == 20
    assert len({each['newest state'] for each in killed}) > 5, killed  # it got on in between
    found = differences(content(root / 'experiments/toy', 300), expected)
    with tally(
        'kill', 'training killed at random moments, a quarter while saving; weights, optimizers, best results'
    ) as count:
        for each in killed:
            count(not found, f'{found} after {each}')
    shutil.rmtree(root)
