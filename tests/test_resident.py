"""Resident data gives the crops of the LMDB path for the same seed, whole batches at once, and does not overfill."""

import gc
import itertools
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_made_cache import write_cache, write_lmdb
from torch.utils.data import DataLoader, default_collate

import mtkd  # noqa: F401  before BasicSR

# isort: split
import basicsr.utils.dist_util

from mtkd.compat.loading import worker_init_fn
from mtkd_data import resident
from mtkd_data.cached_teacher_dataset import CachedTeacherDataset
from mtkd_data.image_store import FileStore, ImageSource
from mtkd_data.paired_crop_dataset import PairedCropDataset
from mtkd_data.preparation.matlab_bicubic import imresize_bicubic
from mtkd_data.resident import Resident, gather
from mtkd_data.teacher_cache.cache import from_uint16

CPU = torch.device('cpu')
SIZES = ((72, 96), (60, 48), (96, 72), (48, 48), (84, 60))


@pytest.fixture(scope='module', params=[2, 3, 4])
def opt(request, photos: Path, tmp_path_factory) -> dict[str, Any]:
    """Five images of different sizes cut from a photograph, and a cache with two stores."""
    return write_data(tmp_path_factory.mktemp('resident'), photos, request.param)


@pytest.fixture(scope='module')
def small(photos: Path, tmp_path_factory) -> dict[str, Any]:
    return write_data(tmp_path_factory.mktemp('resident'), photos, 4)


def write_data(root: Path, photos: Path, scale: int) -> dict[str, Any]:
    import cv2

    photo = cv2.imread(str(photos / 'astronaut.png'))[..., ::-1]
    gt = {f'img{number}': np.ascontiguousarray(photo[:h, :w]) for number, (h, w) in enumerate(SIZES)}
    generator = np.random.default_rng(0)
    stores = {
        name: {key: generator.integers(0, 65536, image.shape, np.uint16) for key, image in gt.items()}
        for name in ('target', 'edsr')
    }
    write_lmdb(root / 'GT.lmdb', gt, 0)
    write_lmdb(root / 'LQ.lmdb', {key: imresize_bicubic(image, scale) for key, image in gt.items()}, 1)
    write_cache(root / 'cache', root / 'LQ.lmdb', scale, stores)
    return {
        'phase': 'train', 'scale': scale, 'gt_size': 48, 'use_hflip': True, 'use_rot': True,
        'dataroot_gt': str(root / 'GT.lmdb'), 'dataroot_lq': str(root / 'LQ.lmdb'), 'io_backend': {'type': 'lmdb'},
        'dataroot_cache': str(root / 'cache'),
    }  # fmt: skip


