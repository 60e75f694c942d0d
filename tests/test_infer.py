"""Images of every kind go through a network and come out as PNG; what cannot is named, and nothing is overwritten."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import build_arch, small_network, write_option
from torch import nn

from mtkd_eval import infer as command
from mtkd_eval.any_image import AnyImage, encode_any, read_any
from mtkd_eval.export import main as export
from mtkd_eval.infer import main as infer

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package in ('onnx', 'onnxruntime', 'onnxscript')),
    reason='needs onnx, onnxruntime and onnxscript',
)
OPTION = small_network('edsr', 2)


@pytest.fixture(scope='module')
def network() -> nn.Module:
    torch.manual_seed(4)
    return build_arch(OPTION).eval().requires_grad_(False)


@pytest.fixture(scope='module')
def weights(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that name the network."""
    folder = tmp_path_factory.mktemp('weights')
    torch.save({'params': network.state_dict()}, folder / 'net.pth')
    return [str(folder / 'net.pth'), '--network', str(write_option(OPTION, folder / 'net.yml'))]


@pytest.fixture(scope='module')
def chelsea(photos: Path) -> np.ndarray:
    """A photograph of 47 x 61, BGR uint8."""
    return np.ascontiguousarray(cv2.imread(str(photos / 'chelsea.png'))[20:67, 30:91])


def expected(network: nn.Module, bgr: np.ndarray, levels: int = 255) -> np.ndarray:
    """``bgr`` through ``network``, by NumPy around it: BGR of the same type."""
    rgb = bgr[..., ::-1].astype(np.float64) / levels
    output = network(torch.tensor(rgb.transpose(2, 0, 1)[None].astype(np.float32)))[0].numpy().transpose(1, 2, 0)
    return np.rint(output.clip(0, 1).astype(np.float64) * levels).astype(bgr.dtype)[..., ::-1]


def assert_within_a_level(made: np.ndarray, wanted: np.ndarray, levels: int = 1) -> None:
    """Merged tails round float32 otherwise: a value near the half may fall to the other side."""
    assert made.dtype == wanted.dtype
    assert made.shape == wanted.shape
    assert np.abs(made.astype(int) - wanted.astype(int)).max() <= levels


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize('kind', ['png', 'bmp', 'jpg', 'JPEG'])
def test_a_photograph_comes_out_as_the_network_sees_it(weights, network, chelsea, tmp_path, kind):
    cv2.imwrite(str(tmp_path / f'photo.{kind}'), chelsea)
    seen = cv2.imread(str(tmp_path / f'photo.{kind}'))
    assert infer([*weights, '--input', str(tmp_path / f'photo.{kind}'), '--out', str(tmp_path / 'up')]) == 0
    assert_within_a_level(read(tmp_path / 'up/photo.png'), expected(network, seen))


def test_sixteen_bits_stay_sixteen_bits(weights, network, chelsea, tmp_path):
    deep = chelsea.astype(np.uint16) * 257 + np.uint16(3) * (np.indices(chelsea.shape).sum(0) % 40).astype(np.uint16)
    cv2.imwrite(str(tmp_path / 'deep.png'), deep)
    assert infer([*weights, '--input', str(tmp_path / 'deep.png'), '--out', str(tmp_path / 'up')]) == 0
    made = read(tmp_path / 'up/deep.png')
    # float32 in the network: 2^-23 of values around 1, a few times over, is a few hundredths of a level of 16 bit
    assert_within_a_level(made, expected(network, deep, 65535))
    assert len(np.unique(made % 257)) > 200, 'only 8 bits are left'


