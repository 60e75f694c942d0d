"""The check of a paired data set finds each fault and names the image."""

import os
import shutil
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from mtkd_data.image_io import encode_png
from mtkd_data.preparation import plan, prepare, verify
from mtkd_data.preparation.matlab_bicubic import imresize_bicubic

SHARED = Path(os.environ.get('MTKD_SHARED', Path(__file__).resolve().parents[2] / 'shared')) / 'data'


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def make(folder: Path, **settings) -> Path:
    (folder / 'hr').mkdir(parents=True)
    for index in range(3):
        cv2.imwrite(str(folder / 'hr' / f'img{index}.png'), noise(50, 62, index))
    chosen = plan.Settings(**({'scales': (2, 4), 'sub_image': 0} | settings))
    prepare.prepare_dataset(folder / 'hr', folder / 'out', chosen, progress=False)
    return folder / 'out'


@pytest.fixture
def whole(tmp_path):
    """Three whole images as LMDB, at scales 2 and 4."""
    return make(tmp_path / 'whole')


@pytest.fixture
def cut(tmp_path):
    """Sub-images as LMDB, at scales 2, 3 and 4."""
    return make(tmp_path / 'cut', scales=(2, 3, 4), sub_image=24, step=12)


@pytest.fixture
def folders(tmp_path):
    """Three whole images as PNG files, at scales 2 and 4."""
    return make(tmp_path / 'folders', format='disk')


def put(path: Path, key: str, value: bytes | None) -> None:
    """Replace one value of an LMDB, or remove it."""
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        if value is None:
            assert transaction.delete(key.encode())
        else:
            transaction.put(key.encode(), value)


def check(out: Path, scale: int = 4, **options) -> list[str]:
    suffix = '.lmdb' if (out / 'GT.lmdb').exists() else ''
    return verify.verify_pair_sets(out / f'GT{suffix}', out / f'LRbicx{scale}{suffix}', scale, **options)


def lr_of(seed: int, scale: int = 4) -> np.ndarray:
    return imresize_bicubic(noise(50, 62, seed)[:48, :60], scale)


@pytest.mark.parametrize('scale', [2, 3, 4])
def test_a_sound_set_of_sub_images_has_no_problems(cut, scale):
    assert check(cut, scale) == []


def test_a_sound_set_of_whole_images_is_compared_up_to_its_border(whole, folders):
    assert check(whole, 2) == check(whole, 4) == check(folders, 4) == []


def test_without_the_border_sub_images_differ_and_the_message_says_why(cut):
    problems = check(cut, border=0)
    assert problems
    assert all(problem.endswith('(only near the border: for sub-images use a border of 2)') for problem in problems)


def test_a_border_of_one_is_too_little_for_sub_images_at_every_scale(cut):
    assert all(check(cut, scale, border=1) for scale in (2, 3, 4))


@pytest.mark.skipif(not (SHARED / 'Set14').is_dir(), reason='the published images of Set5 and Set14 are not here')
@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('name', ['Set5', 'Set14'])
def test_the_published_test_sets_pass_as_folders_with_a_template(name, scale):
    gt, lq = SHARED / name / 'HR', SHARED / name / f'LRbicx{scale}'
    assert verify.verify_pair_sets(gt, lq, scale, filename_tmpl=f'{{}}x{scale}') == []


@pytest.mark.injects('fault', 'data sets with a missing, wrong, swapped or cut part')
def test_one_wrong_level_in_one_lr_pixel_is_found(whole):
    wrong = lr_of(1)
    wrong[5, 6, 2] ^= 1
    put(whole / 'LRbicx4.lmdb', 'img1', encode_png(wrong, 1))
    [problem] = check(whole)
    assert 'LRbicx4.lmdb: img1: not the bicubic of its GT: 1 of 180 pixels differ, by up to 1 levels' in problem
    assert check(whole, check_bicubic=False) == []


