"""The figures of a study against ones computed by hand and by other packages."""

import math

import numpy as np
import pytest
from scipy import stats

from mtkd_eval.study.paces import of_one_place
from mtkd_eval.study.report import gains_table, insert, passes_of, relative_time, to_markdown
from mtkd_eval.study.statistics import (
    Interval,
    best,
    by_seed,
    gain,
    gains_over,
    image_gain,
    images_won,
    interval,
    overall,
    spread,
)

MADE = {'device': 'x86_64 CPU', 'threads': 2, 'torch': '2.11'}


def result(method: str, seed: int, small: list[float], large: list[float], **more: object) -> dict:
    """What a run measured: two sets of images."""
    sets = {
        name: {f'image{number}': {'psnr_y': value, 'ssim_y': 0.9} for number, value in enumerate(values)}
        for name, values in (('Set5', small), ('Set14', large))
    }
    cell = {'student': 'edsr', 'method': method, 'seed': seed, 'clock': False, 'step_seconds': 0.5, 'iterations': 10}
    return (
        cell | {'threads': 2, 'jobs': 1, 'sets': sets, 'parameters': 1000, 'macs': 10**9, 'circumstances': MADE} | more
    )


RESULTS = [
    result('scratch', 0, [30.0, 31.0], [27.0, 28.0, 29.0]),
    result('scratch', 1, [30.2, 31.2], [27.1, 28.1, 29.1]),
    result('scratch', 2, [29.9, 30.9], [27.0, 28.0, 29.0]),
    result('mtkd', 0, [30.3, 31.3], [27.2, 28.2, 28.9], step_seconds=1.0),
    result('mtkd', 1, [30.4, 31.4], [27.2, 28.2, 28.9], step_seconds=1.0),
    result('mtkd', 2, [30.3, 31.3], [27.3, 28.3, 28.9], step_seconds=1.0),
    result('kd', 0, [30.1, 31.1], [27.1, 28.1, 29.1]),
]


def test_an_interval_is_that_of_scipy() -> None:
    values = [0.11, 0.08, 0.15, 0.12]
    found = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert found.mean == pytest.approx(0.115)


def test_one_value_has_no_interval_and_lies_nowhere() -> None:
    found = interval([0.5])
    assert (found.low, found.high, found.n, found.verdict) == (None, None, 1, None)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(0.1, 0.05, (2000, 3)).tolist()
    covered = sum((found := interval(values)).low < 0.1 < found.high for values in draws) / len(draws)
    assert covered == pytest.approx(0.95, abs=0.02)  # three standard errors of a share of 2000 are 0.015


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match='at least one value'):
        interval([])


def test_a_small_set_counts_as_much_as_a_large_one() -> None:
    assert overall(RESULTS[0]) == pytest.approx((30.5 + 28.0) / 2)


def test_gains_are_paired_by_seed() -> None:
    found = gain(by_seed(RESULTS, 'edsr', 'mtkd'), by_seed(RESULTS, 'edsr', 'scratch'))
    differences = [(0.3 + 0.3 / 3) / 2, 0.2 / 2, (0.4 + 0.5 / 3) / 2]  # each of Set5 and Set14
    assert found.n == 3
    assert found.mean == pytest.approx(np.mean(differences), abs=1e-9)
    test = stats.ttest_rel(*([overall(each) for each in RESULTS if each['method'] == m] for m in ('mtkd', 'scratch')))
    assert found.low == pytest.approx(test.confidence_interval().low)


def test_a_method_with_other_seeds_is_compared_on_those_in_common() -> None:
    found = gain(by_seed(RESULTS, 'edsr', 'kd'), by_seed(RESULTS, 'edsr', 'scratch'))
    assert (found.n, found.low) == (1, None)
    assert gain(by_seed(RESULTS, 'rcan', 'kd'), by_seed(RESULTS, 'edsr', 'scratch')) is None


def test_images_are_won_on_the_mean_over_the_seeds() -> None:
    assert images_won(by_seed(RESULTS, 'edsr', 'mtkd'), by_seed(RESULTS, 'edsr', 'scratch')) == (4, 5)


def test_the_best_method_is_chosen_on_the_seeds_that_all_have() -> None:
    assert best(RESULTS, 'edsr', ['scratch', 'kd', 'mtkd']) == 'mtkd'
    assert best(RESULTS, 'edsr', ['scratch', 'kd']) == 'kd'
    assert best(RESULTS, 'edsr', ['scratch', 'unknown']) is None


