"""Weights are read from every kind of file the field publishes, safely, and end up where they belong."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_arch, small_network
from safetensors.torch import save_file
from torch import Tensor, nn

from mtkd_arch.weights import load_weights, read_metadata, read_weights

MEAN = (0.4488, 0.4371, 0.4040)


def state(value: float) -> dict[str, Tensor]:
    return {'conv.weight': torch.full((2, 1, 3, 3), value), 'conv.bias': torch.full((2,), value)}


def assert_same(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def saved(tmp_path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, tmp_path / 'net.pth', **options)
    return tmp_path / 'net.pth'


# files


@pytest.mark.parametrize('key', ['params', 'params_ema', 'state_dict', 'model'])
def test_the_usual_key_around_the_weights_is_found(tmp_path: Path, key: str) -> None:
    assert_same(read_weights(saved(tmp_path, {'epoch': 3, key: state(1.0)})), state(1.0))


def test_the_averaged_weights_come_first_and_param_key_picks(tmp_path: Path) -> None:
    path = saved(tmp_path, {'params': state(1.0), 'params_ema': state(2.0), 'other': state(3.0)})
    assert_same(read_weights(path), state(2.0))
    assert_same(read_weights(path, 'params_ema'), state(2.0))
    assert_same(read_weights(path, 'params'), state(1.0))
    assert_same(read_weights(str(path), 'other'), state(3.0))


def test_a_bare_state_dict_is_read(tmp_path: Path) -> None:
    assert_same(read_weights(saved(tmp_path, state(1.0))), state(1.0))


def test_the_prefix_of_data_parallel_goes_but_only_at_the_start(tmp_path: Path) -> None:
    path = saved(tmp_path, {'module.conv.weight': torch.ones(1), 'module.head.module.bias': torch.zeros(1)})
    assert_same(read_weights(path), {'conv.weight': torch.ones(1), 'head.module.bias': torch.zeros(1)})


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(state(1.5), tmp_path / 'net.safetensors')
    assert_same(read_weights(tmp_path / 'net.safetensors'), state(1.5))


def test_files_of_torch_before_1_6_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path, {'params': state(1.0)}, _use_new_zipfile_serialization=False)
    assert not path.read_bytes().startswith(b'PK'), 'not the old format'
    assert_same(read_weights(path), state(1.0))


@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_an_unknown_param_key_lists_the_keys_there_are(tmp_path: Path) -> None:
    path = saved(tmp_path, {'params': state(1.0), 'params_ema': state(2.0)})
    with pytest.raises(ValueError, match=r"no param_key 'weights'; its top-level keys: params, params_ema$") as caught:
        read_weights(path, 'weights')
    assert str(path) in str(caught.value)


class Payload:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / 'the_code_ran'
    content = {'params': state(1.0), 'extra': Payload(trace)}
    path = saved(tmp_path, content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r'net\.pth cannot be read as tensors alone'):
        read_weights(path)
    with pytest.raises(ValueError, match=r'net\.pth cannot be read as tensors alone'):
        read_metadata(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the payload is a live one
    assert trace.exists()


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('fraction', [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.injects('fault', 'checkpoints and states that are cut short')
def test_a_truncated_file_is_named(tmp_path: Path, zipped: bool, fraction: float) -> None:
    path = saved(tmp_path, {'params': state(1.0)}, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(ValueError, match=r'net\.pth cannot be read as tensors alone \(damaged'):
        read_weights(path)


@pytest.mark.injects('fault', 'checkpoints and states that are cut short')
def test_a_truncated_safetensors_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'net.safetensors'
    save_file(state(1.0), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r'net\.safetensors cannot be read as tensors alone \(damaged'):
        read_weights(path)


@pytest.mark.parametrize('content', [b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', b'<!DOCTYPE html>'])
@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_download_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'net.pth').write_bytes(content)
    with pytest.raises(ValueError, match=r'net\.pth cannot be read'):
        read_weights(tmp_path / 'net.pth')


@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / 'nowhere.pth', tmp_path):
        with pytest.raises(FileNotFoundError, match=f'no such weights file: {path}'):
            read_weights(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([torch.ones(1)], 'holds a list, expected a state dict'),
        (torch.ones(1), 'holds a Tensor, expected a state dict'),
        ({'epoch': 3, 'optimizers': []}, 'holds no state dict; its keys: epoch, optimizers'),
        ({'params': {'epoch': 3}}, 'holds no state dict; its keys: epoch'),
        ({}, 'holds no state dict'),
    ],
)
@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_weights(saved(tmp_path, content))


def test_metadata_is_what_the_plugin_stored_and_empty_for_foreign_files(tmp_path: Path) -> None:
    assert read_metadata(saved(tmp_path, {'params': state(1.0), 'mtkd': {'inputs': ['b', 'a']}})) == {
        'inputs': ['b', 'a']
    }
    assert read_metadata(saved(tmp_path, {'params': state(1.0)})) == {}
    assert read_metadata(saved(tmp_path, {'params': state(1.0), 'mtkd': 3})) == {}
    assert read_metadata(saved(tmp_path, [1, 2])) == {}


# the authors' layouts, after github.com/sanghyun-son/EDSR-PyTorch and github.com/yulunzhang/RCAN


class MeanShift(nn.Conv2d):
    def __init__(self, sign: int) -> None:
        super().__init__(3, 3, kernel_size=1)
        self.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.bias.data = sign * 255 * torch.tensor(MEAN)


def conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


class Body(nn.Module):
    """What blocks and groups share: ``x + body(x)``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class CALayer(nn.Module):
    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        squeezed = width // reduction
        self.conv_du = nn.Sequential(
            nn.Conv2d(width, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(self.avg_pool(x))


def upsampler(width: int, scale: int) -> nn.Sequential:
    if scale == 3:
        return nn.Sequential(conv(width, 9 * width), nn.PixelShuffle(3))
    layers = [layer for _ in range(scale // 2) for layer in (conv(width, 4 * width), nn.PixelShuffle(2))]
    return nn.Sequential(*layers)


class Authors(nn.Module):
    """EDSR and RCAN of the authors: they differ in the body alone. Images in [0, 255]."""

    def __init__(self, width: int, scale: int, *body: nn.Module) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.head = nn.Sequential(conv(3, width))
        self.body = nn.Sequential(*body, conv(width, width))
        self.tail = nn.Sequential(upsampler(width, scale), conv(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(x + self.body(x)))


def authors_edsr(scale: int, width: int = 8, blocks: int = 12) -> Authors:
    return Authors(width, scale, *(Body(conv(width, width), nn.ReLU(), conv(width, width)) for _ in range(blocks)))


def authors_rcan(scale: int, width: int = 8, groups: int = 2, blocks: int = 11) -> Authors:
    def block() -> Body:
        return Body(conv(width, width), nn.ReLU(), conv(width, width), CALayer(width, 4))

    return Authors(width, scale, *(Body(*(block() for _ in range(blocks)), conv(width, width)) for _ in range(groups)))


AUTHORS = {
    'edsr': (authors_edsr, {'num_block': 12}),  # two digits, so that body.1 and body.11 must not be mistaken
    'rcan': (authors_rcan, {'num_block': 11}),
}


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('name', ['edsr', 'rcan'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_the_authors_checkpoints_give_the_authors_images(tmp_path: Path, name: str, scale: int, prefix: str) -> None:
    make, changes = AUTHORS[name]
    torch.manual_seed(scale)
    theirs = make(scale)
    path = saved(tmp_path, {prefix + key: value for key, value in theirs.state_dict().items()})
    ours = build_arch(small_network(name, scale, **changes))
    load_weights(ours, read_weights(path), True, 'test')
    image = torch.rand(2, 3, 11, 9)
    with torch.no_grad():
        expected, output = theirs(255 * image) / 255, ours(image)
    assert output.shape == (2, 3, 11 * scale, 9 * scale)
    assert expected.std() > 0.01  # the network does something
    # float32, some 50 layers on values up to 255: rounding alone; a wrong weight shows at 1e-1
    assert (output - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_mean_shift_is_left_out_and_every_other_weight_kept(tmp_path: Path) -> None:
    theirs = authors_rcan(4).state_dict()
    weights = read_weights(saved(tmp_path, theirs))
    assert len(theirs) - len(weights) == 4  # weight and bias of sub_mean and add_mean
    assert not any('mean' in name for name in weights)


# loading


def test_loading_strictly_copies_every_weight() -> None:
    torch.manual_seed(0)
    source, network = (build_arch(small_network('edsr')) for _ in range(2))
    before = network.conv_first.weight.clone()
    load_weights(network, source.state_dict(), True, 'edsr.pth')
    assert not torch.equal(network.conv_first.weight, before)
    assert_same(dict(network.state_dict()), dict(source.state_dict()))


@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_loading_strictly_names_missing_and_unknown_weights() -> None:
    network = build_arch(small_network('edsr'))
    weights = dict(network.state_dict())
    del weights['conv_last.bias']
    weights['conv_lost.bias'] = torch.zeros(3)
    with pytest.raises(ValueError, match='do not fit EDSR') as caught:
        load_weights(network, weights, True, 'teachers.edsr.path edsr.pth')
    message = str(caught.value)
    assert message.startswith('teachers.edsr.path edsr.pth: ')
    assert '1 missing in the file: conv_last.bias' in message
    assert '1 unknown to the network: conv_lost.bias' in message


def test_loading_without_strict_takes_what_fits_and_leaves_the_rest() -> None:
    torch.manual_seed(0)
    network = build_arch(small_network('edsr'))
    bias = network.conv_last.bias.clone()
    load_weights(network, {'conv_first.bias': torch.full((8,), 7.0), 'unknown': torch.ones(1)}, False, 'x')
    assert torch.equal(network.conv_first.bias, torch.full((8,), 7.0))
    assert torch.equal(network.conv_last.bias, bias)


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_another_shape_is_refused_strict_or_not_and_nothing_is_loaded(strict: bool) -> None:
    network = build_arch(small_network('edsr'))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = {**{name: value + 1 for name, value in before.items()}, 'conv_first.bias': torch.zeros(16)}
    message = r'1 of another shape: conv_first\.bias: network \(8,\), file \(16,\)'
    with pytest.raises(ValueError, match=message):
        load_weights(network, weights, strict, 'x')
    assert_same(dict(network.state_dict()), before)


@pytest.mark.parametrize('name', ['edsr', 'rcan', 'swinir'])
@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_file_of_which_nothing_fits_is_refused_without_strict_too(name: str) -> None:
    network = build_arch(small_network(name))
    with pytest.raises(ValueError, match='1 unknown to the network: foreign'):
        load_weights(network, {'foreign': torch.ones(1)}, False, 'x')


@pytest.mark.parametrize('img_size', [24, 48])  # at 8, its window, SwinIR would not shift at all
def test_swinir_weights_of_another_img_size_load_and_give_the_same_images(tmp_path: Path, img_size: int) -> None:
    torch.manual_seed(0)
    opt = small_network('swinir', depths=[2, 2])  # the second block of each pair is shifted and has a mask
    source = build_arch({**opt, 'img_size': img_size}).eval()
    network = build_arch({**opt, 'img_size': 16}).eval()
    masks = [{n: tuple(v.shape) for n, v in net.state_dict().items() if 'attn_mask' in n} for net in (source, network)]
    assert masks[0] != masks[1], 'the case is not the one to test'
    load_weights(network, read_weights(saved(tmp_path, {'params': source.state_dict()})), True, 'x')
    image = torch.rand(1, 3, 32, 32)  # of neither size: both compute their masks anew
    with torch.no_grad():
        assert torch.equal(network(image), source(image))


def test_the_masks_in_a_file_are_ignored(tmp_path: Path) -> None:
    network = build_arch(small_network('swinir', depths=[2, 2]))
    weights = dict(network.state_dict())
    mask = next(name for name in weights if name.endswith('attn_mask'))
    kept = weights[mask].clone()
    load_weights(network, {**weights, mask: torch.full_like(kept, 5.0)}, True, 'x')
    assert torch.equal(network.state_dict()[mask], kept)
    del weights[mask]
    load_weights(network, weights, True, 'x')  # some files lack them


def test_a_network_without_masks_takes_a_file_with_them() -> None:
    opt = small_network('swinir', depths=[2, 2])
    source, network = build_arch(opt), build_arch({**opt, 'img_size': 8})  # one window: nothing to shift, no mask
    assert any(name.endswith('attn_mask') for name in source.state_dict())
    assert not any(name.endswith('attn_mask') for name in network.state_dict())
    load_weights(network, source.state_dict(), True, 'x')
    assert torch.equal(network.conv_first.weight, source.conv_first.weight)


def test_a_disk_that_fails_is_not_called_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, 'Permission denied')

    path = saved(tmp_path, state(1.0))
    monkeypatch.setattr(torch, 'load', refuse)
    with pytest.raises(PermissionError):
        read_weights(path)
