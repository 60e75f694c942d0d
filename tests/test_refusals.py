"""Refused input ends a run with the message alone; what else fails keeps its traceback."""

import sys

import pytest

from mtkd.refusals import FailedInsideError, told_briefly
from mtkd_model.preflight import placed


def shown(error: BaseException, capsys: pytest.CaptureFixture[str]) -> str:
    """What Python shows where ``error`` ends the program."""
    sys.excepthook(type(error), error, error.__traceback__)
    return capsys.readouterr().err


def raise_it(error: Exception) -> None:
    raise error


def refused(error: Exception) -> Exception:
    with pytest.raises(type(error)), told_briefly():
        raise_it(error)
    return error


def raised(error: Exception) -> Exception:
    with pytest.raises(type(error)):
        raise_it(error)
    return error


@pytest.fixture(autouse=True)
def hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'excepthook', sys.__excepthook__)


@pytest.mark.parametrize('kind', [ValueError, FileNotFoundError, UnicodeError])
def test_a_refusal_is_shown_without_its_traceback(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(refused(kind('option.yml:3: scale')), capsys) == 'error: option.yml:3: scale\n'


def test_other_errors_and_those_raised_elsewhere_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    briefly = refused(ValueError('refused'))
    for other in (refused(TypeError('ours')), raised(ValueError('in training'))):
        assert 'Traceback' in shown(other, capsys)
    assert shown(briefly, capsys) == 'error: refused\n'


def test_a_class_that_fails_inside_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FailedInsideError) as caught, told_briefly(), placed('network_g'):
        {}['their fault']
    assert "{}['their fault']" in shown(caught.value, capsys)


def test_many_refusals_change_the_hook_once() -> None:
    refused(ValueError('first'))
    first = sys.excepthook
    assert first is not sys.__excepthook__
    refused(ValueError('second'))
    assert sys.excepthook is first
