"""The teacher cache: what it holds, what a kill leaves behind, who may share the work, and what is refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
import torch
from conftest import REPO, small_network, stage_one, write_option

from mtkd_arch.self_ensemble import self_ensemble
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_data.flat_png import encode_flat_png
from mtkd_data.lmdb_store import LmdbReader, LmdbWriter, MetaEntry
from mtkd_data.teacher_cache import plan, writer
from mtkd_data.teacher_cache.cache import TeacherCache, decode_cached, from_uint16, lq_fingerprint, to_uint16
from mtkd_data.teacher_cache.command import main
from mtkd_data.teacher_cache.runner import TeacherRunner
from mtkd_data.teacher_cache.shards import CLIPPED, CacheShard, done_keys, merge_shards, read_clipped

Options = dict[str, Any]
HALF_A_STEP = 0.5 / 32767.5
# float32 results of one network differ in the last digits with the memory layout and the number of threads
ROUNDING = 1e-6


@pytest.fixture
def cache(tmp_path: Path, options: Options) -> Callable[..., Path]:
    """``cache(*arguments)`` makes a cache of ``options`` and gives its folder."""

    def make(*arguments: str, out: str = 'cache') -> Path:
        assert run(options, tmp_path, *arguments, out=out) == 0
        return tmp_path / out

    return make


def run(options: Options, folder: Path, *arguments: str, out: str = 'cache') -> int:
    option_file = write_option(options, folder / 'option.yml')
    return main(['-opt', str(option_file), '--out', str(folder / out), '--device', 'cpu', *arguments])


def assert_refused(options: Options, folder: Path, capsys: Any, message: str, *arguments: str) -> None:
    before = {path.name for path in folder.iterdir()} | {'option.yml'}
    assert run(options, folder, *arguments) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == before


def images_of(root: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every stored image as float32 (H, W, 3), by store and key."""
    cache = TeacherCache(root)
    images = {}
    for store in cache.stores:
        with cache.open_store(store) as reader:
            images[store] = {key: from_uint16(decode_cached(reader[key], key)) for key in reader}
    return images


def bytes_of(root: Path) -> dict[str, bytes]:
    """All that a cache holds: cache.json, and of LMDBs the values, as their pages depend on the order of writing."""
    content = {'cache.json': (root / 'cache.json').read_bytes()}
    for path in sorted(root.glob('*.lmdb')):
        content[f'{path.name}/meta_info.txt'] = (path / 'meta_info.txt').read_bytes()
        with LmdbReader(path) as reader:
            content |= {f'{path.name}/{key}': reader[key] for key in reader}
    for path in sorted(root.glob('*/*.png')):
        content[str(path.relative_to(root))] = path.read_bytes()
    return content


def lq_images(options: Options) -> dict[str, torch.Tensor]:
    with LmdbReader(Path(options['datasets']['train']['dataroot_lq'])) as reader:
        images = {key: cv2.imdecode(np.frombuffer(reader[key], np.uint8), cv2.IMREAD_COLOR) for key in reader}
    return {
        key: torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).astype(np.float32) / 255)[None]
        for key, image in images.items()
    }


def online(options: Options) -> TeacherEnsemble:
    return TeacherEnsemble(options['teachers'], options['scale'], options.get('aggregator'))


def as_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


# What comes out


def test_every_stored_image_is_what_the_networks_give_online_within_half_a_step(options, cache):
    images, ensemble = images_of(cache('--stores', 'all')), online(options)
    assert list(images) == ['target', 'edsr', 'rcan', 'swinir']
    for key, lq in lq_images(options).items():
        for store, output in ensemble(lq).items():
            expected = output.clamp(-0.5, 1.5)
            torch.testing.assert_close(
                as_tensor(images[store][key]), expected, rtol=0, atol=HALF_A_STEP + ROUNDING, msg=f'{store} {key}'
            )


def test_stage_two_caches_the_target_and_stage_one_each_teacher(options, cache, tmp_path):
    assert TeacherCache(cache()).stores == ('target',)
    cached = TeacherCache(cache(out='one')) if stage_one(options) else None
    assert cached.stores == ('edsr', 'rcan', 'swinir')
    assert cached.description['aggregator'] is None