def test_an_lr_made_by_opencv_is_found(folders):
    for index in range(3):
        wrong = cv2.resize(noise(50, 62, index)[:48, :60], (15, 12), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folders / 'LRbicx4' / f'img{index}.png'), wrong)
    assert [problem.split(': ')[1] for problem in check(folders)] == ['img0.png', 'img1.png', 'img2.png']


@pytest.mark.injects('fault', 'data sets with a missing, wrong, swapped or cut part')
def test_swapped_lr_images_are_found_by_several_workers(whole):
    put(whole / 'LRbicx4.lmdb', 'img1', encode_png(lr_of(2), 1))
    put(whole / 'LRbicx4.lmdb', 'img2', encode_png(lr_of(1), 1))
    assert len(check(whole, workers=2)) == 2


@pytest.mark.injects('fault', 'data sets with a missing, wrong, swapped or cut part')
def test_a_missing_value_is_found_by_its_key(whole):
    put(whole / 'LRbicx4.lmdb', 'img1', None)
    problems = '\n'.join(check(whole))
    assert "GT.lmdb: 'img1' has no partner 'img1'" in problems
    assert "LRbicx4.lmdb: 'img1' is in meta_info.txt, not in data.mdb" in problems
    assert 'LRbicx4.lmdb: holds 2 images, dataset.json says 3' in problems


@pytest.mark.injects('fault', 'data sets with a missing, wrong, swapped or cut part')
def test_a_value_without_its_line_in_meta_info_is_found(whole):
    meta = whole / 'GT.lmdb' / 'meta_info.txt'
    meta.write_text(meta.read_text().replace('img2.png (48,60,3) 1\n', ''))
    [problem] = check(whole)
    assert problem.endswith("GT.lmdb: 'img2' is in data.mdb, not in meta_info.txt")


@pytest.mark.injects('fault', 'data sets with a missing, wrong, swapped or cut part')
def test_a_line_of_meta_info_that_cannot_be_read_is_found(whole):
    meta = whole / 'GT.lmdb' / 'meta_info.txt'
    meta.write_text(meta.read_text() + 'img2.png (48,60,3) 1\nimg.3.png (1,1,3) 1\n')
    problems = '\n'.join(check(whole))
    assert "meta_info.txt: 'img2' stands there twice" in problems
    assert "expected `key.png (height,width,channels) level`, got 'img.3.png (1,1,3) 1'" in problems


@pytest.mark.injects('fault', 'data sets with a missing, wrong, swapped or cut part')
def test_a_missing_file_is_found_by_its_name(folders):
    (folders / 'LRbicx4' / 'img0.png').unlink()
    problems = check(folders)
    assert any("'img0.png' has no partner 'img0.png'" in problem for problem in problems)
    (folders / 'GT' / 'img1.png').unlink()
    assert any("LRbicx4: 'img1.png' has no partner in" in problem for problem in check(folders))


@pytest.mark.injects('fault', 'data sets with a missing, wrong, swapped or cut part')
def test_an_lr_of_the_wrong_size_is_found(whole):
    put(whole / 'LRbicx4.lmdb', 'img1', encode_png(lr_of(1)[:-1], 1))
    problems = check(whole)
    assert any('img1: is (11, 15, 3), meta_info.txt says (12, 15, 3)' in problem for problem in problems)
    assert any('img1: is (11, 15, 3), its GT is (48, 60, 3), which is not 4 times' in problem for problem in problems)


