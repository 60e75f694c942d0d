"""A weights file may name its network: option files need not repeat it, and what they say themselves wins."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, WAVELET_TERM, build_arch, cached, small_network, write_option
from safetensors.torch import save_file
from torch import Tensor

from mtkd_arch.named_network import named_network
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_arch.weights import DERIVED, read_metadata, read_weights
from mtkd_data.teacher_cache.cache import TeacherCache
from mtkd_data.teacher_cache.description import compare_teachers, describe_networks
from mtkd_eval.export import main as export
from mtkd_eval.load import load_network

Options = dict[str, Any]


@pytest.fixture
def lq() -> Tensor:
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope='module')
def exported(teacher_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small teachers as ``scripts/export.py`` stores them in half precision."""
    folder = tmp_path_factory.mktemp('exported')
    for name, path in teacher_files.items():
        option = write_option(small_network(name), folder / f'{name}.yml')
        command = [f'{name}={path}', '--network', str(option), '--out', str(folder), '--format', 'safetensors']
        assert export([*command, '--half']) == 0
    return {name: folder / f'{name}.safetensors' for name in teacher_files}


@pytest.fixture
def short(exported: dict[str, Path]) -> Options:
    """A teachers section of paths alone."""
    return {name: {'path': str(path)} for name, path in exported.items()}


def store(path: Path, network: Options, named: Any) -> Path:
    """Weights of ``network`` in a file that says they are of the network ``named``."""
    torch.manual_seed(1)
    metadata = {} if named is None else {'network': named if isinstance(named, str) else json.dumps(named)}
    state = {name: value.contiguous() for name, value in build_arch(network).state_dict().items()}
    save_file(state, path, metadata)
    return path


def refusal(teachers: Options, error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        TeacherEnsemble(teachers, 4)
    return str(caught.value)


def test_teachers_of_paths_alone_are_those_that_were_exported(short: Options, teachers: Options, lq: Tensor) -> None:
    ours, original = TeacherEnsemble(short, 4)(lq), TeacherEnsemble(teachers, 4)(lq)
    for name in SMALL:
        # float16 rounds weights by up to 2^-11 of themselves; the outputs are around 1
        torch.testing.assert_close(ours[name], original[name], rtol=0, atol=5e-3)
        assert not torch.equal(ours[name], original[name]), 'not stored in half precision'


def test_weights_stored_in_half_precision_become_float32_of_the_same_values(
    short: Options, teacher_files: dict[str, Path]
) -> None:
    for name, network in TeacherEnsemble(short, 4).bare().items():
        original = torch.load(teacher_files[name], weights_only=True)['params']
        for key, parameter in network.named_parameters():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter, original[key].half().float())


