"""The paired data sets give BasicSR's very crops, the cached images the same ones, and refuse what does not belong."""

import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hand_made_cache import write_cache, write_folder, write_lmdb, write_record

import mtkd  # noqa: F401  before BasicSR

# isort: split
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.transforms import augment, paired_random_crop
from torch.utils.data import DataLoader

from mtkd_data.cached_teacher_dataset import CachedTeacherDataset
from mtkd_data.flat_png import FIRST_PIXEL
from mtkd_data.lmdb_store import LmdbWriter, MetaEntry
from mtkd_data.paired_crop_dataset import PairedCropDataset
from mtkd_data.preparation.matlab_bicubic import imresize_bicubic
from mtkd_data.teacher_cache.cache import from_uint16

SEEDS = range(12)  # each draws other flips
Images = dict[str, np.ndarray]


@pytest.fixture(scope='module')
def gt(photos: Path) -> Images:
    """RGB, of two sizes."""
    images = {path.stem: cv2.imread(str(path))[..., ::-1] for path in sorted(photos.iterdir())}
    images['rocket'] = images['rocket'][:96, :120]
    return images


@pytest.fixture(scope='module')
def cached(gt: Images) -> dict[str, Images]:
    """Two stores of 16-bit images near the GT, with every bit in use."""
    generator = np.random.default_rng(0)
    near = lambda image: (image / 255 + 0.5) * 32767.5 + generator.normal(0, 900, image.shape)  # noqa: E731
    return {
        name: {key: near(image).clip(0, 65535).astype(np.uint16) for key, image in gt.items()}
        for name in ('target', 'edsr')
    }


def lq_of(gt: Images, scale: int) -> Images:
    return {key: imresize_bicubic(np.ascontiguousarray(image), scale) for key, image in gt.items()}


def write_pairs(root: Path, gt: Images, scale: int, form: str, level: int) -> dict[str, Any]:
    """The data and the options that name it."""
    write, suffix = (write_lmdb, '.lmdb') if form == 'lmdb' else (write_folder, '')
    write(root / f'GT{suffix}', gt, level)
    write(root / f'LQ{suffix}', lq_of(gt, scale), level)
    return {
        'phase': 'train', 'scale': scale, 'gt_size': 48, 'use_hflip': True, 'use_rot': True,
        'dataroot_gt': str(root / f'GT{suffix}'), 'dataroot_lq': str(root / f'LQ{suffix}'),
        'io_backend': {'type': form},
    }  # fmt: skip


def add_cache(opt: dict[str, Any], cached: dict[str, Images], form: str = 'lmdb', level: int = 0) -> dict[str, Any]:
    lq = Path(opt['dataroot_lq'])
    return {**opt, 'dataroot_cache': str(write_cache(lq.parent / 'cache', lq, opt['scale'], cached, form, level))}


def upstream(opt: dict[str, Any], seeds: range = SEEDS) -> list[dict[str, Any]]:
    """What BasicSR's dataset gives, one sample for each seed."""
    names = ('dataroot_cache', 'cached', 'resident')
    plain = {name: value for name, value in opt.items() if name not in names} | {'io_backend': dict(opt['io_backend'])}
    dataset = PairedImageDataset(plain)
    samples = draw(dataset, seeds)
    for environment in getattr(dataset.file_client.client, '_client', {}).values():
        environment.close()
    return samples


def draw(dataset: Any, seeds: range = SEEDS) -> list[dict[str, Any]]:
    samples = []
    for seed in seeds:
        random.seed(seed)
        samples.append(dataset[seed % len(dataset)])
    return samples


