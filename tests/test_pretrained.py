"""What ships is listed from the files themselves, and copied with its cards."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from basicsr.models import base_model
from conftest import REPO, build_arch, small_network, write_option
from safetensors.torch import save_file

import mtkd.__main__ as command
from mtkd import pretrained
from mtkd.option_file import read_option
from mtkd.schema.as_parsed import as_parsed
from mtkd.schema.missing_files import missing_files
from mtkd_arch.named_network import with_named_networks
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_arch.weights import read_weights
from mtkd_data.teacher_cache.description import describe_networks
from mtkd_data.weights_path import weights_path
from mtkd_eval.export import main as export
from mtkd_eval.load import load_network
from mtkd_eval.study.fingerprints import fingerprints


@pytest.fixture
def folder(tmp_path: Path, teacher_files: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of networks that ship, with two small ones; the first was measured."""
    folder = tmp_path / 'pretrained'
    for name, sets in (('edsr', ['--set', str(data / 'val')]), ('swinir', [])):
        option = write_option(small_network(name), tmp_path / f'{name}.yml')
        arguments = [f'{name}_x4={teacher_files[name]}', '--network', str(option), '--out', str(folder), '--half']
        assert export([*arguments, '--format', 'safetensors', *sets]) == 0
    monkeypatch.setattr(pretrained, 'FOLDER', folder)
    return folder


def test_the_list_has_network_scale_parameters_and_psnr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert command.main(['teachers']) == 0
    where, head, edsr, swinir = capsys.readouterr().out.splitlines()
    assert where == str(folder)
    assert head.split() == ['file', 'network', 'scale', 'parameters', 'PSNR-Y', 'val']
    found = {one.path.stem: one for one in pretrained.shipped_networks(folder)}
    for name, line in (('edsr', edsr), ('swinir', swinir)):
        count = sum(parameter.numel() for parameter in build_arch(small_network(name)).parameters())
        assert found[f'{name}_x4'].parameters == count
        kind = small_network(name)['type']
        assert line.split()[:4] == [f'{name}_x4.safetensors', kind, 'x4', f'{count:,}']
    card = (folder / 'edsr_x4.md').read_text()
    psnr = next(line for line in card.splitlines() if line.startswith('| val |')).split('|')[2].strip()
    assert edsr.split()[4:] == [psnr, 'dB']
    assert swinir.split()[4:] == []


def test_copies_are_whole_and_serve_as_teachers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(['teachers', str(tmp_path / 'new/mine')]) == 0
    copied = {path.name: path.read_bytes() for path in (tmp_path / 'new/mine').iterdir()}
    assert copied == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(copied) == {'edsr_x4.safetensors', 'edsr_x4.md', 'swinir_x4.safetensors', 'swinir_x4.md'}
    assert f'{{path: {tmp_path}/new/mine/edsr_x4.safetensors}}' in capsys.readouterr().out
    teachers = {name: {'path': str(tmp_path / f'new/mine/{name}_x4.safetensors')} for name in ('edsr', 'swinir')}
    assert TeacherEnsemble(teachers, 4)(torch.zeros(1, 3, 8, 8))['target'].shape == (1, 3, 32, 32)


def test_an_existing_folder_is_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'mine').mkdir()
    assert command.main(['teachers', str(tmp_path / 'mine')]) == 2
    assert 'mine exists already; give a new folder' in capsys.readouterr().err
    assert list((tmp_path / 'mine').iterdir()) == []


def test_a_copy_that_was_interrupted_leaves_nothing_and_is_made_the_next_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(source: Path, target: Path) -> Path:
        if source.suffix == '.safetensors':
            raise KeyboardInterrupt
        target.write_bytes(source.read_bytes())
        return target

    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'copyfile', interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretrained.copy_to(tmp_path / 'new/mine')
    assert list((tmp_path / 'new').iterdir()) == []
    paths = pretrained.copy_to(tmp_path / 'new/mine')
    assert {path.name for path in paths} == {path.name for path in folder.iterdir()}
    assert all(path.is_file() for path in paths)


def test_where_nothing_ships_that_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.iterdir():
        path.unlink()
    assert command.main(['teachers']) == 0
    assert 'no networks ship with this version' in capsys.readouterr().out
    assert command.main(['teachers', str(tmp_path / 'mine')]) == 2
    assert 'no networks ship with this version' in capsys.readouterr().err
    assert not (tmp_path / 'mine').exists()


