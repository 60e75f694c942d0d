"""``python -m mtkd doctor``: what is installed, and every upstream fault with whether it is here and mended."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import script_environment

from mtkd import compat, doctor
from mtkd.__main__ import main


def mends_of_compat() -> list[str]:
    return [mend.__name__ for mend in compat.MENDS]


def test_every_mend_is_reported_with_its_fault_in_a_line() -> None:
    found = doctor.mends()
    assert [mend.name for mend in found] == mends_of_compat()
    for mend in found:
        assert 20 < len(mend.fault) < 250
        assert '\n' not in mend.fault
    assert set(doctor.CHECKS) <= {mend.name for mend in found}, 'a check of a mend that is gone'


def test_the_faults_of_this_installation_are_seen_in_its_files() -> None:
    present = {mend.name: mend.present for mend in doctor.mends()}
    basicsr = Path(sys.modules['basicsr'].__file__).parent
    assert present['resume_on_cpu_and_from_the_experiment'] == (
        'torch.cuda.current_device()' in (basicsr / 'train.py').read_text()
    )
    wanted = 'transforms.functional_tensor' in (basicsr / 'data/degradations.py').read_text()
    here = (Path(sys.modules['torchvision'].__file__).parent / 'transforms/functional_tensor.py').is_file()
    assert present['restore_functional_tensor'] == (wanted and not here)


def test_a_fault_that_is_gone_or_cannot_be_told_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, '_text', lambda package, file: "'--local-rank' state_dict check_options")
    found = {mend.name: mend.present for mend in doctor.mends()}
    assert found['accept_local_rank_with_a_dash'] is False
    assert found['check_options_before_writing'] is False

    def nowhere(package: str, file: str) -> str:
        raise FileNotFoundError(file)

    monkeypatch.setattr(doctor, '_text', nowhere)
    assert {mend.present for mend in doctor.mends()} == {None}
    monkeypatch.setattr(doctor, 'CHECKS', {})
    assert 'fault present: not known; mended: not known' in doctor.report(doctor.mends())


def test_a_mend_that_is_not_in_force_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import basicsr.data

    def worker_init_fn() -> None:
        """Upstream's, as if nobody had replaced it."""

    worker_init_fn.__module__ = 'basicsr.data'
    monkeypatch.setattr(basicsr.data, 'worker_init_fn', worker_init_fn)
    assert doctor.unmended(doctor.mends())[:1] == ['seed_workers_anew_each_epoch']
    assert main(['doctor']) == 2
    assert 'error: present and not mended: seed_workers_anew_each_epoch' in capsys.readouterr().err


def test_the_versions_are_those_that_are_imported() -> None:
    versions = dict(doctor.versions())
    assert versions['torch'].startswith(torch.__version__.split('+')[0])
    assert versions['numpy'] == np.__version__
    assert str(Path(sys.modules['basicsr'].__file__).parent) in versions['basicsr']
    assert {'torchvision', 'opencv-python', 'lmdb', 'pytorch-wavelets', 'spandrel', 'CUDA', 'python'} <= set(versions)
    assert 'not installed' not in versions.values()
    assert doctor._version('no-such-package') == 'not installed'


@pytest.mark.slow
def test_in_a_process_of_its_own_every_fault_is_mended() -> None:
    command = [sys.executable, '-m', 'mtkd', 'doctor']
    done = subprocess.run(command, env=script_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('fault present: ') == len(mends_of_compat())
    assert 'present: yes; mended: no' not in done.stdout
