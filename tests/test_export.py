"""Exported files give what PyTorch gives, on any device and at any size, or are not written."""

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics.psnr_ssim import calculate_psnr
from basicsr.utils import img2tensor, tensor2img
from conftest import build_arch, small_network, stage_one, write_option
from torch import Tensor, nn

from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.weights import load_weights, read_metadata, read_weights
from mtkd_eval import exporting, stored
from mtkd_eval.export import main as export
from mtkd_eval.exportable import ExportableNetwork, is_mergeable
from mtkd_eval.exporting import Exported, difference, export_network
from mtkd_eval.loaded import LoadedNetwork, frozen
from mtkd_eval.model_card import model_card
from mtkd_eval.training_facts import facts_of, iterations_of

HAS_ONNX = all(importlib.util.find_spec(package) for package in ('onnx', 'onnxruntime'))
pytestmark = pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning')  # deprecated, and what C++ still reads
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason='needs onnx and onnxruntime')
ROUNDING = 2e-6  # sums of float32 in another order, a few times 2^-23 for values around 1
MAMBA = {'type': 'MambaLiteSR', 'num_feat': 8, 'num_group': 1, 'num_block': 1, 'state': 2, 'upscale': 2}
NETWORKS = {
    'edsr_x4': small_network('edsr'),
    'rcan_x3': small_network('rcan', 3),
    'swinir_direct_x2': small_network('swinir', 2, depths=[2], num_heads=[2]),  # the second block has shifted windows
    'swinir_x4': small_network('swinir', 4, depths=[2], num_heads=[2], upsampler='pixelshuffle'),
}
PROGRAMS = ('edsr_x4', 'swinir_direct_x2')  # the other two would add nothing but time
# whole windows, padded ones, less than a window, a single line; batches of 1 and more
SIZES = [(1, 24, 40), (2, 17, 29), (1, 8, 8), (3, 5, 33), (1, 1, 12)]


def loaded_of(option: dict[str, Any], folder: Path, name: str = 'student') -> LoadedNetwork:
    """A network with weights that let the depths of it show, saved as BasicSR does."""
    torch.manual_seed(5)
    network = build_arch(option)
    for parameter in network.parameters():
        if parameter.dim() == 1 and parameter.shape[0] > 3:
            nn.init.normal_(parameter, std=0.02)  # biases and norms that do something
    path = folder / f'{name}.pth'
    torch.save({'params': network.state_dict()}, path)
    window = option.get('window_size', 1)
    return frozen(name, network, option['upscale'], window, str(path), window, (path,), option)


@pytest.fixture(scope='module')
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[LoadedNetwork, dict[str, Exported]]]:
    """Each network with its files' contents by format."""
    folder, made = tmp_path_factory.mktemp('exported'), {}
    for name, option in NETWORKS.items():
        formats = [
            'torchscript',
            'safetensors',
            *(['onnx'] if HAS_ONNX else []),
            *(['export'] if name in PROGRAMS else []),
        ]
        loaded = loaded_of(option, folder, name)
        made[name] = loaded, {one.format: one for one in export_network(loaded, formats)}
    return made


@pytest.fixture(scope='module')
def photo(photos: Path) -> Tensor:
    """A photograph, (1, 3, 144, 192), RGB in [0, 1]."""
    image = cv2.imread(str(photos / 'chelsea.png'))
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))[None].float() / 255


def crops(photo: Tensor, batch: int, height: int, width: int) -> Tensor:
    return torch.cat([photo[..., 9 * index : 9 * index + height, 7 : 7 + width] for index in range(batch)])


def wanted(loaded: LoadedNetwork, image: Tensor) -> Tensor:
    with torch.no_grad():
        return forward_padded(loaded.network, image, loaded.scale, loaded.window)


def run_onnx(data: bytes, *images: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(session.run(['upscaled'], {'image': image.numpy()})[0]) for image in images]


# Equal to PyTorch


