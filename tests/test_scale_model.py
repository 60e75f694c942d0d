"""The model of scale computes what a person would on paper and stays within limits; the page says what was found."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO, build_arch, scratch, write_option
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import record, scale, scale_fit, scale_report
from mtkd.schema import memory
from mtkd.schema.live_tensors import LiveTensors
from mtkd_eval.scale_model import (
    Cluster,
    Costs,
    Line,
    Link,
    Run,
    all_reduce,
    buckets,
    computation,
    efficiency,
    exchange,
    run_seconds,
    step,
)
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

Options = dict[str, Any]
PAGE = REPO / 'docs/scale.md'
RESULTS = sorted((REPO / 'benchmarks/results').glob('scale_*.json'))
MIB = 2**20
NODE = Cluster(within=Link(1e9, 0.001), between=Link(1e8, 0.002), per_node=4)
COSTS = Costs(Line(0.01, 0.002), Line(0.0, 0.05), gradient_bytes=MIB)


def test_a_ring_sends_twice_what_each_lacks() -> None:
    """Four processes, 8 MB at 1 MB/s: 6 sends of 2 MB and of a millisecond's delay."""
    assert all_reduce(8e6, 4, Link(1e6, 0.001)) == pytest.approx(12 + 0.006)
    assert all_reduce(8e6, 4, Link(1e6, 0.001), messages=3) == pytest.approx(12 + 0.018)
    assert all_reduce(8e6, 1, Link(1e6, 0.001), messages=3) == 0


@pytest.mark.parametrize(('size', 'number'), [(1, 1), (MIB, 1), (MIB + 1, 2), (26 * MIB, 2), (26 * MIB + 1, 3)])
def test_gradients_travel_in_a_small_bucket_and_large_ones(size: int, number: int) -> None:
    assert buckets(size) == number


def test_a_step_is_the_sum_of_its_parts() -> None:
    """Eight patches each: 26 ms; two processes add 2 ms and 1.05 ms for 1 MiB, 2 ms for the flag's four bytes."""
    assert step(COSTS, NODE, 1, 8) == pytest.approx(0.026)
    assert step(COSTS, NODE, 1, 8, online=True) == pytest.approx(0.426)
    assert step(COSTS, NODE, 2, 8) == pytest.approx(0.026 + 0.002 + MIB / 1e9 + 0.002, abs=1e-8)
    shared = replace(COSTS, crowding=1.5, crowding_of_teachers=2.0, waiting=0.1)
    assert computation(shared, 1, 8, online=True) == pytest.approx(0.426)
    assert computation(shared, 2, 8, online=True) == pytest.approx(0.039 + 0.8)
    assert step(shared, NODE, 2, 8) == pytest.approx(0.039 * 1.1 + 0.004 + MIB / 1e9, abs=1e-8)


def test_across_nodes_the_slower_link_sets_the_pace() -> None:
    assert NODE.link(4) == NODE.within
    assert NODE.link(5) == Link(1e8, 0.002)
    assert replace(NODE, between=Link(1e12, 0.0)).link(5) == NODE.within


def test_only_the_backward_pass_hides_an_exchange() -> None:
    slow = Cluster(Link(1e6, 0.0), Link(1e6, 0.0), 8)
    gradients, backward = MIB / 1e6, 2 / 3 * 0.026
    half, whole = (exchange(replace(COSTS, overlap=share), 2, 8, slow) for share in (0.01, 1.0))
    assert half == pytest.approx(0.99 * gradients, rel=1e-4)
    assert whole == pytest.approx(gradients - backward, rel=1e-4)


def test_a_slow_loader_is_what_a_step_waits_for() -> None:
    limited = replace(COSTS, loader_rate=10.0)
    assert step(limited, NODE, 1, 8) == step(limited, NODE, 4, 8) == 0.8
    assert efficiency(limited, NODE, 4, 8) == pytest.approx(1)


def test_a_run_validates_in_shares_and_saves_alone() -> None:
    """100 steps of 1 s; ten validations of 14 images at 3 s; two checkpoints of 5 s."""
    run = Run(100, validated_every=10, images=14, image_seconds=3.0, saved_every=50, saving=5.0)
    assert run_seconds(run, 1.0) == 100 + 10 * 42 + 10
    assert run_seconds(run, 1.0, processes=4) == 100 + 10 * 12 + 10  # four, four, three, three
    assert run_seconds(run, 1.0, processes=64) == 100 + 10 * 3 + 10
    assert run_seconds(Run(100), 1.0) == 100


def test_what_cannot_be_is_refused() -> None:
    for processes, patches in ((0, 8), (2, 0)):
        with pytest.raises(ValueError, match='a step takes at least one of both'):
            step(COSTS, NODE, processes, patches)
    with pytest.raises(ValueError, match='there is no cost of teachers'):
        step(replace(COSTS, teachers=None), NODE, 1, 8, online=True)


