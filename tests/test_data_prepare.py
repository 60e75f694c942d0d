"""Data preparation: what comes out, what is refused before anything is written, and what a kill leaves behind."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import namedtuple
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

import mtkd  # noqa: F401  mends BasicSR before it is imported
from mtkd_data.flat_png import view_flat_png
from mtkd_data.image_io import decode_image, read_image
from mtkd_data.lmdb_store import LmdbReader, LmdbWriter, MetaEntry, parse_meta_line
from mtkd_data.preparation import parallel, plan, prepare, verify
from mtkd_data.preparation.matlab_bicubic import imresize_bicubic

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get('MTKD_SHARED', ROOT.parent / 'shared')) / 'data'
WHOLE = plan.Settings((4,), sub_image=0)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def hr(tmp_path):
    """Three colour images of different sizes."""
    for index, (height, width) in enumerate([(50, 62), (48, 48), (77, 40)]):
        write(tmp_path / 'hr' / f'img{index}.png', noise(height, width, index))
    return tmp_path / 'hr'


def run(hr: Path, out: Path, *arguments: str) -> int:
    return prepare.main(['--hr', str(hr), '--out', str(out), '--workers', '1', *arguments])


def stored(out: Path) -> dict[str, dict[str, bytes]]:
    """All values of all LMDBs, by name and key, and the text files."""
    content: dict[str, dict[str, bytes]] = {'texts': {'dataset.json': (out / 'dataset.json').read_bytes()}}
    for path in sorted(out.glob('*.lmdb')):
        with LmdbReader(path) as reader:
            content[path.name] = {key: reader[key] for key in reader}
        content['texts'][path.name] = (path / 'meta_info.txt').read_bytes()
    return content


def pairs(out: Path, scale: int) -> list[dict]:
    from basicsr.data.paired_image_dataset import PairedImageDataset

    options = {
        'dataroot_gt': str(out / 'GT.lmdb'),
        'dataroot_lq': str(out / f'LRbicx{scale}.lmdb'),
        'io_backend': {'type': 'lmdb'},
        'scale': scale,
        'phase': 'val',
    }
    dataset = PairedImageDataset(options)
    read = [dataset[index] for index in range(len(dataset))]
    for environment in dataset.file_client.client._client.values():
        environment.close()
    return read


def assert_refused(hr: Path, out: Path, capsys, message: str, *arguments: str) -> None:
    beside = set(out.parent.iterdir())
    assert run(hr, out, '--sub-image', '0', *arguments) == 2
    assert message in capsys.readouterr().err.replace('\n', ' ')
    assert set(out.parent.iterdir()) == beside


# What comes out


def test_basicsr_reads_the_lmdb_and_every_lr_is_the_bicubic_of_its_gt(hr, tmp_path):
    assert run(hr, tmp_path / 'out', '--scale', '2', '3', '4', '--sub-image', '24', '--step', '12') == 0
    for scale in (2, 3, 4):
        read = pairs(tmp_path / 'out', scale)
        assert len(read) == 3 * 4 + 3 * 3 + 5 * 2
        assert {pair['gt_path'] for pair in read} == {pair['lq_path'] for pair in read}
        for pair in read:
            gt, lq = ((pair[name].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0) for name in ('gt', 'lq'))
            assert gt.shape == (24, 24, 3)
            np.testing.assert_array_equal(lq[2:-2, 2:-2], imresize_bicubic(gt, scale)[2:-2, 2:-2])


def test_three_scales_share_one_gt_cropped_to_their_least_common_multiple(hr, tmp_path):
    assert run(hr, tmp_path / 'out', '--scale', '4', '2', '3', '--sub-image', '0') == 0
    content = stored(tmp_path / 'out')
    assert sorted(content) == ['GT.lmdb', 'LRbicx2.lmdb', 'LRbicx3.lmdb', 'LRbicx4.lmdb', 'texts']
    gt = decode_image(content['GT.lmdb']['img0'], 'img0')
    np.testing.assert_array_equal(gt, read_image(hr / 'img0.png')[:48, :60])
    for scale in (2, 3, 4):
        lq = decode_image(content[f'LRbicx{scale}.lmdb']['img0'], 'img0')
        np.testing.assert_array_equal(lq, imresize_bicubic(gt, scale))


def test_meta_info_is_sorted_and_has_the_form_of_basicsr(hr, tmp_path):
    assert run(hr, tmp_path / 'out', '--sub-image', '0', '--compression-level', '3') == 0
    assert sorted(path.name for path in (tmp_path / 'out' / 'GT.lmdb').iterdir()) == [
        'data.mdb',
        'lock.mdb',
        'meta_info.txt',
    ]
    text = (tmp_path / 'out' / 'LRbicx4.lmdb' / 'meta_info.txt').read_text()
    assert text == 'img0.png (12,15,3) 3\nimg1.png (12,12,3) 3\nimg2.png (19,10,3) 3\n'


def test_sub_images_lie_where_the_script_of_basicsr_cuts_them():
    assert plan.cut_positions(1356, 480, 240) == [0, 240, 480, 720, 876]
    assert plan.cut_positions(1440, 480, 240) == [0, 240, 480, 720, 960]
    assert plan.cut_positions(485, 480, 240, thresh=5) == [0]
    assert plan.cut_positions(486, 480, 240, thresh=5) == [0, 6]
    boxes = plan.cut_boxes('0001', 720, 960, plan.Settings((4,)))
    assert list(boxes) == [f'0001_s00{index}' for index in range(1, 7)]
    assert boxes['0001_s005'] == (240, 240, 480, 480)


def test_disk_format_holds_the_same_pictures_as_the_lmdb(hr, tmp_path):
    arguments = ('--scale', '2', '4', '--sub-image', '24', '--step', '12')
    assert run(hr, tmp_path / 'lmdb', *arguments) == 0
    assert run(hr, tmp_path / 'disk', *arguments, '--format', 'disk') == 0
    content = stored(tmp_path / 'lmdb')
    for name in ('GT', 'LRbicx2', 'LRbicx4'):
        files = {path.stem: path.read_bytes() for path in (tmp_path / 'disk' / name).iterdir()}
        assert files == content[f'{name}.lmdb']


def test_dataset_json_tells_settings_sources_and_counts(hr, tmp_path):
    assert run(hr, tmp_path / 'out', '--sub-image', '24', '--step', '24') == 0
    record = json.loads((tmp_path / 'out' / 'dataset.json').read_text())
    assert record['counts'] == {'sources': 3, 'images': 2 * 3 + 2 * 2 + 4 * 2}
    assert record['settings']['sub_image'] == 24
    assert record['sources']['img2']['file'] == 'img2.png'
    assert (record['sources']['img2']['height'], record['sources']['img2']['width']) == (76, 40)


def test_level_0_writes_in_place_png_of_the_same_pictures(hr, tmp_path):
    for level in ('0', '1'):
        assert run(hr, tmp_path / level, '--sub-image', '0', '--compression-level', level) == 0
    in_place, compressed = stored(tmp_path / '0'), stored(tmp_path / '1')
    for name in ('GT.lmdb', 'LRbicx4.lmdb'):
        for key, value in in_place[name].items():
            expected = decode_image(compressed[name][key], key)
            np.testing.assert_array_equal(view_flat_png(value)[..., ::-1], expected)
            np.testing.assert_array_equal(decode_image(value, key), expected)
            assert view_flat_png(compressed[name][key]) is None
    assert in_place['texts']['GT.lmdb'].startswith(b'img0.png (48,60,3) 0\n')
    assert (
        verify.main(['--gt', str(tmp_path / '0/GT.lmdb'), '--lq', str(tmp_path / '0/LRbicx4.lmdb'), '--scale', '4'])
        == 0
    )


def test_help_says_what_level_0_is_for(capsys):
    with pytest.raises(SystemExit, match='0'):
        prepare.main(['--help'])
    shown = ' '.join(capsys.readouterr().out.split())
    assert '0 writes in-place PNG' in shown
    assert 'without decoding the image' in shown


def test_jpeg_bmp_and_an_upper_case_extension_are_read_as_opencv_reads_them(tmp_path):
    image = cv2.resize(noise(6, 8), (64, 48))
    for name in ('a.jpg', 'b.bmp', 'c.PNG'):
        write(tmp_path / 'hr' / name, image)
    assert run(tmp_path / 'hr', tmp_path / 'out', '--sub-image', '0') == 0
    gt = stored(tmp_path / 'out')['GT.lmdb']
    for key, name in (('a', 'a.jpg'), ('b', 'b.bmp'), ('c', 'c.PNG')):
        expected = cv2.imread(str(tmp_path / 'hr' / name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(decode_image(gt[key], key), expected)


def test_grey_images_are_repeated_to_three_channels_on_request(hr, tmp_path):
    write(hr / 'grey.png', noise(40, 44)[..., 0])
    assert run(hr, tmp_path / 'out', '--sub-image', '0', '--grey', 'convert') == 0
    image = decode_image(stored(tmp_path / 'out')['GT.lmdb']['grey'], 'grey')
    np.testing.assert_array_equal(image, np.repeat(noise(40, 44)[..., :1], 3, axis=2))


def test_a_small_image_is_refused_kept_whole_or_skipped(hr, tmp_path, capsys):
    size = ('--sub-image', '48', '--step', '48')
    assert run(hr, tmp_path / 'out', *size) == 2
    error = capsys.readouterr().err
    assert 'img2.png: 76x40 (after mod-crop) is below sub-image 48: --small skip' in error
    assert not (tmp_path / 'out').exists()
    assert run(hr, tmp_path / 'kept', *size, '--small', 'keep') == 0
    assert 'img2_s001.png (76,40,3) 1' in stored(tmp_path / 'kept')['texts']['GT.lmdb'].decode()
    assert run(hr, tmp_path / 'skipped', *size, '--small', 'skip') == 0
    assert not any(key.startswith('img2') for key in stored(tmp_path / 'skipped')['GT.lmdb'])


@pytest.fixture
def two(hr, tmp_path):
    """The images of ``hr`` in two folders, ``first`` with img0 and img2, ``second`` with img1."""
    for folder, names in (('first', ('img0', 'img2')), ('second', ('img1',))):
        (tmp_path / folder).mkdir()
        for name in names:
            shutil.copy(hr / f'{name}.png', tmp_path / folder)
    return tmp_path / 'first', tmp_path / 'second'


def run_on(folders: list[Path], out: Path, *arguments: str) -> int:
    return prepare.main(
        ['--hr', *map(str, folders), '--out', str(out), '--sub-image', '0', '--workers', '1', *arguments]
    )


def test_several_folders_make_what_one_with_all_their_images_makes(hr, two, tmp_path):
    assert run(hr, tmp_path / 'one', '--sub-image', '0') == 0
    for index, folders in enumerate((two, reversed(two))):
        assert run_on(list(folders), tmp_path / f'several{index}') == 0
        several, one = stored(tmp_path / f'several{index}'), stored(tmp_path / 'one')
        for name in ('GT.lmdb', 'LRbicx4.lmdb'):
            assert several[name] == one[name]
            assert several['texts'][name] == one['texts'][name]


def test_dataset_json_tells_from_which_folder_each_image_came(two, tmp_path):
    assert run_on(list(two), tmp_path / 'out') == 0
    record = json.loads((tmp_path / 'out' / 'dataset.json').read_text())
    assert record['folders'] == ['first', 'second']
    assert {key: source['folder'] for key, source in record['sources'].items()} == {'img0': 0, 'img1': 1, 'img2': 0}


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_name_in_two_folders_is_refused_with_both_paths(two, tmp_path, capsys):
    write(two[1] / 'img0.jpg', noise(48, 48))
    before = set(tmp_path.iterdir())
    assert run_on(list(two), tmp_path / 'out') == 2
    error = capsys.readouterr().err
    assert str(two[0] / 'img0.png') in error
    assert str(two[1] / 'img0.jpg') in error
    assert "two files with the key 'img0'" in error
    assert set(tmp_path.iterdir()) == before


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_folder_named_twice_or_one_with_out_in_it_is_refused(two, tmp_path, capsys):
    assert run_on([two[0], two[1], tmp_path / 'second/../first'], tmp_path / 'out') == 2
    assert 'the folder is named twice' in capsys.readouterr().err
    assert run_on(list(two), two[1] / 'out') == 2
    assert f'lies inside the folder of the HR images, {two[1]}' in capsys.readouterr().err


def stop_at_once(monkeypatch, function, *arguments):
    with monkeypatch.context() as patch:
        patch.setattr(prepare, '_fill', lambda *_: exec('raise OSError("stopped")'))
        assert function(*arguments) == 2


def test_an_unfinished_run_is_not_resumed_with_other_folders(hr, two, tmp_path, capsys, monkeypatch):
    stop_at_once(monkeypatch, run_on, list(two), tmp_path / 'out')
    assert run_on([hr], tmp_path / 'out') == 2
    assert "another value of 'folders'" in capsys.readouterr().err
    assert run_on([two[1], two[0]], tmp_path / 'out') == 2
    assert "another value of 'folders'" in capsys.readouterr().err
    assert run_on(list(two), tmp_path / 'out') == 0


def test_a_run_begun_before_there_were_several_folders_is_resumed_and_verified(hr, tmp_path, monkeypatch):
    stop_at_once(monkeypatch, run, hr, tmp_path / 'out', '--sub-image', '0')
    record = json.loads((tmp_path / 'out.partial/dataset.json').read_text())
    del record['folders'], record['left_out'], record['settings']['min_side']
    for source in record['sources'].values():
        del source['folder']
    (tmp_path / 'out.partial/dataset.json').write_text(json.dumps(record))
    assert run(hr, tmp_path / 'out', '--sub-image', '0') == 0
    (tmp_path / 'out/dataset.json').write_text(json.dumps(record))
    data = ['--gt', str(tmp_path / 'out/GT.lmdb'), '--lq', str(tmp_path / 'out/LRbicx4.lmdb'), '--scale', '4']
    assert verify.main(data) == 0


def test_images_below_the_smallest_side_are_left_out_and_named(hr, tmp_path, capsys):
    # 50x62, 48x48, 77x40: after the crop to multiples of 4 the shorter sides are 48, 48, 40
    assert run(hr, tmp_path / 'out', '--sub-image', '0', '--min-side', '48') == 0
    assert '1 left out, smaller than min-side 48: img2 (76x40)' in capsys.readouterr().out
    assert sorted(stored(tmp_path / 'out')['GT.lmdb']) == ['img0', 'img1']
    record = json.loads((tmp_path / 'out/dataset.json').read_text())
    assert (record['counts'], record['left_out']) == ({'sources': 2, 'images': 2}, {'img2': [76, 40]})
    data = ['--gt', str(tmp_path / 'out/GT.lmdb'), '--lq', str(tmp_path / 'out/LRbicx4.lmdb'), '--scale', '4']
    assert verify.main(data) == 0


def test_only_the_first_of_many_left_out_are_named(tmp_path, capsys):
    for index in range(5):
        write(tmp_path / 'hr' / f'small{index}.png', noise(12, 20 + 4 * index))
    write(tmp_path / 'hr/large.png', noise(20, 20))
    assert run(tmp_path / 'hr', tmp_path / 'out', '--sub-image', '0', '--min-side', '16') == 0
    shown = 'small0 (12x20), small1 (12x24), small2 (12x28) and 2 more'
    assert f'5 left out, smaller than min-side 16: {shown}' in capsys.readouterr().out


def test_an_image_that_is_left_out_need_not_fill_a_sub_image_nor_the_scales(hr, tmp_path):
    write(hr / 'dot.png', noise(3, 30))
    size = ('--sub-image', '48', '--step', '48', '--min-side', '44')
    assert run(hr, tmp_path / 'out', *size) == 0
    assert {key.partition('_')[0] for key in stored(tmp_path / 'out')['GT.lmdb']} == {'img0', 'img1'}


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_smallest_side_that_leaves_nothing_is_refused(hr, tmp_path, capsys):
    assert_refused(hr, tmp_path / 'out', capsys, 'every image is below min-side 49', '--min-side', '49')
    assert_refused(hr, tmp_path / 'out', capsys, 'min-side must not be negative', '--min-side', '-4')


def test_the_lmdb_grows_when_its_map_is_full(tmp_path):
    writer = LmdbWriter(tmp_path / 'grown.lmdb', map_size=2**16)
    values = {f'key{index}': noise(100, 100, index).tobytes() for index in range(40)}
    writer.add(values)
    writer.finish(MetaEntry(key, 100, 100, 3, 1) for key in values)
    with LmdbReader(tmp_path / 'grown.lmdb') as reader:
        assert {key: reader[key] for key in reader} == values


def test_a_store_that_misses_an_image_is_not_finished(tmp_path):
    writer = LmdbWriter(tmp_path / 'short.lmdb')
    writer.add({'here': b'value'})
    with pytest.raises(ValueError, match=r"short\.lmdb: 1 images are missing \['gone'\]"):
        writer.finish([MetaEntry('here', 1, 1, 3, 1), MetaEntry('gone', 1, 1, 3, 1)])
    writer.close()
    assert not (tmp_path / 'short.lmdb' / 'meta_info.txt').exists()


def test_a_line_of_meta_info_survives_being_written_and_read():
    entry = MetaEntry('0001_s001', 480, 481, 3, 1)
    assert str(entry) == '0001_s001.png (480,481,3) 1'
    assert parse_meta_line(str(entry)) == entry


# What is refused, by name, before anything is written


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def png(colour: int, channels: int, *extra: bytes) -> bytes:
    rows = (b'\0' + bytes(range(8 * channels))) * 8
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 8, 8, 8, colour, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + b''.join(extra) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_text_file_is_refused_by_name(hr, tmp_path, capsys):
    (hr / 'notes.txt').write_text('notes')
    assert_refused(hr, tmp_path / 'out', capsys, f'{hr}/notes.txt: not an image by its name')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_subfolder_is_refused_by_name(hr, tmp_path, capsys):
    (hr / 'more').mkdir()
    assert_refused(hr, tmp_path / 'out', capsys, f'{hr}/more: a folder; expected only .png')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_text_file_named_png_is_refused_by_name(hr, tmp_path, capsys):
    (hr / 'fake.png').write_text('<html>not found</html>')
    assert_refused(hr, tmp_path / 'out', capsys, f'{hr}/fake.png: not an image; expected the content of a PNG')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_an_empty_file_is_refused_by_name(hr, tmp_path, capsys):
    (hr / 'void.png').touch()
    assert_refused(hr, tmp_path / 'out', capsys, f'{hr}/void.png: empty file')


@pytest.mark.parametrize('keep', [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize('extension', ['png', 'jpg', 'bmp'])
@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_truncated_image_is_refused_by_name(hr, tmp_path, capsys, extension, keep):
    path = write(hr / f'short.{extension}', cv2.resize(noise(8, 8), (90, 90)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    assert_refused(hr, tmp_path / 'out', capsys, f'{path}: truncated image, its end is missing')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_jpeg_cut_after_its_thumbnail_is_refused_by_name(hr, tmp_path, capsys):
    path = write(hr / 'camera.jpg', noise(80, 80))
    data, thumbnail = path.read_bytes(), cv2.imencode('.jpg', noise(16, 16))[1].tobytes()
    exif = b'\xff\xe1' + struct.pack('>H', len(thumbnail) + 8) + b'Exif\0\0' + thumbnail
    path.write_bytes(data[:2] + exif + data[2:])
    assert plan.inspect_source(path, WHOLE).height == 80
    path.write_bytes((data[:2] + exif + data[2:])[:-100])
    assert_refused(hr, tmp_path / 'out', capsys, f'{path}: truncated image')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_png_with_a_flipped_bit_is_refused_by_name(hr, tmp_path, capsys):
    data = bytearray((hr / 'img1.png').read_bytes())
    data[len(data) // 2] ^= 4
    (hr / 'img1.png').write_bytes(data)
    assert_refused(hr, tmp_path / 'out', capsys, f'{hr}/img1.png: damaged image (a PNG checksum does not match)')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_16_bit_image_is_refused_by_name(hr, tmp_path, capsys):
    path = write(hr / 'deep.png', noise(40, 40).astype(np.uint16) * 257)
    assert_refused(hr, tmp_path / 'out', capsys, f'{path}: 16-bit image, expected 8 bits per channel')


@pytest.mark.parametrize('extension', ['png', 'jpg'])
@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_grey_image_is_refused_by_name(hr, tmp_path, capsys, extension):
    path = write(hr / f'grey.{extension}', noise(40, 40)[..., 0])
    assert_refused(hr, tmp_path / 'out', capsys, f'{path}: grey image, expected 3 channels')


@pytest.mark.parametrize(
    'data',
    [png(6, 4), png(4, 2), png(3, 1, chunk(b'PLTE', bytes(range(24)) * 8), chunk(b'tRNS', b'\x80'))],
    ids=['rgb', 'grey', 'palette'],
)
@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_an_image_with_alpha_is_refused_by_name(hr, tmp_path, capsys, data):
    (hr / 'glass.png').write_bytes(data)
    assert_refused(hr, tmp_path / 'out', capsys, f'{hr}/glass.png: image with an alpha channel', '--grey', 'convert')


def test_a_palette_image_without_alpha_is_colour():
    image = decode_image(png(3, 1, chunk(b'PLTE', bytes(range(24)))), 'palette.png')
    np.testing.assert_array_equal(image[0], np.arange(24, dtype=np.uint8).reshape(8, 3)[:, ::-1])


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_further_dots_in_a_name_are_refused_with_the_remedy(hr, tmp_path, capsys):
    path = write(hr / 'a.b.png', noise(40, 40))
    assert_refused(hr, tmp_path / 'out', capsys, f'{path}: further dots in the name')
    assert run(hr, tmp_path / 'out') == 2
    assert 'rename it, for example to a_b.png' in capsys.readouterr().err


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_name_that_is_not_ascii_is_refused_by_name(hr, tmp_path, capsys):
    (hr / 'img1.png').rename(hr / 'bäbü.png')
    assert_refused(hr, tmp_path / 'out', capsys, f'{hr}/bäbü.png: expected a name of at most 500 printable ASCII')


def test_two_files_with_one_key_are_both_named(hr, tmp_path, capsys):
    write(hr / 'img1.jpg', noise(48, 48))
    assert_refused(hr, tmp_path / 'out', capsys, f'{hr}/img1.jpg and img1.png: two files with the key')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_all_bad_files_are_named_at_once(hr, tmp_path, capsys):
    (hr / 'fake.png').write_text('text')
    path = write(hr / 'grey.png', noise(40, 40)[..., 0])
    assert_refused(hr, tmp_path / 'out', capsys, f'2 of 5 images cannot be used:   {hr}/fake.png')
    assert_refused(hr, tmp_path / 'out', capsys, f'{path}: grey image')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_an_image_smaller_than_the_scales_need_is_refused_by_name(hr, tmp_path, capsys):
    path = write(hr / 'dot.png', noise(11, 30))
    assert_refused(hr, tmp_path / 'out', capsys, f'{path}: 11x30 is too small', '--scale', '3', '4')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_an_existing_out_is_refused(hr, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    assert_refused(hr, tmp_path / 'out', capsys, f'{tmp_path}/out: exists already')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_an_out_inside_the_hr_folder_is_refused(hr, capsys):
    assert_refused(hr, hr / 'out', capsys, 'lies inside the folder of the HR images')


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_missing_or_empty_hr_folder_is_refused(tmp_path, capsys):
    assert_refused(
        tmp_path / 'hr', tmp_path / 'out', capsys, f'{tmp_path}/hr: expected a folder of images, found nothing'
    )
    (tmp_path / 'hr').mkdir()
    assert_refused(tmp_path / 'hr', tmp_path / 'out', capsys, f'{tmp_path}/hr: holds no images')


@pytest.mark.injects('fault', 'disks that are full or fail')
def test_a_disk_that_is_too_small_is_refused(hr, tmp_path, capsys, monkeypatch):
    usage = namedtuple('usage', 'free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(1000))
    assert_refused(hr, tmp_path / 'out', capsys, 'GiB are free: make room')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ('--scale', '3', '--sub-image', '100', '--step', '48'),
            'sub-image 100 must divide by every scale (3): take 99',
        ),
        (
            ('--scale', '3', '4', '--sub-image', '48', '--step', '20'),
            'step 20 must divide by every scale (3, 4): take 24',
        ),
        (('--scale', '1'), 'at least 2, got [1]'),
        (('--scale', '2', '2'), 'different whole numbers'),
        (('--step', '0'), 'step must be positive'),
        (('--compression-level', '10'), 'must lie in 0..9, got 10'),
        (('--workers', '0'), 'workers must be at least 1, got 0'),
    ],
)
@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_settings_that_cannot_be_met_are_refused(hr, tmp_path, capsys, arguments, message):
    assert run(hr, tmp_path / 'out', *arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['hr']


# What a kill leaves behind


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_an_image_that_breaks_while_it_is_read_stops_the_run_by_name_and_out_does_not_appear(
    hr, tmp_path, capsys, monkeypatch
):
    data = (hr / 'img1.png').read_bytes()
    monkeypatch.setattr(prepare, 'check_room', lambda *_: (hr / 'img1.png').write_bytes(data[:-5]))
    assert run(hr, tmp_path / 'out', '--sub-image', '0') == 2
    assert f'{hr}/img1.png: changed while the data set was made' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('form', ['lmdb', 'disk'])
def test_a_second_run_makes_only_what_the_first_left_out(hr, tmp_path, monkeypatch, form):
    made = []
    real = prepare.make_pairs

    def counted(image, key, settings):
        if len(made) == 2:
            raise MemoryError
        made.append(key)
        return real(image, key, settings)

    monkeypatch.setattr(prepare, 'make_pairs', counted)
    monkeypatch.setattr(prepare, 'COMMIT_SECONDS', 0)
    assert run(hr, tmp_path / 'out', '--sub-image', '0', '--format', form) == 2
    assert not (tmp_path / 'out').exists()
    monkeypatch.setattr(prepare, 'make_pairs', lambda *given: made.append(given[1]) or real(*given))
    assert run(hr, tmp_path / 'out', '--sub-image', '0', '--format', form) == 0
    assert made == ['img0', 'img1', 'img2']
    assert not (tmp_path / 'out.partial').exists()


def test_an_unfinished_run_with_other_settings_or_sources_is_not_mixed_in(hr, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(prepare, '_fill', lambda *_: exec('raise OSError("stopped")'))
        assert run(hr, tmp_path / 'out', '--sub-image', '0') == 2
    before = (tmp_path / 'out.partial' / 'dataset.json').read_bytes()
    assert run(hr, tmp_path / 'out', '--sub-image', '0', '--scale', '2') == 2
    assert "out.partial: an unfinished run had another value of 'settings': repeat it" in capsys.readouterr().err
    write(hr / 'img0.png', noise(50, 62, 99))
    assert run(hr, tmp_path / 'out', '--sub-image', '0') == 2
    assert "another value of 'sources'" in capsys.readouterr().err
    assert (tmp_path / 'out.partial' / 'dataset.json').read_bytes() == before


@pytest.mark.injects('bad input', 'photographs and arguments that make no data set')
def test_a_partial_folder_of_unknown_origin_is_left_alone(hr, tmp_path, capsys):
    (tmp_path / 'out.partial').mkdir()
    (tmp_path / 'out.partial' / 'mine.txt').write_text('mine')
    assert run(hr, tmp_path / 'out', '--sub-image', '0') == 2
    assert 'delete the folder' in capsys.readouterr().err
    assert [path.name for path in (tmp_path / 'out.partial').iterdir()] == ['mine.txt']


def test_two_runs_at_once_do_not_work_on_one_folder(hr, tmp_path, capsys):
    (tmp_path / 'out.partial').mkdir()
    with prepare.only_run(tmp_path / 'out.partial'):
        assert run(hr, tmp_path / 'out', '--sub-image', '0') == 2
    assert 'another run is at work in it' in capsys.readouterr().err


@pytest.mark.injects('fault', 'processes that die or images that break during the work')
def test_a_worker_that_dies_stops_the_run_instead_of_hanging_it():
    with pytest.raises(ChildProcessError, match='a worker died, perhaps for want of memory'):
        list(parallel.run_tasks(os._exit, [1, 1, 1], workers=2))


def test_results_come_in_the_order_of_the_tasks():
    assert list(parallel.run_tasks(abs, range(-9, 0), workers=2)) == list(range(9, 0, -1))


def count_committed(path: Path) -> int:
    if not (path / 'data.mdb').is_file() or (path / 'data.mdb').stat().st_size < 2**15:
        return 0
    # a snapshot: this process must not hold the LMDB open while another writes it
    with lmdb.open(str(path), readonly=True, lock=False) as environment:
        return environment.stat()['entries']


def running(group: int) -> list[str]:
    """Processes of the group that are still there and are no zombies."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, process_group = stat.read_text().rpartition(')')[2].split()[:3]
        except OSError:  # ended while we looked
            continue
        if int(process_group) == group and state != 'Z':
            found.append(stat.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.skipif(not (SHARED / 'BSDS400').is_dir(), reason='the images of BSDS400 are not here')
@pytest.mark.injects('kill', 'preparing data, killed midway and repeated')
def test_a_run_killed_midway_and_repeated_gives_what_an_uninterrupted_run_gives(tmp_path):
    (tmp_path / 'hr').mkdir()
    for path in sorted((SHARED / 'BSDS400').glob('*.jpg'))[:100]:
        (tmp_path / 'hr' / path.name).symlink_to(path)
    arguments = ['--hr', str(tmp_path / 'hr'), '--scale', '2', '3', '4', '--sub-image', '96', '--step', '96']
    command = [sys.executable, str(ROOT / 'scripts' / 'prepare_data.py'), *arguments, '--workers', '2']
    out = tmp_path / 'killed'
    process = subprocess.Popen([*command, '--out', str(out)], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not count_committed(tmp_path / 'killed.partial' / 'LRbicx4.lmdb'):
        assert process.poll() is None, 'ended before it could be killed'
        assert time.monotonic() < deadline, 'nothing was committed'
        assert not out.exists()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert not list((tmp_path / 'killed.partial').rglob('meta_info.txt'))
    while running(process.pid):
        assert time.monotonic() < deadline, f'workers outlive the run: {running(process.pid)}'
        time.sleep(0.05)
    half = count_committed(tmp_path / 'killed.partial' / 'GT.lmdb')
    assert prepare.main([*arguments, '--out', str(out), '--workers', '1']) == 0
    assert prepare.main([*arguments, '--out', str(tmp_path / 'whole'), '--workers', '1']) == 0
    killed, whole = stored(out), stored(tmp_path / 'whole')
    assert 0 < half < len(whole['GT.lmdb'])
    assert killed == whole
    assert not (tmp_path / 'killed.partial').exists()


def test_help_of_the_launcher_shows_an_example():
    command = [sys.executable, str(ROOT / 'scripts' / 'prepare_data.py'), '--help']
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd='/').stdout
    assert 'python scripts/prepare_data.py --hr DIV2K_train_HR' in shown
