"""The benchmarks run, at toy size, and their report says truly what was met."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO, script_environment, small_network

from benchmarks import (
    cached_training,
    dctswin_forward,
    loader,
    networks,
    record,
    report,
    run,
    steps,
    teachers,
    trainer,
    wavelet,
)

Options = dict[str, Any]


@pytest.fixture
def toy(options: Options, monkeypatch: pytest.MonkeyPatch) -> Options:
    """The published option with toy networks in its place."""
    whole = {**options, 'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1}
    monkeypatch.setattr(networks, 'published', lambda student: json.loads(json.dumps(whole)))
    return whole


def arguments(module: Any, *given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--runs', type=int)
    module.add_arguments(parser)
    return parser.parse_args(given)


def test_every_kind_of_step_is_timed_and_compared(toy: Options, tmp_path: Path) -> None:
    args = arguments(steps, '--runs', '2', '--batch', '2', '--lq', '16', '--students', 'edsr')
    found = steps.measure_students(args, tmp_path)['edsr']
    assert set(steps.VARIANTS) <= set(found)
    assert set(found['ratio']) == set(steps.VARIANTS) - {'scratch'}
    assert found['cached_to_online']['runs'] == 2
    settings = steps.measure_settings(args, tmp_path)
    assert set(settings['basicsr_over']) == {'fp32', 'bf16'}


def test_each_measure_is_timed_on_top_of_the_others(
    options: Options, toy: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, 'published', lambda student: toy)
    found = steps.measure_gains(arguments(steps, '--runs', '1', '--batch', '1', '--lq', '16'))
    for part in ('student', 'teachers'):
        assert list(found[part]['ratio']) == ['channels_last', 'merged_tail', 'bf16']
    table = report.table({'steps': {'device': 'a CPU', 'torch': '2', 'gains': found}}, 'cpu')
    assert '| the forward pass of the three teachers |' in table


def test_more_teachers_and_patches_are_tried(toy: Options) -> None:
    found = teachers.measure(arguments(teachers, '--runs', '1', '--lq', '16'))
    assert list(found['by_teachers']) == ['1', '2', '3', '4', '5']
    assert list(found['by_batch']) == ['1', '2', '4']
    assert set(found['by_teachers']['1']) == {'online', 'cached'}


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'benchmarks.steps', '--memory-of', 'scratch', '--folder', str(tmp_path)]
    command += ['--batch', '1', '--lq', '8', '--device', 'cpu', '--json', str(tmp_path / 'peaks.json')]
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPO, env=script_environment())
    peaks = json.loads((tmp_path / 'peaks.json').read_text())
    assert 0 < peaks['above_imports_gb'] < peaks['whole_gb']


def test_the_step_as_released_keeps_the_teachers_in_the_graph(toy: Options, tmp_path: Path) -> None:
    batch = networks.random_batch(2, 16, 'cpu')
    graph, frozen = (networks.step_model(variant, 'edsr', tmp_path, 'cpu') for variant in ('graph', 'online_fp32'))
    for model in (graph, frozen):
        steps.one_step(model, batch)()
    assert all(parameter.grad is not None for parameter in graph.teachers.networks.edsr.parameters())
    assert all(parameter.grad is None for parameter in frozen.teachers.parameters())
    assert graph.losses['l_wavelet'] == pytest.approx(frozen.losses['l_wavelet'].item(), rel=1e-4)  # other rounding


def test_the_wavelet_losses_agree_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wavelet, 'SHAPE', (2, 3, 16, 16))
    found = wavelet.measure(argparse.Namespace(device='cpu', runs=2))
    assert all(found[f'{wave}_{level}']['difference_of_loss'] < 1e-6 for wave, level in wavelet.CASES)


def test_the_aggregators_agree_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dctswin_forward, 'BATCH', (1, 9, 32, 32))
    found = dctswin_forward.measure(argparse.Namespace(device='cpu', runs=2))
    assert found['largest_difference']['dctswin'] < 1e-5
    assert found['largest_difference']['dctswin_bf16'] > 0


@pytest.mark.slow
def test_the_trainers_are_compared_through_basicsr(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, 'EDSR', small_network('edsr'))
    monkeypatch.setattr(loader, 'LARGE', (280, 384))
    monkeypatch.setattr(loader, 'TILE', (140, 192))
    monkeypatch.setattr(loader, 'SUB_IMAGE', 140)
    monkeypatch.setattr(loader, 'DATA', {n: (140 if s else 0, v, f) for n, (s, v, f) in loader.DATA.items()})
    out = tmp_path / 'trainer.json'
    flags = ['--images', str(photos), '--count', '1', '--batch', '2', '--lq', '16', '--iterations', '8']
    flags += ['--runs', '1', '--workers', '0', '--variants', 'basicsr', 'resident', '--json', str(out)]
    assert trainer.main(['--device', 'cpu', *flags]) == 0
    found = json.loads(out.read_text())
    assert found['basicsr']['rate_over_basicsr']['median'] == 1
    assert found['resident']['steps_per_second']['median'] > 0
    assert 0 <= found['resident']['waiting_share']['median'] < 1


@pytest.mark.slow
def test_cached_and_online_training_are_compared_seed_by_seed(
    options: Options, photos: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / 'option.yml').write_text(json.dumps(options))  # JSON is YAML
    out = tmp_path / 'found.json'
    flags = ['--opt', str(tmp_path / 'option.yml'), '--hr', str(photos), '--json', str(out), '--gt-size', '64']
    flags += ['--test-hr', str(data / 'val/GT'), '--test-lq', str(data / 'val/LRbicx4'), '--filename-tmpl', '{}']
    assert cached_training.main([*flags, '--iterations', '4', '--seeds', '0', '1']) == 0
    found = json.loads(out.read_text())
    assert len(found['online']) == len(found['cached']) == 2
    differences = [cached - online for online, cached in zip(found['online'], found['cached'], strict=True)]
    assert found['cached_minus_online']['mean'] == pytest.approx(sum(differences) / 2)


def test_ratios_are_taken_round_by_round() -> None:
    times = {'one': [1.0, 2.0, 4.0], 'other': [2.0, 2.0, 2.0]}
    assert record.ratio(times['one'], times['other']) == {'median': 1.0, 'iqr': 0.75, 'runs': 3}
    assert record.ratios(times, 'other') == {'one': record.ratio(times['one'], times['other'])}
    calls: list[str] = []
    found = record.interleaved({n: lambda n=n: calls.append(n) for n in 'ab'}, runs=2, device='cpu', warmup=1)
    assert calls == ['a', 'b'] * 3
    assert [len(values) for values in found.values()] == [2, 2]


def figures(**ratio: float) -> Options:
    """What run.py stores, with two ratios in it."""
    spread = {name: {'median': value, 'iqr': 0.1} for name, value in ratio.items()}
    costs = {str(n): {'online': {'median': 2.0 * n, 'iqr': 0.1}, 'cached': {'median': 1.0, 'iqr': 0.1}} for n in (1, 2)}
    seconds = {name: {'median_s': 0.1, 'iqr_s': 0.01, 'runs': 3} for name in ('online', 'cached', 'scratch')}
    step = {
        'students': {'edsr': {'ratio': {'cached': spread['cached']}, 'cached_to_online': spread['cached_to_online']}}
    }
    by_batch = {'1': {'seconds': seconds}, '4': {'seconds': seconds}}
    machine = {'device': 'a CPU', 'threads': 2, 'torch': '2'}
    return {'steps': {**machine, **step}, 'teachers': {**machine, 'by_teachers': costs, 'by_batch': by_batch}}


def test_the_table_says_what_was_met_what_was_not_and_what_nobody_measured() -> None:
    text = report.table(figures(cached=1.05, cached_to_online=0.2), 'cpu')
    assert '| MTKD step from a cache / step from scratch | at most 1.1 | 1.05 (IQR 0.1) | yes |' in text
    assert '| MTKD step from a cache / online, bf16 teachers | at most 0.1 | 0.2 (IQR 0.1) | no |' in text
    assert '| wavelet loss, Haar / pytorch-wavelets | at most 0.333 | not measured | |' in text
    assert 'at least 3' not in text  # of a GPU
    assert '| edsr | 1.05 (0.10) |' in text


def test_one_json_one_table_and_the_plots_are_written_and_a_part_that_fails_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {**figures(cached=1.0, cached_to_online=0.05), 'wavelet': None}
    monkeypatch.setattr(run, 'measure', lambda part, args: made[part])
    page = tmp_path / 'page.md'
    page.write_text(f'before\n{run.START}\nold\n{run.END}\nafter\n')
    flags = ['--device', 'cpu', '--results', str(tmp_path), '--plots', str(tmp_path), '--page', str(page)]
    assert run.main([*flags, '--parts', 'steps', 'teachers', 'wavelet']) == 1
    assert json.loads((tmp_path / 'cpu.json').read_text()) == {part: made[part] for part in ('steps', 'teachers')}
    assert (tmp_path / 'cost_of_teachers_cpu.png').stat().st_size > 1000
    text = (tmp_path / 'cpu.md').read_text().rstrip('\n')
    assert page.read_text() == f'before\n{run.START}\n{text}\n{run.END}\nafter\n'
    (tmp_path / 'cpu.md').unlink()
    assert run.main([*flags, '--show']) == 0
    assert (tmp_path / 'cpu.md').read_text() in capsys.readouterr().out


@pytest.mark.parametrize('part', run.PARTS)
def test_every_part_takes_what_run_gives_it(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match='0'):
        importlib.import_module(f'benchmarks.{part}').main(['--help'])
    wanted = ['--device', '--json', *(['--images'] if part in run.WITH_IMAGES else [])]
    shown = capsys.readouterr().out
    assert all(option in shown for option in wanted)
