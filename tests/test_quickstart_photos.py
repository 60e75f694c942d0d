"""The photographs of the quickstart and the small study, made wherever the plugin is."""

import sys
from pathlib import Path

import pytest

from mtkd_data.preparation.quickstart_photos import main
from mtkd_eval.study.command import prepare_data
from mtkd_eval.study.grid import Grid


def test_a_study_makes_its_photographs_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('skimage', reason='scikit-image brings the photographs')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('PYTHONPATH', raising=False)
    command = '-m mtkd_data.preparation.quickstart_photos --out photos'
    prepare_data(Grid(Path('grid.yml'), {'prepare': {'photos': command}}))
    assert len(list((tmp_path / 'photos/val/LRbicx4').iterdir())) == 3


def test_without_scikit_image_it_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'skimage', None)
    assert main(['--out', str(tmp_path / 'photos')]) == 2
    assert 'error: the photographs are in scikit-image: pip install scikit-image' in capsys.readouterr().err


def test_a_script_of_the_checkout_is_named_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grid = Grid(Path('grid.yml'), {'prepare': {'photos': 'scripts/own.py --out photos'}})
    with pytest.raises(FileNotFoundError, match=r'photos is missing, and so is scripts/own\.py.*in a checkout'):
        prepare_data(grid)
