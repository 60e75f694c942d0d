"""What is built holds the plugin with its option files, never the launchers' folder, and works outside the checkout."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import torch
from conftest import REPO, script_environment
from safetensors.torch import save_file

pytestmark = pytest.mark.slow

NO_SOURCES = ('.*', '__pycache__', '*.egg-info', 'build', 'dist', 'datasets', 'experiments*', 'results*', 'tb_logger*')
STAND_IN = 'standin_x4'  # networks that ship, whichever they are, are found by their folder
OPTION_FILES = sorted(path.relative_to(REPO / 'options').as_posix() for path in (REPO / 'options').rglob('*.yml'))

REGISTRIES = """
import mtkd
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY
from mtkd_model.distillers import DISTILLER_REGISTRY

for registry in (ARCH_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY, DISTILLER_REGISTRY):
    print(*(name for name, part in registry if part.__module__.startswith('mtkd')))
for module in (mtkd, mtkd.mtkd_arch, mtkd.mtkd_loss, mtkd.mtkd_model):
    print(module.__file__)
import mtkd_data.preparation.prepare, mtkd_data.preparation.verify
"""


def run(folder: Path, *arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder``, with nothing but ``path`` as PYTHONPATH."""
    environment = {**script_environment(), 'PYTHONPATH': str(path or ''), 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def succeed(folder: Path, *arguments: str | Path, path: Path | None = None) -> str:
    done = run(folder, *arguments, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, out: Path) -> Path:
    """A wheel of the tree ``source``, made without a network."""
    succeed(source, '-m', 'pip', 'wheel', '.', '--no-index', '--no-deps', '--no-build-isolation', '-q', '-w', out)
    (wheel,) = out.glob('*.whl')
    return wheel


@pytest.fixture(scope='session')
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, so that building leaves nothing behind in it."""
    tree = tmp_path_factory.mktemp('packaging') / 'tree'
    shutil.copytree(REPO, tree, ignore=shutil.ignore_patterns(*NO_SOURCES))
    (tree / 'mtkd/pretrained').mkdir(exist_ok=True)
    metadata = {'network': '{"type": "EDSR"}', 'scale': '4', 'psnr_y': '{"Set5": 30.125}'}
    save_file({'weight': torch.zeros(3, 2)}, tree / f'mtkd/pretrained/{STAND_IN}.safetensors', metadata)
    (tree / f'mtkd/pretrained/{STAND_IN}.md').write_text('# stand-in')
    return tree


@pytest.fixture(scope='session')
def sdist(tree: Path) -> Path:
    succeed(tree, 'setup.py', '-q', 'sdist', '--formats=gztar', '-d', tree.parent / 'sdist')
    (archive,) = (tree.parent / 'sdist').iterdir()
    return archive


@pytest.fixture(scope='session')
def wheel(tree: Path) -> Path:
    return build_wheel(tree, tree.parent / 'wheel')


@pytest.fixture(scope='session')
def installed(wheel: Path) -> Path:
    """The folder that the wheel is installed in."""
    target = wheel.parents[1] / 'installed'
    succeed(wheel.parent, '-m', 'pip', 'install', '--no-index', '--no-deps', '-q', '--target', target, wheel)
    return target


def sdist_names(archive: Path) -> list[PurePosixPath]:
    """Paths in an sdist, below its one folder."""
    with tarfile.open(archive) as file:
        return [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in file.getnames()]


def wheel_names(archive: Path) -> list[PurePosixPath]:
    with zipfile.ZipFile(archive) as file:
        return [PurePosixPath(name) for name in file.namelist()]


def option_files(names: list[PurePosixPath], folder: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in names if path.is_relative_to(folder) and path.suffix)


def test_the_wheel_holds_the_packages_and_all_option_files_and_nothing_else(tree: Path, wheel: Path) -> None:
    names = wheel_names(wheel)
    info = next(path.parts[0] for path in names if path.parts[0].endswith('.dist-info'))
    packages = {'mtkd', 'mtkd_arch', 'mtkd_data', 'mtkd_eval', 'mtkd_loss', 'mtkd_model'}
    assert {path.parts[0] for path in names} == {info, *packages}
    assert option_files(names, 'mtkd/options') == OPTION_FILES
    assert {'LICENSE', 'entry_points.txt'} <= {path.name for path in names if path.parts[0] == info}
    modules = sorted(str(path) for path in names if path.suffix == '.py')
    packages = sorted({path.parts[0] for path in names} - {info})
    there = [path.relative_to(tree).as_posix() for package in packages for path in (tree / package).rglob('*.py')]
    assert modules == sorted(there)


def test_the_sdist_holds_what_building_and_reading_need_and_no_basicsr(sdist: Path) -> None:
    names = sdist_names(sdist)
    assert 'basicsr' not in {path.parts[0] for path in names if path.parts}
    assert {'LICENSE', 'README.md', 'CHANGELOG.md', 'setup.py', 'pyproject.toml'} <= {str(path) for path in names}
    assert option_files(names, 'options') == OPTION_FILES


def test_sdist_and_wheel_hold_every_network_that_ships_with_its_card(tree: Path, sdist: Path, wheel: Path) -> None:
    there = sorted(path.name for path in (tree / 'mtkd/pretrained').iterdir())
    assert {f'{STAND_IN}.safetensors', f'{STAND_IN}.md'} <= set(there)
    assert {path.suffix for path in map(PurePosixPath, there)} <= {'.safetensors', '.md', '.json'}
    for names in (sdist_names(sdist), wheel_names(wheel)):
        assert sorted(path.name for path in names if path.parent == PurePosixPath('mtkd/pretrained')) == there
    weights = {name.removesuffix('.safetensors') for name in there if name.endswith('.safetensors')}
    assert weights <= {name.removesuffix('.md') for name in there}, 'weights without a model card'


def test_the_sdist_builds_the_same_wheel(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, filter='data')
    (source,) = tmp_path.iterdir()
    assert sorted(wheel_names(build_wheel(source, tmp_path / 'wheel'))) == sorted(wheel_names(wheel))


def test_the_installed_wheel_registers_everything(installed: Path, tmp_path: Path) -> None:
    archs, losses, models, distillers, *files = succeed(tmp_path, '-c', REGISTRIES, path=installed).splitlines()
    assert {'DCTSwin', 'TeacherEnsemble'} <= set(archs.split())
    assert 'WaveletLoss' in losses.split()
    assert {'MultiTeacherSRModel', 'AggregationModel'} <= set(models.split())
    assert {'FitNetDistiller', 'OutputDistiller'} <= set(distillers.split())
    assert all(Path(file).is_relative_to(installed) for file in files), files


def test_the_installed_wheel_shows_its_option_files(installed: Path, tmp_path: Path) -> None:
    shown = Path(succeed(tmp_path, '-m', 'mtkd', 'options', path=installed).strip())
    assert shown.is_relative_to(installed)
    assert (shown / 'train_mtkd_x4.yml').is_file()


def test_the_installed_wheel_lists_and_copies_the_networks_that_ship(
    tree: Path, installed: Path, tmp_path: Path
) -> None:
    folder, *shown = succeed(tmp_path, '-m', 'mtkd', 'teachers', path=installed).splitlines()
    assert Path(folder) == installed / 'mtkd/pretrained'
    assert [line for line in shown if line.split() == [f'{STAND_IN}.safetensors', 'EDSR', 'x4', '6', '30.12', 'dB']]
    succeed(tmp_path, '-m', 'mtkd', 'teachers', 'mine', path=installed)
    for path in (tree / 'mtkd/pretrained').iterdir():
        assert (tmp_path / 'mine' / path.name).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / 'mine').iterdir())) == len(list((tree / 'mtkd/pretrained').iterdir()))


def test_the_option_files_are_copied_to_a_new_folder_only(installed: Path, tmp_path: Path) -> None:
    succeed(tmp_path, '-m', 'mtkd', 'options', 'mine', path=installed)
    copied = sorted(path.relative_to(tmp_path / 'mine').as_posix() for path in tmp_path.rglob('*') if path.is_file())
    assert copied == OPTION_FILES
    (tmp_path / 'mine/train_mtkd_x4.yml').write_text('changed: true')
    refused = run(tmp_path, '-m', 'mtkd', 'options', 'mine', path=installed)
    assert refused.returncode == 2
    assert 'mine exists already' in refused.stderr
    assert (tmp_path / 'mine/train_mtkd_x4.yml').read_text() == 'changed: true'
