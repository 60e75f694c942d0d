"""A whole study at toy size, through the command line: trained in processes of its own, resumed, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import AGGREGATOR, write_option

from mtkd_eval.plots.gains import read_gains
from mtkd_eval.record import cpu_name
from mtkd_eval.study import command, running
from mtkd_eval.study.command import main
from mtkd_eval.study.running import Study, call, step_seconds, visible_devices
from mtkd_eval.study.schedule import RunFailedError

KD = {'distill': {'kd': {'type': 'OutputDistiller', 'teacher': 'edsr', 'loss': {'type': 'L1Loss'}}}}
WAVELET = {'distill': {'wavelet': {'type': 'OutputDistiller', 'loss': {'type': 'WaveletLoss'}}}}


def grid_of(options: dict[str, Any], val: Path) -> dict[str, Any]:
    """scratch, KD and MTKD with an aggregator that is trained first; students learn nothing, at a rate of 0."""
    base = {
        **options,
        'train': {**options['train'], 'optim_g': {'type': 'Adam', 'lr': 0.0}, 'total_iter': '$iterations'},
    }
    base['datasets'] = {'train': {**options['datasets']['train'], 'type': 'PairedCropDataset', 'resident': 'host'}}
    teachers = base.pop('teachers')
    student = base.pop('network_g')
    for key in ('aggregator', 'val', 'name', 'manual_seed'):
        del base[key]
    del base['train']['distill']
    inputs = {'inputs': list(teachers)}
    stage_1 = {
        'model_type': 'AggregationModel', 'teachers': teachers, 'aggregator': inputs,
        'network_g': {**AGGREGATOR, 'upscale': 4}, 'train': {'optim_g': {'lr': 0.001}},
    }  # fmt: skip
    aggregator = {**inputs, 'network': stage_1['network_g'], 'path': '@merge', 'param_key': 'params_ema'}
    return {
        'name': 'toy',
        'scale': 4,
        'iterations': 2,
        'seeds': [3],
        'reference': 'scratch',
        'test_sets': [str(val)],
        'base': base,
        'trained': {'merge': {'options': stage_1}},
        'caches': {
            'plain': {'stores': ['target', 'edsr'], 'options': {'teachers': teachers}},
            'merged': {'options': {'teachers': teachers, 'aggregator': aggregator}},
        },
        'students': {'edsr': {'options': {'network_g': student}}},
        'methods': {
            'scratch': None,
            'kd': {'cache': 'plain', 'options': {'datasets': {'train': {'cached': ['edsr']}}, 'train': KD}},
            'mtkd': {'cache': 'merged', 'options': {'train': WAVELET}},
        },
        'wall_clock': {'like': 'scratch', 'methods': ['kd']},
        'networks': {'the EDSR teacher': 'plain:teachers.edsr', 'the target': 'merged:target'},
        'questions': {'does it win?': {'method': 'mtkd', 'best_of': ['scratch', 'kd']}},
    }


def stand_in(arguments: list[str]) -> None:
    """Figures as the process of a run leaves them."""
    result = {'parameters': 1, 'macs': 1, 'sets': {'val': {'a': {'psnr_y': 30.0, 'ssim_y': 0.9}}}}
    made = {'device': 'CPU', 'threads': 1, 'torch': '2'}
    out = next(Path(each) for each in arguments if each.endswith('.measured'))
    out.write_text(json.dumps(result | {'circumstances': made}))


@pytest.fixture
def grid(options: dict[str, Any], data: Path, tmp_path: Path) -> Path:
    return write_option(grid_of(options, data / 'val'), tmp_path / 'grid.yml')


def test_a_study_runs_is_resumed_and_written_up(
    grid: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, page = tmp_path / 'out', tmp_path / 'results.md'
    page.write_text('# Results\n')
    command = [str(grid), '--out', str(out), '--page', str(page), '--json', str(tmp_path / 'copy/toy.json')]
    assert main(command) == 0, capsys.readouterr().err

    study = json.loads((out / 'study.json').read_text())
    assert {(each['method'], each['clock']) for each in study['results']} == {
        ('scratch', False), ('kd', False), ('mtkd', False), ('kd', True),
    }  # fmt: skip
    # a seed gives every method the same student, and nothing was learned
    (first, *others) = [each['sets'] for each in study['results']]
    assert all(other == first for other in others)
    gains = read_gains(out / 'study.json')
    assert [(row.method, row.mean) for row in gains.rows] == [('kd', 0.0), ('mtkd', 0.0)]
    assert study['targets'] == {'the target': ['the EDSR teacher']}
    assert set(study['networks']) == {'the EDSR teacher', 'the target'}
    assert study['networks']['the target']['parameters'] > study['networks']['the EDSR teacher']['parameters']
    assert {each['trained_on']['precision'] for each in study['results']} == {'float32'}
    assert f'Trained on: {cpu_name()}; passes in float32; torch' in page.read_text()
    assert all(each['step_seconds'] > 0 for each in study['results'] if each['iterations'] > 1)  # one step has no pace
    assert '## Equal wall-clock' in page.read_text()
    assert all(seconds > 1 for seconds in study['cache_seconds'].values())  # a process that imports torch
    assert study['cache_seconds'].keys() == {'plain', 'merged'}
    assert (tmp_path / 'copy/toy.json').read_bytes() == (out / 'study.json').read_bytes()

    def nothing_to_do(*arguments: object) -> None:
        raise AssertionError(f'ran again: {arguments}')

    # the same command finds everything done
    monkeypatch.setattr(running, 'call', nothing_to_do)
    before = page.read_text()
    assert main(command) == 0
    assert page.read_text() == before
    again = tmp_path / 'again.md'
    again.write_text('# Results\n')
    assert main([str(out / 'study.json'), '--report', '--page', str(again)]) == 0
    assert again.read_text() == before
    assert json.loads((out / 'study.json').read_text())['cache_seconds'] == study['cache_seconds']
    capsys.readouterr()
    assert main([str(grid), '--out', str(out), '--list']) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ['done'] * 4

    # other test sets: everything is measured again, and nothing trained
    calls: list[list[str]] = []

    def measured(code: str, arguments: list[str], *rest: object) -> None:
        if code != running.CACHE:
            calls.append(arguments)
            stand_in(arguments)

    monkeypatch.setattr(running, 'call', measured)
    sets = ['--set', f'other={data}/val/GT,{data}/val/LRbicx4']
    command += sets
    threads = {each['run']: (each['threads'], each['jobs']) for each in study['results']}
    assert main([*command, '--jobs', '2', '--threads', '7']) == 0
    measured_again = json.loads((out / 'study.json').read_text())['results']
    assert {each['run']: (each['threads'], each['jobs']) for each in measured_again} == threads  # of the training
    # caches are looked at for it; their times are those of making them
    assert json.loads((out / 'study.json').read_text())['cache_seconds'] == study['cache_seconds']
    assert len(calls) == 7  # the aggregator, three runs, one at equal time, a teacher and the target
    assert not any('--train' in arguments for arguments in calls)

    # another loss in the grid: the old result is not passed off as the new one
    grid.write_text(grid.read_text().replace('WaveletLoss', 'L1Loss'))
    assert main(command) == 2
    assert 'than now: edsr-mtkd-seed3: repeat them with --redo-stale' in capsys.readouterr().err
    assert main([str(grid), '--out', str(out), *sets, '--list']) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ['done', 'done', 'stale', 'done']
    assert main([str(grid), '--out', str(out), *sets, '--report']) == 0
    written_up = json.loads((out / 'study.json').read_text())['results']
    assert {each['method'] for each in written_up} == {'scratch', 'kd'}
    calls.clear()
    assert main([*command, '--redo-stale']) == 0
    assert [arguments[0] for arguments in calls] == ['--train']
    assert (out / 'experiments/edsr-mtkd-seed3_archived_0').is_dir()


def test_an_unfinished_run_of_other_options_is_not_gone_on_with(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'out'

    def killed(code: str, arguments: list[str], log: Path, *rest: object) -> None:
        weights = out / 'experiments/edsr-scratch-seed3/models/net_g_latest.pth'
        weights.parent.mkdir(parents=True)
        weights.touch()
        raise RunFailedError(f'{log}: killed after training, before measuring')

    command = [str(grid), '--out', str(out), '--only', 'edsr-scratch*']
    monkeypatch.setattr(running, 'call', killed)
    assert main(command) == 2
    assert 'killed after training' in capsys.readouterr().err  # and not that there is nothing to write up
    grid.write_text(grid.read_text().replace('gt_size: 64', 'gt_size: 48'))
    assert main(command) == 2
    assert 'edsr-scratch-seed3' in capsys.readouterr().err

    calls: list[list[str]] = []
    monkeypatch.setattr(running, 'call', lambda code, arguments, *rest: calls.append(arguments) or stand_in(arguments))
    grid.write_text(grid.read_text().replace('gt_size: 48', 'gt_size: 64'))
    assert main(command) == 0
    assert '--train' not in calls[0]  # with its own options it is only measured


def test_what_needs_a_repeated_network_is_repeated_too(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / 'out', []

    def measured(code: str, arguments: list[str], log: Path, *rest: object) -> None:
        calls.append(log.stem)
        if code == running.CACHE:
            Path(arguments[arguments.index('--out') + 1]).mkdir(parents=True)
        else:
            stand_in(arguments)

    monkeypatch.setattr(running, 'call', measured)
    command = [str(grid), '--out', str(out)]
    assert main(command) == 0
    assert {'merge', 'cache_plain', 'cache_merged', 'edsr-mtkd-seed3', 'edsr-kd-seed3'} <= set(calls)
    calls.clear()
    monkeypatch.setattr(Study, 'cache', lambda study, name, slot: calls.append(f'cache_{name}'))
    assert main([*command, '--redo', 'merge']) == 0
    assert [name for name in calls if name != 'cache_plain'] == ['merge', 'cache_merged', 'edsr-mtkd-seed3']
    assert not (out / 'caches/merged').exists()
    assert (out / 'caches/plain').is_dir()


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_what_needs_a_network_that_failed_is_left_out_and_the_rest_is_run(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(code: str, arguments: list[str], log: Path, *rest: object) -> None:
        if log.stem == 'merge':
            raise RunFailedError('the aggregator burst')
        if code != running.CACHE:
            stand_in(arguments)

    monkeypatch.setattr(running, 'call', measured)
    assert main([str(grid), '--out', str(tmp_path / 'out')]) == 2
    *_, failed, skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error')]
    assert failed == 'error: the aggregator burst'
    assert skipped == 'error: cache merged, edsr-mtkd-seed3, measuring the target: skipped: needs merge, which failed'
    study = json.loads((tmp_path / 'out/study.json').read_text())
    assert [each['method'] for each in study['results']] == ['scratch', 'kd']


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_what_a_failed_cache_takes_with_it_is_told_by_the_cache(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The aggregator learns from the cache that fails; another cache and a run need the aggregator."""

    def measured(code: str, arguments: list[str], log: Path, *rest: object) -> None:
        if log.stem == 'cache_plain':
            raise RunFailedError('the images are bad')
        assert log.stem == 'edsr-scratch-seed3', f'cannot be made: {log.stem}'
        stand_in(arguments)

    content = yaml.safe_load(grid.read_text())
    content['trained']['merge']['cache'] = 'plain'
    write_option(content, grid)
    monkeypatch.setattr(running, 'call', measured)
    assert main([str(grid), '--out', str(tmp_path / 'out')]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error')]
    assert errors == [
        'error: the images are bad',
        'error: merge, cache merged, edsr-kd-seed3, edsr-mtkd-seed3, measuring the EDSR teacher, measuring the target: '
        'skipped: needs cache plain, which failed',
    ]


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_a_failed_run_keeps_no_other_from_its_figures(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(code: str, arguments: list[str], log: Path, slot: int, threads: int | None) -> None:
        if code == running.CACHE:
            return
        if 'kd-seed3' in log.name:
            raise RunFailedError(f'{log} (exit code 1):\nout of memory')
        stand_in(arguments)

    monkeypatch.setattr(running, 'call', failing)
    out = tmp_path / 'out'
    assert main([str(grid), '--out', str(out), '--only', 'edsr-scratch*', 'edsr-kd*']) == 2
    assert 'out of memory' in capsys.readouterr().err
    study = json.loads((out / 'study.json').read_text())
    assert [each['method'] for each in study['results']] == ['scratch']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--jobs', '0'], '--jobs must be at least 1'),
        (['--only', 'rcan-*'], 'no run by such a name, such as edsr-scratch-seed3'),
        (['--redo', 'rcan-*'], '--redo rcan-*: no run by such a name'),
        (['--smoke', '--page', 'results.md'], 'leave --page and --json out'),
        (['--set', 'nowhere'], 'nowhere'),
        (['--report'], 'no finished run to write up'),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(grid), '--out', str(tmp_path / 'out'), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('content', 'arguments', 'message'),
    [
        ('{}', [], 'a study.json can only be written up again: --report --page PAGE.md'),
        ('{}', ['--report'], 'a study.json can only be written up again: --report --page PAGE.md'),
        ('{}', ['--report', '--page', 'results.md'], 'study.json: no study.json: KeyError'),
        ('[', ['--report', '--page', 'results.md'], 'study.json: no study.json: JSONDecodeError'),
    ],
)
def test_what_is_no_study_is_not_written_up(
    content: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('study.json').write_text(content)
    assert main(['study.json', *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path('results.md').exists()


def test_all_that_is_missing_is_told_at_once_before_the_first_step(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, 'call', lambda *_: pytest.fail('something was started'))
    content = yaml.safe_load(grid.read_text())
    content['base']['datasets']['train']['dataroot_lq'] = 'nowhere/LR.lmdb'
    content['caches']['plain']['options'] = {'teachers': {'edsr': {'path': 'nowhere/edsr.pth'}}}
    content['students']['edsr']['options']['path'] = {'pretrain_network_g': 'nowhere/start.pth'}
    write_option(content, grid)
    out = ['--out', str(tmp_path / 'out')]
    assert main([str(grid), *out, '--set', 'nowhere/Set5']) == 2
    head, *missing, how = capsys.readouterr().err.splitlines()
    assert head == f'error: {grid}: 4 files or folders are missing:'
    assert sorted(missing) == [
        'base.datasets.train.dataroot_lq: no such LMDB (no meta_info.txt): nowhere/LR.lmdb',
        'caches.plain.options.teachers.edsr.path: no such weights file: nowhere/edsr.pth',
        'students.edsr.options.path.pretrain_network_g: no such weights file: nowhere/start.pth',
        'test_sets: --set nowhere/Set5: no such folder or option file; expected one, or NAME=HR,LR',
    ]
    assert 'head of the grid file' in how
    assert not (tmp_path / 'out').exists()
    assert main([str(grid), *out, '--only', 'edsr-scratch*']) == 2
    assert 'edsr.pth' not in capsys.readouterr().err  # of a cache that scratch does not need
    assert main([str(grid), *out, '--list']) == 0


def test_what_prepare_will_make_is_not_missing_until_it_has_run(
    grid: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, 'call', lambda *_: pytest.fail('something was started'))
    made, script = tmp_path / 'made', tmp_path / 'script.py'
    script.write_text(f'import shutil; shutil.copytree({str(data / "val")!r}, {str(made / "val")!r})')
    content = yaml.safe_load(grid.read_text())
    content['base']['datasets']['train']['dataroot_gt'] = str(made / 'train/GT.lmdb')
    write_option({**content, 'prepare': {str(made): str(script)}, 'test_sets': [str(made / 'val')]}, grid)
    assert main([str(grid), '--out', str(tmp_path / 'out')]) == 2
    assert f'dataroot_gt: no such LMDB (no meta_info.txt): {made}/train/GT.lmdb' in capsys.readouterr().err
    assert (made / 'val').is_dir()


def test_results_that_other_code_trained_are_noted_and_kept(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(code: str, arguments: list[str], log: Path, *rest: object) -> None:
        if code != running.CACHE:
            stand_in(arguments)
            experiment = tmp_path / 'out/experiments' / log.stem
            experiment.mkdir(parents=True, exist_ok=True)
            (experiment / running.TRAINED_ON).write_text(
                '{"commit": "0ld", "device": "CPU", "threads": 1, "torch": "2"}'
            )

    monkeypatch.setattr(running, 'call', trained)
    monkeypatch.setattr(command, 'commit', lambda: '0ld')
    arguments = [str(grid), '--out', str(tmp_path / 'out')]
    assert main([*arguments, '--only', 'edsr-scratch*', 'edsr-kd*']) == 0
    assert main([*arguments, '--list']) == 0
    assert 'note:' not in capsys.readouterr().err
    monkeypatch.setattr(command, 'commit', lambda: 'n3w')
    note = 'note: 2 of 2 kept results were trained by other code than n3w: 2 by 0ld\n'
    assert main([*arguments, '--list']) == 0
    assert capsys.readouterr().err == note
    before = (tmp_path / 'out/runs/edsr-kd-seed3.json').read_bytes()
    assert main([*arguments, '--only', 'edsr-kd*']) == 0
    assert note in capsys.readouterr().err
    assert (tmp_path / 'out/runs/edsr-kd-seed3.json').read_bytes() == before
    assert main([*arguments, '--only', 'edsr-kd*', '--redo', 'edsr-scratch*', 'edsr-kd*']) == 0
    assert 'note:' not in capsys.readouterr().err  # nothing old is kept


def test_data_that_are_missing_are_made_by_the_command_of_the_grid(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / 'made'
    script = tmp_path / 'script.py'
    script.write_text('import sys; sys.exit(3)')
    grid.write_text(grid.read_text() + f'prepare:\n  {folder}: {script}\n')
    assert main([str(grid), '--out', str(tmp_path / 'out')]) == 2
    assert f'exit code 3, expected it to make {folder}' in capsys.readouterr().err


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_a_process_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r'(?s)exit code 1.*ValueError: no such luck'):
        call("raise ValueError('no such luck')", [], tmp_path / 'logs/a.log', 0, 1)


def test_the_time_of_a_step_is_that_of_the_fastest_tenth_after_the_warm_up(tmp_path: Path) -> None:
    def line(seconds: float, iteration: int) -> str:
        at = f'2026-01-01 00:{int(seconds // 60):02}:{seconds % 60:06.3f}'.replace('.', ',')
        return f'{at} INFO: [toy..][epoch:  0, iter:{iteration:8,}, lr:(1.000e-03,)] [eta: 0:00:01, time (data): 9 (0)]'

    first = [line(0, 100), line(100, 300), line(150, 500), line(180, 700)]
    second = [line(1000, 600), line(1050, 800), line(1100, 1000)]  # a resumed run
    (tmp_path / 'train_toy_1.log').write_text('\n'.join(first))
    (tmp_path / 'train_toy_2.log').write_text('\n'.join(second))
    assert step_seconds(tmp_path, 2000) == pytest.approx(0.15)  # of .25, .15, .25 and .25, the first being warm-up
    assert step_seconds(tmp_path / 'nowhere', 2000) is None


def test_every_job_has_a_gpu_of_those_the_user_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,5')
    assert visible_devices() == ['2', '5']
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    monkeypatch.setattr('torch.cuda.device_count', lambda: 3)
    assert visible_devices() == ['0', '1', '2']