def images_of(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


def assert_same(own: dict[str, torch.Tensor], expected: dict[str, Any]) -> None:
    assert set(own) == {'lq', 'gt', 'cached_target', 'cached_edsr'}
    for name, crops in own.items():
        assert crops.dtype == torch.float32
        assert crops.is_contiguous()
        assert torch.equal(crops, expected[name]), name


def batches(dataset: Any, **loader: Any) -> list[dict[str, Any]]:
    """Two epochs, seeded as BasicSR seeds."""
    random.seed(3)
    torch.manual_seed(3)
    if loader.get('num_workers'):
        loader['worker_init_fn'] = lambda worker: worker_init_fn(worker, loader['num_workers'], 0, 3)
    made = DataLoader(dataset, 3, shuffle=True, **loader)
    return [batch for _ in range(2) for batch in made]


# The same crops


@pytest.mark.parametrize('place', ['host', 'device'])
def test_a_gathered_batch_equals_the_samples_read_from_the_lmdb(opt, place):
    dataset, held = CachedTeacherDataset(opt), CachedTeacherDataset({**opt, 'resident': place})
    for seed in range(6):
        indices = random.Random(seed).choices(range(len(SIZES)), k=16)
        random.seed(seed)
        expected = default_collate([dataset[index] for index in indices])
        random.seed(seed)
        batch = default_collate([held[index] for index in indices])
        assert set(batch) == {'resident', 'coordinates'}
        assert (batch['coordinates'].dtype, batch['coordinates'].shape) == (torch.int64, (16, 6))
        assert_same(gather(batch, CPU), expected)


@pytest.mark.slow
@pytest.mark.parametrize('loader', [{}, {'num_workers': 2}, {'num_workers': 2, 'persistent_workers': True}])
def test_every_loader_gives_the_crops_it_gives_without_resident(small, loader):
    expected = batches(CachedTeacherDataset(small), **loader)
    held = CachedTeacherDataset({**small, 'resident': 'host'})
    own = batches(held, **loader)
    assert len(own) == len(expected) == 4
    for batch, other in zip(own, expected, strict=True):
        assert_same(gather(batch, CPU), other)


def test_a_pickled_dataset_draws_for_the_process_that_holds_the_images(small):
    held = CachedTeacherDataset({**small, 'resident': 'host'})
    in_worker = pickle.loads(pickle.dumps(held))
    random.seed(1)
    batch = default_collate([in_worker[index] for index in range(5)])
    del in_worker
    gc.collect()
    random.seed(1)
    expected = default_collate([held[index] for index in range(5)])
    assert torch.equal(batch['coordinates'], expected['coordinates'])
    assert torch.equal(gather(batch, CPU)['gt'], gather(expected, CPU)['gt'])


def test_all_eight_turns_are_those_of_basicsr(small):
    from basicsr.data import transforms

    held = PairedCropDataset({key: value for key, value in small.items() if 'cache' not in key} | {'resident': 'host'})
    turns = list(itertools.product((0, 1), repeat=3))
    batch = {'resident': [held.resident] * 8, 'coordinates': torch.tensor([[2, 3, 5, *turn] for turn in turns])}
    gt = gather({**batch, 'coordinates': torch.tensor([[2, 3, 5, 0, 0, 0]])}, CPU)['gt'][0]
    with held.others['gt'].image(2) as image:
        plain = image[12:60, 20:68].astype(np.float32) / 255
    np.testing.assert_array_equal(gt, plain.transpose(2, 0, 1))
    for crop, turn in zip(gather(batch, CPU)['gt'], turns, strict=True):
        draws = iter([0.0 if on else 1.0 for on in turn])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transforms.random, 'random', lambda draws=draws: next(draws))
            expected = transforms.augment(plain.copy(), True, True)
        np.testing.assert_array_equal(crop, expected.transpose(2, 0, 1))


def test_16_bits_are_kept_exactly_from_end_to_end(tmp_path):
    from mtkd_data.flat_png import encode_flat_png

    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1).repeat(3, axis=2)
    (tmp_path / 'all.png').write_bytes(encode_flat_png(values))
    source = ImageSource(FileStore(), [str(tmp_path / 'all.png')], 1, 16)
    crops = Resident({'cached': source}, [(256, 256)], 256, 'host').gather(torch.zeros(1, 6, dtype=torch.int64), CPU)
    own = crops['cached'][0, 0].flatten()
    np.testing.assert_array_equal(own, from_uint16(values[..., 0].ravel()))
    # at 0, 32768 and 65535 by hand
    assert own[[0, 65535]].tolist() == [-0.5, 1.5]
    assert own[32768].item() == pytest.approx(32768 / 32767.5 - 0.5, abs=6e-8)


def test_an_ordinary_batch_is_moved_and_keeps_what_is_no_tensor():
    batch = {'lq': torch.rand(2, 3, 4, 4), 'lq_path': ['a', 'b']}
    moved = gather(batch, torch.device('meta'))
    assert moved['lq'].device.type == 'meta'
    assert moved['lq_path'] == ['a', 'b']


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('place', ['host', 'device'])
def test_on_a_gpu_the_crops_are_those_of_the_cpu(small, place):
    expected = CachedTeacherDataset({**small, 'resident': 'host'})
    held = CachedTeacherDataset({**small, 'resident': place})
    random.seed(0)
    on_host = default_collate([expected[index % 5] for index in range(16)])
    random.seed(0)
    on_device = default_collate([held[index % 5] for index in range(16)])
    crops = gather(on_device, torch.device('cuda'))
    assert all(value.is_cuda for value in crops.values())
    assert_same({name: value.cpu() for name, value in crops.items()}, gather(on_host, CPU))


# What is loaded, when and where


def test_nothing_is_decoded_before_the_first_gather_and_everything_once(small, monkeypatch):
    decoded = []
    real = Resident._read
    monkeypatch.setattr(Resident, '_read', lambda *given: decoded.append(given[2]) or real(*given))
    CachedTeacherDataset.check_options({**small, 'resident': 'host'})
    held = CachedTeacherDataset({**small, 'resident': 'host'})
    batch = default_collate([held[0], held[1]])
    assert decoded == []
    gather(batch, CPU)
    gather(batch, CPU)
    assert Counter(decoded) == dict.fromkeys(range(5), 4)