def test_a_grey_image_is_repeated_to_three_channels(weights, network, chelsea, tmp_path):
    grey = cv2.cvtColor(chelsea, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(tmp_path / 'grey.png'), grey)
    assert infer([*weights, '--input', str(tmp_path / 'grey.png'), '--out', str(tmp_path / 'up')]) == 0
    assert_within_a_level(read(tmp_path / 'up/grey.png'), expected(network, np.repeat(grey[..., None], 3, 2)))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_alpha_is_interpolated_and_colour_does_not_depend_on_it(weights, network, chelsea, tmp_path, dtype):
    top = np.iinfo(dtype).max
    alpha = np.zeros(chelsea.shape[:2], dtype)
    alpha[:, 20:] = top
    colour = chelsea.astype(dtype) * (top // 255)
    cv2.imwrite(str(tmp_path / 'cut.png'), np.dstack([colour, alpha]))
    assert infer([*weights, '--input', str(tmp_path / 'cut.png'), '--out', str(tmp_path / 'up')]) == 0
    made = read(tmp_path / 'up/cut.png')
    assert_within_a_level(made[..., :3], expected(network, colour, int(top)))
    assert (made[:, :36, 3] == 0).all()  # two pixels from the edge the kernel no longer reaches it
    assert (made[:, 44:, 3] == top).all()
    assert 0 < made[10, 39, 3] < top


def test_a_turned_photograph_comes_out_upright(weights, network, chelsea, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.jpg'), chelsea, [cv2.IMWRITE_JPEG_QUALITY, 95])
    plain = (tmp_path / 'a.jpg').read_bytes()
    # a TIFF header and one entry: orientation (0x0112), a short, 6: turn it clockwise
    exif = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    (tmp_path / 'a.jpg').write_bytes(plain[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + plain[2:])
    upright = cv2.rotate(cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR), cv2.ROTATE_90_CLOCKWISE)
    assert infer([*weights, '--input', str(tmp_path / 'a.jpg'), '--out', str(tmp_path / 'up')]) == 0
    assert_within_a_level(read(tmp_path / 'up/a.png'), expected(network, upright))


def test_tiles_and_the_self_ensemble_reach_the_network(weights, network, chelsea, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    arguments = [*weights, '--input', str(tmp_path / 'photo.png')]
    assert infer([*arguments, '--out', str(tmp_path / 'tiled'), '--tile', '16', '--overlap', '12']) == 0
    # the network sees 9 pixels to each side: the overlap covers it
    assert_within_a_level(read(tmp_path / 'tiled/photo.png'), expected(network, chelsea))
    assert infer([*arguments, '--out', str(tmp_path / 'eight'), '--self-ensemble']) == 0
    views = [(chelsea[:, ::-1] if flip else chelsea, flip) for flip in (False, True)]
    turned = [(np.rot90(view, quarters), quarters, flip) for view, flip in views for quarters in range(4)]
    outputs = [np.rot90(expected(network, np.ascontiguousarray(view)), -quarters) for view, quarters, _ in turned]
    flipped = [out[:, ::-1] if flip else out for out, (_, _, flip) in zip(outputs, turned, strict=True)]
    # the eight here are rounded before the mean
    assert_within_a_level(read(tmp_path / 'eight/photo.png'), np.mean(flipped, axis=0).round().astype(np.uint8))


@pytest.mark.parametrize('precision', ['bf16', 'auto'])
def test_half_precision_differs_by_what_its_digits_allow(weights, network, chelsea, tmp_path, precision):
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    arguments = [*weights, '--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'up'), '--device', 'cpu']
    assert infer([*arguments, '--precision', precision]) == 0
    # bf16 has 8 binary digits, and the image is in the residual stream of float32
    assert_within_a_level(read(tmp_path / 'up/photo.png'), expected(network, chelsea), levels=4)


# ONNX


@needs_onnx
def test_an_exported_graph_gives_the_same_image(weights, network, chelsea, tmp_path):
    assert export([*weights, '--out', str(tmp_path), '--format', 'onnx']) == 0
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    arguments = [str(tmp_path / 'net.onnx'), '--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'up')]
    assert infer(arguments) == 0
    assert_within_a_level(read(tmp_path / 'up/photo.png'), expected(network, chelsea))
    assert infer([*arguments, '--overwrite', '--tile', '16', '--overlap', '12']) == 0
    assert_within_a_level(read(tmp_path / 'up/photo.png'), expected(network, chelsea))


@needs_onnx
def test_a_graph_of_one_size_serves_images_of_any_size_in_tiles(weights, network, chelsea, tmp_path, capsys):
    assert export([*weights, '--out', str(tmp_path), '--format', 'onnx', '--size', '40', '48']) == 0
    (tmp_path / 'photos').mkdir()
    cv2.imwrite(str(tmp_path / 'photos/large.png'), chelsea)
    cv2.imwrite(str(tmp_path / 'photos/exact.png'), chelsea[:40, :48])
    arguments = [str(tmp_path / 'net.onnx'), '--input', str(tmp_path / 'photos'), '--out', str(tmp_path / 'up')]
    assert infer(arguments) == 0
    assert_within_a_level(read(tmp_path / 'up/exact.png'), expected(network, chelsea[:40, :48]))
    # mirrored surroundings are not those of the whole image, but at its own edges
    assert_within_a_level(read(tmp_path / 'up/large.png')[:60, :60], expected(network, chelsea)[:60, :60])
    assert infer([*arguments, '--overwrite', '--tile', '40']) == 2
    assert 'more than the 40 pixels that an ONNX graph of this size takes' in capsys.readouterr().err


# TorchScript and torch.export

SWINIR = small_network('swinir', 2, depths=[2], num_heads=[2])
PROGRAM_SUFFIXES = {'torchscript': '.torchscript', 'export': '.pt2'}


@pytest.mark.parametrize('kind', PROGRAM_SUFFIXES)
def test_an_exported_program_gives_the_same_image(weights, network, chelsea, tmp_path, kind):
    assert export([*weights, '--out', str(tmp_path), '--format', kind]) == 0
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    arguments = [str(tmp_path / f'net{PROGRAM_SUFFIXES[kind]}'), '--input', str(tmp_path / 'photo.png')]
    arguments += ['--out', str(tmp_path / 'up'), '--overwrite']
    for tiles in ([], ['--tile', '16', '--overlap', '12']):
        assert infer([*arguments, *tiles]) == 0
        assert_within_a_level(read(tmp_path / 'up/photo.png'), expected(network, chelsea))


@pytest.mark.parametrize('kind', PROGRAM_SUFFIXES)
def test_a_program_of_one_size_serves_images_of_any_size(weights, network, chelsea, tmp_path, kind):
    assert export([*weights, '--out', str(tmp_path), '--format', kind, '--size', '40', '48']) == 0
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    program = str(tmp_path / f'net{PROGRAM_SUFFIXES[kind]}')
    assert infer([program, '--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'up')]) == 0
    assert_within_a_level(read(tmp_path / 'up/photo.png')[:60, :60], expected(network, chelsea)[:60, :60])


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_an_image_below_the_least_size_of_a_program_is_left_out_and_the_size_named(chelsea, tmp_path, capsys):
    torch.manual_seed(4)
    torch.save({'params': build_arch(SWINIR).state_dict()}, tmp_path / 'net.pth')
    option = str(write_option(SWINIR, tmp_path / 'net.yml'))
    assert export([str(tmp_path / 'net.pth'), '--network', option, '--out', str(tmp_path), '--format', 'export']) == 0
    (tmp_path / 'photos').mkdir()
    cv2.imwrite(str(tmp_path / 'photos/small.png'), chelsea[:7, :30])
    cv2.imwrite(str(tmp_path / 'photos/large.png'), chelsea)
    arguments = [str(tmp_path / 'net.pt2'), '--input', str(tmp_path / 'photos'), '--out', str(tmp_path / 'up')]
    assert infer(arguments) == 2
    message = r'small.png: net fails on it: it takes images and tiles of at least 9 x 9 pixels, this is 7 x 30'
    assert message in capsys.readouterr().err
    assert [path.name for path in (tmp_path / 'up').iterdir()] == ['large.png']


class Doubled(nn.Module):
    def forward(self, image):
        return image.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning')
def test_programs_of_others_tell_their_scale_by_running(chelsea, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea[:16, :16])
    example = torch.zeros(1, 3, 16, 16)
    torch.jit.save(torch.jit.trace(Doubled(), example), str(tmp_path / 'one.torchscript'))
    torch.export.save(torch.export.export(Doubled(), (example,)), str(tmp_path / 'two.pt2'))
    for name in ('one.torchscript', 'two.pt2'):
        arguments = ['--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / name.partition('.')[0])]
        assert infer([str(tmp_path / name), *arguments]) == 0
        made = read(tmp_path / name.partition('.')[0] / 'photo.png')
        assert np.array_equal(made, chelsea[:16, :16].repeat(2, 0).repeat(2, 1))


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_a_program_of_another_size_without_a_word_about_it_is_a_failure_of_the_image(chelsea, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    program = torch.export.export(Doubled(), (torch.zeros(1, 3, 16, 16),))
    torch.export.save(program, str(tmp_path / 'net.pt2'))
    arguments = ['--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'up')]
    assert infer([str(tmp_path / 'net.pt2'), *arguments]) == 2
    assert 'photo.png: net fails on it: it was recorded for other sizes' in capsys.readouterr().err


@pytest.mark.parametrize(('suffix', 'kind'), [('.torchscript', 'a TorchScript program'), ('.pt2', 'a torch.export')])
@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_files_that_are_no_programs_are_refused(chelsea, tmp_path, capsys, suffix, kind):
    (tmp_path / f'net{suffix}').write_bytes(b'no program')
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    arguments = [str(tmp_path / f'net{suffix}'), '--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'up')]
    assert infer(arguments) == 2
    assert f'cannot be read as {kind}' in capsys.readouterr().err
    assert infer([*arguments, '--precision', 'fp16']) == 2
    assert 'keeps its own precision' in capsys.readouterr().err


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_a_file_of_another_kind_is_refused_with_all_that_are_taken(chelsea, tmp_path, capsys):
    (tmp_path / 'net.tflite').write_bytes(b'')
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    arguments = [str(tmp_path / 'net.tflite'), '--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'up')]
    assert infer(arguments) == 2
    told = capsys.readouterr().err
    assert all(suffix in told for suffix in ('.yml', '.pth', '.safetensors', '.onnx', '.torchscript', '.pt2'))


@needs_onnx
@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_files_that_are_no_graphs_and_other_precisions_are_refused(weights, chelsea, tmp_path, capsys):
    (tmp_path / 'net.onnx').write_bytes(b'no graph')
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    arguments = [str(tmp_path / 'net.onnx'), '--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'up')]
    assert infer(arguments) == 2
    assert 'cannot be read as an ONNX graph' in capsys.readouterr().err
    assert infer([*arguments, '--precision', 'fp16']) == 2
    assert 'keeps its own precision' in capsys.readouterr().err
    assert not (tmp_path / 'up').exists()


# Folders and failures


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_images_that_cannot_be_read_are_named_and_the_rest_is_done(weights, chelsea, tmp_path, capsys):
    folder = tmp_path / 'photos'
    folder.mkdir()
    for name in ('a.png', 'c.png'):
        cv2.imwrite(str(folder / name), chelsea)
    whole = (folder / 'a.png').read_bytes()
    (folder / 'b.png').write_bytes(whole[: len(whole) // 2])
    (folder / 'd.jpg').write_bytes(b'text')
    (folder / 'notes.txt').write_text('no image by its name')
    assert infer([*weights, '--input', str(folder), '--out', str(tmp_path / 'up')]) == 2
    assert sorted(path.name for path in (tmp_path / 'up').iterdir()) == ['a.png', 'c.png']
    said = capsys.readouterr()
    assert f'left out: {folder / "b.png"}: truncated' in said.err
    assert f'left out: {folder / "d.jpg"}: not an image' in said.err
    assert '2 images written, 2 left out' in said.out


def test_an_image_the_network_fails_on_is_left_out_with_what_to_do(weights, chelsea, tmp_path, capsys, monkeypatch):
    def fails(self: object, lq: torch.Tensor) -> torch.Tensor:
        raise RuntimeError('CUDA out of memory. Tried to allocate')

    monkeypatch.setattr(command.Upscaler, '__call__', fails)
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    assert infer([*weights, '--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'up')]) == 2
    assert 'photo.png (47x61) does not fit in memory: take tiles, such as --tile 128' in capsys.readouterr().err
    assert not (tmp_path / 'up').exists()


def test_values_that_are_no_numbers_are_never_written():
    image = AnyImage(torch.full((1, 3, 4, 4), torch.nan), None, 8)
    with pytest.raises(ValueError, match='no finite numbers'):
        encode_any(image)


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_nothing_is_overwritten_unless_asked(weights, chelsea, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    (tmp_path / 'up').mkdir()
    (tmp_path / 'up/photo.png').write_bytes(b'mine')
    arguments = [*weights, '--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'up')]
    assert infer(arguments) == 2
    assert 'up/photo.png exists' in capsys.readouterr().err
    assert (tmp_path / 'up/photo.png').read_bytes() == b'mine'
    assert infer([*arguments, '--overwrite']) == 0
    assert read(tmp_path / 'up/photo.png').shape == (94, 122, 3)
    assert [path.name for path in (tmp_path / 'up').iterdir()] == ['photo.png'], 'something was left behind'


def test_an_input_is_never_overwritten(weights, chelsea, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    before = (tmp_path / 'photo.png').read_bytes()
    arguments = [*weights, '--input', str(tmp_path), '--out', str(tmp_path), '--overwrite']
    assert infer(arguments) == 2
    assert 'photo.png is an input' in capsys.readouterr().err
    assert (tmp_path / 'photo.png').read_bytes() == before
    assert infer([*arguments, '--suffix', '_x2']) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['photo.png', 'photo_x2.png']


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_two_images_of_one_name_are_refused(weights, chelsea, tmp_path, capsys):
    for name in ('photo.png', 'photo.jpg'):
        cv2.imwrite(str(tmp_path / name), chelsea)
    assert infer([*weights, '--input', str(tmp_path), '--out', str(tmp_path / 'up')]) == 2
    assert 'would both become photo.png' in capsys.readouterr().err


def test_several_networks_write_to_folders_of_their_names(weights, chelsea, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'photo.png'), chelsea)
    path, *rest = weights
    common = [*rest, '--input', str(tmp_path / 'photo.png'), '--out', str(tmp_path / 'up')]
    assert infer([path, path, *common]) == 2
    assert 'two networks of one name' in capsys.readouterr().err
    assert infer([f'one={path}', f'two={path}', *common]) == 0
    one, two = (read(tmp_path / 'up' / name / 'photo.png') for name in ('one', 'two'))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (['--input', 'nowhere'], 'nowhere: no such file or folder'),
        (['--tile', '-1'], 'expected tile >= 0'),
        (['--device', 'abacus'], 'unknown device'),
    ],
)
@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_arguments_that_cannot_be_are_refused(weights, tmp_path, capsys, change, message):
    (tmp_path / 'empty').mkdir()
    assert infer([*weights, '--input', str(tmp_path / 'empty'), '--out', str(tmp_path / 'up'), *change]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'up').exists()


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_a_folder_without_images_is_refused(weights, tmp_path, capsys):
    assert infer([*weights, '--input', str(tmp_path), '--out', str(tmp_path / 'up')]) == 2
    assert 'holds no images' in capsys.readouterr().err


def test_a_palette_with_transparency_has_alpha(tmp_path, chelsea):
    from PIL import Image

    picture = Image.fromarray(chelsea[..., ::-1]).quantize(16)
    picture.save(tmp_path / 'palette.png', transparency=picture.getpixel((0, 0)))
    image = read_any(tmp_path / 'palette.png')
    assert image.alpha is not None
    assert image.alpha[0, 0, 0, 0] == 0
    assert image.rgb.shape == (1, 3, 47, 61)
