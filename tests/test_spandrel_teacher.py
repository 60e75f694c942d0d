"""Any network that spandrel knows teaches by the path of its file alone, as BasicSR's own do."""

import copy
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr
from conftest import build_arch, cached, small_network
from safetensors.torch import save_file
from spandrel import ImageModelDescriptor, ModelLoader
from torch import Tensor, nn

from mtkd_arch.default_taps import body_taps
from mtkd_arch.feature_maps import lq_map, window_in
from mtkd_arch.frozen_network import FrozenNetwork
from mtkd_arch.spandrel_arch import SpandrelTeacher, check_use, describe
from mtkd_arch.taps import find_module, record_taps
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_data.teacher_cache.cache import TeacherCache, decode_cached, from_uint16
from mtkd_eval.export import main as export
from mtkd_eval.load import load_network

Options = dict[str, Any]
# of spandrel itself, where a width is zero
pytestmark = pytest.mark.filterwarnings('ignore:Initializing zero-element tensors:UserWarning')

TOKENS = {'embed_dim': 12, 'num_heads': [2, 2], 'upscale': 4, 'upsampler': 'pixelshuffledirect'}
LAYERS = {**TOKENS, 'depths': [2, 2]}
# folder below spandrel.architectures, class, small arguments, expected window
FAMILIES: dict[str, tuple[str, str, Options, int]] = {
    'ATD': ('ATD', 'ATD', {**LAYERS, 'window_size': 8, 'num_tokens': 16, 'reducted_dim': 4}, 8),
    'CRAFT': ('CRAFT', 'CRAFT', {'depths': [1, 1], 'num_heads': [6, 6]}, 16),
    'Compact': ('Compact', 'Compact', {'num_feat': 8, 'num_conv': 2}, 1),
    'DAT': ('DAT', 'DAT', {**TOKENS, 'embed_dim': 24, 'depth': [2, 2], 'split_size': [8, 16]}, 1),
    'DITN': ('DITN', 'DITN', {'dim': 12}, 8),
    'DRCT': ('DRCT', 'DRCT', {**LAYERS, 'gc': 8, 'window_size': 8, 'upsampler': 'pixelshuffle'}, 16),
    'ESRGAN': ('ESRGAN', 'ESRGAN', {'num_filters': 8, 'num_blocks': 2}, 1),
    'HAT': ('HAT', 'HAT', {**LAYERS, 'embed_dim': 36, 'window_size': 16, 'upsampler': 'pixelshuffle'}, 16),
    'OmniSR': ('OmniSR', 'OmniSR', {'num_feat': 16}, 8),
    'RCAN': ('RCAN', 'RCAN', {'n_resgroups': 2, 'n_resblocks': 2, 'n_feats': 16}, 1),
    'SAFMN': ('SAFMN', 'SAFMN', {'dim': 16, 'n_blocks': 2, 'upscaling_factor': 4}, 8),
    'SPAN': ('SPAN', 'SPAN', {'num_in_ch': 3, 'num_out_ch': 3, 'feature_channels': 16}, 1),
    'Swin2SR': ('Swin2SR', 'Swin2SR', {**LAYERS, 'window_size': 8}, 8),
    'SwinIR': ('SwinIR', 'SwinIR', {**LAYERS, 'window_size': 8}, 8),
}
# spandrel takes the published settings of ATD where the weights do not tell; CRAFT has a test of its own
NOT_AS_SAVED = ('ATD', 'CRAFT')
SIZES = [(16, 24), (13, 21), (47, 33), (5, 3), (1, 1)]


@pytest.fixture(scope='module')
def random_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    """``random_files(family)``: a small network of spandrel's own class and the file of its weights."""
    folder = tmp_path_factory.mktemp('families')
    made: dict[str, tuple[nn.Module, Path]] = {}

    def get(family: str) -> tuple[nn.Module, Path]:
        if family not in made:
            module, name, arguments, _ = FAMILIES[family]
            torch.manual_seed(3)
            network = getattr(importlib.import_module(f'spandrel.architectures.{module}'), name)(**arguments)
            torch.save({'params': network.state_dict()}, folder / f'{family}.pth')
            made[family] = network.eval().requires_grad_(False), folder / f'{family}.pth'
        return made[family]

    return get