def assert_same(own: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for one, other in zip(own, theirs, strict=True):
        for name in ('lq', 'gt'):
            assert one[name].dtype == torch.float32
            assert one[name].is_contiguous()
            assert torch.equal(one[name], other[name])
        assert (one['lq_path'], one['gt_path']) == (other['lq_path'], other['gt_path'])


# What comes out


@pytest.mark.parametrize(('form', 'level'), [('lmdb', 0), ('lmdb', 1), ('disk', 0), ('disk', 1)])
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_crops_are_basicsrs_bit_for_bit_and_cached_images_the_same_ones(tmp_path, gt, cached, scale, form, level):
    opt = add_cache(write_pairs(tmp_path, gt, scale, form, level), cached, form, level)
    expected, own = upstream(opt), draw(CachedTeacherDataset(opt))
    assert_same(own, expected)
    for seed, sample in zip(SEEDS, own, strict=True):
        key = sorted(gt)[seed % len(gt)] if form == 'lmdb' else Path(sample['gt_path']).stem
        lq, images = lq_of(gt, scale)[key], [gt[key], cached['target'][key], cached['edsr'][key]]
        random.seed(seed)
        crops, _ = paired_random_crop([image.copy() for image in images], lq, 48, scale)
        _, target, edsr = augment([crop.copy() for crop in crops], True, True)
        for name, crop in (('cached_target', target), ('cached_edsr', edsr)):
            np.testing.assert_array_equal(sample[name], from_uint16(crop).transpose(2, 0, 1))
            assert sample[name].shape == sample['gt'].shape
            assert sample[name].is_contiguous()


@pytest.mark.parametrize(('hflip', 'rot'), [(False, False), (True, False), (False, True)])
def test_without_flips_or_rotations_the_draws_stay_those_of_basicsr(tmp_path, gt, hflip, rot):
    opt = write_pairs(tmp_path, gt, 4, 'lmdb', 0) | {'use_hflip': hflip, 'use_rot': rot}
    expected = upstream(opt)
    assert_same(draw(PairedCropDataset(opt)), expected)


def test_a_mixed_lmdb_of_in_place_and_compressed_values_gives_the_same_crops(tmp_path, gt):
    opt = write_pairs(tmp_path, gt, 4, 'lmdb', 0)
    compressed = cv2.imencode('.png', gt['chelsea'][..., ::-1])[1].tobytes()
    writer = LmdbWriter(tmp_path / 'GT.lmdb')
    writer.add({'chelsea': compressed})
    writer.finish(MetaEntry(key, *image.shape, 0) for key, image in gt.items())
    expected = upstream(opt)
    assert_same(draw(PairedCropDataset(opt)), expected)


@pytest.mark.parametrize('kind', ['jpg', '16-bit', 'grey'])
def test_files_of_other_kinds_are_decoded_as_basicsr_decodes_them(tmp_path, gt, kind):
    opt = write_pairs(tmp_path, {'chelsea': gt['chelsea']}, 4, 'disk', 0)
    path, bgr = tmp_path / 'GT' / 'chelsea.png', np.ascontiguousarray(gt['chelsea'][..., ::-1])
    if kind == 'jpg':  # by its content: BasicSR pairs files by their names
        path.write_bytes(cv2.imencode('.jpg', bgr)[1].tobytes())
    elif kind == 'grey':
        cv2.imwrite(str(path), bgr[..., 0])
    else:
        write_folder(tmp_path / 'deep', {'chelsea': gt['chelsea'].astype(np.uint16) * 257 + 100}, 0)
        shutil.copy(tmp_path / 'deep' / 'chelsea.png', path)
    assert_same(draw(PairedCropDataset(opt)), upstream(opt))


@pytest.mark.parametrize(('form', 'level'), [('lmdb', 0), ('disk', 1)])
@pytest.mark.parametrize('phase', ['val', 'test'])
def test_validation_gives_whole_images_the_gt_cut_as_basicsr_cuts_it(tmp_path, gt, cached, form, level, phase):
    opt = write_pairs(tmp_path, gt, 4, form, level) | {'phase': phase}
    write = write_lmdb if form == 'lmdb' else write_folder
    larger = {key: np.pad(image, ((0, 3), (0, 1), (0, 0))) for key, image in gt.items()}
    shutil.rmtree(opt['dataroot_gt'])
    write(Path(opt['dataroot_gt']), larger, level)
    expected = upstream(opt, range(4))
    for dataset in (PairedCropDataset(opt), CachedTeacherDataset(opt)):
        assert_same(draw(dataset, range(4)), expected)
        assert set(dataset[0]) == {'lq', 'gt', 'lq_path', 'gt_path'}


def test_only_the_stores_asked_for_are_read(tmp_path, gt, cached):
    opt = add_cache(write_pairs(tmp_path, gt, 4, 'lmdb', 0), cached)
    assert {name for name in CachedTeacherDataset(opt)[0] if 'cached' in name} == {'cached_target', 'cached_edsr'}
    chosen = CachedTeacherDataset({**opt, 'cached': ['edsr']})
    assert {name for name in chosen[0] if 'cached' in name} == {'cached_edsr'}


def test_a_sample_outlives_the_lmdb_and_may_be_written_to(tmp_path, gt, cached):
    opt = add_cache(write_pairs(tmp_path, gt, 4, 'lmdb', 0), cached)
    dataset = CachedTeacherDataset(opt)
    (first,), names = draw(dataset, range(1)), ('lq', 'gt', 'cached_target', 'cached_edsr')
    kept = {name: first[name].clone() for name in names}
    for name in names:
        first[name].zero_()
    (again,) = draw(dataset, range(1))
    del dataset
    shutil.rmtree(tmp_path)
    for name in names:
        assert torch.equal(again[name], kept[name])


@pytest.mark.slow
@pytest.mark.parametrize('start', ['fork', 'spawn'])
def test_workers_read_what_the_main_process_reads_even_after_it_has_read(tmp_path, gt, cached, start):
    opt = add_cache(write_pairs(tmp_path, gt, 4, 'lmdb', 0), cached) | {'use_hflip': False, 'use_rot': False}
    opt['gt_size'] = 96  # no choice for the smallest image, and little else
    dataset = CachedTeacherDataset(opt)
    expected = dataset[sorted(gt).index('rocket')]['lq_path']
    loader = DataLoader(dataset, 2, num_workers=1, multiprocessing_context=start, persistent_workers=True)
    batches = [batch for _ in range(2) for batch in loader]
    assert [name for batch in batches[:2] for name in batch['lq_path']] == sorted(gt)
    assert expected == 'rocket'
    assert batches[0]['cached_target'].shape == (2, 3, 96, 96)
    assert dataset[0]['gt'].shape == (3, 96, 96)


def test_a_dataset_that_has_read_can_be_pickled(tmp_path, gt, cached):
    opt = add_cache(write_pairs(tmp_path, gt, 4, 'lmdb', 0), cached)
    dataset = CachedTeacherDataset(opt)
    samples = draw(dataset, range(4))
    assert_same(draw(pickle.loads(pickle.dumps(dataset)), range(4)), samples)


def test_a_meta_info_file_chooses_and_orders_the_images(tmp_path, gt):
    opt = write_pairs(tmp_path, gt, 4, 'disk', 0)
    (tmp_path / 'meta.txt').write_text('rocket.png (96,120,3)\nchelsea.png (144,192,3)\n')
    opt['meta_info_file'] = str(tmp_path / 'meta.txt')
    own = PairedCropDataset(opt)
    assert [Path(pair['gt_path']).stem for pair in own.pairs] == ['rocket', 'chelsea']
    assert_same(draw(own), upstream(opt))


def test_a_filename_template_pairs_files_and_the_cache_goes_by_the_gt(tmp_path, gt, cached):
    opt = write_pairs(tmp_path, gt, 4, 'disk', 0)
    opt = add_cache(opt, cached, 'disk')
    for path in (tmp_path / 'LQ').iterdir():
        path.rename(path.with_name(f'{path.stem}x4.png'))
    opt['filename_tmpl'] = '{}x4'
    assert_same(draw(CachedTeacherDataset(opt)), upstream(opt))


def test_a_dataset_can_be_built_while_another_reads_the_same_lmdbs(tmp_path, gt, cached):
    opt = add_cache(write_pairs(tmp_path, gt, 4, 'lmdb', 0), cached)
    first = CachedTeacherDataset(opt)
    samples = draw(first)
    assert_same(draw(CachedTeacherDataset(opt)), samples)
    assert_same(draw(first), samples)


# What is refused before anything is read


def refused(opt: dict[str, Any], message: str, error: type = ValueError) -> None:
    """Both by ``check_options`` and by building the dataset."""
    with pytest.raises(error, match=message):
        CachedTeacherDataset.check_options(opt)
    with pytest.raises(error, match=message):
        CachedTeacherDataset(opt)


@pytest.fixture(params=['lmdb', 'disk'])
def whole(request, tmp_path, gt, cached) -> dict[str, Any]:
    """Options of a data set and a cache that belong together."""
    opt = write_pairs(tmp_path, gt, 4, request.param, 0)
    opt = add_cache(opt, cached, request.param)
    CachedTeacherDataset.check_options(opt)
    return opt


def rewrite_store(opt: dict[str, Any], name: str, images: Images) -> None:
    root = Path(opt['dataroot_cache'])
    suffix, write = ('.lmdb', write_lmdb) if opt['io_backend']['type'] == 'lmdb' else ('', write_folder)
    shutil.rmtree(root / f'{name}{suffix}')
    write(root / f'{name}{suffix}', images, 0)


def rewrite_record(opt: dict[str, Any], **changes: object) -> None:
    root = Path(opt['dataroot_cache'])
    write_record(root, Path(opt['dataroot_lq']), 4, ['target', 'edsr'], opt['io_backend']['type'], changes)


def test_a_missing_cache_is_refused(whole, tmp_path):
    refused({**whole, 'dataroot_cache': str(tmp_path / 'none')}, r'none: expected a teacher cache', FileNotFoundError)
    del whole['dataroot_cache']
    refused(whole, "lacks the key 'dataroot_cache'")


def test_a_cache_of_another_scale_is_refused(whole):
    rewrite_record(whole, scale=2)
    refused(whole, 'made for scale 2, the option file has 4')


def test_a_cache_of_other_lq_images_is_refused_with_both_fingerprints(whole):
    rewrite_record(whole, lq={'images': 4, 'fingerprint': 'f' * 64})
    refused(whole, f'fingerprint of the cache {"f" * 64}, of the LQ images now [0-9a-f]{{64}}')


def test_lq_images_that_change_after_a_check_are_noticed(whole, gt):
    root = Path(whole['dataroot_lq'])
    changed = {**lq_of(gt, 4), 'rocket': lq_of(gt, 4)['rocket'] ^ 1}
    shutil.rmtree(root)
    (write_lmdb if root.suffix else write_folder)(root, changed, 0)
    refused(whole, 'made from other LQ images')


def test_an_image_without_a_cached_partner_is_refused_by_its_key(whole, cached):
    for name in ('target', 'edsr'):
        rewrite_store(whole, name, {key: image for key, image in cached[name].items() if key != 'coffee'})
    rewrite_record(whole, lq={'images': 3, 'fingerprint': 'f' * 64})
    refused(whole, 'holds no image for coffee:')


def test_a_cached_image_without_a_partner_is_refused_by_its_key(whole, cached):
    for name in ('target', 'edsr'):
        rewrite_store(whole, name, {**cached[name], 'stranger': cached[name]['coffee']})
    rewrite_record(whole, lq={'images': 5, 'fingerprint': 'f' * 64})
    refused(whole, 'holds images without a partner in the data set: stranger:')


def test_a_cached_image_of_another_size_is_refused_by_its_key(whole, cached):
    rewrite_store(whole, 'edsr', {**cached['edsr'], 'coffee': cached['edsr']['coffee'][:-1]})
    refused(whole, r'edsr.*coffee.*: 143x192, expected 144x192, 4 times its LQ image .*coffee')


def test_an_8_bit_cached_image_is_refused_by_its_key(whole, cached):
    images = {**cached['target'], 'coffee': (cached['target']['coffee'] >> 8).astype(np.uint8)}
    rewrite_store(whole, 'target', images)
    dataset = CachedTeacherDataset(whole)
    number = next(number for number, pair in enumerate(dataset.pairs) if 'coffee' in pair['gt_path'])
    with pytest.raises(ValueError, match=r'target.*coffee.*: expected a 16-bit RGB PNG, got 8-bit RGB'):
        dataset[number]
    assert dataset[number - 1]['gt'].shape == (3, 48, 48)


def test_a_cached_image_whose_size_is_not_what_meta_info_says_is_refused_when_it_is_read(tmp_path, gt, cached):
    opt = add_cache(write_pairs(tmp_path, gt, 4, 'lmdb', 0), cached)
    meta = tmp_path / 'cache' / 'target.lmdb' / 'meta_info.txt'
    kept = meta.read_text()
    rewrite_store(opt, 'target', {**cached['target'], 'astronaut': cached['target']['astronaut'][:, :-4]})
    meta.write_text(kept)
    with pytest.raises(ValueError, match=r'target\.lmdb: astronaut: 144x188, expected 144x192'):
        CachedTeacherDataset(opt)[0]


def test_a_patch_larger_than_an_image_is_refused_by_name(whole):
    refused(
        {**whole, 'gt_size': 100}, r'LQ.*rocket.*: 24x30 is smaller than the patch of 25x25 \(gt_size 100, scale 4\)'
    )
    refused({**whole, 'gt_size': 50}, 'gt_size 50 in .* is not a multiple of the scale 4')


def test_a_gt_of_another_size_is_refused_by_name(tmp_path, gt):
    opt = write_pairs(tmp_path, gt, 4, 'lmdb', 0)
    shutil.rmtree(opt['dataroot_gt'])
    write_lmdb(Path(opt['dataroot_gt']), {**gt, 'coffee': gt['coffee'][:, :-1]}, 0)
    with pytest.raises(ValueError, match=r'GT\.lmdb: coffee: 144x191, expected 144x192'):
        PairedCropDataset(opt)


def test_a_gt_of_another_size_on_disk_is_refused_when_it_is_read(tmp_path, gt):
    opt = write_pairs(tmp_path, {'coffee': gt['coffee']}, 4, 'disk', 0)
    shutil.rmtree(opt['dataroot_gt'])
    write_folder(Path(opt['dataroot_gt']), {'coffee': gt['coffee'][:, :-1]}, 0)
    with pytest.raises(ValueError, match=r'coffee\.png: 144x191, expected 144x192'):
        PairedCropDataset(opt)[0]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'dataroot_cahce': 'x'}, "unknown key 'dataroot_cahce' in .*: did you mean 'dataroot_cache'"),
        ({'residnet': 'host'}, "unknown key 'residnet' in .*: did you mean 'resident'"),
        ({'mean': [0.5, 0.5, 0.5]}, r"unknown key 'mean' in .*: images are RGB in \[0, 1\], leave it out"),
        ({'color': 'y'}, "unknown key 'color'"),
        ({'cached': ['traget']}, "has no store 'traget': did you mean 'target'"),
        ({'cached': 'target'}, r"cached: expected a list of stores such as \[target\], got 'target'"),
        ({'resident': 'gpu'}, "expected host or device, got 'gpu'"),
        ({'resident_shard': True}, "'resident_shard' in .*: expected 'resident: host'"),
        ({'io_backend': {'type': 'memcached'}}, "expected type lmdb or disk, got 'memcached'"),
        ({'phase': 'val', 'resident': 'host'}, 'it serves the phase train, this is val'),
    ],
)
def test_options_that_cannot_be_met_are_refused(whole, change, message):
    refused({**whole, **change}, message)


