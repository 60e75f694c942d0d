"""Damage in training and validation data is named, or harmless; it may be skipped, with a count."""

import io
import json
import logging
import multiprocessing
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import REPO, Run, cached, scratch, script_environment, write_option
from damaging import Damage, damages, flipped, outcome, rgb
from hand_made_cache import encode, write_cache, write_folder, write_lmdb
from PIL import Image
from test_exact_resume import content, cut_back, differences

from mtkd import compat
from mtkd.checks import check_datasets
from mtkd_data.cached_teacher_dataset import CachedTeacherDataset
from mtkd_data.damage import DamagedImage, check_encoded
from mtkd_data.flat_png import encode_flat_png
from mtkd_data.lmdb_pages import sound_keys
from mtkd_data.lmdb_store import LmdbReader
from mtkd_data.paired_crop_dataset import PairedCropDataset
from mtkd_data.placed_sampler import Place, SeededDataset
from mtkd_data.preparation.matlab_bicubic import imresize_bicubic
from mtkd_data.skipping import SkippingDataset
from mtkd_data.teacher_cache.cache import from_uint16

# isort: split
from basicsr.data.paired_image_dataset import PairedImageDataset

Images = dict[str, np.ndarray]
Options = dict[str, Any]


@pytest.fixture(scope='module')
def gt(photos: Path) -> Images:
    """RGB 96 x 96."""
    return {path.stem: cv2.imread(str(path))[20:116, 40:136, ::-1] for path in sorted(photos.iterdir())}


def pairs(root: Path, gt: Images, form: str, level: int = 1, **changes: Any) -> Options:
    """``gt`` and its LQ written below ``root``, and the options that name them."""
    write, suffix = (write_lmdb, '.lmdb') if form == 'lmdb' else (write_folder, '')
    lq = {key: imresize_bicubic(np.ascontiguousarray(image), 4) for key, image in gt.items()}
    roots = {name: root / f'{name}{suffix}' for name in ('GT', 'LQ')}
    for name, images in (('GT', gt), ('LQ', lq)):
        write(roots[name], images, level)
    opt = {'phase': 'train', 'scale': 4, 'gt_size': 96, 'use_hflip': False, 'use_rot': False}
    return {
        **opt, 'dataroot_gt': str(roots['GT']), 'dataroot_lq': str(roots['LQ']), 'io_backend': {'type': form}, **changes
    }  # fmt: skip


def dataset_of(kind: type, opt: Options) -> Any:
    return kind({**opt, 'io_backend': dict(opt['io_backend'])})


def spoil(path: Path, value: bytes | None = None, after: int = 200) -> None:
    """Flip a byte of a file, or of a value inside it."""
    data = path.read_bytes()
    place = after if value is None else data.index(value[:64]) + after
    path.write_bytes(flipped(place, 255)(data))


def values(lmdb: Path) -> dict[str, bytes]:
    with LmdbReader(lmdb) as reader:
        return {key: reader[key] for key in reader}


# Whatever is changed


def png_kinds(image: np.ndarray) -> dict[str, bytes]:
    palette = io.BytesIO()
    Image.fromarray(image).quantize(64).save(palette, 'png')
    plain = cv2.imencode('.png', image[..., ::-1])[1].tobytes()
    return {'plain': plain, 'palette': palette.getvalue(), 'in place': encode_flat_png(image)}


def png_damages(data: bytes, seed: int) -> Iterator[Damage]:
    middle = len(data) // 2
    bounds = ((0, 8), (8, 33), (33, 300), (middle - 500, middle + 500), (len(data) - 12, len(data)))
    for number, (start, stop) in enumerate(bounds):
        yield from damages(range(start, stop), 12, seed + number)


@pytest.mark.parametrize('kind', ['plain', 'palette', 'in place'])
def test_a_changed_png_is_named_or_harmless(gt: Images, tmp_path: Path, tally: Any, kind: str) -> None:
    opt = pairs(tmp_path, {'chelsea': gt['chelsea']}, 'disk', phase='val')
    path, data = tmp_path / 'GT/chelsea.png', png_kinds(gt['chelsea'])[kind]
    expected = [np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))]
    with tally('fault', 'PNG files with bytes changed, zeroed or cut off') as count:
        for number, (what, damage) in enumerate(png_damages(data, seed=len(kind))):
            path.write_bytes(damage(data))
            reader = (PairedImageDataset, PairedCropDataset)[number % 2]
            result = outcome(lambda reader=reader: [rgb(dataset_of(reader, opt)[0], 'gt')], expected, [str(path)])
            count(result in ('named', 'harmless'), f'{reader.__name__}, {what}: {result}')