def test_basicsr_reads_a_store_as_an_lmdb_of_its_own(options, cache):
    from basicsr.data.data_util import paired_paths_from_lmdb

    root, gt = cache(), options['datasets']['train']['dataroot_gt']
    paths = paired_paths_from_lmdb([str(root / 'target.lmdb'), gt], ['cached', 'gt'])
    assert [path['gt_path'] for path in paths] == ['astronaut', 'chelsea', 'coffee', 'rocket']
    assert (root / 'target.lmdb/meta_info.txt').read_text().splitlines()[0] == 'astronaut.png (144,192,3) 0'


def test_disk_and_compressed_caches_hold_the_same_pixels(cache):
    plain = images_of(cache('--stores', 'target', 'rcan'))
    for number, arguments in enumerate([('--format', 'disk'), ('--compression-level', '1')]):
        other = images_of(cache('--stores', 'target', 'rcan', *arguments, out=f'other{number}'))
        assert other.keys() == plain.keys()
        for store in plain:
            for key in plain[store]:
                np.testing.assert_array_equal(other[store][key], plain[store][key])


def test_only_the_networks_that_the_stores_need_are_built(options):
    runner = TeacherRunner(options, ('rcan',), torch.device('cpu'))
    assert list(runner.ensemble.networks) == ['rcan']
    assert runner.ensemble.aggregator is None
    options['aggregator'] = {'inputs': ['edsr', 'rcan']}
    assert list(TeacherRunner(options, ('target',), torch.device('cpu')).ensemble.networks) == ['edsr', 'rcan']


def test_the_self_ensemble_is_that_of_the_whole_pipeline(options, cache):
    root, ensemble = cache('--self-ensemble'), online(options)
    key, lq = next(iter(lq_images(options).items()))
    expected = self_ensemble(lambda x: ensemble(x)['target'], lq).clamp(-0.5, 1.5)
    stored = as_tensor(images_of(root)['target'][key])
    torch.testing.assert_close(stored, expected, rtol=0, atol=HALF_A_STEP + ROUNDING)
    assert json.loads((root / 'cache.json').read_text())['self_ensemble'] is True


def test_tiles_are_recorded_with_the_measured_difference_at_their_seams(options, cache, capsys):
    root = cache('--stores', 'edsr', '--tile', '16', '--overlap', '9')  # as far as this EDSR sees
    tile = json.loads((root / 'cache.json').read_text())['tile']
    assert (tile['tile'], tile['overlap']) == (16, 9)
    assert tile['seam']['largest'] < ROUNDING
    assert (tile['seam']['height'], tile['seam']['width']) == (32, 32)
    assert f'by at most {tile["seam"]["largest"]:.2g}' in capsys.readouterr().out
    root = cache('--stores', 'edsr', '--tile', '16', '--overlap', '0', out='seams')
    assert json.loads((root / 'cache.json').read_text())['tile']['seam']['largest'] > 100 * ROUNDING
    root = cache('--stores', 'edsr', '--tile', '64', out='larger')
    assert json.loads((root / 'cache.json').read_text())['tile']['seam'] is None


def test_precision_is_recorded_and_the_one_asked_for_goes_before_the_option_files(options, cache):
    options['teachers']['edsr']['precision'] = 'bf16'
    assert TeacherCache(cache('--stores', 'edsr')).description['precision'] == 'bf16'
    described = TeacherCache(cache('--stores', 'edsr', 'rcan', out='mixed')).description
    assert described['precision'] == 'edsr: bf16, rcan: fp32'
    full = cache('--stores', 'edsr', '--precision', 'fp32', out='full')
    assert TeacherCache(full).description['precision'] == 'fp32'
    assert images_differ(full, full.with_name('cache'))


def images_differ(one: Path, other: Path) -> bool:
    pairs = zip(images_of(one)['edsr'].values(), images_of(other)['edsr'].values(), strict=True)
    return not all(np.array_equal(*pair) for pair in pairs)