times = st.floats(1e-6, 1.0)
links = st.builds(Link, st.floats(1e6, 1e12), st.floats(0, 1e-2))
any_costs = st.builds(
    Costs,
    st.builds(Line, times, times),
    st.builds(Line, times, times),
    st.integers(1, 2**28),
    st.floats(1, 4),
    st.floats(1, 4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.none() | st.floats(0.1, 1e6),
)


@given(any_costs, st.builds(Cluster, links, links, st.integers(1, 16)), st.integers(1, 64), st.booleans())
def test_more_processes_never_make_a_step_shorter_nor_the_whole_more_than_efficient(
    costs: Costs, cluster: Cluster, patches: int, online: bool
) -> None:
    numbers = (1, 2, 4, 8, 16, 32, 64)
    steps = [step(costs, cluster, number, patches, online) for number in numbers]
    shares = [efficiency(costs, cluster, number, patches, online) for number in numbers]
    assert shares[0] == 1
    for values in (steps, shares[::-1]):
        assert all(first <= second * (1 + 1e-9) for first, second in pairwise(values))
    other = replace(cluster, within=Link(1.0, 10.0))
    assert step(costs, other, 1, patches, online) == steps[0]  # one process exchanges nothing


def synthetic(costs: Costs, cluster: Cluster) -> Options:
    """What a machine that the model describes exactly would have measured."""
    found: Options = {
        'points': [], 'sizes': [2**16, 2**18, MIB, 2**22], 'batches': [2, 4, 8], 'variants': ['cached', 'online'],
        'gradient_bytes': costs.gradient_bytes, 'loader_rate': None, 'gpus_per_node': cluster.per_node,
        'link_gbps': cluster.between.bandwidth * 8 / 1e9, 'link_latency_us': cluster.between.latency * 1e6,
    }  # fmt: skip

    def add(kind: str, variant: str, processes: int, size: int, seconds: float) -> None:
        found['points'].append(
            {'kind': kind, 'variant': variant, 'processes': processes, 'size': size, 'fastest_s': seconds}
        )

    for size in found['batches']:
        for variant in found['variants']:
            online = variant == 'online'
            add('alone', variant, 1, size, step(costs, cluster, 1, size, online))
            add('apart', variant, 2, size, computation(costs, 2, size, online))
            add('joined', variant, 2, size, step(costs, cluster, 2, size, online))
        add('teachers', 'online', 1, size, costs.teachers.at(size))
    for size in found['sizes']:
        add('all_reduce', 'cached', 2, size, all_reduce(size, 2, cluster.within))
    return found


@pytest.mark.parametrize('shared', [{'waiting': 0.2}, {'overlap': 0.5}])
def test_the_constants_of_a_machine_are_found_again(shared: Options) -> None:
    costs = replace(COSTS, crowding=1.4, crowding_of_teachers=1.1, **shared)
    found, cluster = scale_fit.model_of(synthetic(costs, NODE))
    # the largest batch tells overlap and waiting, the flag's four bytes are not told from none
    for name in ('crowding', 'crowding_of_teachers', 'waiting', 'overlap'):
        assert getattr(found, name) == pytest.approx(getattr(costs, name), rel=1e-4, abs=1e-6), name
    for name in ('student', 'teachers'):
        assert vars(getattr(found, name)) == pytest.approx(vars(getattr(costs, name)), abs=1e-9)
    assert vars(cluster.within) == pytest.approx(vars(NODE.within), rel=1e-6)
    rows = scale_fit.checks(synthetic(costs, NODE))
    assert max(abs(row['error_percent']) for row in rows) < 0.01
    assert {row['what'] for row in rows if not row['used']} >= {
        'step, cached, 1 process, batch 4 each',
        'step, cached, 2 processes, batch 4 each',
        'all-reduce, 2 processes, 1 MiB',
    }


def test_a_line_never_takes_less_than_nothing() -> None:
    assert scale_fit.line((2, 0.1), (8, 0.7)) == Line(0.0, 0.7 / 8)


def test_a_point_that_was_not_measured_is_named() -> None:
    with pytest.raises(KeyError, match='joined, cached, 4 processes, size 8 was not measured'):
        scale_fit.seconds(synthetic(COSTS, NODE), 'joined', 'cached', 4, 8)


def test_there_are_results() -> None:
    assert RESULTS


@pytest.mark.parametrize('path', RESULTS, ids=lambda path: path.stem)
def test_the_page_says_what_the_files_say(path: Path) -> None:
    found = json.loads(path.read_text())
    page, option = PAGE.read_text(), found['option']
    text = scale_report.text_of(found)
    written = record.replace_between(page, f'<!-- scale: {option} -->', f'<!-- end of scale: {option} -->', text)
    assert written == page, f'python benchmarks/scale.py --show {path.relative_to(REPO)} --page docs/scale.md'
    for stored, now in zip(found['checks'], scale_fit.checks(found), strict=True):
        assert stored == pytest.approx(now)
    assert sum(not row['used'] for row in found['checks']) >= 4
    assert all(len(found['load'][when]) == 3 for when in ('before', 'after'))


def test_live_tensors_are_counted_once_and_as_long_as_they_live() -> None:
    known = torch.ones(1000)
    with LiveTensors([known]) as live:
        first = known + 1  # 4000 bytes
        assert first.view(10, 100).t().shape == (100, 10)
        first.mul_(2)
        known.mul_(2)
        assert live.now == live.peak == 4000
        second = torch.cat([first, first])
        assert live.now == 12000
        del first
        assert (live.now, live.peak) == (8000, 12000)
        given = torch.ones(5)
        live.count([second, given, None, 3])
    assert live.peak == 12000


@pytest.fixture
def model(options: Options) -> Any:
    options['datasets']['train']['gt_size'] = 192
    options.update(dist=False, is_train=True, rank=0, world_size=1)
    return MultiTeacherSRModel(options)


def test_the_peak_of_a_small_step_tells_that_of_a_larger_one(model: Any) -> None:
    """With teachers online: what they hold for a moment is in it."""
    found = memory.estimate(model, batch=2, gt_size=192, on_gpu=False)
    memory.feed(model, 2, 48)
    whole = memory.peak_of_a_step(model)
    assert found.activations + found.passing == pytest.approx(whole, rel=0.1)  # borders grow with the side
    images = 4 * 2 * 3 * (48**2 + 192**2)
    assert found.passing > images
    assert all(parameter.grad is None for parameter in model.net_g.parameters())


def test_several_processes_need_buckets_besides(options: Options) -> None:
    scratch(options).update(dist=False, is_train=True, rank=0, world_size=1)
    model = MultiTeacherSRModel(options)
    alone, shared = (memory.estimate(model, 2, 64, on_gpu=False, processes=number) for number in (1, 2))
    assert (alone.buckets, shared.buckets) == (0, alone.gradients)
    assert shared.total == alone.total + alone.gradients


def test_the_batches_that_workers_hold_ready_are_counted_by_hand() -> None:
    """Three workers, two batches each, of two: GT and target of 8 x 8, LQ of 2 x 2, three channels of four bytes."""
    assert memory.prefetched(batch=2, gt_size=8, scale=4, stores=1, workers=3) == 3 * 2 * 2 * (64 + 64 + 4) * 12
    assert memory.prefetched(batch=2, gt_size=8, scale=4, stores=1, workers=0) == 0


@pytest.mark.slow
def test_one_command_measures_checks_and_shows(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('PYTHONPATH', str(REPO))
    option_file, out, page = write_option(options, tmp_path / 'toy.yml'), tmp_path / 'found.json', tmp_path / 'page.md'
    page.write_text(f'before\n<!-- scale: {option_file} -->\n<!-- end of scale: {option_file} -->\nafter\n')
    flags = ['-opt', str(option_file), '--device', 'cpu', '--processes', '1', '2', '--batches', '2', '3', '--lq', '16']
    flags += ['--runs', '2', '--memory-batch', '0', '--validation-side', '24', '--json', str(out), '--page', str(page)]
    assert scale.main(flags) == 0
    found = json.loads(out.read_text())
    kinds = {(point['kind'], point['variant'], point['processes']) for point in found['points']}
    assert kinds == {
        ('alone', 'cached', 1), ('apart', 'cached', 2), ('joined', 'cached', 2), ('all_reduce', 'cached', 2),
        ('alone', 'online', 1), ('teachers', 'online', 1), ('apart', 'online', 2), ('joined', 'online', 2),
    }  # fmt: skip
    assert all(point['fastest_s'] > 0 for point in found['points'])
    weights = sum(math.prod(tensor.shape) for tensor in build_arch(options['network_g']).parameters())
    assert found['gradient_bytes'] == 4 * weights
    assert found['image_s'] > 0
    assert found['checkpoint_s'] > 0
    shown = capsys.readouterr().out
    assert f'<!-- scale: {option_file} -->\n{scale_report.text_of(found)}\n<!-- end' in page.read_text()
    assert scale.main(['--show', str(out)]) == 0
    assert capsys.readouterr().out in shown


def test_the_command_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        ([], 'give -opt and --json'),
        (['-opt', 'x.yml', '--json', 'x.json', '--batches', '4', '4'], 'a cost per patch takes at least two'),
    ):
        with pytest.raises(SystemExit, match='2'):
            scale.main(flags)
        assert message in capsys.readouterr().err
    assert scale.main(['-opt', str(tmp_path / 'none.yml'), '--json', str(tmp_path / 'found.json')]) == 2
    assert 'error: no such option file' in capsys.readouterr().err
    assert not (tmp_path / 'found.json').exists()
    (tmp_path / 'page.md').write_text('a page without a place for it')
    assert scale.main(['--show', str(RESULTS[0]), '--page', str(tmp_path / 'page.md')]) == 2
    assert 'error: the page lacks the markers <!-- scale: options/' in capsys.readouterr().err
