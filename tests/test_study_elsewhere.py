"""A study whose parts were run in several places, put together from their study.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_option
from test_study import grid_of, stand_in

from mtkd_eval.study import running
from mtkd_eval.study.command import main

SCRATCH_AND_KD, MTKD = ['--only', 'edsr-scratch*', 'edsr-kd*'], ['--only', 'edsr-mtkd*']


@pytest.fixture
def grid(options: dict[str, Any], data: Path, tmp_path: Path) -> Path:
    return write_option(grid_of(options, data / 'val'), tmp_path / 'grid.yml')


@pytest.fixture
def place(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[str]]]:
    """The grid run in the folder of a name: exit code, and what had to be done there."""

    def work(name: str, *arguments: str) -> tuple[int, list[str]]:
        done: list[str] = []

        def call(code: str, given: list[str], log: Path, *rest: object) -> None:
            done.append(log.stem)
            if code == running.CACHE:
                Path(given[given.index('--out') + 1]).mkdir(parents=True)
                return
            stand_in(given)
            raw = next(Path(each) for each in given if each.endswith('.measured'))
            raw.write_text(json.dumps(json.loads(raw.read_text()) | {'macs': len(name)}))  # where it was measured
            experiment = tmp_path / name / 'experiments' / log.stem
            experiment.mkdir(parents=True, exist_ok=True)
            (experiment / 'train_.log').write_text(
                '\n'.join(f'2026-01-01 00:00:0{at},000 INFO: [][epoch: 0, iter:{at:6}]' for at in (1, 2))
            )

        monkeypatch.setattr(running, 'call', call)
        return main([str(grid), '--out', str(tmp_path / name), *arguments]), done

    return work


def study_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / 'study.json').read_text())


def test_parts_of_a_study_that_were_run_elsewhere_are_put_together_and_nothing_is_repeated(
    place: Callable[..., tuple[int, list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, done = place('one', *SCRATCH_AND_KD)
    assert code == 0, capsys.readouterr().err
    assert {'edsr-scratch-seed3', 'edsr-kd-seed3', 'cache_plain', 'the_EDSR_teacher'} <= set(done)
    assert 'edsr-mtkd-seed3' not in done
    assert place('place2', *MTKD)[0] == 0
    assert place('whole')[0] == 0
    capsys.readouterr()

    files = [str(tmp_path / name / 'study.json') for name in ('one', 'place2')]
    assert place('both', '--from', *files, '--report') == (0, [])
    assert '4 results kept from elsewhere' in capsys.readouterr().err
    both, whole = study_of(tmp_path / 'both'), study_of(tmp_path / 'whole')
    names = [each['run'] for each in both['results']]
    assert names == [each['run'] for each in whole['results']]
    assert names[-1] == 'edsr-kd-seed3-clock'
    assert [each['macs'] for each in both['results']] == [3, 3, 6, 3]  # each as it was measured
    assert both['networks'].keys() == whole['networks'].keys() == {'the EDSR teacher', 'the target'}
    assert both['cache_seconds'].keys() == {'plain', 'merged'}
    assert place('both') == (0, [])  # nothing is left to do
    assert study_of(tmp_path / 'both')['results'] == both['results']


def test_what_is_missing_of_a_study_from_elsewhere_is_run_here(
    place: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    assert place('one', *SCRATCH_AND_KD)[0] == 0
    code, done = place('here', '--from', str(tmp_path / 'one/study.json'))
    assert code == 0
    assert {'merge', 'cache_merged', 'edsr-mtkd-seed3', 'the_target'} <= set(done)
    assert not {'edsr-scratch-seed3', 'edsr-kd-seed3', 'edsr-kd-seed3-clock', 'the_EDSR_teacher'} & set(done)


def test_a_result_that_is_here_already_stays(place: Callable[..., tuple[int, list[str]]], tmp_path: Path) -> None:
    assert place('one', '--only', 'edsr-kd*')[0] == 0
    assert place('here', '--only', 'edsr-kd*')[0] == 0
    before = (tmp_path / 'here/runs/edsr-kd-seed3.json').read_bytes()
    assert place('here', '--from', str(tmp_path / 'one/study.json'), '--report')[0] == 0
    assert (tmp_path / 'here/runs/edsr-kd-seed3.json').read_bytes() == before


def test_the_steps_that_are_planned_here_at_equal_time_stay(
    place: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    assert place('one', *SCRATCH_AND_KD)[0] == 0
    (tmp_path / 'here').mkdir()
    (tmp_path / 'here/clock.json').write_text('{"edsr-kd": 7}')
    assert place('here', '--from', str(tmp_path / 'one/study.json'), '--report')[0] == 0
    assert [each['run'] for each in study_of(tmp_path / 'here')['results']] == ['edsr-scratch-seed3', 'edsr-kd-seed3']
    assert json.loads((tmp_path / 'here/clock.json').read_text()) == {'edsr-kd': 7}


def test_results_of_other_options_or_test_sets_are_refused_before_anything_is_kept(
    place: Callable[..., tuple[int, list[str]]],
    grid: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert place('one')[0] == 0
    theirs = ['--from', str(tmp_path / 'one/study.json'), '--report']
    sets = ['--set', f'other={data}/val/GT,{data}/val/LRbicx4']
    assert place('here', *theirs, *sets)[0] == 2
    assert 'test sets than' in capsys.readouterr().err
    content = yaml.safe_load(grid.read_text())
    content['methods']['mtkd']['options']['train']['distill']['wavelet']['loss']['type'] = 'L1Loss'
    write_option(content, grid)
    assert place('here', *theirs)[0] == 2
    told = capsys.readouterr().err
    assert f'{tmp_path}/one/study.json: of other options, weights, images or test sets than {grid}: ' in told
    assert told.rstrip().endswith('edsr-mtkd-seed3: run it here, without --from')
    assert not list((tmp_path / 'here').glob('**/*.json'))


def test_of_what_several_files_hold_the_first_is_kept_and_other_networks_are_not(
    place: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    for name in ('one', 'place2'):
        assert place(name)[0] == 0
    other = study_of(tmp_path / 'place2')
    (clock,) = (each for each in other['results'] if each['clock'])
    clock['iterations'] = 9
    other['cache_seconds'] = dict.fromkeys(other['cache_seconds'], 1e6)
    (tmp_path / 'place2/study.json').write_text(json.dumps(other))
    strange = study_of(tmp_path / 'one')
    strange['networks'] = {title: each | {'digest': 'of others'} for title, each in strange['networks'].items()}
    (tmp_path / 'strange.json').write_text(json.dumps(strange))
    files = [str(tmp_path / name) for name in ('strange.json', 'one/study.json', 'place2/study.json')]
    assert place('both', '--from', *files, '--report')[0] == 0
    both, one = study_of(tmp_path / 'both'), study_of(tmp_path / 'one')
    assert {part: both[part] for part in ('results', 'networks', 'cache_seconds')} == {
        part: one[part] for part in ('results', 'networks', 'cache_seconds')
    }


def test_without_the_data_nothing_is_called_foreign(
    place: Callable[..., tuple[int, list[str]]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place('one')[0] == 0
    capsys.readouterr()
    moved = (data / 'train/LRbicx4.lmdb').rename(tmp_path / 'away')
    try:
        assert place('here', '--from', str(tmp_path / 'one/study.json'), '--report')[0] == 2
    finally:
        moved.rename(data / 'train/LRbicx4.lmdb')
    told = capsys.readouterr().err
    assert f'{data}/train/LRbicx4.lmdb' in told
    assert 'without --from' not in told


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--from', 'nowhere.json'], 'nowhere.json'),
        (['--from', 'empty.json'], 'empty.json: no study.json: KeyError'),
        (['--from', 'empty.json', '--list'], '--smoke and --list keep no results: leave --from out'),
        (['--from', 'empty.json', '--redo', '*'], '--redo and --redo-stale repeat what --from keeps'),
        (['--from', 'empty.json', '--redo-stale'], '--redo and --redo-stale repeat what --from keeps'),
        (['--from', 'empty.json', '--smoke'], '--smoke and --list keep no results: leave --from out'),
    ],
)
def test_what_is_no_study_is_not_taken_over(
    place: Callable[..., tuple[int, list[str]]],
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path('empty.json').write_text('{}')
    assert place('here', *arguments) == (2, [])
    assert message in capsys.readouterr().err
    assert not list((tmp_path / 'here').glob('**/*.json'))