def test_values_beyond_the_range_are_clipped_and_counted(options, cache, teacher_files, tmp_path):
    weights = torch.load(teacher_files['edsr'], weights_only=True)['params']
    weights['conv_last.bias'] += 255 * torch.tensor([5.0, 0.0, 0.0])  # EDSR computes in [0, 255]
    torch.save({'params': weights}, tmp_path / 'bright.pth')
    options['teachers']['edsr']['path'] = str(tmp_path / 'bright.pth')
    root = cache('--stores', 'edsr')
    images = images_of(root)['edsr']
    assert all((image[..., 0] == 1.5).all() for image in images.values())
    red = json.loads((root / 'cache.json').read_text())['clipped']
    expected = np.mean([(image == 1.5) | (image == -0.5) for image in images.values()])
    assert red == pytest.approx(expected) == pytest.approx(1 / 3, abs=0.01)


def test_quantisation_covers_its_range_and_is_its_own_inverse():
    levels = np.arange(65536, dtype=np.uint16).reshape(1, -1, 1).repeat(3, axis=2)
    values = from_uint16(levels)
    assert (values.min(), values.max(), values.dtype) == (-0.5, 1.5, np.float32)
    np.testing.assert_array_equal(to_uint16(torch.from_numpy(values.transpose(2, 0, 1).copy())), levels)
    np.testing.assert_array_equal(from_uint16(levels.astype('>u2')), values)
    beyond = torch.tensor([-9.0, 0.0, 9.0]).view(3, 1, 1)
    np.testing.assert_array_equal(to_uint16(beyond), [[[0, 16384, 65535]]])  # 0 is the middle of two levels: to even


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_values_that_are_not_finite_are_refused_and_the_image_is_named(options, teacher_files, tmp_path, capsys):
    with pytest.raises(ValueError, match='1 of 12 values are infinite or not a number'):
        to_uint16(torch.tensor([float('nan')] + [0.0] * 11).view(3, 2, 2))
    weights = torch.load(teacher_files['edsr'], weights_only=True)['params']
    weights['conv_last.weight'][0] = 3e38  # finite, and its sums are not
    torch.save({'params': weights}, tmp_path / 'broken.pth')
    options['teachers']['edsr']['path'] = str(tmp_path / 'broken.pth')
    assert run(options, tmp_path, '--stores', 'edsr') == 2
    assert "LRbicx4.lmdb: astronaut: 'edsr' is infinite or not a number somewhere: take --precision" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / 'cache').exists()


def test_grey_and_odd_sized_images_of_a_folder_are_cached_under_the_keys_of_their_gt(options, tmp_path, photos):
    for name, size, flags in (('chelsea', (33, 19), 1), ('coffee', (7, 11), 0)):
        lq = cv2.resize(cv2.imread(str(photos / f'{name}.png'), flags), size)
        for part, image in (('gt', cv2.resize(lq, (size[0] * 4, size[1] * 4))), ('lq', lq)):
            (tmp_path / part).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / part / f'{name}{"x4" if part == "lq" else ""}.png'), image)
    train = options['datasets']['train']
    train.update(dataroot_gt=str(tmp_path / 'gt'), dataroot_lq=str(tmp_path / 'lq'), filename_tmpl='{}x4')
    train['io_backend'] = {'type': 'disk'}
    assert run(options, tmp_path, '--tile', '8', '--overlap', '8') == 0
    images = images_of(tmp_path / 'cache')['target']
    assert {key: image.shape for key, image in images.items()} == {'chelsea': (76, 132, 3), 'coffee': (44, 28, 3)}


def test_the_fingerprint_depends_on_keys_and_values_but_not_on_their_order():
    values = [('b', b'2'), ('a', b'1')]
    assert lq_fingerprint(values) == lq_fingerprint(values[::-1])
    others = [[('b', b'2')], [('b', b'1'), ('a', b'2')], [('b', b'2'), ('c', b'1')]]
    assert len({lq_fingerprint(other) for other in [values, *others]}) == 4


def test_by_default_the_cache_lies_beside_the_lq_images_or_where_the_option_file_looks_for_it(
    options, tmp_path, data, monkeypatch
):
    shutil.copytree(data / 'train', tmp_path / 'set')
    for side, name in (('gt', 'GT'), ('lq', 'LRbicx4')):
        options['datasets']['train'][f'dataroot_{side}'] = str(tmp_path / f'set/{name}.lmdb')
    arguments = ['-opt', str(write_option(options, tmp_path / 'option.yml')), '--device', 'cpu']
    assert main(arguments) == 0
    assert TeacherCache(tmp_path / 'set/LRbicx4_cache_target_of_edsr_rcan_swinir').stores == ('target',)
    options['datasets']['train'].update(type='CachedTeacherDataset', dataroot_cache=str(tmp_path / 'set/mine'))
    write_option(options, tmp_path / 'option.yml')
    assert main(arguments) == 0
    assert TeacherCache(tmp_path / 'set/mine').scale == 4