def test_files_of_other_programs_are_listed_with_what_they_say(tmp_path: Path) -> None:
    save_file({'a': torch.zeros(2, 3), 'b': torch.zeros(4)}, tmp_path / 'foreign.safetensors', {'scale': 'four'})
    save_file({'a': torch.zeros(5)}, tmp_path / 'none.safetensors')
    facts = [(one.network, one.scale, one.parameters, one.psnr_y) for one in pretrained.shipped_networks(tmp_path)]
    assert facts == [('unknown', None, 10, {}), ('unknown', None, 5, {})]


@pytest.mark.parametrize(
    'content', [b'', b'version https://git-lfs.github.com/spec/v1', b'\x10' + bytes(7) + b'{"a": ']
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'bad.safetensors').write_bytes(content)
    with pytest.raises(ValueError, match=r'bad\.safetensors is no safetensors file, or a damaged one'):
        pretrained.shipped_networks(tmp_path)


SHIPPED = pretrained.shipped_networks()


@pytest.mark.skipif(not SHIPPED, reason='no networks ship with this version')
def test_what_ships_is_small_measured_and_loads_by_its_path() -> None:
    assert sum(one.path.stat().st_size for one in SHIPPED) <= 8e6
    teachers = [one for one in SHIPPED if one.network != 'DCTSwin']
    for one in teachers:
        assert one.parameters <= 1.5e6
        assert one.psnr_y, 'no quality in it: export it with --set'
        assert json.dumps(one.psnr_y)
        assert one.path.with_suffix('.md').is_file()
    ensemble = TeacherEnsemble({one.path.stem: {'path': str(one.path)} for one in teachers}, 4)
    assert ensemble(torch.rand(1, 3, 16, 16))['target'].shape == (1, 3, 64, 64)


@pytest.mark.parametrize('shipped', SHIPPED, ids=lambda one: one.path.stem)
def test_the_card_of_what_ships_tells_its_training_and_leaves_nothing_unknown(shipped: pretrained.Shipped) -> None:
    card = shipped.path.with_suffix('.md').read_text()
    assert 'unknown' not in card.lower()
    option = read_option(REPO / re.search(r'option file \| `(options/pretrained/.+)`', card)[1])
    iterations = option['train']['total_iter']
    assert re.search(rf'iterations of these weights \| {iterations}\b', card)
    assert '489 images' in card
    assert 'for research use' in card
    assert hashlib.sha256(shipped.path.read_bytes()).hexdigest() in card


@pytest.mark.skipif(not SHIPPED, reason='no networks ship with this version')
def test_the_names_in_the_copied_option_files_serve_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of teachers, aggregator and student; what the check finds missing are the images alone."""
    monkeypatch.chdir(tmp_path)
    assert command.main(['options', 'mine']) == 0
    for part in ('teachers.edsr', 'target'):
        assert load_network(f'mine/quickstart/train_mtkd.yml:{part}').scale == 4
    opt = read_option(Path('mine/quickstart/train_mtkd.yml'))
    del opt['datasets']['train']['dataroot_cache']  # with one, teachers are not looked for
    opt['path']['pretrain_network_g'] = 'mtkd/pretrained/edsr_x4.safetensors'
    assert {problem.path.split('.')[0] for problem in missing_files(as_parsed(opt, tmp_path))} == {'datasets'}
    assert describe_networks(with_named_networks(opt), ['target'])['aggregator']
    assert read_weights(opt['path']['pretrain_network_g'])  # as our models read it
    assert base_model.torch.load(opt['path']['pretrain_network_g'])  # as BasicSR's do


@pytest.mark.skipif(not SHIPPED, reason='no networks ship with this version')
def test_a_file_in_the_working_directory_goes_before_the_one_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = Path('mtkd/pretrained/edsr_x4.safetensors')
    assert weights_path(given) == pretrained.FOLDER / given.name
    (tmp_path / given).parent.mkdir(parents=True)
    (tmp_path / given).touch()
    assert weights_path(given) == given
    assert weights_path('mtkd/pretrained/none.pth') == Path('mtkd/pretrained/none.pth')  # as messages shall name it
    assert weights_path('other/edsr_x4.safetensors') == Path('other/edsr_x4.safetensors')


@pytest.mark.skipif(not SHIPPED, reason='no networks ship with this version')
def test_a_study_knows_the_weights_that_ship_wherever_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {'teachers': {'edsr': {'path': 'mtkd/pretrained/edsr_x4.safetensors'}}}
    monkeypatch.chdir(pretrained.FOLDER.parents[1])
    inside = fingerprints(options)
    monkeypatch.chdir(tmp_path)
    assert fingerprints(options) == inside != []