def test_a_path_may_begin_with_the_home_folder_whether_or_not_the_network_is_named(
    exported: dict[str, Path], lq: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('HOME', str(exported['edsr'].parent))
    expected = TeacherEnsemble({'edsr': {'path': str(exported['edsr'])}}, 4)(lq)['edsr']
    for named in ({}, {'network': small_network('edsr')}):
        opt: Options = {'scale': 4, 'teachers': {'edsr': {'path': '~/edsr.safetensors', **named}}}
        assert torch.equal(TeacherEnsemble(opt['teachers'], 4)(lq)['edsr'], expected)
        source = write_option(opt, tmp_path / 'option.yml')
        for part in ('teachers.edsr', 'target'):
            loaded = load_network(f'{source}:{part}')
            # merged tails sum in another order
            torch.testing.assert_close(loaded.network(lq), expected, rtol=0, atol=1e-6)
            assert loaded.weights == (exported['edsr'],)
        whole = {'scale': 4, 'teachers': {'edsr': {'network': small_network('edsr'), 'path': '~/edsr.safetensors'}}}
        made = describe_networks(whole, ['target'])
        compare_teachers(made, opt, ['target'], tmp_path)  # a warning, that there is no file, would be an error


def test_the_window_of_a_named_network_is_padded_to(short: Options) -> None:
    ensemble = TeacherEnsemble(short, 4)
    assert {name: frozen.window for name, frozen in ensemble.networks.items()} == {'edsr': 1, 'rcan': 1, 'swinir': 8}
    assert ensemble(torch.rand(1, 3, 13, 9))['swinir'].shape == (1, 3, 52, 36)


def test_what_the_option_file_says_wins(tmp_path: Path, lq: Tensor) -> None:
    plain, scaled = small_network('edsr'), small_network('edsr', res_scale=0.25)  # the same names and shapes
    path = store(tmp_path / 'edsr.safetensors', plain, plain)
    named, given = ({'edsr': {'path': str(path), **more}} for more in ({}, {'network': scaled}))
    network = build_arch(scaled).eval()
    network.load_state_dict(TeacherEnsemble(named, 4).bare()['edsr'].state_dict())
    with torch.no_grad():
        torch.testing.assert_close(TeacherEnsemble(given, 4)(lq)['edsr'], network(lq))
    assert (TeacherEnsemble(named, 4)(lq)['edsr'] - network(lq)).abs().max() > 1e-4, 'res_scale makes no difference'


def test_an_option_that_does_not_fit_is_shown_what_the_file_names(exported: dict[str, Path]) -> None:
    network = small_network('edsr', num_feat=16)
    message = refusal({'edsr': {'network': network, 'path': str(exported['edsr'])}})
    assert 'teachers.edsr.path' in message
    assert 'do not fit EDSR' in message
    assert "the file names its own network, {'type': 'EDSR'" in message
    assert 'leave teachers.edsr.network out' in message


def test_a_file_that_names_no_network_is_refused_without_one(teacher_files: dict[str, Path], tmp_path: Path) -> None:
    bare = store(tmp_path / 'bare.safetensors', small_network('edsr'), None)
    for path in (bare, teacher_files['edsr']):
        message = refusal({'edsr': {'path': str(path)}})
        assert f"teachers.edsr lacks the key 'network', and {path} does not name its own" in message


@pytest.mark.parametrize('named', ['"EDSR"', 'EDSR', '{"num_feat": 8}', '[1]'])
def test_texts_of_other_programs_are_no_networks(tmp_path: Path, named: str) -> None:
    path = store(tmp_path / 'foreign.safetensors', small_network('edsr'), named)
    assert named_network(path) is None
    assert "lacks the key 'network'" in refusal({'edsr': {'path': str(path)}})


def test_a_named_network_of_another_scale_or_unknown_type_is_refused(tmp_path: Path) -> None:
    twice, unknown = small_network('edsr', scale=2), {**small_network('edsr'), 'type': 'EDRS'}
    path = store(tmp_path / 'x2.safetensors', twice, twice)
    assert 'teachers.edsr.network.upscale is 2, but scale is 4' in refusal({'edsr': {'path': str(path)}})
    path = store(tmp_path / 'odd.safetensors', twice, unknown)
    assert "unknown type 'EDRS': did you mean 'EDSR'?" in refusal({'edsr': {'path': str(path)}})


def test_a_missing_and_a_damaged_file_are_named(tmp_path: Path, exported: dict[str, Path]) -> None:
    gone = tmp_path / 'gone.safetensors'
    message = refusal({'edsr': {'path': str(gone)}}, FileNotFoundError)
    assert message == f'teachers.edsr.path: no such weights file: {gone}'
    gone.write_bytes(exported['edsr'].read_bytes()[:50])
    assert f'teachers.edsr.path: {gone} cannot be read as tensors alone' in refusal({'edsr': {'path': str(gone)}})
    with pytest.raises(ValueError, match='cannot be read as tensors alone'):
        read_metadata(gone)


def test_a_cache_made_with_short_sections_serves_an_option_that_spells_them_out_and_the_reverse(
    options: Options, short: Options, tmp_path: Path
) -> None:
    del options['aggregator']
    spelt_out = {name: {**one, 'network': small_network(name)} for name, one in short.items()}
    options['train']['distill'] = {'wavelet': dict(WAVELET_TERM)}
    for folder, made_with, used_with in (('a', short, spelt_out), ('b', spelt_out, short)):
        (tmp_path / folder).mkdir()
        made = cached({**copy.deepcopy(options), 'teachers': made_with}, tmp_path / folder)
        cache = TeacherCache(Path(made['datasets']['train']['dataroot_cache']))
        cache.check_teachers({**made, 'teachers': used_with})
        other = {**used_with, 'edsr': {**used_with['edsr'], 'network': small_network('edsr', res_scale=2)}}
        with pytest.raises(ValueError, match=r'teachers\.edsr\.network'):
            cache.check_teachers({**made, 'teachers': other})


def test_a_cache_serves_a_short_section_when_the_weights_are_gone(
    options: Options, short: Options, tmp_path: Path
) -> None:
    del options['aggregator']
    copied = {}
    for name, one in short.items():
        copied[name] = {'path': shutil.copy(one['path'], tmp_path)}
    made = cached({**options, 'teachers': copied}, tmp_path)
    Path(copied['edsr']['path']).unlink()
    with pytest.warns(UserWarning, match=r'teachers\.edsr\.path: no file'):
        TeacherCache(Path(made['datasets']['train']['dataroot_cache'])).check_teachers(made)


def test_a_student_trains_from_teachers_of_paths_alone(options: Options, short: Options, train: Any) -> None:
    options['teachers'] = short
    options['datasets'].pop('val')
    options.pop('val')
    assert (train(options) / 'models/net_g_latest.pth').is_file()


def test_an_aggregator_is_exported_with_the_order_of_its_teachers(
    options: Options, short: Options, aggregator: Options, tmp_path: Path, lq: Tensor
) -> None:
    option_file = write_option({**options, 'teachers': short}, tmp_path / 'mtkd.yml')
    command = [f'aggregator_x4={option_file}:target', '--out', str(tmp_path), '--format', 'safetensors', '--half']
    assert export(command) == 0
    path = str(tmp_path / 'aggregator_x4.safetensors')
    original, kept = read_weights(aggregator['path']), read_weights(path)
    assert {name: value.shape for name, value in kept.items()} == {
        name: value.shape for name, value in original.items() if not name.endswith(DERIVED)
    }
    found = TeacherEnsemble(short, 4, {'inputs': list(SMALL), 'path': path})(lq)['target']
    expected = TeacherEnsemble(short, 4, aggregator)(lq)['target']
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)  # weights rounded to float16, outputs around 1
    with pytest.raises(ValueError, match=r'was trained with .* give them in this order'):
        TeacherEnsemble(short, 4, {'inputs': ['swinir', 'edsr', 'rcan'], 'path': path})
    card = (tmp_path / 'aggregator_x4.md').read_text()
    assert 'in this order: edsr, rcan, swinir.' in card
    assert f'| parameters | {sum(value.numel() for value in kept.values()):,} |' in card


def test_a_target_is_no_graph_and_a_mean_has_no_weights(
    options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option_file = write_option(options, tmp_path / 'mtkd.yml')
    assert export([f'{option_file}:target', '--out', str(tmp_path / 'out'), '--format', 'torchscript']) == 2
    assert 'only --format safetensors can hold it' in capsys.readouterr().err
    del options['aggregator']
    option_file = write_option(options, tmp_path / 'mean.yml')
    assert export([f'{option_file}:target', '--out', str(tmp_path / 'out'), '--format', 'safetensors']) == 2
    assert 'is no network of its own' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_an_exported_file_is_loaded_by_its_path_and_as_a_part_of_an_option_file(
    exported: dict[str, Path], options: Options, short: Options, tmp_path: Path, lq: Tensor
) -> None:
    options['teachers'] = short
    option_file = write_option(options, tmp_path / 'mtkd.yml')
    expected = TeacherEnsemble(short, 4).bare()['swinir'](lq)
    for source in (exported['swinir'], f'{option_file}:teachers.swinir'):
        loaded = load_network(source)
        assert (loaded.scale, loaded.window) == (4, 8)
        torch.testing.assert_close(loaded.network(lq), expected, rtol=0, atol=1e-5)  # merged tails round otherwise