LMDB_DAMAGED = '''
"""Read damaged LMDBs, each in a forked process, since some would kill it; print what became of each."""
import json, os, signal, sys
from pathlib import Path
import mtkd
import numpy as np
from basicsr.data.paired_image_dataset import PairedImageDataset
from PIL import Image
from damaging import damages, outcome, rgb
from mtkd.checks import check_datasets
from mtkd_data.paired_crop_dataset import PairedCropDataset

def read(opt, reader):
    check_datasets({'datasets': {'val': opt}})
    data = reader(opt)
    return [rgb(data[number], 'gt') for number in range(len(data))]

def in_a_process(root, damage, reader):
    (root / 'GT.lmdb/data.mdb').write_bytes(damage((root / 'whole.mdb').read_bytes()))
    receive, send = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        expected = [np.asarray(Image.open(path).convert('RGB')) for path in sorted((root / 'expected').iterdir())]
        opt = {'phase': 'val', 'scale': 4, 'dataroot_gt': str(root / 'GT.lmdb'), 'dataroot_lq': str(root / 'LQ.lmdb'),
               'io_backend': {'type': 'lmdb'}}
        os.write(send, outcome(lambda: read(opt, reader), expected, [str(root / 'GT.lmdb')])[:4000].encode())
        os._exit(0)
    os.close(send)
    _, status = os.waitpid(pid, 0)
    told = os.read(receive, 5000).decode()
    os.close(receive)
    return told or f'killed by signal {os.WTERMSIG(status)}'

found = []
for part, root, places, cuts in json.loads(Path(sys.argv[1]).read_text()):
    for number, (what, damage) in enumerate(damages(places, 30, seed=len(places), cuts=cuts)):
        reader = (PairedImageDataset, PairedCropDataset)[number % 2]
        found.append([part, f'{reader.__name__}, {what}', in_a_process(Path(root), damage, reader)])
print(json.dumps(found))
'''


def places_of(lmdb: Path, part: str) -> list[int]:
    """Bytes of the heads, of what is used of the pages of the tree, or of values, by looking at each page's header."""
    data, places = (lmdb / 'data.mdb').read_bytes(), []
    if part == 'heads':
        return [*range(8, 152), *range(4096 + 8, 4096 + 152)]
    in_values = 0
    for start in range(8192, len(data), 4096):
        number, _, flags, lower, upper = struct.unpack_from('=QHHHH', data, start)
        is_tree = not in_values and flags in (1, 2) and number == start // 4096
        if not in_values and flags == 4 and number == start // 4096:
            (in_values,) = struct.unpack_from('=I', data, start + 12)
        in_values = max(in_values - 1, 0)
        if is_tree and part == 'tree':
            places += [*range(start + 8, start + lower), *range(start + upper, start + 4096)]
        elif not is_tree and part == 'values':
            places += range(start + 16, start + 4096)
    return places


def little(gt: Images) -> Images:
    """So many images that the tree has branches, so small that they lie in its leaves."""
    crops = ((key, x, y) for key in gt for x in range(0, 96, 16) for y in range(0, 96, 16))
    return {f'{number:04}': gt[key][y : y + 8, x : x + 8] for number, (key, x, y) in enumerate(crops)}


def test_a_changed_lmdb_is_named_or_harmless(gt: Images, tmp_path: Path, tally: Any) -> None:
    jobs = []
    for name, images in (('few', gt), ('many', little(gt))):
        root = tmp_path / name
        root.mkdir()
        pairs(root, images, 'lmdb')
        shutil.copy(root / 'GT.lmdb/data.mdb', root / 'whole.mdb')
        write_folder(root / 'expected', images, 1)
        parts = ('heads', 'tree', 'values') if name == 'few' else ('tree',)
        jobs += [(f'{name}, {part}', str(root), places_of(root / 'GT.lmdb', part), part != 'heads') for part in parts]
    assert all(len(places) > 100 for *_, places, _ in jobs)
    (tmp_path / 'jobs.json').write_text(json.dumps(jobs))
    (tmp_path / 'read.py').write_text(LMDB_DAMAGED)
    environment = script_environment()
    environment['PYTHONPATH'] += f':{REPO / "tests"}'
    command = [sys.executable, str(tmp_path / 'read.py'), str(tmp_path / 'jobs.json')]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    with tally('fault', 'LMDBs with bytes changed, zeroed or cut off') as count:
        for part, what, result in found:
            count(result in ('named', 'harmless'), f'{part}, {what}: {result}')
    for part in {part for part, *_ in found}:
        assert sum(result == 'named' for other, _, result in found if other == part) > 5


