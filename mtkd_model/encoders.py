"""Frozen networks as feature spaces for losses: VGG19, or any registered network, with weights from the disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from mtkd.checks import build, require_keys, require_known_keys
from mtkd_arch.feature_maps import window_in
from mtkd_arch.padding import pad_to_multiple
from mtkd_arch.taps import find_module, record_taps
from mtkd_arch.weights import load_weights, read_weights
from mtkd_data.weights_path import weights_path
from mtkd_loss.contrastive_loss import FIVE_WEIGHTS

VGG_FILE = 'vgg19-dcbb9e9d.pth'
VGG_TAPS = ('features.1', 'features.6', 'features.11', 'features.20', 'features.29')  # relu1_1 ... relu5_1
# key: (type, default, meaning); docs/options.md is written from these tables
NETWORK_KEYS = {
    'network': ('mapping', 'required without weights', '`type` of any registered network and its arguments'),
    'path': ('path', 'required with network', 'its weights'),
    'param_key': ('text', 'the first that is there', 'state dict in the file'),
    'strict': ('true or false', 'true', 'every key must fit'),
    'taps': ('list of module paths', 'required with network', 'the features; the network runs to the last of them'),
}
ENCODER_KEYS = {
    'weights': ('path', 'required without network', f'of VGG19 ({VGG_FILE}): relu1_1, relu2_1, ..., relu5_1'),
    **NETWORK_KEYS,
}


class Encoder(nn.Module):
    """Images (B, 3, H, W), RGB in [0, 1], to the outputs of ``network`` at ``taps``, as a list.

    The network is frozen and in eval mode; gradients pass through it to the images. It is not a submodule, so that
    it is in no checkpoint, optimizer or gradient synchronisation, yet it moves with ``.to()``.
    """

    def __init__(self, network: nn.Module, taps: Sequence[str]) -> None:
        super().__init__()
        for path in taps:
            find_module(network, path, 'encoder.taps')
        self.taps, self.window = tuple(taps), window_in(network)
        self.__dict__['network'] = network.requires_grad_(False).eval()

    def _apply(self, fn: Any, recurse: bool = True) -> 'Encoder':
        self.network._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, images: Tensor) -> list[Tensor]:
        # the end of an SR network, at full size, costs many times the layers that are asked for
        with record_taps(self.network, self.taps, stop_when_complete=True) as features:
            self.network(pad_to_multiple(images, self.window))
        return [features[path] for path in self.taps]


class VGG19(nn.Module):
    """VGG19 (Simonyan and Zisserman, ICLR 2015, https://arxiv.org/abs/1409.1556) to relu5_1, input normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.features = make_layers(cfgs['E'], batch_norm=False)[:30]
        self.register_buffer('mean', torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), RGB in [0, 1], both sides at least 16."""
        return self.features((images - self.mean) / self.std)


def build_encoder(opt: Mapping[str, Any]) -> Encoder:
    """The encoder of an option: VGG19 for ``weights``, another network for ``network``, ``path`` and ``taps``.

    ``{weights: path/to/vgg19-dcbb9e9d.pth}`` gives the features relu1_1, relu2_1, relu3_1, relu4_1, relu5_1.
    ``{network: {type: EDSR, ...}, path: ..., taps: [body.0, body.-1]}`` gives those of any registered network; it
    runs on images of the size of the ground truth, to its last tap. ``param_key`` and ``strict`` as in ``teachers``.

    Raises ValueError for unknown or missing keys, weights that are absent or do not fit, and taps that do not exist.
    """
    require_known_keys(opt, ENCODER_KEYS, 'encoder')
    if ('weights' in opt) == ('network' in opt):
        raise ValueError(f'encoder needs either weights (of VGG19) or network, path and taps; it has {", ".join(opt)}')
    return _vgg19(opt) if 'weights' in opt else _network(opt)


def weights_per_feature(weights: Sequence[float] | None, encoder: Encoder) -> tuple[float, ...]:
    """One weight per feature; by default 1/32, 1/16, 1/8, 1/4, 1 for five, else 1 for each.

    Raises ValueError when there are more or fewer weights than features.
    """
    count = len(encoder.taps)
    if weights is None:
        return FIVE_WEIGHTS if count == len(FIVE_WEIGHTS) else (1.0,) * count
    if not isinstance(weights, Sequence) or len(weights) != count:
        raise ValueError(f'feature_weights should be a list of {count}, one per feature; it is {weights!r}')
    return tuple(weights)


def missing_weights(opt: Mapping[str, Any]) -> tuple[str, str] | None:
    """The key of an encoder's option that names a file which is not there, and what to say of it."""
    if 'weights' in opt:
        path = Path(opt['weights'] or VGG_FILE)
        fetch = f'fetch https://download.pytorch.org/models/{VGG_FILE} and put it there'
        message = f'no such file: {path}: {fetch}, or set encoder.weights to where it is'
        return None if path.is_file() else ('weights', message)
    there = opt['path'] and weights_path(opt['path']).is_file()
    return (
        None if there else ('path', f'no such file: {opt["path"]}: it should hold weights of {opt["network"]["type"]}')
    )


def _require_weights(opt: Mapping[str, Any]) -> None:
    missing = missing_weights(opt)
    if missing:
        raise ValueError('encoder.{}: {}'.format(*missing))


def _vgg19(opt: Mapping[str, Any]) -> Encoder:
    require_known_keys(opt, ('weights',), 'encoder')
    _require_weights(opt)
    path = Path(opt['weights'] or VGG_FILE)
    network = VGG19()
    weights = {name: value for name, value in read_weights(path).items() if name in network.state_dict()}
    load_weights(network, weights, True, f'encoder.weights {path}')
    return Encoder(network, VGG_TAPS)


def _network(opt: Mapping[str, Any]) -> Encoder:
    require_keys(opt, ('network', 'path', 'taps'), 'encoder')
    taps = opt['taps']
    if not isinstance(taps, Sequence) or isinstance(taps, str) or not taps:
        raise ValueError(f'encoder.taps should be a list of module paths; it is {taps!r}')
    network = build(ARCH_REGISTRY, opt['network'], 'encoder.network')
    _require_weights(opt)
    weights = read_weights(opt['path'], opt.get('param_key'))
    load_weights(network, weights, opt.get('strict', True), f'encoder.path {opt["path"]}')
    return Encoder(network, taps)