@needs_onnx
@pytest.mark.parametrize('name', NETWORKS)
def test_onnx_gives_what_pytorch_gives_for_parts_of_a_photograph_of_any_size(exported, photo, name):
    loaded, files = exported[name]
    images = [crops(photo, *size) for size in SIZES]
    for image, made in zip(images, run_onnx(files['onnx'].data, *images), strict=True):
        torch.testing.assert_close(made, wanted(loaded, image), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize('name', NETWORKS)
def test_torchscript_gives_what_pytorch_gives_for_parts_of_a_photograph_of_any_size(exported, photo, name):
    loaded, files = exported[name]
    program = torch.jit.load(io.BytesIO(files['torchscript'].data))
    for image in (crops(photo, *size) for size in SIZES):
        torch.testing.assert_close(program(image), wanted(loaded, image), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize('name', PROGRAMS)
def test_a_program_gives_what_pytorch_gives_for_images_larger_than_the_window(exported, photo, name):
    loaded, files = exported[name]
    program = torch.export.load(io.BytesIO(files['export'].data)).module()
    for size in [size for size in SIZES if loaded.window == 1 or min(size[1:]) > loaded.window]:
        image = crops(photo, *size)
        torch.testing.assert_close(program(image), wanted(loaded, image), rtol=0, atol=ROUNDING)
    assert files['export'].takes == 'any batch, height and width' + (' of at least 9' if loaded.window == 8 else '')


@pytest.mark.parametrize('name', NETWORKS)
def test_torchscript_names_no_device_and_holds_the_mean_colour_but_no_mask(exported, name):
    program = torch.jit.load(io.BytesIO(exported[name][1]['torchscript'].data))
    assert not re.search(r'value="(cpu|cuda)', str(program.inlined_graph)), 'the graph would stay on its device'
    # the mean colour as well, which BasicSR keeps as a plain attribute
    buffers = [key for key, _ in program.named_buffers()]
    assert any('mean' in key for key in buffers) or not hasattr(exported[name][0].network, 'mean')
    assert not any('attn_mask' in key for key in buffers), 'a mask of the training size, which no graph needs'


def test_what_is_recorded_is_a_copy(tmp_path, photo):
    loaded = loaded_of(NETWORKS['swinir_x4'], tmp_path)
    before = [type(module) for module in loaded.network.modules()]
    ExportableNetwork(loaded.network, 4, 8, merged=True)
    assert [type(module) for module in loaded.network.modules()] == before


@needs_onnx
@pytest.mark.parametrize(('name', 'merges'), [('edsr_x4', True), ('swinir_direct_x2', False)])
def test_the_form_that_was_exported_is_named_and_is_what_the_graph_holds(exported, photo, tmp_path, name, merges):
    import onnx

    loaded, files = exported[name]
    assert is_mergeable(loaded.network) is merges
    assert (files['onnx'].form == exporting.MERGED) is merges
    (plain,) = export_network(loaded, ['onnx'], merged=False)
    assert plain.form == files['torchscript'].form == exporting.PLAIN
    image = crops(photo, 1, 19, 23)
    torch.testing.assert_close(*run_onnx(plain.data, image), wanted(loaded, image), rtol=0, atol=ROUNDING)
    kernels = [
        {tuple(weight.dims) for weight in onnx.load_from_string(data).graph.initializer}
        for data in (files['onnx'].data, plain.data)
    ]
    assert ((3, 8, 3, 3) in kernels[1]) or not merges
    assert (kernels[0] != kernels[1]) is merges


@needs_onnx
@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_mambalite_is_refused_for_any_size_and_exported_for_one(tmp_path, photo):
    loaded = loaded_of(MAMBA, tmp_path)
    for name in ('onnx', 'torchscript'):
        with pytest.raises(ValueError, match=rf'student cannot be exported as {name} .*any size .*--size HEIGHT WIDTH'):
            export_network(loaded, [name])
    pytest.importorskip('onnxscript', reason='ONNX of MambaLiteSR goes by torch.export, which needs onnxscript')
    files = {one.format: one for one in export_network(loaded, ['onnx', 'torchscript'], size=(4, 6))}
    for batch in (1, 2):
        image = crops(photo, batch, 4, 6)
        expected = wanted(loaded, image)
        torch.testing.assert_close(*run_onnx(files['onnx'].data, image), expected, rtol=0, atol=ROUNDING)
        made = torch.jit.load(io.BytesIO(files['torchscript'].data))(image)
        torch.testing.assert_close(made, expected, rtol=0, atol=ROUNDING)
    assert files['onnx'].takes == 'any batch, 4 x 6 pixels only'


# Weights


def test_safetensors_hold_the_weights_exactly_and_say_which_network(exported, tmp_path):
    import safetensors

    loaded, files = exported['swinir_direct_x2']
    path = tmp_path / 'student.safetensors'
    path.write_bytes(files['safetensors'].data)
    again = build_arch(NETWORKS['swinir_direct_x2'])
    load_weights(again, read_weights(path), True, 'test')
    own = dict(loaded.network.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in again.named_parameters())
    with safetensors.safe_open(path, 'pt') as file:
        assert json.loads(file.metadata()['network'])['type'] == 'SwinIR'
        assert not any('attn_mask' in key for key in file.keys())  # noqa: SIM118  no mapping


def test_half_the_bytes_come_with_the_difference_they_make(tmp_path, photo):
    loaded = loaded_of(NETWORKS['edsr_x4'], tmp_path)
    (whole,), (half,) = export_network(loaded, ['safetensors']), export_network(loaded, ['safetensors'], half=True)
    assert whole.difference == 0
    assert len(half.data) < 0.6 * len(whole.data)
    rounded = build_arch(NETWORKS['edsr_x4'])
    weights = {name: value.half().float() for name, value in loaded.network.state_dict().items()}
    rounded.load_state_dict(weights)
    expected = difference(lambda image: rounded(image), loaded, half.sizes)
    assert half.difference == pytest.approx(expected, rel=0.01)
    assert expected > 0


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_weights_too_large_for_half_are_refused(tmp_path):
    loaded = loaded_of(NETWORKS['edsr_x4'], tmp_path)
    loaded.network.conv_first.weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r'conv_first.weight does not fit into float16 .*without --half'):
        export_network(loaded, ['safetensors'], half=True)


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_half_that_changes_the_image_is_refused_and_float32_is_not(checkpoint, tmp_path, capsys):
    weights = read_weights(tmp_path / 'student.pth')
    weights['conv_first.weight'] *= 1e-9  # below what float16 can tell from zero
    for name in ('upsample.0.weight', 'upsample.2.weight', 'conv_last.weight'):
        weights[name] *= 1e3
    torch.save({'params': weights}, tmp_path / 'student.pth')
    arguments = [*checkpoint, '--format', 'safetensors']
    assert export([*arguments, '--half']) == 2
    assert re.search(r'from float16 differs by .* \(allowed: 0.01\): export it without --half', capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()
    assert export(arguments) == 0


def test_half_is_measured_on_test_sets_and_the_file_keeps_their_psnr(checkpoint, data, tmp_path, capsys):
    arguments = [*checkpoint, '--format', 'safetensors', '--half', '--set', str(data / 'val')]
    assert export(arguments) == 0
    path = tmp_path / 'out/student.safetensors'
    rounded = build_arch(NETWORKS['edsr_x4']).eval()
    load_weights(rounded, {name: value.float() for name, value in read_weights(path).items()}, True, 'test')
    values = []
    for gt_file in sorted((data / 'val/GT').iterdir()):
        gt, lq = cv2.imread(str(gt_file)), cv2.imread(str(data / 'val/LRbicx4' / gt_file.name))
        with torch.no_grad():
            output = rounded(img2tensor(lq / np.float32(255))[None])
        values.append(calculate_psnr(tensor2img(output[0]), gt, crop_border=4, test_y_channel=True))
    kept = read_metadata(path)['psnr_y']
    assert kept == {'val': pytest.approx(np.mean(values), abs=1e-3)}  # 8-bit values on the edge of rounding
    told = capsys.readouterr().out
    assert f'as stored: val {kept["val"]:.2f} dB (loses ' in told
    card = (tmp_path / 'out/student.md').read_text()
    assert f'| val | {kept["val"]:.2f} |' in card
    assert 'no evaluation of these weights was given' not in card


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_half_that_loses_too_much_is_refused_and_nothing_written(checkpoint, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stored, 'MOST_LOST', -100)  # even a network that gains would lose more
    arguments = [*checkpoint, '--format', 'safetensors', '--half', '--set', str(data / 'val')]
    assert export(arguments) == 2
    assert re.search(r'student as float16 loses -?0\.\d{4} dB on val .*without --half', capsys.readouterr().err)
    assert not (tmp_path / 'out').exists()


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_a_test_set_without_safetensors_is_refused(checkpoint, data, capsys):
    assert export([*checkpoint, '--format', 'torchscript', '--set', str(data / 'val')]) == 2
    assert 'add the format safetensors' in capsys.readouterr().err


# Refusals


class DependsOnSize(nn.Module):
    """Repeats pixels, and brightens images beyond 32 columns; a recorder keeps one of the two."""

    def forward(self, image: Tensor) -> Tensor:
        output = image.repeat_interleave(2, -1).repeat_interleave(2, -2)
        return output + 0.01 if image.shape[-1] > 32 else output


def odd_one(tmp_path: Path) -> LoadedNetwork:
    return frozen('odd', DependsOnSize(), 2, 1, 'made here', 1, (tmp_path / 'odd.pth',))


def test_a_graph_that_holds_at_one_size_only_is_refused_with_its_difference(tmp_path):
    with pytest.raises(ValueError, match=r'odd as torchscript differs from PyTorch by 0.01 .*1x24x40.*--size'):
        export_network(odd_one(tmp_path), ['torchscript'])
    (one,) = export_network(odd_one(tmp_path), ['torchscript'], size=(20, 40))
    assert one.difference == 0


def test_a_program_whose_numbers_are_no_numbers_is_refused(tmp_path):
    loaded = loaded_of(NETWORKS['edsr_x4'], tmp_path)
    assert difference(lambda image: wanted(loaded, image) * torch.nan, loaded, [(1, 8, 8)]) == torch.inf


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'formats': ['onyx']}, "format 'onyx': did you mean 'onnx'"),
        ({'formats': []}, 'no format given'),
        ({'formats': ['torchscript'], 'size': (0, 8)}, 'height and width of at least 1'),
        ({'formats': ['torchscript'], 'half': True}, 'add the format safetensors'),
    ],
)
@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_requests_that_make_no_sense_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_network(loaded_of(NETWORKS['edsr_x4'], tmp_path), **arguments)


