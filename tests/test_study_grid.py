"""Grid files: what runs they stand for, and what is wrong with them, before anything runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPO, write_option
from hand_made_cache import write_lmdb

from mtkd_eval.study.command import needed_parts
from mtkd_eval.study.fingerprints import of_path
from mtkd_eval.study.grid import (
    clock_cells,
    clock_iterations,
    clock_runs,
    completed,
    read_grid,
    shortened,
    student_runs,
    trained_runs,
)
from mtkd_eval.study.overlay import filled_in, overlaid, references

GRID = {
    'name': 'tiny',
    'scale': 4,
    'iterations': 100,
    'seeds': [0, 1],
    'reference': 'scratch',
    'test_sets': ['val'],
    'base': {
        'datasets': {'train': {'type': 'PairedCropDataset', 'gt_size': 96}},
        'train': {'total_iter': '$iterations', 'pixel_opt': {'type': 'L1Loss', 'loss_weight': 1.0}},
    },
    'trained': {
        'merge': {'cache': 'plain', 'iterations': 50, 'options': {'model_type': 'AggregationModel'}},
        'unused': {'options': {}},
    },
    'caches': {
        'plain': {'stores': ['target'], 'options': {'teachers': {'edsr': {'path': 'edsr.pth'}}}},
        'merged': {'options': {'teachers': {'edsr': {'path': 'edsr.pth'}}, 'aggregator': {'path': '@merge'}}},
    },
    'students': {'edsr': {'options': {'network_g': {'type': 'EDSR'}}}, 'rcan': {'seeds': [0]}},
    'methods': {
        'scratch': None,
        'mtkd': {'cache': 'merged', 'options': {'train': {'pixel_opt': {'loss_weight': 0.1}}}},
        'other': {'extends': 'mtkd', 'students': ['edsr'], 'options': {'train': {'pixel_opt': {'type': 'MSELoss'}}}},
    },
    'wall_clock': {'like': 'mtkd', 'students': ['edsr']},
}


def grid_of(folder: Path, **changes: Any) -> Any:
    write_option(overlaid(GRID, changes), folder / 'grid.yml')
    return read_grid(folder / 'grid.yml')


def test_overlays_merge_replace_and_take_away() -> None:
    base = {'a': {'x': 1, 'y': [1, 2]}, 'b': 2, 'loss': {'type': 'L1Loss', 'weight': 3}}
    found = overlaid(base, {'a': {'y': [3]}, 'b': None}, {'loss': {'type': 'MSELoss'}, 'c': {'d': None, 'e': 1}})
    assert found == {'a': {'x': 1, 'y': [3]}, 'loss': {'type': 'MSELoss'}, 'c': {'e': 1}}
    assert base['b'] == 2
    assert overlaid(base, {'loss': {'weight': 4}})['loss'] == {'type': 'L1Loss', 'weight': 4}


def test_words_are_filled_in_wherever_they_stand() -> None:
    value = {'periods': ['$iterations'], 'path': '@merge', 'text': 'x$iterations', 'n': 3}
    found = filled_in(value, 7, lambda name: f'weights of {name}')
    assert found == {'periods': [7], 'path': 'weights of merge', 'text': 'x$iterations', 'n': 3}
    assert references([value, {'b': '@other'}]) == {'merge', 'other'}


def test_all_of_the_first_seed_come_first(tmp_path: Path) -> None:
    names = [run.name for run in student_runs(grid_of(tmp_path))]
    assert names == [
        'edsr-scratch-seed0', 'edsr-mtkd-seed0', 'edsr-other-seed0', 'rcan-scratch-seed0', 'rcan-mtkd-seed0',
        'edsr-scratch-seed1', 'edsr-mtkd-seed1', 'edsr-other-seed1',
    ]  # fmt: skip


def test_an_option_is_base_cache_student_and_method_laid_over_each_other(tmp_path: Path) -> None:
    grid = grid_of(tmp_path)
    run = next(run for run in student_runs(grid) if run.name == 'edsr-other-seed1')
    opt = completed(run, Path('out'), run.name)
    assert (opt['name'], opt['manual_seed'], opt['train']['total_iter']) == ('edsr-other-seed1', 1, 100)
    assert opt['train']['pixel_opt'] == {'type': 'MSELoss'}
    assert opt['aggregator']['path'] == 'out/experiments/merge/models/net_g_latest.pth'
    train = {'type': 'CachedTeacherDataset', 'gt_size': 96, 'dataroot_cache': 'out/caches/merged'}
    assert opt['datasets']['train'] == train
    assert 'teachers' not in completed(student_runs(grid)[0], Path('out'), 'x')


def test_only_what_a_run_needs_is_trained_before_it(tmp_path: Path) -> None:
    grid = grid_of(tmp_path)
    runs = student_runs(grid)
    assert needed_parts(grid, runs) == (['merge'], ['plain', 'merged'])
    assert needed_parts(grid, runs[:1]) == ([], [])


def test_a_digest_follows_everything_below_a_run_and_nothing_else(tmp_path: Path) -> None:
    def digests(**changes: Any) -> list[str]:
        return [run.digest() for run in student_runs(grid_of(tmp_path, **changes))[:2]]

    scratch, mtkd = digests()
    assert digests(title='other', students={'rcan': {'title': 'new'}}) == [scratch, mtkd]
    changed = digests(trained={'merge': {'iterations': 51}})
    assert changed[0] == scratch
    assert changed[1] != mtkd
    assert digests(caches={'plain': {'self_ensemble': True}})[1] != mtkd  # the cache that the aggregator learns from
    assert digests(iterations=101)[0] != scratch


def test_equal_time_is_the_pace_of_the_method_it_is_like(tmp_path: Path) -> None:
    grid = grid_of(tmp_path)
    assert clock_cells(grid) == [('edsr', 'scratch'), ('edsr', 'other')]
    assert clock_iterations(grid, 'edsr', 0.5, 1.0) == 200
    assert clock_iterations(grid, 'edsr', 500.0, 1.0) == 1
    runs = clock_runs(grid, {('edsr', 'scratch'): 200})
    assert [(run.name, run.iterations) for run in runs] == [
        ('edsr-scratch-seed0-clock', 200),
        ('edsr-scratch-seed1-clock', 200),
    ]
    assert completed(runs[0], Path('out'), 'x')['train']['total_iter'] == 200
    assert clock_runs(grid, {}) == []


def test_other_weights_or_images_are_another_run(tmp_path: Path) -> None:
    weights, images = tmp_path / 'edsr.pth', tmp_path / 'images'
    weights.write_bytes(b'one')
    images.mkdir()

    def digests() -> list[str]:
        changes = {
            'base': {'datasets': {'train': {'dataroot_gt': str(images)}}},
            'caches': {
                name: {'options': {'teachers': {'edsr': {'path': str(weights)}}}} for name in ('plain', 'merged')
            },
        }
        return [run.digest() for run in student_runs(grid_of(tmp_path, **changes))[:2]]

    scratch, mtkd = digests()
    assert digests() == [scratch, mtkd]
    weights.write_bytes(b'two')
    again = digests()
    assert again[0] == scratch
    assert again[1] != mtkd
    (images / 'a.png').write_bytes(b'1')
    assert digests()[0] != scratch


def test_an_lmdb_written_anew_on_other_pages_is_the_same(tmp_path: Path) -> None:
    images = {name: np.full((9, 9, 3), index, np.uint8) for index, name in enumerate('abc')}
    write_lmdb(tmp_path / 'one.lmdb', images, level=1)
    before = of_path(tmp_path / 'one.lmdb')
    with (tmp_path / 'one.lmdb/data.mdb').open('ab') as file:
        file.write(bytes(8192))  # pages that nothing lies on, as LMDB itself leaves them now and then
    assert of_path(tmp_path / 'one.lmdb') == before
    noise = np.random.default_rng(0).integers(256, size=(9, 9, 3), dtype=np.uint8)
    write_lmdb(tmp_path / 'other.lmdb', {**images, 'c': noise}, level=1)
    listings = [(tmp_path / f'{name}.lmdb/meta_info.txt').read_text() for name in ('one', 'other')]
    assert listings[0] == listings[1]
    assert of_path(tmp_path / 'other.lmdb') != before
    lines = (tmp_path / 'one.lmdb/meta_info.txt').read_text().replace('(9,9,3)', '(9,9,1)')
    (tmp_path / 'one.lmdb/meta_info.txt').write_text(lines)
    assert of_path(tmp_path / 'one.lmdb') != before


def test_a_smoke_run_is_short_everywhere(tmp_path: Path) -> None:
    grid = shortened(grid_of(tmp_path), 4)
    assert {run.iterations for run in (*student_runs(grid), *trained_runs(grid).values())} == {4}
    assert {run.seed for run in student_runs(grid)} == {0}
    assert grid.name == 'tiny_smoke'


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'metods': {}}, "unknown key 'metods'.*did you mean 'methods'"),
        ({'seeds': []}, 'seeds should be a list of at least one'),
        ({'reference': 'scrach'}, "no 'scrach': did you mean 'scratch'"),
        ({'methods': {'mtkd': {'cache': 'merge'}}}, r"methods.mtkd.cache: no 'merge': did you mean 'merged'"),
        ({'methods': {'mtkd': {'cach': 'merged'}}}, "unknown key 'cach' in .*methods.mtkd"),
        ({'methods': {'mtkd': {'extends': 'other'}}}, 'extends itself: mtkd -> other -> mtkd|other -> mtkd -> other'),
        ({'methods': {'other': {'extends': 'mktd'}}}, "extends 'mktd': did you mean 'mtkd'"),
        ({'methods': {'other': {'students': ['edrs']}}}, "no 'edrs': did you mean 'edsr'"),
        ({'caches': {'merged': {'options': {'aggregator': {'path': '@merg'}}}}}, "no 'merg': did you mean 'merge'"),
        ({'wall_clock': {'like': 'x'}}, "wall_clock.like: no 'x'"),
        ({'questions': {'q': {'method': 'mtkd'}}}, "lacks the key 'best_of'"),
        ({'networks': {'EDSR': 'plain'}}, 'expected CACHE:target or CACHE:teachers.NAME'),
        ({'students': 3}, 'students should be a mapping'),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_of(tmp_path, **changes)


@pytest.mark.parametrize('path', sorted((REPO / 'options/study').glob('*.yml')), ids=lambda path: path.stem)
def test_the_grids_that_ship_are_whole(path: Path) -> None:
    grid = read_grid(path)
    runs = student_runs(grid)
    assert len({run.name for run in runs}) == len(runs)
    for run in runs:
        assert completed(run, Path('out'), run.name)['network_g']['type']


def test_a_grid_may_be_laid_over_another(tmp_path: Path) -> None:
    grid_of(tmp_path)
    own = {'extends': 'grid.yml', 'name': 'small', 'students': {'rcan': None}, 'methods': {'mtkd': None, 'other': None}}
    write_option({**own, 'wall_clock': None}, tmp_path / 'own.yml')
    grid = read_grid(tmp_path / 'own.yml')
    assert (grid.name, [run.name for run in student_runs(grid)]) == (
        'small',
        ['edsr-scratch-seed0', 'edsr-scratch-seed1'],
    )
    write_option({'extends': 'loop.yml'}, tmp_path / 'loop.yml')
    with pytest.raises(ValueError, match='extends itself'):
        read_grid(tmp_path / 'loop.yml')


def test_what_a_grid_takes_away_needs_no_mention_in_methods(tmp_path: Path) -> None:
    grid_of(tmp_path, methods={'mtkd': {'for_student': {'rcan': {'train': {'ema_decay': 0.9}}}}})
    write_option({'extends': 'grid.yml', 'name': 'small', 'students': {'rcan': None}}, tmp_path / 'small.yml')
    assert [run.name for run in student_runs(read_grid(tmp_path / 'small.yml')) if run.method == 'mtkd'] == [
        'edsr-mtkd-seed0', 'edsr-mtkd-seed1',
    ]  # fmt: skip


def test_networks_are_trained_after_those_they_need(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, trained={'merge': {'options': {'path': '@late'}}, 'late': {'options': {}}})
    assert list(trained_runs(grid)) == ['late', 'merge', 'unused']
    with pytest.raises(ValueError, match='need each other: merge -> late -> merge'):
        grid_of(tmp_path, trained={'merge': {'options': {'path': '@late'}}, 'late': {'options': {'path': '@merge'}}})
