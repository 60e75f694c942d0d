"""A test set made from HR images is the published one, and comes whole or not at all."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPO, read_option

from mtkd_data.preparation.test_set import main, prepare_test_set


def images_of(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): cv2.imread(str(path)) for path in sorted(folder.rglob('*.png'))}


@pytest.mark.parametrize('name', ['Set5', 'Set14'])
def test_it_equals_the_published_set_in_names_and_pixels(shared: Path, tmp_path: Path, name: str) -> None:
    count = prepare_test_set(shared / f'data/{name}/HR', tmp_path / name, (2, 3, 4), progress=False)
    made, published = images_of(tmp_path / name), images_of(shared / f'data/{name}')
    assert made.keys() == published.keys()
    assert len(made) == 4 * count
    different = [key for key in made if not np.array_equal(made[key], published[key])]
    assert not different


def test_the_option_files_find_their_images_in_it(photos: Path, tmp_path: Path) -> None:
    (tmp_path / 'HR_images').mkdir()
    shutil.copy(photos / 'coffee.png', tmp_path / 'HR_images/coffee.png')
    cv2.imwrite(str(tmp_path / 'HR_images/grey.png'), np.arange(30 * 25, dtype=np.uint8).reshape(30, 25))
    assert main(['--hr', str(tmp_path / 'HR_images'), '--out', str(tmp_path / 'datasets/Set5')]) == 0
    for scale in (2, 3, 4):
        option = read_option(REPO / f'options/train_mtkd_x{scale}.yml')['datasets']['val']
        for name in ('coffee', 'grey'):
            gt = cv2.imread(str(tmp_path / option['dataroot_gt'] / f'{name}.png'))
            lq = cv2.imread(str(tmp_path / option['dataroot_lq'] / f'{option["filename_tmpl"].format(name)}.png'))
            assert lq.shape == (gt.shape[0] // scale, gt.shape[1] // scale, 3)
    assert gt.shape == (30, 25, 3)  # whole, although no scale divides its width


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--scale', '4', '4'], 'scales must be different whole numbers of at least 2, got [4, 4]'),
        (['--scale', '1'], 'scales must be different whole numbers of at least 2, got [1]'),
        (['--hr', 'nowhere'], 'nowhere: expected a folder of images, found nothing'),
        (['--out', 'hr'], 'hr: lies inside the folder of the HR images, hr'),
        (['--out', 'taken'], 'taken exists already'),
    ],
)
def test_what_makes_no_test_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ('hr', 'taken'):
        Path(name).mkdir()
    cv2.imwrite('hr/a.png', np.zeros((8, 8, 3), np.uint8))
    assert main(['--hr', 'hr', '--out', 'out', *more]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['a.png', 'hr', 'taken']


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_all_images_that_cannot_be_used_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'hr').mkdir()
    cv2.imwrite(str(tmp_path / 'hr/alpha.png'), np.zeros((8, 8, 4), np.uint8))
    cv2.imwrite(str(tmp_path / 'hr/small.png'), np.zeros((3, 9, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'hr/sound.png'), np.zeros((8, 8, 3), np.uint8))
    assert main(['--hr', str(tmp_path / 'hr'), '--out', str(tmp_path / 'out')]) == 2
    said = capsys.readouterr().err
    assert '2 of 3 images cannot be used' in said
    assert 'alpha.png: ' in said
    assert 'small.png: 3x9 is too small for x4: remove it' in said
    assert not (tmp_path / 'out').exists()