def test_damage_between_the_rows_of_a_crop_is_refused_by_name(tmp_path, gt):
    opt = write_pairs(tmp_path, {'coffee': gt['coffee']}, 4, 'disk', 0) | {'gt_size': 144}
    path = tmp_path / 'GT' / 'coffee.png'
    data = bytearray(path.read_bytes())
    data[FIRST_PIXEL + 70 * (6 + 192 * 3) - 1] = 2  # the filter type of row 70
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r'coffee\.png: in-place PNG damaged between its rows'):
        PairedCropDataset(opt)[0]


@pytest.mark.parametrize('data', [b'', b'no image'])
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path, gt, data):
    opt = write_pairs(tmp_path, {'coffee': gt['coffee']}, 4, 'disk', 0)
    (tmp_path / 'LQ' / 'coffee.png').write_bytes(data)
    with pytest.raises(ValueError, match=r'LQ/coffee\.png: (empty file|cannot be decoded)'):
        PairedCropDataset(opt)[0]


def test_an_image_that_meta_info_names_and_the_lmdb_lacks_is_refused_by_its_key(tmp_path, gt):
    opt = write_pairs(tmp_path, gt, 4, 'lmdb', 0)
    for name, shape in (('GT', '(144,192,3)'), ('LQ', '(36,48,3)')):
        with open(tmp_path / f'{name}.lmdb' / 'meta_info.txt', 'a') as file:
            file.write(f'zebra.png {shape} 0\n')
    with pytest.raises(KeyError, match=r"LQ\.lmdb: no image 'zebra'"):
        PairedCropDataset(opt)[len(gt)]