def test_spread_is_that_of_the_seeds() -> None:
    found = spread(by_seed(RESULTS, 'edsr', 'scratch'), 'Set5')
    values = [30.5, 30.7, 30.4]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    assert (found.mean, found.high - found.mean) == pytest.approx((np.mean(values), half))


def study(**more: object) -> dict:
    methods = {name: {'title': name.upper(), 'note': None} for name in ('scratch', 'kd', 'mtkd')}
    return {
        'name': 'small', 'title': 'A study', 'grid': 'options/study/small.yml', 'scale': 4, 'iterations': 10,
        'reference': 'scratch', 'like': 'mtkd', 'planned': 9, 'test_sets': ['Set5', 'Set14'],
        'given_sets': ['datasets/Set5', 'datasets/Set14'], 'own_sets': False,
        'students': {'edsr': 'EDSR, tiny'}, 'methods': methods, 'networks': {}, 'targets': {}, 'results': RESULTS,
        'questions': {'does it win?': {'method': 'mtkd', 'best_of': ['scratch', 'kd']}},
    } | more  # fmt: skip


def test_the_page_says_what_the_figures_say() -> None:
    page = to_markdown(study())
    assert '7 of 9 runs' in page
    assert 'options/study/small.yml --set datasets/Set5 datasets/Set14`' in page
    assert '| does it win? | EDSR, tiny | KD | 1 |' in page  # the better of the two on seed 0, the one they share
    row = next(line for line in page.splitlines() if line.startswith('| MTKD | 3 |'))
    assert '| 29.478 |' in row
    assert row.endswith('| 2.00 |')  # time of a step in units of the reference's
    assert '+0.194 [' in row


def test_methods_stand_beside_each_other_for_several_students() -> None:
    other = [{**each, 'student': 'rcan'} for each in RESULTS if each['method'] != 'kd']
    page = to_markdown(study(students={'edsr': 'EDSR, tiny', 'rcan': 'RCAN, tiny'}, results=[*RESULTS, *other]))
    head = page.splitlines().index('| gain over SCRATCH, dB | EDSR, tiny | RCAN, tiny |')
    kd, mtkd = (line.split(' | ') for line in page.splitlines()[head + 2 : head + 4])
    assert (kd[0], kd[1], kd[2][0]) == ('| KD', '+0.100, 1 seed', '–')  # noqa: RUF001  the dash of tables
    assert mtkd[1].startswith('**+0.194 [')
    assert mtkd[1] in mtkd[2]
    assert '| gain over SCRATCH, dB' not in to_markdown(study())


def test_the_best_is_sought_among_methods_with_as_many_seeds_as_any() -> None:
    lucky = result('kd', 0, [40.0, 41.0], [37, 38, 39])
    others = [each for each in RESULTS if each['method'] != 'kd']
    rows = gains_table(study(results=[*others, lucky])).splitlines()[2:]
    assert ['**' in row for row in rows] == [False, True]
    assert rows[0].endswith(', 1 seed |')


def test_equal_time_is_a_table_of_its_own() -> None:
    clocked = [result('kd', seed, [30.0, 31.0], [27, 28, 29], clock=True, iterations=7) for seed in (0, 1, 2)]
    page = to_markdown(study(results=[*RESULTS, *clocked]))
    assert '### Equal wall-clock time' in page
    assert '| EDSR, tiny | KD | 3 | 7 | 29.25 ± 0.00 | -0.' in page
    assert 'Made once' not in page


def test_equal_time_says_what_it_leaves_out() -> None:
    clocked = [result('kd', seed, [30.0, 31.0], [27, 28, 29], clock=True, iterations=7) for seed in (0, 1, 2)]
    step = min(each['step_seconds'] for each in RESULTS if each['method'] == 'scratch')
    page = to_markdown(study(results=[*RESULTS, *clocked], cache_seconds={'mean': 240 * step}))
    assert 'caches, in steps of EDSR, tiny without them' in page
    assert f'- `mean`: {240 * step:.0f} s, as long as 240 steps\n' in page
    assert 'Made once' not in to_markdown(study(cache_seconds={'mean': 9}))  # no runs at equal time


@pytest.mark.parametrize(
    ('ends', 'words'), [((0.1, 0.3), 'above zero'), ((-0.3, -0.1), 'below zero'), ((-0.1, 0.2), 'holds zero')]
)
def test_an_interval_says_on_which_side_of_zero_it_lies(ends: tuple[float, float], words: str) -> None:
    assert Interval(0.0, *ends, 3).verdict == words