@pytest.fixture
def craft(shared: Path) -> Path:
    return shared / 'data/weights/CRAFT_x4.pth'


def section(path: str | Path, name: str = 'foreign', **options: Any) -> Options:
    return {name: {'network': {'type': 'SpandrelTeacher'}, 'path': str(path), **options}}


def ensemble_of(path: str | Path, scale: int = 4, **options: Any) -> TeacherEnsemble:
    return TeacherEnsemble(section(path, **options), scale)


def image(*size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def near(one: Tensor, other: Tensor) -> bool:
    """Equal but for the order of float32 sums, which the memory layout changes; RCAN computes in 0-255."""
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-5 * max(1.0, other.abs().max().item()))


def saved(tmp_path: Path, content: Any, name: str = 'net.pth') -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def refusal(error: type[Exception], make: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        make()
    return str(caught.value)


# real weights


def read_image(path: Path) -> np.ndarray:
    return cv2.imread(str(path))[..., ::-1].astype(np.float32)


def psnr_on_set5(data: Path, path: Path) -> float:
    """Mean PSNR-Y at x4, output rounded to 8 bits, border of 4 cropped, by BasicSR's metric."""
    ensemble, values = ensemble_of(path), []
    for hr_path in sorted((data / 'Set5/HR').iterdir()):
        hr, lr = read_image(hr_path), read_image(data / 'Set5/LRbicx4' / f'{hr_path.stem}x4.png')
        output = ensemble(torch.from_numpy(lr.transpose(2, 0, 1).copy())[None] / 255)['target']
        output = (output.clamp(0, 1) * 255).round()[0].numpy().transpose(1, 2, 0)
        hr = hr[: output.shape[0], : output.shape[1]]
        values.append(calculate_psnr(output[..., ::-1], hr[..., ::-1], crop_border=4, test_y_channel=True))
    return float(np.mean(values))


# 32.40 and 28.23 dB were measured elsewhere with other padding at the image border, worth some hundredths
@pytest.mark.parametrize(
    ('name', 'expected'), [('CRAFT_x4.pth', 32.40), ('SRVGGNetCompact_x4_animevideov3.pth', 28.23)]
)
def test_published_weights_reach_their_psnr_on_set5(shared: Path, name: str, expected: float) -> None:
    assert abs(psnr_on_set5(shared / 'data', shared / 'data/weights' / name) - expected) < 0.03


def test_craft_is_itself_without_its_surplus_window(craft: Path) -> None:
    torch.manual_seed(0)
    teacher = SpandrelTeacher(craft).requires_grad_(False)
    x = image(32, 48)
    x[..., -1, :], x[..., -1] = x[..., -2, :], x[..., -2]  # CRAFT mirrors with the edge: one pixel less is padded to x
    assert near(teacher(x)[..., :-4, :-4], teacher.wrapped(x[..., :-1, :-1]))


def test_craft_and_edsr_make_one_target(craft: Path, teachers: Options) -> None:
    both = {'edsr': teachers['edsr'], **section(craft, 'craft')}
    alone = {name: TeacherEnsemble({name: opt}, 4) for name, opt in both.items()}
    lq = image(17, 23)
    outputs = {name: ensemble(lq)[name] for name, ensemble in alone.items()}
    assert (outputs['edsr'] - outputs['craft']).abs().max() > 1e-3
    mean = TeacherEnsemble(both, 4)(lq)['target']
    assert near(mean, (outputs['edsr'] + outputs['craft']) / 2)
    network = {'type': 'DCTSwin', 'in_chans': 6, 'embed_dim': 12, 'depths': [1, 1], 'num_heads': [2, 2], 'upscale': 4}
    aggregator = {'network': network, 'inputs': ['craft', 'edsr'], 'path': None}
    ensemble = TeacherEnsemble(both, 4, aggregator, random_weights=True)
    nn.init.normal_(ensemble.aggregator.network.conv_last.weight, std=0.01)  # zero would make it the plain mean
    target = ensemble(lq)['target']
    assert near(target, ensemble.aggregator(torch.cat([outputs['craft'], outputs['edsr']], dim=1)))
    assert (target - mean).abs().max() > 1e-4


@pytest.mark.slow
def test_a_student_learns_from_craft_by_its_path_and_from_a_cache_of_it(
    craft: Path, options: Options, train: Callable[..., Path], tmp_path: Path
) -> None:
    options['teachers'], options['name'] = section(craft, 'craft', precision='fp32'), 'online'
    del options['aggregator']
    options['train']['total_iter'] = 2
    options['train']['distill'] = {
        'kd': {'type': 'OutputDistiller', 'loss': {'type': 'L1Loss'}},
        'at': {'type': 'ATDistiller', 'taps': {'body.-1': 'craft/layers.-1'}},
    }
    log = next(train(options).glob('*.log')).read_text()
    assert 'l_kd' in log
    assert 'l_at' in log
    del options['train']['distill']['at']
    options = cached({**options, 'name': 'cached'}, tmp_path)
    with TeacherCache(tmp_path / 'cache').open_store('target') as reader:
        lq = cv2.imread(str(next(Path(options['datasets']['val']['dataroot_lq']).glob('chelsea*'))))[..., ::-1]
        stored = from_uint16(decode_cached(reader['chelsea'], 'chelsea'))
    online = ensemble_of(craft)(torch.from_numpy(lq.transpose(2, 0, 1) / np.float32(255))[None])['target']
    # half a step of the 16 bits that hold [-0.5, 1.5], and rounding
    assert np.abs(stored - online.clamp(-0.5, 1.5)[0].permute(1, 2, 0).numpy()).max() < 0.5 / 32767.5 + 1e-6
    assert 'l_kd' in next(train(options).glob('*.log')).read_text()
    options['teachers'] = section(
        saved(tmp_path, {'params': build_arch(small_network('swinir')).state_dict()}), 'craft'
    )
    assert 'the weights of teachers.craft' in refusal(ValueError, lambda: train(options))


# families with random weights


@pytest.mark.parametrize('family', FAMILIES)
def test_a_family_is_found_and_gives_its_images_at_any_size(family: str, random_files: Callable) -> None:
    network, path = random_files(family)
    ensemble = ensemble_of(path)
    teacher = ensemble.bare()['foreign']
    assert (teacher.family, teacher.upscale) == (family, 4)
    assert ensemble.networks['foreign'].window == window_in(teacher) == FAMILIES[family][3]
    if family not in NOT_AS_SAVED:
        whole = image(64, 32)  # of whole windows, and larger than any minimum
        expected = network(whole.clone())
        assert expected.std() > 1e-4
        assert near(ensemble.run_teacher('foreign', whole), expected)
    for size in SIZES:
        lq = image(*size)
        kept = lq.clone()
        output = ensemble.run_teacher('foreign', lq)
        assert output.shape == (2, 3, 4 * size[0], 4 * size[1])
        assert output.isfinite().all()
        assert torch.equal(lq, kept), 'the teacher changed the image that others get'
        assert near(ensemble.run_teacher('foreign', lq[:1]), output[:1])
        assert near(teacher(lq), output), 'it needs somebody to pad for it'


@pytest.mark.parametrize(('size', 'steps'), [((13, 21), [(16, 24)]), ((5, 6), [(8, 8), (16, 16)])])
def test_small_and_odd_images_are_mirrored_to_whole_windows_and_then_to_the_minimum(
    size: tuple[int, int], steps: list[tuple[int, int]], random_files: Callable
) -> None:
    network, path = random_files('SwinIR')  # window 8, at least 16
    lq = image(*size)
    padded = lq.numpy()
    for height, width in steps:
        missing = (height - padded.shape[2], width - padded.shape[3])
        padded = np.pad(padded, [(0, 0), (0, 0), (0, missing[0]), (0, missing[1])], mode='reflect')
    expected = network(torch.from_numpy(padded))[..., : 4 * size[0], : 4 * size[1]]
    assert near(ensemble_of(path).run_teacher('foreign', lq), expected)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
@pytest.mark.parametrize('family', FAMILIES)
def test_half_precision_gives_nearly_the_same(family: str, precision: str, random_files: Callable) -> None:
    path, lq = random_files(family)[1], image(32, 32, batch=1)
    full = ensemble_of(path).run_teacher('foreign', lq)
    output = ensemble_of(path, precision=precision).run_teacher('foreign', lq)
    assert output.dtype == torch.float32
    # some ten units in the last place: bf16 keeps 8 bits, fp16 11
    assert (
        0 < (output - full).abs().max() < 10 / 2 ** (8 if precision == 'bf16' else 11) * full.abs().max().clamp(min=1)
    )


def test_the_residual_stream_inside_stays_in_float32(random_files: Callable) -> None:
    path, lq = random_files('SwinIR')[1], image(16, 16)
    for precision in ('fp32', 'bf16'):
        ensemble = ensemble_of(path, precision=precision)
        with record_taps(ensemble.bare()['foreign'], ['conv_first', 'layers.0', 'conv_after_body']) as taps:
            ensemble.run_teacher('foreign', lq)
        assert {tap.dtype for tap in taps.values()} == {torch.float32}, precision


@pytest.mark.parametrize('family', ['ATD', 'CRAFT', 'DAT', 'HAT', 'Swin2SR', 'SwinIR'])
def test_default_taps_and_taps_by_path_are_those_of_the_network_inside(family: str, random_files: Callable) -> None:
    network, path = random_files(family)
    ensemble = ensemble_of(path)
    teacher = ensemble.bare()['foreign']
    assert body_taps(teacher, 2) == ('layers.0', 'layers.1')
    assert find_module(teacher, 'layers.-1') is teacher.wrapped.layers[1]
    lq = image(13, 21)
    with record_taps(teacher, ['layers.-1']) as taps:
        ensemble.run_teacher('foreign', lq)
    assert lq_map(taps['layers.-1'], 13, 21, window_in(teacher)).shape == (2, network.conv_first.out_channels, 13, 21)


def test_an_unknown_tap_lists_what_the_network_inside_has(random_files: Callable) -> None:
    teacher = SpandrelTeacher(random_files('SwinIR')[1])
    assert 'SwinIR has no' in refusal(ValueError, lambda: find_module(teacher, 'layer.0'))


def test_a_copy_and_a_restored_state_give_the_same(random_files: Callable) -> None:
    path, lq = random_files('HAT')[1], image(16, 16)
    teacher = SpandrelTeacher(path).requires_grad_(False)
    clone = copy.deepcopy(teacher)
    assert near(clone(lq), teacher(lq))
    for parameter in clone.parameters():
        parameter.data.mul_(0.5)
    assert not near(clone(lq), teacher(lq)), 'the copy shares its weights'
    clone.load_state_dict(teacher.state_dict())
    assert near(clone(lq), teacher(lq))


def test_a_frozen_teacher_keeps_still_and_moves_with_channels_last(random_files: Callable) -> None:
    ensemble = ensemble_of(random_files('Compact')[1]).train()
    frozen = ensemble.networks['foreign']
    assert isinstance(frozen, FrozenNetwork)
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    assert frozen.network.wrapped.body[0].weight.is_contiguous(memory_format=torch.channels_last)


# BasicSR's own networks, read by spandrel

RGB = {'num_in_ch': 3, 'num_out_ch': 3}
ITS_OWN = {
    'swinir': small_network('swinir', depths=[2, 2]),
    'srvgg': {'type': 'SRVGGNetCompact', **RGB, 'num_feat': 8, 'num_conv': 2, 'upscale': 4},
    'rrdb': {'type': 'RRDBNet', **RGB, 'num_feat': 8, 'num_block': 2, 'num_grow_ch': 32},
    'rrdb_x2': {'type': 'RRDBNet', **RGB, 'num_feat': 8, 'num_block': 2, 'num_grow_ch': 32, 'scale': 2},
}


@pytest.mark.parametrize('name', ITS_OWN)
def test_weights_of_basicsr_networks_give_the_images_of_basicsr(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_arch(ITS_OWN[name]).eval().requires_grad_(False)
    ensemble = ensemble_of(saved(tmp_path, {'params': network.state_dict()}), ITS_OWN[name].get('scale', 4))
    assert ensemble.networks['foreign'].window == {'swinir': 8, 'rrdb_x2': 4}.get(name, 1)  # x2 unshuffles by 2
    for size in ((16, 24), (32, 32)):
        assert near(ensemble.run_teacher('foreign', image(*size)), network(image(*size)))


@pytest.mark.parametrize('name', ['edsr', 'rcan'])
def test_basicsr_edsr_and_rcan_are_unknown_to_spandrel_and_the_remedy_is_named(
    name: str, teacher_files: dict[str, Path]
) -> None:
    message = refusal(ValueError, lambda: ensemble_of(teacher_files[name]))
    assert message.startswith(f'teachers.foreign.path: {teacher_files[name]} is of no family that spandrel knows')
    assert 'network: {type: EDSR, ...}' in message


def test_averaged_weights_come_first_and_param_key_picks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, other = (build_arch(ITS_OWN['srvgg']).eval().requires_grad_(False) for _ in range(2))
    path, lq = saved(tmp_path, {'params': one.state_dict(), 'params_ema': other.state_dict()}), image(8, 8)
    assert near(ensemble_of(path).run_teacher('foreign', lq), other(lq))
    assert near(ensemble_of(path, param_key='params').run_teacher('foreign', lq), one(lq))
    assert "no param_key 'average'" in refusal(ValueError, lambda: ensemble_of(path, param_key='average'))


def test_safetensors_and_data_parallel_prefixes_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, lq = build_arch(ITS_OWN['srvgg']).eval().requires_grad_(False), image(8, 8)
    save_file({f'module.{name}': value for name, value in network.state_dict().items()}, tmp_path / 'net.safetensors')
    assert near(ensemble_of(tmp_path / 'net.safetensors').run_teacher('foreign', lq), network(lq))


# refusals


def srvgg(**changes: Any) -> Options:
    return {'params': build_arch({**ITS_OWN['srvgg'], **changes}).state_dict()}


@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_another_scale_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, srvgg(upscale=2))
    message = refusal(ValueError, lambda: ensemble_of(path, 4))
    assert message.startswith(f'teachers.foreign.path: {path} holds a network of the family')
    assert 'upsamples by 2, but scale is 4' in message
    assert ensemble_of(path, 2)(image(8, 8))['target'].shape == (2, 3, 16, 16)


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_grey_images_and_images_with_alpha_are_refused(channels: int, tmp_path: Path) -> None:
    path = saved(tmp_path, srvgg(num_in_ch=channels, num_out_ch=channels))
    message = refusal(ValueError, lambda: ensemble_of(path))
    assert f'turns {channels} channels into {channels}: expected RGB, 3 into 3' in message


@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_denoiser_is_refused(tmp_path: Path) -> None:
    from spandrel.architectures.DnCNN import DnCNN

    path = saved(tmp_path, DnCNN(in_nc=3, out_nc=3, nc=8, nb=4).state_dict())
    message = refusal(ValueError, lambda: ensemble_of(path, 1))
    assert 'DnCNN, whose purpose is Restoration: expected super-resolution (SR)' in message


@pytest.mark.parametrize('purpose', ['FaceSR', 'Inpainting'])
@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_face_and_inpainting_networks_are_refused(purpose: str, random_files: Callable) -> None:
    descriptor = ModelLoader('cpu').load_from_state_dict(random_files('Compact')[0].state_dict())
    descriptor._purpose = purpose
    message = refusal(ValueError, lambda: check_use(descriptor, 4, 'net.pth'))
    assert f'whose purpose is {purpose}' in message


@pytest.mark.parametrize(
    ('family', 'reason'), [('AuraSR', 'draws noise'), ('IPT', 'no batch'), ('SeemoRe', 'no batch')]
)
@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_family_that_cannot_teach_is_refused(family: str, reason: str, random_files: Callable) -> None:
    from spandrel import MAIN_REGISTRY

    descriptor = ModelLoader('cpu').load_from_state_dict(random_files('Compact')[0].state_dict())
    descriptor._architecture = MAIN_REGISTRY[family].architecture
    assert isinstance(descriptor, ImageModelDescriptor)
    assert reason in refusal(ValueError, lambda: check_use(descriptor, 4, 'net.pth'))


@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_weights_that_fit_a_known_family_in_part_are_refused(random_files: Callable, tmp_path: Path) -> None:
    weights = dict(random_files('SwinIR')[0].state_dict())
    del weights['conv_after_body.bias']
    message = refusal(ValueError, lambda: describe(weights, 'net.pth'))
    assert message.startswith('net.pth looks like a network that spandrel knows, but does not fit it: RuntimeError')
    assert 'conv_after_body.bias' in message


@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_missing_and_a_truncated_file_are_named(random_files: Callable, tmp_path: Path) -> None:
    message = refusal(FileNotFoundError, lambda: ensemble_of(tmp_path / 'nowhere.pth'))
    assert message == f'teachers.foreign.path: no such weights file: {tmp_path / "nowhere.pth"}'
    content = random_files('Compact')[1].read_bytes()
    (tmp_path / 'cut.pth').write_bytes(content[: len(content) // 2])
    message = refusal(ValueError, lambda: ensemble_of(tmp_path / 'cut.pth'))
    assert 'cut.pth cannot be read as tensors alone (damaged' in message


@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_options_that_mean_nothing_are_refused(random_files: Callable) -> None:
    path = random_files('Compact')[1]
    for strict in (True, False):
        message = refusal(ValueError, lambda strict=strict: ensemble_of(path, strict=strict))
        assert 'teachers.foreign.strict means nothing to SpandrelTeacher' in message
    for key in ('path', 'scale', 'param_key'):
        opt = {'foreign': {'network': {'type': 'SpandrelTeacher', key: 4}, 'path': str(path)}}
        message = refusal(ValueError, lambda opt=opt: TeacherEnsemble(opt, 4))
        assert f'teachers.foreign.network.{key}: SpandrelTeacher takes it from' in message
    opt = {'foreign': {'network': {'type': 'SpandrelTeacher', 'embed_dim': 4}, 'path': str(path)}}
    assert "unknown key 'embed_dim' in teachers.foreign.network" in refusal(ValueError, lambda: TeacherEnsemble(opt, 4))
    for random_weights in (True, False):
        opt = {'foreign': {'network': {'type': 'SpandrelTeacher'}, 'path': None}}
        message = refusal(ValueError, lambda opt=opt, random=random_weights: TeacherEnsemble(opt, 4, None, random))
        assert 'teachers.foreign.path is empty: SpandrelTeacher is built from a file' in message


class Payload:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.ckpt', '.bin'])
@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path: Path, suffix: str) -> None:
    trace = tmp_path / 'the_code_ran'
    path = saved(tmp_path, {**srvgg(), 'extra': Payload(trace)}, f'net{suffix}')
    assert 'cannot be read as tensors alone' in refusal(ValueError, lambda: ensemble_of(path))
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the payload is a live one
    assert trace.exists()


def test_spandrel_itself_never_opens_a_file(random_files: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError('spandrel opened a file')

    for name in ('load_from_file', 'load_state_dict_from_file', '_load_pth', '_load_torchscript', '_load_safetensors'):
        monkeypatch.setattr(ModelLoader, name, refuse)
    assert ensemble_of(random_files('Compact')[1])(image(8, 8))['target'].shape == (2, 3, 32, 32)


@pytest.mark.filterwarnings('ignore:.*torch.jit.*:FutureWarning', 'ignore:.*torch.jit.*:DeprecationWarning')
@pytest.mark.injects('bad input', 'weight files that are none, hold code or do not fit')
def test_a_scripted_network_holds_code_and_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3))), tmp_path / 'net.pt')
    assert 'net.pt cannot be read as tensors alone' in refusal(ValueError, lambda: ensemble_of(tmp_path / 'net.pt'))


# exported


@pytest.mark.parametrize('family', ['SwinIR', 'Swin2SR', 'DRCT', 'DAT', 'Compact'])
@pytest.mark.parametrize('half', [False, True])
def test_an_exported_file_is_a_teacher_again(
    family: str, half: bool, random_files: Callable[[str], tuple[nn.Module, Path]], tmp_path: Path
) -> None:
    path = random_files(family)[1]
    command = [f'again={path}', '--out', str(tmp_path), '--format', 'safetensors', *(['--half'] if half else [])]
    assert export(command) == 0
    original, again = load_network(path), load_network(tmp_path / 'again.safetensors')
    rounded = {name: value.half().float() for name, value in original.network.named_parameters()}
    for name, parameter in again.network.named_parameters():
        assert torch.equal(parameter, rounded[name] if half else original.network.get_parameter(name))
    assert (again.scale, again.window, again.network.family) == (4, original.window, family)
    ensemble = TeacherEnsemble({'again': {'path': str(tmp_path / 'again.safetensors')}}, 4)
    assert near(ensemble(image(16, 24))['again'], again.network(image(16, 24)))
