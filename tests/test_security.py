"""Nothing from outside is run or reached for: node lists, pickles, shells, the network; the oldest versions allowed."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import basicsr.utils.dist_util
import pytest
from conftest import REPO, script_environment

from mtkd import advisories, doctor
from mtkd.advisories import ADVISORIES, Advisory, numbers, open_here
from scripts.oldest_versions import oldest_versions

PACKAGES = (
    'mtkd',
    'mtkd_arch',
    'mtkd_data',
    'mtkd_eval',
    'mtkd_loss',
    'mtkd_model',
    'scripts',
    'basicsr',
    'benchmarks',
)
SOURCES = sorted(path for package in PACKAGES for path in (REPO / package).rglob('*.py'))
ATTACKS = (
    'node1; touch CANARY',
    '$(touch CANARY)',
    'node1`touch CANARY`',
    'node1|touch CANARY',
    'node1\ntouch CANARY',
    '',
)


def test_a_list_of_nodes_that_holds_a_command_is_refused_and_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tally: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('SLURM_PROCID', '0')
    monkeypatch.setenv('SLURM_NTASKS', '1')
    with tally('bad input', 'SLURM_NODELIST with a shell command in it') as count:
        for attack in ATTACKS:
            monkeypatch.setenv('SLURM_NODELIST', attack)
            with pytest.raises(ValueError, match='expected host names'):
                basicsr.utils.dist_util._init_dist_slurm('nccl')  # init_dist would have this process spawn its workers
            count(not (tmp_path / 'CANARY').exists(), attack)


@pytest.mark.parametrize('nodes', ['node1', 'gpu-a[01-04,07].cluster,login_2'])
def test_a_list_of_nodes_goes_to_basicsr(monkeypatch: pytest.MonkeyPatch, nodes: str) -> None:
    upstream = basicsr.utils.dist_util._init_dist_slurm.__wrapped__
    asked: list[Any] = []
    monkeypatch.setenv('SLURM_NODELIST', nodes)
    from mtkd.compat.processes import _with_checked_nodes

    _with_checked_nodes(lambda *arguments: asked.append(arguments))('nccl', 29500)
    assert asked == [('nccl', 29500)]
    assert upstream.__module__ == 'basicsr.utils.dist_util'


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """The calls in a file with the dotted names they are made by."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> Any:
    return next((ast.unparse(each.value) for each in call.keywords if each.arg == name), None)


def test_every_checkpoint_is_read_as_tensors_alone() -> None:
    loads = [(path, call) for path in SOURCES for name, call in calls(path) if name == 'torch.load']
    assert [path.name for path, _ in loads] == ['tensor_file.py']  # the one place
    assert [keyword(call, 'weights_only') for _, call in loads] == ['True']


def test_no_code_is_made_from_data() -> None:
    forbidden = {
        'eval', 'exec', 'os.system', 'os.popen', 'pickle.load', 'pickle.loads', 'yaml.load', 'yaml.unsafe_load',
        'yaml.full_load', 'subprocess.getoutput', 'subprocess.getstatusoutput',
    }  # fmt: skip
    found = [f'{path}: {name}' for path in SOURCES for name, _ in calls(path) if name in forbidden]
    shells = [str(path) for path in SOURCES for _, call in calls(path) if keyword(call, 'shell') == 'True']
    pickled = [str(path) for path in SOURCES for _, call in calls(path) if keyword(call, 'allow_pickle') == 'True']
    assert (found, shells, pickled) == ([], [], [])


NO_NETWORK = """
import socket, sys

def refused(*arguments, **named):
    raise AssertionError(f'reached for the network: {arguments[1:] or arguments}')

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refused
"""


@pytest.mark.slow
def test_importing_building_and_checking_reach_for_no_network(tmp_path: Path) -> None:
    (tmp_path / 'sitecustomize.py').write_text(NO_NETWORK)
    environment = script_environment()
    environment['PYTHONPATH'] = os.pathsep.join([str(tmp_path), environment['PYTHONPATH']])

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *command], cwd=REPO, env=environment, capture_output=True, text=True)

    tried = run('-c', 'import socket; socket.create_connection(("127.0.0.1", 9))')
    assert 'reached for the network' in tried.stderr  # the guard is there
    names = [
        '.'.join(path.relative_to(REPO).with_suffix('').parts)
        for path in SOURCES
        if path.parts[len(REPO.parts)].startswith('mtkd') and path.stem not in ('__main__', '__init__')
    ]
    done = run(
        '-c', 'import mtkd\nimport importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)', *names
    )
    assert done.returncode == 0, done.stderr
    assert run('setup.py', '--quiet', 'egg_info', '--egg-base', str(tmp_path)).returncode == 0
    done = run('-m', 'mtkd', 'check', '-opt', 'options/quickstart/train_mtkd.yml')
    assert 'quickstart/train' in done.stdout + done.stderr  # there or not, it was looked for
    assert 'network' not in done.stderr


def test_the_oldest_versions_allowed_are_those_of_setup_py() -> None:
    oldest = oldest_versions((REPO / 'setup.py').read_text())
    assert 'torch==2.10' in oldest
    with pytest.raises(ValueError, match='for six'):
        oldest_versions("setup(install_requires=['torch>=2.6', 'six'])")


def test_the_oldest_versions_allowed_have_no_flaw_that_is_known() -> None:
    oldest = dict(each.split('==') for each in oldest_versions((REPO / 'setup.py').read_text()))
    assert open_here(oldest.__getitem__) == []


def test_versions_are_compared_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        advisories, 'ADVISORIES', (Advisory('torch', '2.10', 'A', 'a'), Advisory('new', None, 'B', 'b'))
    )

    def versions(torch: str) -> Callable[[str], str]:
        return lambda package: torch if package == 'torch' else '9.9'

    assert [each.name for each in open_here(versions('2.9.1+cu128'))] == ['A', 'B']
    assert [each.name for each in open_here(versions('2.10.0a0+git1'))] == ['B']
    assert numbers('2.10.1.post1') == (2, 10, 1)

    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    assert open_here(missing) == []


def test_the_doctor_tells_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, 'open_here', lambda: [Advisory('torch', '2.10', 'CVE-1', 'it is bad')])
    assert 'CVE-1\n  it is bad: update torch to 2.10' in doctor.report([])


def test_the_page_names_every_flaw_as_the_code_does() -> None:
    page = (REPO / 'docs/security.md').read_text()
    rows = [
        [cell.strip() for cell in line.strip('|').split('|')] for line in page.splitlines() if line.startswith('| CVE')
    ]
    assert [row[:3] for row in rows] == [[each.name, each.package, each.fixed or 'no release'] for each in ADVISORIES]
    assert all(row[3].startswith(each.meaning) for row, each in zip(rows, ADVISORIES, strict=True))