def test_images_that_do_not_fit_are_refused_before_any_is_decoded(small, monkeypatch):
    pixels = sum(height * width for height, width in SIZES)
    needed = pixels * (3 + 6 + 6) + pixels // 16 * 3
    monkeypatch.setattr(Resident, '_read', lambda *_: pytest.fail('decoded'))
    monkeypatch.setattr(resident, 'free_host_memory', lambda: needed)
    held = CachedTeacherDataset({**small, 'resident': 'host'})
    monkeypatch.setattr(resident, 'free_host_memory', lambda: needed - 1)
    batch = default_collate([held[0]])
    for refused in (
        lambda: CachedTeacherDataset.check_options({**small, 'resident': 'host'}),
        lambda: gather(batch, CPU),
    ):
        with pytest.raises(MemoryError, match=r'images take 0.00 GiB in the host.s memory, 0.00 GiB are free: take'):
            refused()


def test_the_copies_of_all_processes_of_a_machine_must_fit(small, monkeypatch):
    opt = {**small, 'resident': 'host'}
    held = CachedTeacherDataset(opt)
    needed = resident._published[held.resident].bytes()
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '3')
    monkeypatch.setattr(resident, 'free_host_memory', lambda: 3 * needed)
    CachedTeacherDataset.check_options(opt)
    monkeypatch.setattr(resident, 'free_host_memory', lambda: 3 * needed - 1)
    with pytest.raises(MemoryError, match='resident_shard'):
        CachedTeacherDataset.check_options(opt)


def test_free_host_memory_is_between_nothing_and_all_there_is():
    all_there_is = int(Path('/proc/meminfo').read_text().split()[1]) * 1024
    assert 0 < resident.free_host_memory() <= all_there_is


def test_an_image_of_another_size_than_meta_info_says_is_refused_by_its_key(tmp_path, photos):
    opt = write_data(tmp_path, photos, 4)
    meta = tmp_path / 'LQ.lmdb' / 'meta_info.txt'
    # img1 and img3 keep the sizes of their GT, whose meta_info.txt tells the same lie
    for path, real, told in (
        (meta, '(15,12,3)', '(12,15,3)'),
        (tmp_path / 'GT.lmdb/meta_info.txt', '(60,48', '(48,60'),
    ):
        path.write_text(path.read_text().replace(real, told))
    held = PairedCropDataset({key: value for key, value in opt.items() if 'cache' not in key} | {'resident': 'host'})
    with pytest.raises(ValueError, match=r'LQ\.lmdb: img1: decoded to 15x12, expected 12x15'):
        gather(default_collate([held[0]]), CPU)


def test_the_images_go_when_their_dataset_goes(small):
    held = CachedTeacherDataset({**small, 'resident': 'host'})
    batch = default_collate([held[0]])
    gather(batch, CPU)
    del held
    gc.collect()
    with pytest.raises(RuntimeError, match='is not held by this process'):
        gather(batch, CPU)


# Shares of a distributed run


@pytest.mark.parametrize('world', [2, 3, 5])
def test_shards_are_even_disjoint_and_drawn_from_evenly(small, world, monkeypatch):
    from basicsr.utils import dist_util

    expected = CachedTeacherDataset(small)
    seen = []
    for rank in range(world):
        monkeypatch.setattr(dist_util, 'get_dist_info', lambda rank=rank: (rank, world))
        held = CachedTeacherDataset({**small, 'resident': 'host', 'resident_shard': True})
        drawn = Counter(held[index]['coordinates'][0].item() for index in range(5))
        assert max(drawn.values()) - min(drawn.values()) <= 1
        random.seed(rank)
        crops = gather(default_collate([held[0]]), CPU)
        share = list(range(5))[rank::world]
        random.seed(rank)
        assert_same(crops, default_collate([expected[share[0]]]))
        assert sorted(drawn) == list(range(len(share)))
        seen += share
    assert sorted(seen) == list(range(5))


def test_more_processes_than_images_cannot_share_them(small, monkeypatch):
    monkeypatch.setattr(basicsr.utils.dist_util, 'get_dist_info', lambda: (5, 6))
    with pytest.raises(ValueError, match='5 images for 6 processes'):
        CachedTeacherDataset({**small, 'resident': 'host', 'resident_shard': True})