def test_images_pair_networks_that_have_no_seeds() -> None:
    one, other = (result('x', 0, *images) for images in (([30.0, 31.5], [27, 28, 29]), ([30.0, 31.0], [26, 28, 29.5])))
    found, won = image_gain(one, other)
    test = stats.ttest_rel([30.0, 31.5, 27, 28, 29], [30.0, 31.0, 26, 28, 29.5])
    assert (found.n, won, found.mean) == (5, 2, pytest.approx(0.2))
    assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))


def test_targets_stand_against_their_best_teacher_and_the_first_two_targets() -> None:
    images = {
        'weak': 29.0,
        'strong': 31.0,
        'foreign': 40.0,
        'mean': 30.0,
        'merged': 32.0,
        'third': 33.0,
        'fourth': 34.0,
    }
    networks = {
        name: result(name, 0, [psnr, psnr + 1], [psnr] * 3) | {'parameters': 1} for name, psnr in images.items()
    }
    targets = {name: ['weak', 'strong'] for name in ('mean', 'merged', 'third', 'fourth')} | {'of one': ['foreign']}
    page = to_markdown(study(networks=networks, targets=targets))
    rows = [line.split(' | ')[:3] for line in page.split('| target | against |')[1].splitlines()[2:11]]
    assert rows[:3] == [
        ['| mean', 'strong', '-1.000 [-1.000, -1.000]'],
        ['| merged', 'strong', '+1.000 [+1.000, +1.000]'],
        ['| merged', 'mean', '+2.000 [+2.000, +2.000]'],
    ]
    assert [row[:2] for row in rows[3:]] == [
        [f'| {name}', other] for name in ('third', 'fourth') for other in ('strong', 'mean', 'merged')
    ]
    assert 'of one' not in page  # not measured


def test_the_page_names_the_code_that_trained() -> None:
    made = [{**each, 'trained_on': MADE | {'commit': commit}} for each, commit in zip(RESULTS, 'aabbaab', strict=True)]
    assert '; code of a, b. ' in to_markdown(study(results=made))
    made[1:3] = [{**each, 'trained_on': MADE | {'commit': 'a-dirty'}} for each in made[1:3]]
    assert '; code of a, b (2 of 7 runs with changes to it that were not committed). ' in to_markdown(
        study(results=made)
    )
    assert '; code of unknown. ' in to_markdown(study())


def test_gains_leave_the_reference_out() -> None:
    rows = gains_over(RESULTS, 'scratch', ['edsr', 'rcan'], ['scratch', 'kd', 'mtkd'])
    assert [(row['student'], row['method'], row['n']) for row in rows] == [('edsr', 'kd', 1), ('edsr', 'mtkd', 3)]


def test_a_page_is_changed_between_its_comments_alone() -> None:
    page = insert('# Results\n\nwords\n', 'one', 'first\n')
    page = insert(page, 'two', 'second\n')
    changed = insert(page, 'one', 'new\n')
    assert changed == page.replace('first', 'new')
    assert changed.startswith('# Results\n\nwords\n')
    assert changed.index('new') < changed.index('second')


def test_times_of_steps_are_compared_on_a_machine_that_ran_both() -> None:
    fast, slow = ({'trained_on': {'device': name}} for name in ('a fast one', 'a slow one'))
    own = [result('kd', 0, [30], [27], step_seconds=time, **place) for time, place in ((0.2, fast), (2.0, slow))]
    other = [result('scratch', seed, [30], [27], step_seconds=1.0 + seed, **slow) for seed in (0, 1)]
    assert of_one_place(own, other) == (2.0, 1.0)
    assert of_one_place(own[:1], other) is None
    assert of_one_place(own[1:], [each | {'threads': 1} for each in other]) is None
    assert of_one_place(own[1:], [each | {'step_seconds': None} for each in other]) is None
    assert (relative_time(dict(enumerate(own)), dict(enumerate(other))), relative_time({0: own[0]}, {0: other[0]})) == (
        '2.00',
        '\N{EN DASH}',
    )


@pytest.mark.parametrize(
    ('made', 'text'),
    [
        ([{}, {}], ''),
        ([{'precision': 'float32'}] * 2, '; passes in float32'),
        (
            [{'precision': 'float32'}, {'precision': 'float32'}, {'precision': 'bfloat16'}],
            '; passes of 2 in float32, 1 in bfloat16: a difference of two runs may hold that of their precisions',
        ),
        (
            [{'precision': 'float32'}, {}],
            '; passes of 1 in float32, 1 in a precision that was not noted: a difference of two runs may hold that of '
            'their precisions',
        ),
    ],
)
def test_a_page_says_in_which_precision_the_passes_were(made: list[dict[str, str]], text: str) -> None:
    assert passes_of(made) == text