def test_a_folder_may_hold_gt_that_basicsr_crops_and_an_lmdb_may_not(folders, whole):
    cv2.imwrite(str(folders / 'GT' / 'img0.png'), noise(50, 62, 0)[:51, :63])
    assert check(folders) == []
    cv2.imwrite(str(folders / 'GT' / 'img0.png'), cv2.copyMakeBorder(noise(50, 62), 0, 2, 0, 2, cv2.BORDER_REFLECT))
    assert 'not 4 times as large' in check(folders)[0]
    put(whole / 'GT.lmdb', 'img0', encode_png(noise(50, 62, 0), 1))
    assert any('not 4 times as large' in problem for problem in check(whole))


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (b'', 'empty file'),
        (b'nonsense', 'not an image'),
        (encode_png(noise(12, 15), 1)[:-30], 'truncated image'),
        (encode_png(noise(12, 15).astype(np.uint16), 1), '16-bit image'),
    ],
)
@pytest.mark.injects('fault', 'data sets with a missing, wrong, swapped or cut part')
def test_a_value_that_cannot_be_decoded_is_found(whole, value, message):
    put(whole / 'LRbicx4.lmdb', 'img1', value)
    [problem] = check(whole)
    assert f'LRbicx4.lmdb: img1: {message}' in problem


def test_images_too_small_to_compare_are_not_called_sound(whole):
    assert 'leaves nothing to compare within a border of 6' in check(whole, border=6)[0]


def command(out: Path, *arguments: str, gt: str = 'GT.lmdb', lq: str = 'LRbicx4.lmdb') -> int:
    return verify.main(['--gt', str(out / gt), '--lq', str(out / lq), '--scale', '4', '--workers', '1', *arguments])


def test_the_command_ends_with_0_for_a_sound_set_and_says_what_it_compared(whole, capsys):
    assert command(whole) == 0
    assert 'all is well at scale 4; LR is the bicubic of GT' in capsys.readouterr().out
    assert command(whole, '--no-bicubic') == 0
    assert 'pixels were not compared' in capsys.readouterr().out


def test_the_command_ends_with_1_and_names_the_first_twenty_problems(cut, capsys):
    assert command(cut, '--border', '0') == 1
    shown = capsys.readouterr().out.splitlines()
    count = int(shown[0].split()[0])
    assert len(shown) == 22
    assert count > 20
    assert shown[-1] == f'  ... and {count - 20} more'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'gt': 'none.lmdb'}, 'none.lmdb: expected an LMDB or a folder of images, found none'),
        ({'gt': '.'}, 'expected two LMDBs or two folders'),
        ({'lq': 'empty.lmdb'}, 'empty.lmdb: expected an LMDB in the layout of BasicSR, data.mdb is missing'),
    ],
)
def test_the_command_ends_with_2_where_there_is_nothing_to_check(whole, capsys, options, message):
    (whole / 'empty.lmdb').mkdir()
    assert command(whole, **options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--filename-tmpl', '{}x4'), "expected '{}' (the pairs of two LMDBs share their keys), got '{}x4'"),
        (('--border', '-1'), 'border >= 0'),
        (('--workers', '0'), 'workers >= 1'),
    ],
)
def test_arguments_that_no_set_could_meet_end_with_2(whole, capsys, arguments, message):
    assert command(whole, *arguments) == 2
    assert message in capsys.readouterr().err


def test_an_unfinished_set_is_not_checked(whole, capsys):
    whole.rename(whole.with_name('out.partial'))
    assert command(whole.with_name('out.partial')) == 2
    assert 'belongs to an unfinished run' in capsys.readouterr().err


@pytest.mark.injects('fault', 'data sets with a missing, wrong, swapped or cut part')
def test_a_truncated_data_mdb_is_refused_instead_of_killing_the_process(whole, capsys):
    data = whole / 'GT.lmdb' / 'data.mdb'
    os.truncate(data, data.stat().st_size // 2)
    assert command(whole) == 2
    assert 'GT.lmdb: data.mdb is truncated' in capsys.readouterr().err


def test_a_set_moved_without_its_dataset_json_needs_the_border_said(cut, tmp_path):
    for name in ('GT.lmdb', 'LRbicx4.lmdb'):
        shutil.copytree(cut / name, tmp_path / 'moved' / name)
    assert check(tmp_path / 'moved')
    assert check(tmp_path / 'moved', border=2) == []
