"""``python -m mtkd check`` and ``schema``: all problems with their lines, or the plan of a run; nothing is written."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPO, build_arch, cached, script_environment, small_network, stage_one, write_option

from mtkd.__main__ import main
from mtkd.schema import memory
from mtkd.schema.check import check
from mtkd_arch.weights import read_weights
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

Options = dict[str, Any]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """``plan(options)`` is what the command prints, by the first word or two of each line; nothing may be written."""
    monkeypatch.chdir(tmp_path)

    def run(options: Options, *forced: str, timed: bool = False) -> dict[str, str]:
        file = write_option(options, tmp_path / 'option.yml')
        before = sorted(tmp_path.rglob('*'))
        text = check(file, forced, timed)
        assert sorted(tmp_path.rglob('*')) == before
        lines = [re.split(r'\s{2,}', line.strip(), maxsplit=1) for line in text.splitlines()]
        return {line[0]: line[-1] for line in reversed(lines)}  # the optimizer before its memory

    return run


def test_the_plan_says_what_is_trained_and_what_is_frozen(options: Options, plan: Callable[..., dict]) -> None:
    found = plan(options)
    edsr = sum(parameter.numel() for parameter in build_arch(small_network('edsr')).parameters())
    assert re.split(r'\s{2,}', found['network_g']) == ['EDSR', f'{edsr / 1000:.3g} k', 'trained', 'random weights']
    for name, teacher in options['teachers'].items():
        count = sum(value.numel() for key, value in read_weights(teacher['path']).items() if 'index' not in key)
        kind, said, role, path = re.split(r'\s{2,}', found[f'teachers.{name}'])
        assert (kind, role, path) == (teacher['network']['type'], 'frozen', teacher['path'])
        assert float(said.split()[0]) == pytest.approx(count / 1000, rel=0.01)  # three digits; SwinIR has a mask beside
    assert found['aggregator'].endswith(options['aggregator']['path'])


def test_the_plan_says_terms_data_and_schedule(options: Options, plan: Callable[..., dict]) -> None:
    options['train']['distill']['hint'] = {
        'type': 'FitNetDistiller', 'taps': {'body.-1': 'rcan/body.-1'}, 'loss_weight': 0.25,
    }  # fmt: skip
    options['train'].update(total_iter=500)
    found = plan(options)
    assert re.split(r'\s{2,}', found['pixel_opt']) == ['L1Loss', 'weight 0.1', 'to the ground truth']
    assert re.split(r'\s{2,}', found['distill.wavelet']) == ['OutputDistiller', 'weight 1', 'from target']
    assert re.split(r'\s{2,}', found['distill.hint'])[1:] == ['weight 0.25', 'taps body.-1 <- rcan/body.-1']
    # four photographs, a hundred times, in batches of two: 200 an epoch, so 500 iterations end in the third
    assert found['train'].endswith('4 images x 100 = 400 crops an epoch, 200 batches of 2; 3 epochs')
    assert found['val'].endswith('4 images')
    assert found['iterations'] == '500'
    assert found['optimizer'] == 'Adam lr 0.001'
    assert found['schedule'] == 'MultiStepLR milestones [100] gamma 0.5'
    assert found['average'].startswith('decay 0.9')
    assert found['precision'] == 'fp32'
    assert 'a step' not in found
    assert plan(options, 'train:amp=auto')['precision'] == 'auto: bf16 where the device computes in it, else fp32'


def test_a_key_may_be_changed_for_the_check(options: Options, plan: Callable[..., dict]) -> None:
    found = plan(
        options, 'train:total_iter=7', 'datasets:train:batch_size_per_gpu=4', 'train:scheduler:milestones=[2, 3]'
    )
    assert found['iterations'] == '7'
    assert found['train'].endswith('100 batches of 4; 1 epochs')
    assert found['schedule'] == 'MultiStepLR milestones [2, 3] gamma 0.5'
    with pytest.raises(
        ValueError, match=r"--force_yml trian:total_iter=7: unknown key 'trian' in the option file: did you"
    ):
        plan(options, 'trian:total_iter=7')
    with pytest.raises(
        ValueError, match=r'^--force_yml train:total_iter=0: train\.total_iter should be a whole number'
    ):
        plan(options, 'train:total_iter=0')


def test_the_time_of_a_step_is_measured_only_when_asked_for(options: Options, plan: Callable[..., dict]) -> None:
    found = plan(options, timed=True)
    assert re.match(r'[\d.e-]+ s +median of 3 on this CPU', found['a step'])
    assert found['the run'].endswith('4 steps')


METHODS = (
    'ATDistiller',
    'FAKDDistiller',
    'RKDDistiller',
    'CrossKDDistiller',
    'MKDDistiller',
    'MiPKDDistiller',
    'SelfDistiller',
)


@pytest.mark.parametrize('method', METHODS)
def test_every_method_can_be_planned(options: Options, plan: Callable[..., dict], method: str) -> None:
    options['train']['distill'] = {'term': {'type': method}}
    found = plan(options, timed=method == 'MKDDistiller')
    assert found['distill.term'].startswith(method)
    assert float(found['together'].split()[0]) > float(found['activations'].split()[0]) > 0


def test_stage_one_is_planned_too(options: Options, plan: Callable[..., dict]) -> None:
    found = plan(stage_one(options))
    assert found['network_g'].startswith('DCTSwin')
    assert found['teachers.rcan'].startswith('RCAN')
    assert 'aggregator' not in found


def test_with_a_cache_teachers_are_not_built(options: Options, plan: Callable[..., dict], tmp_path: Path) -> None:
    (tmp_path / 'given').mkdir()
    found = plan(cached(options, tmp_path / 'given'))
    assert found['teachers.edsr'].endswith('its outputs come from the cache')
    assert found['train'].startswith('photos  CachedTeacherDataset')


def test_a_test_file_needs_no_training_sections(options: Options, plan: Callable[..., dict], tmp_path: Path) -> None:
    (tmp_path / 'given').mkdir()
    weights = tmp_path / 'given/student.pth'
    torch.save({'params': build_arch(options['network_g']).state_dict()}, weights)
    options['path'] = {'pretrain_network_g': str(weights)}
    options['datasets'] = {'test_1': options['datasets']['val']}
    del options['train'], options['logger'], options['teachers'], options['aggregator'], options['val']['val_freq']
    found = plan(options)
    assert found['network_g'].split()[-2:] == ['tested', str(weights)]
    assert 'together' not in found


def test_a_model_of_basicsr_is_not_built(options: Options, plan: Callable[..., dict]) -> None:
    del options['teachers'], options['aggregator'], options['train']['distill']
    found = plan({**options, 'model_type': 'SRModel'})
    assert 'not built: this model is none of the plugin' in found
    assert found['optimizer'] == 'Adam lr 0.001'


MIB = 2**20


def test_the_memory_of_a_plain_convolution_can_be_counted_by_hand(options: Options) -> None:
    """EDSR without blocks' worth of doubt: parameters in each role, and activations that grow with the batch."""
    del options['teachers'], options['aggregator'], options['train']['distill']
    options.update(dist=False, is_train=True, rank=0, world_size=1)
    model = MultiTeacherSRModel(options)
    bytes_of_student = 4 * sum(parameter.numel() for parameter in model.net_g.parameters())
    found = memory.estimate(model, batch=2, gt_size=64, on_gpu=False)
    assert found.gradients == bytes_of_student
    assert found.optimizer == 2 * bytes_of_student  # Adam keeps two moments
    assert bytes_of_student <= found.weights <= bytes_of_student + 64
    assert found.average == found.weights
    more = [memory.estimate(model, batch, gt_size=64, on_gpu=False).activations for batch in (4, 6)]
    assert more[1] - more[0] == pytest.approx(more[0] - found.activations, abs=2)  # a straight line, in whole bytes
    assert more[0] > found.activations
    kept = found.weights + found.gradients + found.optimizer + found.average
    assert found.total == kept + found.activations + found.passing