def test_without_onnx_the_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ImportError, match='pip install onnx onnxruntime'):
        export_network(loaded_of(NETWORKS['edsr_x4'], tmp_path), ['onnx'])


# Command line and card


@pytest.fixture
def checkpoint(tmp_path: Path) -> list[str]:
    """Arguments for a small EDSR."""
    loaded_of(NETWORKS['edsr_x4'], tmp_path)
    write_option(NETWORKS['edsr_x4'], tmp_path / 'edsr.yml')
    return [str(tmp_path / 'student.pth'), '--network', str(tmp_path / 'edsr.yml'), '--out', str(tmp_path / 'out')]


def test_the_command_writes_the_files_and_a_card_with_their_hashes(checkpoint, tmp_path, capsys):
    assert export([*checkpoint, '--format', 'torchscript', 'safetensors', '--license', 'CC0-1.0']) == 0
    out = tmp_path / 'out'
    assert sorted(path.name for path in out.iterdir()) == ['student.md', 'student.safetensors', 'student.torchscript']
    card = (out / 'student.md').read_text()
    for path in (out / 'student.safetensors', out / 'student.torchscript', tmp_path / 'student.pth'):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    parameters = sum(value.numel() for value in read_weights(out / 'student.safetensors').values())
    assert f'| parameters | {parameters:,} |' in card
    assert '| licence of the weights | CC0-1.0 |' in card
    assert 'It is unknown how it was trained.' in card
    assert 'Unknown: no evaluation of these weights was given.' in card
    assert str(tmp_path) not in card, 'folders of a machine do not belong in a card'
    assert 'differs from PyTorch by 0' in capsys.readouterr().out


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_nothing_is_overwritten_unless_asked(checkpoint, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/student.md').write_text('mine')
    arguments = [*checkpoint, '--format', 'safetensors']
    assert export(arguments) == 2
    assert 'student.md exists' in capsys.readouterr().err
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['student.md']
    assert export([*arguments, '--overwrite']) == 0
    assert (tmp_path / 'out/student.md').read_text().startswith('# student')


def test_when_one_format_fails_nothing_is_written(tmp_path, capsys):
    loaded_of(MAMBA, tmp_path)
    option = write_option(MAMBA, tmp_path / 'mamba.yml')
    arguments = [str(tmp_path / 'student.pth'), '--network', str(option), '--out', str(tmp_path / 'out')]
    assert export([*arguments, '--format', 'safetensors', 'torchscript']) == 2
    assert '--size HEIGHT WIDTH' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    assert export([str(tmp_path / 'none.pth'), '--out', str(tmp_path / 'out')]) == 2
    assert 'none.pth' in capsys.readouterr().err


def test_the_card_tells_the_training_from_the_option_file_beside_the_weights(options, tmp_path):
    models = tmp_path / 'toy/models'
    models.mkdir(parents=True)
    torch.save({'params': build_arch(options['network_g']).state_dict()}, models / 'net_g_4.pth')
    write_option(options, tmp_path / 'toy/toy.yml')
    assert export([str(tmp_path / 'toy'), '--out', str(tmp_path / 'out'), '--format', 'safetensors']) == 0
    card = (tmp_path / 'out/toy.md').read_text()
    listed = (Path(options['datasets']['train']['dataroot_gt']) / 'meta_info.txt').read_text().count('\n')
    assert listed > 1
    for line in (
        '| option file | `toy.yml` |',
        '| teachers | edsr: EDSR (`edsr.pth`); rcan: RCAN (`rcan.pth`); swinir: SwinIR (`swinir.pth`); merged by '
        'DCTSwin (`net_g_latest.pth`) |',
        '| terms of the loss | pixel_opt: L1Loss, weight 0.1; wavelet: OutputDistiller with WaveletLoss, weight 1 |',
        f'| data | photos (GT.lmdb, LRbicx4.lmdb), {listed} images |',
        '| augmentation | horizontal flips, vertical flips and quarter turns |',
        '| iterations planned | 4 |',
        '| iterations of these weights | 4 |',
        '| optimizer | Adam, learning rate 0.001 |',
    ):
        assert line in card
    assert str(tmp_path) not in card


def test_the_card_of_an_aggregator_tells_its_own_training_and_not_that_of_a_teacher(options, tmp_path):
    kept = {'teachers': options['teachers']['edsr']['path'], 'merger': options['aggregator']['path']}
    for name, weights in kept.items():
        (tmp_path / name / 'models').mkdir(parents=True)
        shutil.copy(weights, tmp_path / name / 'models/net_g_7.pth')
    write_option({**options, 'name': 'a_teacher'}, tmp_path / 'teachers/option.yml')
    options['teachers']['edsr']['path'] = str(tmp_path / 'teachers/models/net_g_7.pth')
    write_option({**stage_one(options), 'name': 'the_merger'}, tmp_path / 'merger/option.yml')
    assert export([str(tmp_path / 'merger'), '--out', str(tmp_path / 'out'), '--format', 'safetensors']) == 0
    card = (tmp_path / 'out/the_merger.md').read_text()
    assert '| experiment | the_merger |' in card
    assert '| model | AggregationModel |' in card
    assert '| iterations of these weights | 7 |' in card


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """The weights of an experiment that came to its end, and its folder."""
    latest = tmp_path / 'toy/models/net_g_latest.pth'
    latest.parent.mkdir(parents=True)
    latest.touch()
    return latest


def write_log(experiment: Path, day: int, iterations: int, ended: bool) -> None:
    """A log as BasicSR writes it, of that day of January 2026."""
    log = experiment / f'train_toy_2026010{day}_000000.log'
    end = '2026-01-01 00:00:00,000 INFO: Save the latest model.\n' if ended else ''
    log.write_text(f'  train:[\n    total_iter: {iterations}\n  ]\n{end}')
    os.utime(log, (day, day))


def test_the_last_weights_are_those_of_the_iterations_that_the_option_file_plans(ended):
    assert iterations_of([ended], 9000) == '9000 (the end of the training, by its option file)'
    assert iterations_of([ended]) == 'unknown'
    assert iterations_of([ended.with_name('net_g_best.pth')], 9000) == 'unknown'
    assert iterations_of([ended.with_name('net_g_500.pth')], 9000) == '500'


def test_iterations_given_on_the_command_line_are_found_in_the_log(ended):
    write_log(ended.parent.parent, 1, 6, ended=True)
    assert iterations_of([ended], 9000) == '6 (the end of the training)'


def test_a_training_that_was_prolonged_and_killed_left_the_weights_of_its_first_end(ended):
    experiment = ended.parent.parent
    write_log(experiment, 1, 6, ended=True)
    write_log(experiment, 3, 12, ended=False)
    assert iterations_of([ended], 12) == '6 (the end of the training)'
    write_log(experiment, 2, 9, ended=True)
    assert iterations_of([ended], 12) == '9 (the end of the training)'


def test_the_card_of_a_real_training_tells_its_end(options, train, tmp_path):
    experiment = train(options)
    assert export([str(experiment), '--out', str(tmp_path / 'out'), '--format', 'safetensors']) == 0
    card = (tmp_path / 'out/toy.md').read_text()
    assert f'| iterations of these weights | {options["train"]["total_iter"]} (the end of the training) |' in card


def test_an_exported_file_tells_its_training_licence_and_psnr_when_it_is_exported_again(options, data, tmp_path):
    models = tmp_path / 'toy/models'
    models.mkdir(parents=True)
    torch.save({'params': build_arch(options['network_g']).state_dict()}, models / 'net_g_4.pth')
    write_option(options, tmp_path / 'toy/toy.yml')
    first = [str(tmp_path / 'toy'), '--license', 'CC0-1.0', '--about-data', 'own photographs', '--half']
    first += ['--set', str(data / 'val'), '--format', 'safetensors', '--out', str(tmp_path / 'first')]
    assert export(first) == 0
    path = tmp_path / 'first/toy.safetensors'
    assert export([str(path), '--format', 'safetensors', 'torchscript', '--out', str(tmp_path / 'again')]) == 0
    cards = [(tmp_path / folder / 'toy.md').read_text() for folder in ('first', 'again')]
    trainings = [card[card.index('## Training') : card.index('## Quality')] for card in cards]
    assert trainings[0] == trainings[1]
    assert '| source of the images | own photographs |' in trainings[1]
    psnr = read_metadata(path)['psnr_y']
    assert f'`toy.safetensors`, which the weights are from, says it has: val {psnr["val"]} dB.' in cards[1]
    assert '| licence of the weights | CC0-1.0 |' in cards[1]
    kept, again = (read_metadata(tmp_path / folder / 'toy.safetensors') for folder in ('first', 'again'))
    told = ('training', 'licence', 'psnr_y')
    assert [kept[key] for key in told] == [again[key] for key in told]
    assert str(tmp_path) not in json.dumps(again)


def test_the_psnr_of_weights_that_are_stored_otherwise_is_not_handed_on(checkpoint, data, tmp_path):
    arguments = [*checkpoint, '--format', 'safetensors']
    assert export([*arguments, '--set', str(data / 'val')]) == 0
    path = tmp_path / 'out/student.safetensors'
    assert 'val' in read_metadata(path)['psnr_y']
    assert export([str(path), '--half', '--format', 'safetensors', '--out', str(tmp_path / 'half')]) == 0
    assert 'psnr_y' not in read_metadata(tmp_path / 'half/student.safetensors')


def test_facts_in_the_header_of_a_foreign_file_cannot_break_the_card(checkpoint, tmp_path):
    assert export([*checkpoint, '--format', 'safetensors', '--about-data', 'one\n## two | three']) == 0
    lines = (tmp_path / 'out/student.md').read_text().splitlines()
    assert r'| source of the images | one ## two \| three |' in lines


def results_of(file: Path, **changes: Any) -> dict[str, Any]:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    mean = {'psnr_y': 31.984, 'ssim_y': 0.89216, 'psnr_rgb': None}
    sets = {'Set5': {'crop_border': 4, 'mean': mean}}
    row = {'name': 'other', 'scale': 4, 'weights': [{'path': 'x', 'sha256': digest}], 'sets': sets, **changes}
    return {'networks': [row], 'settings': {'precision': 'fp32'}, 'circumstances': {'date': '2026-01-02'}}


def test_the_card_has_the_figures_measured_with_these_very_weights(checkpoint, tmp_path):
    results = tmp_path / 'results.json'
    results.write_text(json.dumps(results_of(tmp_path / 'student.pth')))
    arguments = [*checkpoint, '--format', 'safetensors', '--results', str(results), '--overwrite']
    assert export(arguments) == 0
    card = (tmp_path / 'out/student.md').read_text()
    assert '| Set5 | 31.98 | 0.8922 | unknown | 4 |' in card
    assert '2026-01-02' in card
    other = results_of(tmp_path / 'student.pth', weights=[{'path': 'x', 'sha256': '0' * 64}], name='student')
    results.write_text(json.dumps(other))
    assert export(arguments) == 0
    assert '31.98' not in (tmp_path / 'out/student.md').read_text(), 'figures of other weights'


@pytest.mark.parametrize('content', ['{', '[]', '{"networks": [{}]}'])
@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_results_that_are_none_are_refused_before_anything_is_written(checkpoint, tmp_path, capsys, content):
    (tmp_path / 'results.json').write_text(content)
    assert export([*checkpoint, '--results', str(tmp_path / 'results.json')]) == 2
    assert 'expected the JSON of scripts/evaluate.py' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_card_of_an_option_with_nothing_in_it_says_unknown(tmp_path):
    facts = facts_of({'train': {'total_iter': 7}})
    card = model_card(loaded_of(NETWORKS['edsr_x4'], tmp_path), {}, facts)
    assert '| terms of the loss | unknown |' in card
    assert '| iterations planned | 7 |' in card
    assert '| teachers | none |' in card
    assert '| augmentation | none |' in card
    assert '| iterations of these weights | unknown |' in card