def test_a_changed_list_of_an_lmdb_is_named_or_harmless(gt: Images, tmp_path: Path, tally: Any) -> None:
    opt = pairs(tmp_path, gt, 'lmdb', batch_size_per_gpu=1)
    path = tmp_path / 'GT.lmdb/meta_info.txt'
    data = path.read_bytes()

    def read() -> list[np.ndarray]:
        check_datasets({'datasets': {'train': opt}})
        dataset = PairedCropDataset(opt)
        return [rgb(dataset[number], 'gt') for number in range(len(dataset))]

    with tally('fault', 'LMDBs with bytes changed, zeroed or cut off') as count:
        for what, damage in damages(range(len(data)), 30, seed=3):
            path.write_bytes(damage(data))
            result = outcome(read, [gt[key] for key in sorted(gt)], [str(path.parent), 'datasets.train'])
            count(result in ('named', 'harmless'), f'meta_info.txt, {what}: {result}')


@pytest.mark.parametrize(('form', 'level'), [('lmdb', 0), ('lmdb', 1), ('disk', 0)])
def test_a_changed_cache_is_named_or_harmless(gt: Images, tmp_path: Path, tally: Any, form: str, level: int) -> None:
    opt = pairs(tmp_path, gt, form)
    made = {key: image.astype(np.uint16) * 257 + 99 for key, image in gt.items()}
    root = write_cache(tmp_path / 'cache', Path(opt['dataroot_lq']), 4, {'target': made}, form, level)
    opt['dataroot_cache'] = str(root)
    entry = encode(made['coffee'], level)
    path = root / ('target.lmdb/data.mdb' if form == 'lmdb' else 'target/coffee.png')
    data = path.read_bytes()
    start = data.index(entry)
    expected = [from_uint16(made['coffee']).transpose(2, 0, 1)]

    def read() -> list[np.ndarray]:
        dataset = CachedTeacherDataset(opt)
        number = next(number for number, pair in enumerate(dataset.pairs) if 'coffee' in pair['gt_path'])
        return [dataset[number]['cached_target'].numpy()]

    with tally('fault', 'entries of a teacher cache with bytes changed or zeroed') as count:
        for what, damage in damages(range(start, start + len(entry)), 20, seed=level, cuts=False):
            path.write_bytes(damage(data))
            result = outcome(read, expected, ['coffee'])
            count(result in ('named', 'harmless'), f'{form} {level}, {what}: {result}')
        path.write_bytes(data)
        count(outcome(read, expected, []) == 'harmless', 'the undamaged cache')


