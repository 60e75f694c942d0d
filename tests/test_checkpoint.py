"""A checkpoint on the disk is whole, whatever happened while it was written."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mtkd_model.checkpoint import save_whole


def test_what_is_saved_loads_and_nothing_else_is_left(tmp_path: Path) -> None:
    content = {'params': {'weight': torch.rand(3, 4)}, 'iter': 5}
    save_whole(content, tmp_path / 'net_g_5.pth')
    loaded = torch.load(tmp_path / 'net_g_5.pth', weights_only=True)
    assert loaded['iter'] == 5
    assert torch.equal(loaded['params']['weight'], content['params']['weight'])
    assert [path.name for path in tmp_path.iterdir()] == ['net_g_5.pth']


def test_a_path_may_be_a_string_and_the_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    save_whole({'iter': 1}, str(path))
    save_whole({'iter': 2}, str(path))
    assert torch.load(path, weights_only=True) == {'iter': 2}


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
@pytest.mark.injects('fault', 'disks that are full or fail')
def test_a_save_that_fails_midway_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / 'net.pth'
    save_whole({'iter': 1}, path)
    before = path.read_bytes()
    seen = []

    def half(content: Any, file: Any) -> None:
        file.write(b'half a checkpoint')
        file.flush()
        seen.extend(sorted(entry.name for entry in tmp_path.iterdir()))
        raise error

    monkeypatch.setattr(torch, 'save', half)
    with pytest.raises(type(error)):
        save_whole({'iter': 2}, path)
    assert len(seen) == 2, 'it was not written beside the old file'
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ['net.pth']


@pytest.mark.injects('fault', 'disks that are full or fail')
@pytest.mark.injects('fault', 'disks that are full or fail')
def test_a_first_save_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: Any, file: Any) -> None:
        file.write(b'half')
        raise RuntimeError('worse')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(RuntimeError, match='worse'):
        save_whole({}, tmp_path / 'net.pth')
    assert list(tmp_path.iterdir()) == []


def test_the_unfinished_file_never_looks_like_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, globbed = torch.save, []

    def spy(content: Any, file: Any) -> None:
        save(content, file)
        globbed.append([path.name for pattern in ('*.pth', '*.state') for path in tmp_path.glob(pattern)])

    monkeypatch.setattr(torch, 'save', spy)
    save_whole({'iter': 1}, tmp_path / 'net.pth')
    save_whole({'iter': 1}, tmp_path / '1.state')
    assert globbed == [[], ['net.pth']]


@pytest.mark.injects('fault', 'disks that are full or fail')
def test_a_folder_that_does_not_exist_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match='nowhere'):
        save_whole({}, tmp_path / 'nowhere/net.pth')