@pytest.mark.parametrize('on_gpu', [False, True])
def test_the_activations_are_those_a_larger_step_keeps(options: Options, on_gpu: bool) -> None:
    """The estimate from 16 x 16 against what the graph of the real patch keeps, summed up independently."""
    del options['teachers'], options['aggregator'], options['train']['distill']
    options['datasets']['train']['gt_size'] = 192
    options.update(dist=False, is_train=True, rank=0, world_size=1)
    model = MultiTeacherSRModel(options)
    found = memory.estimate(model, batch=2, gt_size=192, on_gpu=on_gpu).activations
    for module in model.net_g.modules() if on_gpu else ():
        module.register_forward_hook(lambda *_: None)  # a tail that is heard does not run as one
    memory.feed(model, 2, 48)
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = sum(model.compute_losses(1).values())
    for parameter in model.net_g.parameters():
        sizes.pop(parameter.untyped_storage().data_ptr(), None)
    assert loss.isfinite()
    assert found == pytest.approx(sum(sizes.values()), rel=0.05)  # the border grows with the side


def test_all_problems_are_printed_with_their_lines(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options['train']['total_iter'] = 0
    options['network_g']['num_feats'] = 8
    options['teachers']['rcan']['strct'] = True
    file = write_option(options, tmp_path / 'option.yml')
    lines = file.read_text().splitlines()
    assert main(['check', '-opt', str(file)]) == 2
    head, *found = capsys.readouterr().err.splitlines()
    assert head == f'error: 3 problems found in {file}:'
    for line in found:
        number, message = re.fullmatch(rf'{file}:(\d+): (.*)', line).groups()
        key = re.search(r"total_iter|(?<=unknown key ')\w+", message)[0]
        assert lines[int(number) - 1].strip().startswith(f'{key}:'), line


def test_what_only_building_shows_is_said_in_one_line(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, options['teachers']['rcan']['path'] = options['teachers']['rcan']['path'], 'nowhere/rcan.pth'
    assert main(['check', '-opt', str(write_option(options, tmp_path / 'option.yml'))]) == 2
    assert re.fullmatch(r'error: teachers\.rcan\.path: .*nowhere/rcan\.pth.*\n', capsys.readouterr().err)
    options['teachers']['rcan']['path'] = path
    options['network_g'] = {**small_network('swinir'), 'embed_dim': 11}  # no multiple of its heads
    assert main(['check', '-opt', str(write_option(options, tmp_path / 'option.yml'))]) == 2
    assert capsys.readouterr().err.startswith('error: the model cannot be built from these options: ')
    assert main(['check', '-opt', str(tmp_path / 'none.yml')]) == 2
    assert 'no such option file' in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_runs_a_file_that_attacks_no_further_than_its_tag(tmp_path: Path) -> None:
    (tmp_path / 'evil.yml').write_text(
        f'name: !!python/object/apply:os.system ["touch {tmp_path}/owned"]\nmodel_type: MultiTeacherSRModel\n'
    )
    command = [sys.executable, '-m', 'mtkd', 'check', '-opt', 'evil.yml']
    done = subprocess.run(command, cwd=tmp_path, env=script_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert 'evil.yml:1: the tag !!python/object/apply:os.system is refused: it would run Python code' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['evil.yml']


def test_the_schema_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(['schema']) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(['schema', '--out', str(tmp_path / 'mtkd.schema.json')]) == 0
    assert json.loads((tmp_path / 'mtkd.schema.json').read_text()) == printed
    assert main(['schema', '--out', str(tmp_path / 'none/mtkd.schema.json')]) == 2
    assert capsys.readouterr().err.startswith('error: ')


def test_training_lists_all_problems_with_their_lines(
    options: Options, train: Callable[..., Path], tmp_path: Path
) -> None:
    options['train'].update(ema_decay=1, total_itr=4)
    with pytest.raises(ValueError) as caught:
        train(options, '--force_yml', 'datasets:train:batch_size_per_gpu=0')
    file = tmp_path / 'option.yml'
    head, *found = str(caught.value).splitlines()
    assert head == f'3 problems found in {file}:'
    number = {line.split(':')[0].strip(): place for place, line in enumerate(file.read_text().splitlines(), 1)}
    assert found == [
        '--force_yml datasets:train:batch_size_per_gpu=0: '
        'datasets.train.batch_size_per_gpu should be a whole number, at least 1; it is 0',
        f'{file}:{number["ema_decay"]}: train.ema_decay should be a number, at least 0 and below 1; it is 1',
        f"{file}:{number['total_itr']}: unknown key 'total_itr' in train: did you mean 'total_iter'?",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ['option.yml']


def test_a_key_given_twice_stops_training(options: Options, train: Callable[..., Path], tmp_path: Path) -> None:
    train_text = yaml.safe_dump({'teachers': options.pop('teachers')})
    with pytest.raises(ValueError, match=r'option\.yml:\d+: scale is given twice, first in line \d+'):
        _train_text(train, tmp_path, options, train_text + 'scale: 4\n')


def _train_text(train: Callable[..., Path], folder: Path, options: Options, more: str) -> None:
    import conftest

    def with_more(options: Options, path: Path) -> Path:
        path.write_text(yaml.safe_dump(options, sort_keys=False) + more)
        return path

    original, conftest.write_option = conftest.write_option, with_more
    try:
        train(options)
    finally:
        conftest.write_option = original


def test_the_help_shows_every_command(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(['--help'])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f'python -m mtkd {name}' in text for name in ('options', 'teachers', 'check', 'schema', 'doctor'))
    assert str(REPO) not in text