def test_a_value_in_the_place_of_another_is_noticed(gt: Images, tmp_path: Path) -> None:
    pairs(tmp_path, gt, 'lmdb')
    path = tmp_path / 'GT.lmdb/data.mdb'
    data = bytearray(path.read_bytes())
    (leaf,) = {place // 4096 for place in places_of(path.parent, 'tree')}
    entries = [data.index(key.encode(), leaf * 4096) + len(key) for key in ('astronaut', 'chelsea')]
    data[entries[0] : entries[0] + 8] = data[entries[1] : entries[1] + 8]  # the page its value begins at
    path.write_bytes(data)
    with pytest.raises(OSError, match=r'GT\.lmdb: data\.mdb is damaged: astronaut and chelsea share a page'):
        sound_keys(path.parent)


@pytest.mark.parametrize('suffix', ['.jpg', '.bmp', '.webp', '.tif'])
def test_files_of_other_formats_that_are_cut_off_are_named(gt: Images, suffix: str) -> None:
    data = cv2.imencode(suffix, np.ascontiguousarray(gt['coffee']))[1].tobytes()
    check_encoded(data, 'whole')
    for end in (0, 1, 40, len(data) // 2):
        with pytest.raises(DamagedImage, match='cut: '):
            check_encoded(data[:end], 'cut')


# What BasicSR says


def test_a_missing_key_is_named_by_basicsrs_dataset(gt: Images, tmp_path: Path) -> None:
    opt = pairs(tmp_path, gt, 'lmdb')
    for name in ('GT', 'LQ'):
        with open(tmp_path / f'{name}.lmdb/meta_info.txt', 'a') as file:
            file.write('zebra.png (96,96,3) 1\n')
    dataset = dataset_of(PairedImageDataset, opt)
    with pytest.raises(KeyError) as caught:
        dataset[len(gt)]
    assert str(caught.value).startswith(f"{tmp_path / 'GT.lmdb'}: no image 'zebra'")
    assert dataset[0]['gt'].shape == (3, 96, 96)


def test_what_lmdb_itself_refuses_is_named(gt: Images, tmp_path: Path) -> None:
    from basicsr.utils import FileClient

    pairs(tmp_path, gt, 'lmdb')
    path = tmp_path / 'GT.lmdb/data.mdb'
    path.write_bytes(flipped(4096 + 90, 2)(path.read_bytes()))  # a page size of the tree, which sets of images lack
    with pytest.raises(OSError, match=r'GT\.lmdb cannot be opened as LMDBs: .*MDB_INVALID'):
        FileClient('lmdb', db_paths=[str(path.parent)], client_keys=['gt'])


def test_the_mends_change_nothing_more_when_applied_again() -> None:
    from basicsr.data.prefetch_dataloader import PrefetchGenerator
    from basicsr.utils import FileClient

    once = FileClient.__init__, FileClient.get, PrefetchGenerator.run, PrefetchGenerator.__next__
    compat.name_damaged_images()
    compat.pass_on_errors_of_prefetching()
    assert (FileClient.__init__, FileClient.get, PrefetchGenerator.run, PrefetchGenerator.__next__) == once


def test_a_gt_that_does_not_fit_its_lq_is_named_by_basicsrs_dataset(gt: Images, tmp_path: Path) -> None:
    opt = pairs(tmp_path, gt, 'disk')
    cv2.imwrite(str(tmp_path / 'GT/coffee.png'), gt['coffee'][:90])
    with pytest.raises(ValueError, match=r'GT/coffee\.png: GT and LQ do not belong together: Scale mismatches'):
        list(map(dataset_of(PairedImageDataset, opt).__getitem__, range(4)))


def test_an_error_in_a_loader_ends_prefetching_instead_of_hanging(gt: Images, tmp_path: Path) -> None:
    from basicsr.data.prefetch_dataloader import CPUPrefetcher, PrefetchDataLoader

    opt = pairs(tmp_path, gt, 'disk')
    dataset, raised = dataset_of(PairedImageDataset, opt), []
    spoil(Path(dataset.paths[1]['gt_path']))

    def fetch() -> None:
        fetcher = CPUPrefetcher(PrefetchDataLoader(num_prefetch_queue=1, dataset=dataset, batch_size=1))
        try:
            while fetcher.next() is not None:
                pass
        except ValueError as error:
            raised.append(str(error))

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    thread.join(60)
    assert raised
    assert dataset.paths[1]['gt_path'] in raised[0]


# In training


def damaged_sets(options: Options, data: Path, root: Path, **changes: Any) -> tuple[Options, list[str]]:
    """``options`` whose GT of chelsea and LQ of coffee are damaged, and how these are named."""
    shutil.copytree(data / 'train', root / 'train')
    train_set = options['datasets']['train']
    names = []
    for kind, name, key in (('gt', 'GT', 'chelsea'), ('lq', 'LRbicx4', 'coffee')):
        folder = root / f'train/{name}.lmdb'
        train_set[f'dataroot_{kind}'] = str(folder)
        spoil(folder / 'data.mdb', values(folder)[key])
        names.append(f'{folder}: {key}')
    train_set |= {'dataset_enlarge_ratio': 2, **changes}
    return options, names


@pytest.mark.parametrize('workers', [0, 2])
def test_damage_stops_a_run_by_its_name(
    options: Options, train: Run, data: Path, tmp_path: Path, workers: int, tally: Any
) -> None:
    options, names = damaged_sets(scratch(options), data, tmp_path, num_worker_per_gpu=workers)
    with pytest.raises(DamagedImage) as caught:
        train(options)
    with tally('fault', 'trainings on damaged images') as count:
        count(any(name in str(caught.value) for name in names), caught.value)


def test_a_run_that_damage_stops_ends_though_it_has_workers(
    options: Options, data: Path, project: Path, tmp_path: Path
) -> None:
    options, names = damaged_sets(scratch(options), data, tmp_path, num_worker_per_gpu=2)
    command = [sys.executable, 'basicsr/train.py', '-opt', str(write_option(options, tmp_path / 'option.yml'))]
    done = subprocess.run(command, cwd=project, env=script_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert any(f'DamagedImage: {name}: damaged image' in last for name in names), done.stderr


KINDS = {
    'basicsr': {'type': 'PairedImageDataset'},
    'workers': {'type': 'PairedImageDataset', 'num_worker_per_gpu': 2},
    'ours': {'type': 'PairedCropDataset', 'num_worker_per_gpu': 1},
    'resident': {'type': 'PairedCropDataset', 'resident': 'host'},
}


def test_damage_is_skipped_alike_by_all_readers_and_after_resuming(
    options: Options, train: Run, data: Path, tmp_path: Path, tally: Any
) -> None:
    options, names = damaged_sets(scratch(options), data, tmp_path, skip_damaged=2)
    options['logger'] |= {'save_checkpoint_freq': 1}
    own = dict(options['datasets']['train'])
    whole: dict[str, Any] = {}
    with tally('fault', 'trainings on damaged images') as count:
        for kind, changes in KINDS.items():
            options['name'], options['datasets']['train'] = kind, {**own, **changes}
            experiment = train(options)
            text = '\n'.join(path.read_text() for path in experiment.glob('*.log'))
            for name in names:
                count(text.count(name) == 1, f'{kind}: {name} in the log {text.count(name)} times')
            assert 'damaged image 2 of 2 allowed (datasets.train.skip_damaged)' in text
            weights = content(experiment, 4)['net_g_4.pth']
            whole.setdefault('weights', weights)
            count(not differences(weights, whole['weights']), f'{kind}: other weights')
    cut_back(experiment, 2)
    train(options, '--auto_resume')
    assert not differences(content(experiment, 4)['net_g_4.pth'], whole['weights'])


def test_one_damaged_image_more_stops_with_all_names(options: Options, train: Run, data: Path, tmp_path: Path) -> None:
    options, names = damaged_sets(scratch(options), data, tmp_path, skip_damaged=1, num_worker_per_gpu=1)
    with pytest.raises(ValueError, match=r'2 images are damaged, datasets\.train\.skip_damaged is 1') as caught:
        train(options)
    assert all(name in str(caught.value) for name in names)


def test_a_replacement_is_the_next_whole_image_by_the_same_seed(
    gt: Images, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opt = pairs(tmp_path, gt, 'disk', gt_size=32, use_hflip=True, use_rot=True)
    whole = dataset_of(PairedImageDataset, opt)
    for number in (1, 2):
        spoil(Path(whole.paths[number]['gt_path']))
    skipping = SkippingDataset(SeededDataset(dataset_of(PairedImageDataset, opt)), 2)
    expected = SeededDataset(whole)[Place(3, 77)]
    with caplog.at_level(logging.WARNING, 'basicsr'):
        for number in (2, 1, 3, 1):
            random.seed(number)
            found = skipping[Place(number, 77)]
            assert found['gt_path'] == expected['gt_path']
            assert torch.equal(found['gt'], expected['gt'])
    assert [record.message.partition(' (')[0] for record in caplog.records] == [
        'damaged image 1 of 2 allowed', 'damaged image 2 of 2 allowed',
    ]  # fmt: skip


def test_an_image_that_two_workers_find_at_the_same_time_is_counted_once(tmp_path: Path) -> None:
    forked = multiprocessing.get_context('fork')
    both = forked.Barrier(2)

    class Damaged:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> int:
            if index % 2 == 0:
                both.wait(20)
                raise DamagedImage(f'image {index}')
            return index

    skipping = SkippingDataset(Damaged(), 4)

    def read(log: Path) -> None:
        logger = logging.getLogger('basicsr')
        logger.addHandler(logging.FileHandler(log))
        assert [skipping[index] for index in range(0, 8, 2)] == [1, 3, 5, 7]

    logs = [tmp_path / f'{number}.log' for number in range(2)]
    workers = [forked.Process(target=read, args=(log,)) for log in logs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(line.partition(' of 4')[0] for log in logs for line in log.read_text().splitlines()) == [
        f'damaged image {number}' for number in (1, 2, 3, 4)
    ]


def test_a_set_of_damaged_images_alone_stops(gt: Images, tmp_path: Path) -> None:
    opt = pairs(tmp_path, gt, 'disk')
    dataset = dataset_of(PairedCropDataset, opt)
    for pair in dataset.pairs:
        spoil(Path(pair['lq_path']))
    skipping = SkippingDataset(dataset, 10)
    for _ in range(2):
        with pytest.raises(ValueError, match=r'4 images are damaged, .* is 10'):
            skipping[0]
    with pytest.raises(ValueError, match="skip_damaged is 'two', expected a whole number"):
        SkippingDataset(dataset, 'two')


def test_a_share_of_resident_images_counts_images_not_samples(gt: Images, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr('basicsr.utils.dist_util.get_dist_info', lambda: (0, 2))
    opt = pairs(tmp_path, gt, 'lmdb', resident='host', resident_shard=True, skip_damaged=1)
    spoil(tmp_path / 'GT.lmdb/data.mdb', values(tmp_path / 'GT.lmdb')['astronaut'])
    dataset = PairedCropDataset(opt)
    skipping = SkippingDataset(dataset, 1)
    batch = torch.stack([skipping[number]['coordinates'] for number in range(4)])
    assert set(batch[:, 0].tolist()) == {1}
    from mtkd_data import resident

    crops = resident.gather({'resident': [dataset.resident], 'coordinates': batch}, torch.device('cpu'))
    assert torch.equal(crops['gt'][0], torch.from_numpy(gt['coffee'].transpose(2, 0, 1).astype(np.float32) / 255))
    batch[0, 0] = 0
    with pytest.raises(DamagedImage, match=r'GT\.lmdb: astronaut'):
        resident.gather({'resident': [dataset.resident], 'coordinates': batch}, torch.device('cpu'))


def test_a_damaged_lq_image_of_a_cache_is_named(options: Options, data: Path, train: Run, tmp_path: Path) -> None:
    shutil.copytree(data / 'train', tmp_path / 'train')
    for kind, name in (('gt', 'GT'), ('lq', 'LRbicx4')):
        options['datasets']['train'][f'dataroot_{kind}'] = str(tmp_path / f'train/{name}.lmdb')
    options = cached(options, tmp_path, '--stores', 'target', skip_damaged=1)
    folder = tmp_path / 'train/LRbicx4.lmdb'
    spoil(folder / 'data.mdb', values(folder)['coffee'])
    with pytest.raises(ValueError, match=r'LRbicx4\.lmdb: coffee: damaged image'):
        train(options)


def test_a_damaged_sample_of_a_cache_is_named(options: Options, tmp_path: Path, train: Run) -> None:
    options = cached(options, tmp_path, '--stores', 'target')
    folder = tmp_path / 'cache/target.lmdb'
    spoil(folder / 'data.mdb', values(folder)['rocket'])
    with pytest.raises(ValueError, match=r'target\.lmdb: rocket: damaged image'):
        train(options)


def test_validation_never_skips(options: Options, train: Run, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / 'val', tmp_path / 'val')
    val = scratch(options)['datasets']['val']
    val |= {f'dataroot_{kind}': str(tmp_path / 'val' / name) for kind, name in (('gt', 'GT'), ('lq', 'LRbicx4'))}
    options['datasets']['train']['skip_damaged'] = 5
    options['val']['val_freq'] = 1
    spoil(tmp_path / 'val/GT/rocket.png')
    with pytest.raises(DamagedImage, match=r'val/GT/rocket\.png: damaged image \(a PNG checksum does not match\)'):
        train(options)
    val['skip_damaged'] = 1
    with pytest.raises(ValueError, match=r'datasets\.val\.skip_damaged: only training skips damaged images'):
        train(options)
