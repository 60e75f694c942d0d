"""Networks from whatever holds them, and clear words for what does not."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_arch, small_network, stage_one, write_option
from safetensors.torch import save_file
from torch import Tensor

from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_eval.load import LoadedNetwork, load_network
from mtkd_eval.loaded import frozen, measured_scale


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own: option files name paths that begin there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def lq() -> Tensor:
    return torch.linspace(0, 1, 3 * 16 * 24).view(1, 3, 16, 24)


def network_of(seed: int, name: str = 'edsr', scale: int = 4) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_arch(small_network(name, scale)).eval()


def save(path: Path, **networks: torch.nn.Module) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({key: network.state_dict() for key, network in networks.items()}, path)
    return path


@pytest.fixture
def experiment(elsewhere: Path, options: dict[str, Any]) -> Path:
    """What a training leaves: option file, a checkpoint on the way and the last, plain and averaged weights."""
    folder = elsewhere / 'experiments' / 'toy'
    save(folder / 'models/net_g_900.pth', params=network_of(1), params_ema=network_of(2))
    save(folder / 'models/net_g_1000.pth', params=network_of(3), params_ema=network_of(4))
    save(folder / 'models/net_g_latest.pth', params=network_of(5), params_ema=network_of(6))
    save(folder / 'models/distill_1000.pth', params=network_of(7))
    write_option(options, folder / 'option.yml')
    return folder


def check(loaded: LoadedNetwork, expected: Callable[[Tensor], Tensor], lq: Tensor) -> None:
    assert not loaded.network.training
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    torch.testing.assert_close(loaded.network(lq), expected(lq), rtol=0, atol=1e-6)  # merged tails round otherwise


def test_an_experiment_gives_the_averaged_weights_of_its_end(experiment: Path, lq: Tensor) -> None:
    for source in (experiment, 'experiments/toy', experiment / 'option.yml'):
        loaded = load_network(source)
        check(loaded, network_of(6), lq)
        assert (loaded.name, loaded.scale, loaded.window) == ('toy', 4, 1)
        assert loaded.weights == (Path(loaded.source),)
        assert loaded.source.endswith('experiments/toy/models/net_g_latest.pth')


def test_an_unfinished_experiment_gives_its_newest_weights(experiment: Path, lq: Tensor) -> None:
    (experiment / 'models/net_g_latest.pth').unlink()
    check(load_network(experiment), network_of(4), lq)  # 1000 is more than 900, though not as text


def test_a_training_that_was_resumed_beyond_its_end_and_stopped_gives_its_newest_weights(
    experiment: Path, lq: Tensor
) -> None:
    latest = (experiment / 'models/net_g_latest.pth').stat().st_mtime_ns
    later = save(experiment / 'models/net_g_1500.pth', params=network_of(7), params_ema=network_of(8))
    os.utime(later, ns=(latest + 10**9, latest + 10**9))
    check(load_network(experiment), network_of(8), lq)
    os.utime(later, ns=(latest, latest))  # times of a copy that kept none
    check(load_network(experiment), network_of(6), lq)


def test_an_option_to_train_means_what_it_trained_not_what_it_began_with(
    experiment: Path, options: dict[str, Any], elsewhere: Path, lq: Tensor
) -> None:
    options['path'] = {'pretrain_network_g': str(save(elsewhere / 'start.pth', params=network_of(7)))}
    check(load_network(write_option(options, elsewhere / 'train.yml')), network_of(6), lq)


def test_a_moved_experiment_gives_its_own_weights(experiment: Path, lq: Tensor, tmp_path: Path) -> None:
    save(experiment / 'models/net_g_latest.pth', params=network_of(8))
    moved = shutil.copytree(experiment, tmp_path / 'moved')
    save(experiment / 'models/net_g_latest.pth', params=network_of(9))
    check(load_network(moved), network_of(8), lq)


def test_a_checkpoint_of_an_experiment_needs_no_option(experiment: Path, lq: Tensor) -> None:
    loaded = load_network(experiment / 'models/net_g_900.pth')
    check(loaded, network_of(2), lq)
    assert loaded.name == 'toy/net_g_900'
    check(load_network(experiment / 'models/net_g_900.pth', param_key='params'), network_of(1), lq)


def test_a_test_option_names_its_weights_and_its_key(options: dict[str, Any], elsewhere: Path, lq: Tensor) -> None:
    save(elsewhere / 'weights/net.pth', params=network_of(1), params_ema=network_of(2))
    del options['train'], options['teachers'], options['aggregator']
    options['path'] = {'pretrain_network_g': 'weights/net.pth'}
    check(load_network(write_option(options, elsewhere / 'test.yml')), network_of(2), lq)
    options['path']['param_key_g'] = 'params'
    check(load_network(write_option(options, elsewhere / 'test.yml')), network_of(1), lq)


def test_a_bare_checkpoint_takes_its_network_from_a_yaml_file(elsewhere: Path, lq: Tensor) -> None:
    path = elsewhere / 'net.safetensors'
    save_file({key: value.contiguous() for key, value in network_of(3, scale=2).state_dict().items()}, path)
    option = small_network('edsr', 2)
    write_option(option, elsewhere / 'bare.yml')
    write_option({'network_g': option, 'scale': 2}, elsewhere / 'whole.yml')
    for network in ('bare.yml', 'whole.yml', option):
        loaded = load_network(path, network)
        check(loaded, network_of(3, scale=2), lq)
        assert (loaded.scale, loaded.name) == (2, 'net')
    assert load_network(path, option, name='mine').name == 'mine'


def test_weights_stored_in_half_precision_run_in_float32(elsewhere: Path, lq: Tensor) -> None:
    torch.save({'params': network_of(3).half().state_dict()}, elsewhere / 'half.pth')
    loaded = load_network('half.pth', small_network('edsr'))
    check(loaded, network_of(3).half().float(), lq)


@pytest.mark.parametrize('name', ['edsr', 'rcan', 'swinir'])
def test_a_teacher_of_an_option_file(name: str, options: dict[str, Any], elsewhere: Path, lq: Tensor) -> None:
    options['teachers'][name] |= {'precision': 'bf16', 'compile': True}  # how it runs is the caller's choice
    path = write_option(options, elsewhere / 'option.yml')
    loaded = load_network(f'{path}:teachers.{name}')
    expected = TeacherEnsemble({name: {**options['teachers'][name], 'precision': 'fp32', 'compile': False}}, 4)
    check(loaded, lambda x: expected(x)[name], lq)
    assert (loaded.name, loaded.window) == (f'toy:{name}', 8 if name == 'swinir' else 1)


def test_the_target_of_an_option_file_and_of_stage_one(options: dict[str, Any], elsewhere: Path, lq: Tensor) -> None:
    expected = TeacherEnsemble(options['teachers'], 4, options['aggregator'])(lq)['target']
    options['teachers']['edsr']['precision'] = options['aggregator']['precision'] = 'bf16'
    path = write_option(options, elsewhere / 'option.yml')
    loaded = load_network(f'{path}:target')
    check(loaded, lambda x: expected, lq)
    assert loaded.align == 8
    assert len(loaded.weights) == 4
    (elsewhere / 'experiments/first/models').mkdir(parents=True)
    shutil.copy(options['aggregator']['path'], elsewhere / 'experiments/first/models/net_g_latest.pth')
    stage_one(options)['name'] = 'first'
    write_option(options, elsewhere / 'experiments/first/stage_one.yml')
    for source in ('experiments/first', 'experiments/first/models/net_g_latest.pth'):
        check(load_network(source), lambda x: expected, lq)


def test_without_an_aggregator_the_target_is_the_mean(options: dict[str, Any], elsewhere: Path, lq: Tensor) -> None:
    del options['aggregator']
    path = write_option(options, elsewhere / 'option.yml')
    outputs = TeacherEnsemble(options['teachers'], 4)(lq)
    mean = sum(outputs[name] for name in options['teachers']) / 3
    check(load_network(f'{path}:target'), lambda x: mean, lq)


def test_a_network_that_spandrel_knows_needs_no_option(shared: Path) -> None:
    loaded = load_network(shared / 'data/weights/CRAFT_x4.pth')
    assert (loaded.name, loaded.scale, loaded.window) == ('CRAFT_x4', 4, 16)
    assert loaded.network(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 64, 64)


def write_text(path: Path, text: str) -> str:
    path.write_text(text)
    return path.name


@pytest.mark.parametrize(
    ('source', 'arguments', 'message'),
    [
        ('nowhere', {}, r"nowhere: nothing by that name; expected an option file .* or 'bicubic'"),
        ('nowhere.pth', {}, 'no such weights file: nowhere.pth'),
        ('nowhere.yml', {}, 'no such option file: nowhere.yml'),
        ('table.csv', {}, 'table.csv: a file of another kind'),
        ('list.yml', {}, 'list.yml: expected an option file, a mapping; it holds list'),
        ('broken.yml', {}, r'cannot be read as an option file: .*broken\.yml:1: '),
        ('other.yml', {}, "other.yml lacks the section 'network_g'; its keys: name"),
        ('untrained.yml', {}, 'no weights at .*untrained/models/net_g_latest.pth: train it'),
        ('bare.pth', {}, r'bare.pth is of no family that spandrel knows.* \(--network\)'),
        ('bare.pth', {'network': {'type': 'EDRS'}}, "network.type: unknown type 'EDRS': did you mean 'EDSR'"),
        ('bare.pth', {'network': 'none.yml'}, 'no such option file: none.yml'),
        ('bare.pth', {'network': small_network('rcan')}, 'the weights do not fit RCAN'),
        ('bare.pth', {'network': small_network('edsr'), 'param_key': 'ema'}, "no param_key 'ema'"),
        ('net.pth', {'network': small_network('edsr'), 'scale': 2}, 'net.pth: the network upsamples by 4, but scale'),
        ('nine.pth', {'network': small_network('edsr', num_in_ch=9)}, 'EDSR does not run on an RGB image'),
        ('pathless.yml:teachers.edsr', {}, "pathless.yml: teachers.edsr should be a mapping with the keys 'network'"),
        ('pathless.yml:target', {}, "pathless.yml: teachers.edsr lacks the key 'path'"),
        ('option.yml:teachers.esdr', {}, "no 'teachers.esdr': did you mean 'teachers.edsr'"),
        ('other.yml:target', {}, "other.yml names no teachers, so there is no 'target' in it"),
        ('.', {}, 'expected an experiment folder of BasicSR|holds several option files'),
        ('empty', {}, 'expected an experiment folder of BasicSR'),
        ('bicubic', {}, 'bicubic: give the scale'),
        ('bicubic', {'scale': 1}, 'scale must be a whole number of at least 2, got 1'),
    ],
)
def test_what_does_not_fit_is_named(
    source: str, arguments: dict[str, Any], message: str, options: dict[str, Any], elsewhere: Path
) -> None:
    write_text(elsewhere / 'table.csv', 'a,b')
    write_text(elsewhere / 'list.yml', '[1, 2]')
    write_text(elsewhere / 'broken.yml', 'a: [')
    write_text(elsewhere / 'other.yml', 'name: other')
    (elsewhere / 'empty').mkdir()
    write_option(options, elsewhere / 'option.yml')
    write_option({**options, 'name': 'untrained'}, elsewhere / 'untrained.yml')
    save(elsewhere / 'net.pth', params=network_of(1))
    torch.save(network_of(1).state_dict(), elsewhere / 'bare.pth')
    torch.save(build_arch(small_network('edsr', num_in_ch=9)).state_dict(), elsewhere / 'nine.pth')
    write_option({'scale': 4, 'teachers': {'edsr': {'network': {}}}}, elsewhere / 'pathless.yml')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_network(source, **arguments)


@pytest.mark.parametrize(
    ('network', 'output'), [(torch.nn.Conv2d(3, 1, 1), r'1, 1, 16, 16'), (torch.nn.AvgPool2d(2), '1, 3, 8, 8')]
)
def test_a_network_that_does_not_enlarge_rgb_is_refused(network: torch.nn.Module, output: str) -> None:
    with pytest.raises(ValueError, match=rf'file: \w+ turns \(1, 3, 16, 16\) into \({output}\); expected RGB enlarged'):
        measured_scale(frozen('net', network, 0, 1, ''), 'file')


def test_a_scale_that_the_option_file_has_wrong_is_named(experiment: Path, options: dict[str, Any]) -> None:
    write_option({**options, 'scale': 2}, experiment / 'option.yml')
    with pytest.raises(ValueError, match='the network upsamples by 4, but scale is 2'):
        load_network(experiment)
