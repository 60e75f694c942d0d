"""Whatever a command writes is there whole or not at all: killed, on a full disk, in a folder that takes nothing."""

import json
import os
import re
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, build_arch, small_network, write_option
from forked import Work, contents, dying_at, forked, full_disk, ordinary_user, visible, watched

import mtkd.__main__ as commands
from benchmarks import record, run
from mtkd.__main__ import main as mtkd
from mtkd.compat import starting
from mtkd_data.preparation.prepare import main as prepare
from mtkd_data.preparation.test_set import main as prepare_test_set
from mtkd_data.teacher_cache.command import main as cache_teachers
from mtkd_data.whole_files import check_place, whole_file, whole_folder, write_atomically
from mtkd_eval import measure
from mtkd_eval.evaluate import main as evaluate
from mtkd_eval.export import main as export
from mtkd_eval.infer import main as infer
from mtkd_eval.plots.command import main as plot
from mtkd_eval.study import running
from mtkd_eval.study.command import main as study
from mtkd_model.validation import save_image

pytestmark = [
    pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning'),  # the child runs on one thread
    pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning'),
]
MOST_KILLS = 6  # of a command, spread over its flushes and renames
Make = Callable[[Path, Path, int], int | None]  # material, folder to write to, which of two contents


@pytest.fixture(scope='module')
def material(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Small images, networks 0 and 1, a data set, an option file of a cache, logs, studies with results 0 and 1."""
    folder = tmp_path_factory.mktemp('material')
    (folder / 'hr').mkdir()
    for number, name in enumerate(('chelsea', 'rocket')):
        image = cv2.imread(str(photos / f'{name}.png'))
        cv2.imwrite(str(folder / f'hr/{name}.png'), image[: 48 + 8 * number, :64])
    for form, out in (('disk', 'val'), ('lmdb', 'train')):
        made = ['--hr', str(folder / 'hr'), '--out', str(folder / out), '--format', form]
        assert prepare([*made, '--sub-image', '0', '--workers', '1']) == 0
    option = small_network('edsr')
    write_option(option, folder / 'net.yml')
    for turn in (0, 1):
        torch.manual_seed(turn)
        torch.save({'params': build_arch(option).state_dict()}, folder / f'net{turn}.pth')
        heads = build_arch({'type': 'HierarchicalSR', 'network': option, 'upscale': 4})
        torch.save({'params': heads.state_dict()}, folder / f'heads{turn}.pth')
        lines = [
            f'2026 INFO: [t..][epoch:  0, iter: {at:8,d}, lr:(5.000e-04,)] l_pix: {turn + 1 / at:.4e} \n'
            for at in (100, 200)
        ]
        (folder / f'log{turn}.log').write_text(''.join(lines))
    teachers = {'edsr': {'network': option, 'path': str(folder / 'net0.pth')}}
    roots = {'dataroot_gt': str(folder / 'train/GT.lmdb'), 'dataroot_lq': str(folder / 'train/LRbicx4.lmdb')}
    train = {'name': 'set', 'type': 'PairedImageDataset', **roots, 'io_backend': {'type': 'lmdb'}}
    write_option({'scale': 4, 'teachers': teachers, 'datasets': {'train': train}}, folder / 'cache.yml')
    grid = {
        'name': 'toy', 'scale': 4, 'iterations': 2, 'seeds': [3], 'test_sets': [str(folder / 'val')],
        'base': {'scale': 4, 'model_type': 'MultiTeacherSRModel', 'datasets': {}, 'train': {}},
        'students': {'edsr': {'options': {'network_g': option}}}, 'methods': {'scratch': None},
    }  # fmt: skip
    write_option(grid, folder / 'grid.yml')
    return folder


def prepared(form: str) -> Make:
    def make(material: Path, out: Path, turn: int) -> int:
        given = ['--hr', str(material / 'hr'), '--out', str(out / 'set'), '--format', form]
        return prepare([*given, '--sub-image', '0', '--workers', '1'])

    return make


def cached(form: str) -> Make:
    def make(material: Path, out: Path, turn: int) -> int:
        given = ['-opt', str(material / 'cache.yml'), '--out', str(out / 'cache'), '--format', form]
        return cache_teachers([*given, '--stores', 'target', '--device', 'cpu'])

    return make


def named(material: Path, turn: int) -> list[str]:
    return [f'student={material}/net{turn}.pth', '--network', str(material / 'net.yml')]


def evaluated(material: Path, out: Path, turn: int) -> int:
    measure.timed = lambda run, lq, *_: (run(lq), {'seconds': None, 'peak_bytes': None})  # as it varies
    files = [str(out / f'table.{ending}') for ending in ('md', 'json', 'csv')]
    how = ['--set', str(material / 'val'), '--repeats', '0', '--device', 'cpu', '--save-images', str(out / 'images')]
    return evaluate([*named(material, turn), *how, '--out', *files])


def exported(material: Path, out: Path, turn: int) -> int:
    """Weights and card; the graphs differ from one recording to the next."""
    return export([*named(material, turn), '--out', str(out), '--format', 'safetensors', '--overwrite'])


def inferred(material: Path, out: Path, turn: int) -> int:
    given = ['--input', str(material / 'val/LRbicx4'), '--out', str(out), '--device', 'cpu', '--overwrite']
    return infer([*named(material, turn), *given])


def plotted(material: Path, out: Path, turn: int) -> int:
    return plot(['curves', f'run={material}/log{turn}.log', '--show', 'l_pix', '--out', str(out / 'curves.png')])


def studied(material: Path, out: Path, turn: int) -> int:
    """A study whose runs are done, but for what they measured."""

    def measured(code: str, arguments: list[str], *rest: object) -> None:
        images = {'val': {'a': {'psnr_y': 30.0 + turn, 'ssim_y': 0.9}}}
        found = {
            'parameters': 1,
            'macs': 1,
            'sets': images,
            'circumstances': {'device': 'CPU', 'threads': 1, 'torch': '2'},
        }
        place = next(Path(each) for each in arguments if each.endswith('.measured'))
        write_atomically(place, json.dumps(found).encode())

    running.call = measured
    val = material / 'val'
    given = ['--out', str(out / 'study'), '--page', str(out / 'page.md'), '--json', str(out / 'copy.json')]
    return study([str(material / 'grid.yml'), *given, '--set', f'set{turn}={val}/GT,{val}/LRbicx4', '--threads', '1'])


def stripped(material: Path, out: Path, turn: int) -> int:
    script = runpy.run_path(str(REPO / 'scripts/strip_heads.py'))
    return script['main'](['--in', str(material / f'heads{turn}.pth'), '--out', str(out / 'net.pth')])


def reported(material: Path, out: Path, turn: int) -> int:
    """The quickstart's report, but for networks and pictures."""
    script = runpy.run_path(str(REPO / 'scripts/quickstart_report.py'))
    script['main'].__globals__.update(
        load_all=list, find_sets=lambda *_: [], evaluate=lambda *_, **__: {}, plot=lambda _: 0,
        to_markdown=lambda _: f'table {turn}' * 20, verdict=lambda _: 'it won',
    )  # fmt: skip
    return script['main'](['--out', str(out)])


def benchmarked(material: Path, out: Path, turn: int) -> int:
    figures = {
        'device': 'CPU',
        'threads': 1,
        'torch': '2',
        'haar_1': {'ours_to_package': {'median': 0.1 + turn, 'iqr': 0.0}},
    }
    costs = {
        name: {'median': 1.0 + turn, 'iqr': 0.1, 'median_s': 1.0, 'iqr_s': 0.1}
        for name in ('online', 'cached', 'scratch')
    }
    by_count = {'by_teachers': {'1': costs}, 'by_batch': {'4': {'seconds': costs}}}
    run.measure = lambda part, args: {**figures, **by_count}
    if not (out / 'page.md').exists():
        write_atomically(out / 'page.md', f'{run.START}\n{run.END}\n'.encode())
    record.write(out / 'part.json', 'cpu', figures)
    given = ['--results', str(out), '--plots', str(out), '--page', str(out / 'page.md'), '--device', 'cpu']
    return run.main([*given, '--parts', 'teachers'])


def validated(material: Path, out: Path, turn: int) -> None:
    for number in (0, 1):
        save_image(np.full((32, 32, 3), 100 * turn + number, np.uint8), out / f'image/image_{number}.png')


def copied_option(material: Path, out: Path, turn: int) -> None:
    sys.argv = ['train.py', str(turn)]
    starting.time.asctime = lambda: 'now'
    starting.copy_opt_file(str(material / 'cache.yml'), str(out))


def options(material: Path, out: Path, turn: int) -> int:
    """Of few option files: each is flushed."""
    commands.options_folder = lambda: REPO / 'options/test'
    return mtkd(['options', str(out / 'options')])


def schema(material: Path, out: Path, turn: int) -> int:
    if not turn:
        write_atomically(out / 'mtkd.schema.json', b'that of an older version')
        return 0
    return mtkd(['schema', '--out', str(out / 'mtkd.schema.json')])


ANEW: dict[str, Make] = {
    'prepare_data, LMDB': prepared('lmdb'),
    'prepare_data, folders': prepared('disk'),
    'prepare_test_set': lambda material, out, turn: prepare_test_set(['--hr', f'{material}/hr', '--out', f'{out}/set']),
    'cache_teachers, LMDB': cached('lmdb'),
    'cache_teachers, folders': cached('disk'),
    'options': options,
    'teachers': lambda material, out, turn: mtkd(['teachers', str(out / 'teachers')]),
}
AGAIN: dict[str, Make] = {
    'evaluate': evaluated, 'export': exported, 'infer': inferred, 'plot': plotted, 'run_study': studied,
    'strip_heads': stripped, 'quickstart_report': reported, 'benchmarks': benchmarked,
    'images of validation': validated, 'option file in the experiment': copied_option, 'schema': schema,
}  # fmt: skip
LIBRARY = ('benchmarks', 'images of validation', 'option file in the experiment')  # no command that explains errors
every_command = pytest.mark.parametrize('name', [*ANEW, *AGAIN])


@pytest.fixture
def begun(material: Path, tmp_path: Path) -> Callable[[str], tuple[Path, Callable[[Path], Work]]]:
    """The folder as the first content left it, and what writes the second into a folder."""

    def begin(name: str) -> tuple[Path, Callable[[Path], Work]]:
        make, old = {**ANEW, **AGAIN}[name], tmp_path / 'old'
        old.mkdir()
        if name in AGAIN:
            ended = forked(lambda: make(material, old, 0))
            assert ended.code == 0, ended.output
        return old, lambda folder: lambda: make(material, folder, 1)

    return begin


def spread(count: int) -> list[int]:
    """Of the numbers from 1 to ``count`` at most MOST_KILLS, the first and the last among them."""
    return sorted({round(1 + (count - 1) * part / (MOST_KILLS - 1)) for part in range(MOST_KILLS)})


@every_command
def test_a_killed_command_leaves_the_old_files_or_the_new(name: str, begun: Any, tmp_path: Path, tally: Any) -> None:
    old, make = begun(name)
    shutil.copytree(old, tmp_path / 'new')
    ended = forked(watched(make(tmp_path / 'new'), tmp_path / 'new'))
    assert ended.code == 0, ended.output
    before, after = contents(old), contents(tmp_path / 'new')
    assert before != after
    with tally(
        'fault', 'commands killed at a flush or a rename: files are the old or the new, the next run ends well'
    ) as count:
        for moment in spread(int(re.search(r'moments: (\d+)', ended.output)[1])):
            folder = tmp_path / f'killed_{moment}'
            shutil.copytree(old, folder)
            assert forked(make(folder), dying_at(moment)).code == -signal.SIGKILL
            found = contents(folder)
            torn = [each for each in before | found if found.get(each) not in (before.get(each), after.get(each))]
            again = forked(make(folder)) if found != after else None
            left = [path.name for path in folder.rglob('*.partial')] if again else []
            count(
                not torn and contents(folder) == after and not left,
                f'{name} killed at moment {moment}: {torn} {left} {again and again.output[-500:]}',
            )


@every_command
def test_a_disk_that_takes_no_more_is_said_so_and_the_old_files_stay(
    name: str, begun: Any, tmp_path: Path, tally: Any
) -> None:
    old, make = begun(name)
    shutil.copytree(old, tmp_path / 'out')
    ended = forked(make(tmp_path / 'out'), full_disk)
    before, found = contents(old), contents(tmp_path / 'out')
    with tally('fault', 'commands on a disk that takes no more: a message, and the old files') as count:
        told = ended.code == 2 and 'error: ' in ended.output and 'Traceback' not in ended.output
        told = (told or name in LIBRARY) and ended.code > 0 and 'File too large' in ended.output
        unfinished = [path for path in (tmp_path / 'out').rglob('.*.partial') if name in AGAIN or path.is_dir()]
        count(told and found == before and not unfinished, f'{name}: {ended} {before} {found} {unfinished}')


@every_command
def test_a_folder_that_may_not_be_written_is_said_so(name: str, begun: Any, tmp_path: Path, tally: Any) -> None:
    old, make = begun(name)
    shutil.copytree(old, tmp_path / 'out')
    folders = [tmp_path / 'out', *(path for path in (tmp_path / 'out').rglob('*') if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        ended = forked(make(tmp_path / 'out'), ordinary_user)
        found = contents(tmp_path / 'out')
    finally:
        for folder in folders:
            folder.chmod(0o755)
    with tally('bad input', 'results to a folder that may not be written') as count:
        told = name in LIBRARY or (ended.code == 2 and re.search('^error: .*ermission', ended.output, re.MULTILINE))
        count(
            bool(told) and ended.code > 0 and 'ermission' in ended.output and found == contents(old),
            f'{name}: {ended}',
        )


@every_command
def test_files_and_folders_have_the_permissions_that_the_user_asks_for(name: str, begun: Any, tmp_path: Path) -> None:
    _, make = begun(name)
    out = tmp_path / 'out'
    out.mkdir()
    ended = forked(make(out), lambda: os.umask(0o027))
    assert ended.code == 0, ended.output
    files = [path for path in visible(out) if '.lmdb' not in str(path)]
    assert {f'{path.name}: {path.stat().st_mode & 0o777:o}' for path in files} == {
        f'{path.name}: 640' for path in files
    }
    for path in out.rglob('*'):
        assert not path.stat().st_mode & 0o027, path


def test_a_file_written_in_place_or_not_flushed_is_found(tmp_path: Path) -> None:
    def in_place() -> None:
        (tmp_path / 'table.md').write_text('a table')

    def not_flushed() -> None:
        (tmp_path / '.table.md.partial').write_text('a table')
        os.replace(tmp_path / '.table.md.partial', tmp_path / 'table.md')

    assert 'table.md was written in place' in forked(watched(in_place, tmp_path)).output
    assert 'may not be on the disk' in forked(watched(not_flushed, tmp_path)).output
    write_atomically(tmp_path / 'table.md', b'whole')
    assert forked(watched(lambda: write_atomically(tmp_path / 'table.md', b'new'), tmp_path)).code == 0


def test_what_a_killed_run_left_is_gone_after_the_next(tmp_path: Path) -> None:
    (tmp_path / '.new.partial').mkdir()
    (tmp_path / '.new.partial/half').write_text('half')
    with whole_folder(tmp_path / 'new') as folder:
        (folder / 'whole').write_text('whole')
        assert not (tmp_path / 'new').exists()
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['whole']
    assert [path.name for path in tmp_path.iterdir()] == ['new']
    with pytest.raises(FileExistsError, match='new exists already; give a new folder'), whole_folder(tmp_path / 'new'):
        pass


@pytest.mark.parametrize('error', [KeyboardInterrupt(), ValueError('wrong')])
def test_what_goes_wrong_midway_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    write_atomically(tmp_path / 'file', b'old')
    for context in (whole_file(tmp_path / 'file'), whole_folder(tmp_path / 'folder')):
        with pytest.raises(type(error)), context:
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ['file']
    assert (tmp_path / 'file').read_bytes() == b'old'


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(NotADirectoryError, match='file is a file, expected a folder'):
        check_place(tmp_path / 'file/below/table.md')
    check_place(tmp_path / 'anew/below/table.md')
    with pytest.raises(FileNotFoundError, match=r"cannot be written: .*'.*nowhere/table\.md'"):
        write_atomically(tmp_path / 'nowhere/table.md', b'')