def test_a_shipped_option_file_is_read_and_its_missing_data_named(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(['-opt', str(REPO / 'options/train_mtkd_x4.yml')]) == 2
    assert 'datasets/DIV2K_sub/LRbicx4.lmdb: expected an LMDB' in capsys.readouterr().err


def test_help_of_the_launcher_shows_an_example():
    command = [sys.executable, str(REPO / 'scripts/cache_teachers.py'), '--help']
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd='/').stdout
    assert 'python scripts/cache_teachers.py -opt options/train_mtkd_x4.yml' in shown


# Stopping, going on, sharing


@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_a_cache_that_is_complete_is_left_alone_and_another_is_refused(options, cache, tmp_path, capsys):
    before = bytes_of(cache())
    capsys.readouterr()
    assert run(options, tmp_path) == 0
    assert 'already complete: 4 images' in capsys.readouterr().out
    assert_refused(options, tmp_path, capsys, 'another cache is there: self_ensemble is False there', '--self-ensemble')
    assert_refused(options, tmp_path, capsys, "stores is ['target'] there and ['edsr'] here", '--stores', 'edsr')
    assert bytes_of(tmp_path / 'cache') == before


@pytest.mark.injects('kill', 'caching teachers, killed midway and repeated')
def test_an_unfinished_cache_goes_on_where_it_stopped(options, cache, tmp_path, monkeypatch, capsys):
    whole, run_networks, made = bytes_of(cache(out='whole')), TeacherRunner.run, []

    def stopping(runner: TeacherRunner, lq: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(made) == 2:
            raise OSError('stopped')
        made.append(lq.shape)
        return run_networks(runner, lq)

    monkeypatch.setattr(writer, 'COMMIT_SECONDS', 0)
    monkeypatch.setattr(TeacherRunner, 'run', stopping)
    assert run(options, tmp_path) == 2
    with pytest.raises(FileNotFoundError, match=r'the cache is unfinished, .*cache\.partial holds .* run the same'):
        TeacherCache(tmp_path / 'cache')
    monkeypatch.setattr(TeacherRunner, 'run', lambda *given: made.append('again') or run_networks(*given))
    assert_refused(options, tmp_path, capsys, 'another cache: self_ensemble is False there', '--self-ensemble')
    assert run(options, tmp_path) == 0
    assert made[2:] == ['again', 'again']
    assert bytes_of(tmp_path / 'cache') == whole
    assert sorted(path.name for path in (tmp_path / 'cache').iterdir()) == ['cache.json', 'target.lmdb']


def test_an_unfinished_cache_of_other_weights_shows_both_fingerprints(options, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(writer, '_make', lambda *_: exec('raise OSError("stopped")'))
        assert run(options, tmp_path) == 2
    begun = json.loads((tmp_path / 'cache.partial/begun.json').read_text())
    resave(options['teachers']['rcan'], tmp_path)
    assert run(options, tmp_path) == 2
    error = capsys.readouterr().err
    assert f'teachers.rcan.weights is {begun["teachers"]["rcan"]["weights"]} there and ' in error
    assert 'repeat it as it was, or delete the folder' in error


@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_a_partial_folder_of_unknown_origin_is_left_alone(options, tmp_path, capsys):
    (tmp_path / 'cache.partial').mkdir()
    (tmp_path / 'cache.partial/mine.txt').write_text('mine')
    assert_refused(options, tmp_path, capsys, 'cache.partial: holds something that is no unfinished cache')
    assert [path.name for path in (tmp_path / 'cache.partial').iterdir()] == ['mine.txt']


def count_committed(path: Path) -> int:
    if not (path / 'data.mdb').is_file() or (path / 'data.mdb').stat().st_size < 2**15:
        return 0
    # a snapshot: this process must not hold the LMDB open while another writes it
    with lmdb.open(str(path), readonly=True, lock=False) as environment:
        return environment.stat()['entries']


def launch(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment(), capture_output=True, text=True, timeout=120
    )


def environment() -> dict[str, str]:
    return {**os.environ, 'PYTHONPATH': str(REPO), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


def script(folder: Path, *lines: str) -> Path:
    """The command line with ``TeacherRunner.run`` preceded by ``lines``, which see the number of this image."""
    path = folder / 'command.py'
    path.write_text(
        'import itertools, os, signal, sys, time\n'
        'import mtkd\n'
        'from mtkd_data.teacher_cache import command, writer\n'
        'from mtkd_data.teacher_cache.runner import TeacherRunner\n'
        'real, numbers = TeacherRunner.run, itertools.count(1)\n'
        'def run(runner, lq):\n'
        '    number = next(numbers)\n' + ''.join(f'    {line}\n' for line in lines) + '    return real(runner, lq)\n'
        'TeacherRunner.run, writer.COMMIT_SECONDS = run, 0\n'
        'sys.exit(command.main())\n'
    )
    return path


@pytest.fixture
def one_thread():
    """As many threads as the processes have: sums in another order may differ in the last digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.injects('kill', 'caching teachers, killed midway and repeated')
def test_a_run_killed_midway_and_repeated_gives_what_an_uninterrupted_run_gives(options, tmp_path, cache, one_thread):
    arguments = ['--stores', 'all', '--precision', 'fp32']
    whole = bytes_of(cache(*arguments, out='whole'))
    command = script(tmp_path, 'if number == 3: os.kill(os.getpid(), signal.SIGKILL)')
    killed = launch(
        command, '-opt', tmp_path / 'option.yml', '--out', tmp_path / 'cache', '--device', 'cpu', *arguments
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / 'cache').exists()
    for store in ('target', 'edsr', 'rcan', 'swinir'):
        assert count_committed(tmp_path / f'cache.partial/{store}.lmdb') == 2
    assert run(options, tmp_path, *arguments) == 0
    assert bytes_of(tmp_path / 'cache') == whole
    assert not (tmp_path / 'cache.partial').exists()


@pytest.mark.slow
def test_two_processes_make_what_one_makes_and_go_on_with_its_work(options, tmp_path, cache, monkeypatch, one_thread):
    arguments = ['--stores', 'all']
    whole, run_networks, made = bytes_of(cache(*arguments, out='whole')), TeacherRunner.run, []

    def stopping(runner: TeacherRunner, lq: torch.Tensor) -> dict[str, torch.Tensor]:
        made.append(lq.shape)
        if len(made) == 2:
            raise OSError('stopped')
        return run_networks(runner, lq)

    with monkeypatch.context() as patch:  # one process makes one of four images
        patch.setattr(writer, 'COMMIT_SECONDS', 0)
        patch.setattr(TeacherRunner, 'run', stopping)
        assert run(options, tmp_path, *arguments) == 2
    torchrun = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')
    command = ['-opt', tmp_path / 'option.yml', '--out', tmp_path / 'cache', '--device', 'cpu', *arguments]
    done = launch(*torchrun, REPO / 'scripts/cache_teachers.py', *command)
    assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path / 'cache') == whole
    assert done.stdout.count('4 images in each of') == 1
    assert sorted(path.name for path in (tmp_path / 'cache').iterdir()) == [
        'cache.json',
        *(f'{store}.lmdb' for store in ('edsr', 'rcan', 'swinir', 'target')),
    ]


@pytest.mark.slow
@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_a_process_that_fails_stops_the_other_and_one_process_finishes_what_both_made(
    options, tmp_path, cache, free_port, one_thread
):
    whole = bytes_of(cache(out='whole'))
    command = script(
        tmp_path,
        "rank = os.environ['RANK']",
        "if rank == '0' and number == 2: time.sleep(1)",  # it would go on for two images
        "if rank == '1' and number == 2: raise OSError('no more')",
    )
    arguments = map(str, ['-opt', tmp_path / 'option.yml', '--out', tmp_path / 'cache', '--device', 'cpu'])
    command = [sys.executable, str(command), *arguments]
    group = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port)}
    processes = [
        subprocess.Popen(command, env={**environment(), **group, 'RANK': rank}, stderr=subprocess.PIPE, text=True)
        for rank in '01'
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert 'error: no more' in errors[1]
    assert re.search('error: (another process|process 1) failed', errors[0])
    assert not (tmp_path / 'cache').exists()
    assert {path.name for path in (tmp_path / 'cache.partial').glob('shard*')} == {'shard0', 'shard1'}
    assert run(options, tmp_path) == 0
    assert bytes_of(tmp_path / 'cache') == whole


@pytest.mark.parametrize('form', ['lmdb', 'disk'])
def test_shards_are_merged_and_removed_and_nothing_is_made_twice(tmp_path, form):
    stores = ('target', 'edsr')
    for number, keys in (('0', 'ac'), ('10', 'bd')):
        with CacheShard(tmp_path / f'shard{number}', stores, form) as shard:
            for key in keys:
                shard.add(key, {store: f'{store} {key}'.encode() for store in stores}, ord(key))
            shard.flush()
    with CacheShard(tmp_path, stores, form) as shard:
        shard.add('e', {store: f'{store} e'.encode() for store in stores}, 0)
        shard.add('half', {'target': b'the other store was not written'}, 0)
        shard.flush()
    assert done_keys(tmp_path, stores, form) == set('abcde')
    merge_shards(tmp_path, stores, form, most_bytes=10)
    assert done_keys(tmp_path, stores, form) == set('abcde')
    assert not list(tmp_path.glob('shard*'))
    assert read_clipped(tmp_path) == {key: ord(key) for key in 'abcd'}


@pytest.mark.injects('kill', 'caching teachers, killed midway and repeated')
def test_a_line_of_the_clipped_counts_that_a_kill_cut_short_does_no_harm(tmp_path):
    with CacheShard(tmp_path, ['target'], 'disk') as shard:
        shard.add('one', {'target': b''}, 7)
    with open(tmp_path / CLIPPED, 'a') as file:
        file.write('tw')
    with CacheShard(tmp_path, ['target'], 'disk') as shard:
        shard.add('two', {'target': b''}, 9)
    assert read_clipped(tmp_path) == {'one': 7, 'two': 9}


# What is refused before anything is written


@pytest.mark.injects('fault', 'disks that are full or fail')
def test_a_disk_that_is_too_small_is_refused(options, tmp_path, capsys, monkeypatch):
    usage = namedtuple('usage', 'free')
    # four images of 144 x 192 x 3 values of 16 bits
    needed = 4 * 144 * 192 * 6
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(needed))
    assert_refused(options, tmp_path, capsys, 'GiB are free: make room')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(int(1.02 * needed)))
    assert run(options, tmp_path) == 0


def test_the_room_that_is_asked_for_is_what_the_cache_takes(cache):
    for form in ('lmdb', 'disk'):
        root = cache('--stores', 'target', 'edsr', '--format', form, out=form)
        settings = plan.CacheSettings(('target', 'edsr'), form)
        taken = sum(path.stat().st_size for path in root.rglob('*.mdb' if form == 'lmdb' else '*.png'))
        needed = plan.bytes_needed([(144, 192)] * 4, settings)
        if form == 'disk':
            assert taken == needed
        else:  # a store of four images is so small that the few pages of the tree show
            assert needed < taken < 1.1 * needed


@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_lq_data_that_is_missing_empty_or_without_partners_is_refused(options, tmp_path, capsys, data):
    train = options['datasets']['train']
    train['dataroot_lq'] = str(tmp_path / 'none.lmdb')
    assert_refused(
        options, tmp_path, capsys, 'none.lmdb: expected an LMDB in the layout of BasicSR, data.mdb is missing'
    )
    with_one(tmp_path / 'other.lmdb', 'stranger', b'')
    train['dataroot_lq'] = str(tmp_path / 'other.lmdb')
    assert_refused(
        options, tmp_path, capsys, "only in GT: ['astronaut', 'chelsea', 'coffee']; only in LQ: ['stranger']"
    )
    writer = LmdbWriter(tmp_path / 'empty.lmdb')
    writer.finish([])
    train['dataroot_gt'] = train['dataroot_lq'] = str(tmp_path / 'empty.lmdb')
    assert_refused(options, tmp_path, capsys, 'empty.lmdb: holds no images')
    (tmp_path / 'lq').mkdir()
    shutil.copy(data / 'val/LRbicx4/coffee.png', tmp_path / 'lq')
    train.update(dataroot_gt=str(data / 'val/GT'), dataroot_lq=str(tmp_path / 'lq'), io_backend={'type': 'disk'})
    assert_refused(options, tmp_path, capsys, 'lq: 3 images are missing:\n  astronaut.png, the partner of astronaut')


def with_one(path: Path, key: str, value: bytes) -> None:
    writer = LmdbWriter(path)
    writer.add({key: value})
    writer.finish([MetaEntry(key, 36, 48, 3, 1)])


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_an_lq_image_that_cannot_be_decoded_is_named(options, tmp_path, capsys):
    with_one(tmp_path / 'lq.lmdb', 'bad', b'\x89PNG\r\n\x1a\n and no more')
    train = options['datasets']['train']
    train['dataroot_gt'] = train['dataroot_lq'] = str(tmp_path / 'lq.lmdb')
    assert_refused(options, tmp_path, capsys, '1 of 1 LQ images cannot be used:\n  ' + str(tmp_path / 'lq.lmdb: bad'))


def test_mistakes_in_the_option_file_and_the_command_are_named(options, tmp_path, capsys):
    assert_refused(options, tmp_path, capsys, "no store 'edrs': did you mean 'edsr'?", '--stores', 'edrs')
    assert_refused(options, tmp_path, capsys, 'compression level must lie in 0..9', '--compression-level', '10')
    assert_refused(options, tmp_path, capsys, 'must not be negative', '--tile', '-1')
    options['teachers']['rcan']['path'] = 'nowhere.pth'
    assert_refused(options, tmp_path, capsys, 'teachers.rcan.path: no such weights file: nowhere.pth')
    options['teachers']['rcan']['path'] = None
    assert_refused(options, tmp_path, capsys, 'teachers.rcan.path is empty')
    options['teachers'] = {}
    assert_refused(options, tmp_path, capsys, 'there is nothing to cache')
    (tmp_path / 'list.yml').write_text('- no option file')
    for name, message in (('list.yml', 'expected an option file'), ('none.yml', 'no such option file')):
        assert main(['-opt', str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


# A finished cache and the option file that wants to use it


def resave(teacher: dict[str, Any], folder: Path) -> None:
    """Other weights for a teacher."""
    content = torch.load(teacher['path'], weights_only=True)
    content['params']['conv_first.weight'] += 0.1
    teacher['path'] = str(folder / 'other.pth')
    torch.save(content, teacher['path'])


def test_the_option_file_it_was_made_with_fits(options, cache):
    root = cache('--stores', 'all')
    TeacherCache(root).check_teachers(options)


@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_other_weights_are_refused_with_both_fingerprints(options, cache, tmp_path):
    cached = TeacherCache(cache())
    made = cached.description['teachers']['swinir']['weights']
    resave(options['teachers']['swinir'], tmp_path)
    with pytest.raises(ValueError, match=f'the weights of teachers.swinir .* in the cache {made}, in the option file'):
        cached.check_teachers(options)


def test_other_weights_of_a_teacher_that_is_not_involved_do_not_matter(options, cache, tmp_path):
    cached = TeacherCache(cache('--stores', 'edsr', 'rcan'))
    resave(options['teachers']['swinir'], tmp_path)
    del options['aggregator']
    cached.check_teachers(options)
    resave(options['teachers']['rcan'], tmp_path)
    cached.check_teachers(options, ['edsr'])
    with pytest.raises(ValueError, match=r'teachers\.rcan'):
        cached.check_teachers(options)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda opt: opt.update(scale=3), 'was made for scale 4, the option file has 3'),
        (
            lambda opt: opt['aggregator'].update(inputs=['rcan', 'edsr', 'swinir']),
            r"order .* in the cache \['edsr', 'rcan', 'swinir'\], in the option file \['rcan', 'edsr', 'swinir'\]",
        ),
        (lambda opt: opt.pop('aggregator'), 'what makes the target: in the cache an aggregator, .* the mean'),
        (lambda opt: opt['teachers'].pop('rcan'), "made with the teacher 'rcan', the option file has edsr, swinir"),
        (lambda opt: opt.pop('teachers'), 'the option file has no teachers'),
        (
            lambda opt: opt['teachers']['edsr'].update(network=small_network('edsr', num_block=3)),
            r"teachers\.edsr\.network: in the cache .*'num_block': 2.*'num_block': 3",
        ),
        (
            lambda opt: opt['teachers']['swinir'].update(window=16),
            r'swinir\.window: in the cache 8, in the option file 16',
        ),
        (lambda opt: opt['teachers']['edsr'].update(param_key='ema'), r'edsr\.param_key: in the cache None, .* ema'),
        (
            lambda opt: opt['aggregator'].update(path=opt['teachers']['edsr']['path']),
            'the weights of aggregator .* in the cache [0-9a-f]{64}, in the option file [0-9a-f]{64}',
        ),
    ],
)
@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_other_teachers_are_refused_with_both_values(options, cache, change, message):
    cached = TeacherCache(cache())
    change(options)
    with pytest.raises(ValueError, match=message):
        cached.check_teachers(options)


def test_weights_that_are_gone_by_now_are_a_warning(options, cache):
    cached = TeacherCache(cache())
    options['teachers']['rcan']['path'] = 'gone.pth'
    with pytest.warns(UserWarning, match=r'teachers\.rcan\.path: no file gone\.pth to compare'):
        cached.check_teachers(options)


@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_another_data_set_is_refused_with_both_fingerprints(options, cache):
    cached = TeacherCache(cache())
    with LmdbReader(Path(options['datasets']['train']['dataroot_lq'])) as reader:
        values = {key: reader[key] for key in reader}
    cached.check_lq(lq_fingerprint(values.items()))
    values['coffee'] += b'\0'
    now, made = lq_fingerprint(values.items()), cached.description['lq']['fingerprint']
    with pytest.raises(ValueError, match=f'of the cache {made}, of the LQ images now {now}'):
        cached.check_lq(now)


@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_eight_bit_images_from_elsewhere_are_no_cache(cache, data):
    root = cache()
    shutil.rmtree(root / 'target.lmdb')
    shutil.copytree(data / 'train/GT.lmdb', root / 'target.lmdb')
    with pytest.raises(ValueError, match=r'target\.lmdb: astronaut: expected a 16-bit RGB PNG, got 8-bit RGB'):
        TeacherCache(root)
    grey = cv2.imencode('.png', np.zeros((4, 4), np.uint16))[1].tobytes()
    with pytest.raises(ValueError, match='somewhere: expected a 16-bit RGB PNG, got 16-bit colour type 0'):
        decode_cached(grey, 'somewhere')
    with pytest.raises(ValueError, match='somewhere: expected a 16-bit RGB PNG, found something else'):
        decode_cached(b'GIF89a', 'somewhere')
    whole = encode_flat_png(np.zeros((4, 4, 3), np.uint16))
    with pytest.raises(ValueError, match='somewhere: cannot be decoded as a 16-bit RGB image of 4x4'):
        decode_cached(whole[:60], 'somewhere')


def test_a_cache_that_this_process_reads_already_can_be_described_again(cache):
    root = cache()
    with TeacherCache(root).open_store('target') as reader:
        assert TeacherCache(root).keys == tuple(reader.keys)


def test_a_damaged_cache_says_so(cache, tmp_path):
    root = cache('--stores', 'target', 'edsr')
    record = (root / 'cache.json').read_text()
    changes = {
        record[: len(record) // 2]: 'damaged or truncated',
        '[]': 'expected version 1, got None',
        record.replace('"version": 1', '"version": 99'): 'expected version 1, got 99',
        record.replace('"lq"', '"lp"'): 'lacks lq',
        record.replace('1.5', '1.0'): r'expected range \[-0.5, 1.5\]',
        record.replace('"images": 4', '"images": 5'): 'holds 4 images, cache.json says 5',
    }
    for text, message in changes.items():
        (root / 'cache.json').write_text(text)
        with pytest.raises(ValueError, match=message):
            TeacherCache(root)
    (root / 'cache.json').write_text(record)
    with pytest.raises(ValueError, match="holds no 'rcan', it holds target, edsr"):
        TeacherCache(root).open_store('rcan')
    (root / 'edsr.lmdb/meta_info.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r'missing, though cache\.json names it'):
        TeacherCache(root)
    with pytest.raises(FileNotFoundError, match=r'expected a teacher cache, cache\.json is missing'):
        TeacherCache(tmp_path)
