"""Leaving a training when a signal asks for it: the iteration at hand is finished and saved first."""

import signal
import sys
import threading
import weakref
from types import FrameType
from typing import Any

import torch
from torch import distributed

SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1') if hasattr(signal, name))
LEFT = 75  # exit code, EX_TEMPFAIL of sysexits.h: not finished, run it again
AGREE_EVERY = 10  # iterations, in a distributed run

_asked: list[str] = []
_before: dict[int, Any] = {}


def listen_for_signals(owner: Any) -> None:
    """From now on note SIGTERM, SIGINT and SIGUSR1 instead of dying of them, as long as ``owner`` lives.

    A second signal does what it did before. Only in the main thread; SIGUSR1 is what SLURM sends with
    ``--signal=USR1@120``.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    stop_listening()
    _before.update({number: signal.signal(number, _note) for number in SIGNALS})
    weakref.finalize(owner, stop_listening).atexit = False


def stop_listening() -> None:
    """Let signals do again what they did before."""
    if threading.current_thread() is threading.main_thread():
        while _before:
            number, handler = _before.popitem()
            signal.signal(number, handler)
    _asked.clear()


def _note(number: int, _frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    signal.signal(number, _before.get(number, signal.SIG_DFL))
    _asked.append(name)
    sys.stderr.write(f'\n{name}: saving after this iteration; once more to end at once\n')


def asked_to_leave(iteration: int, dist: bool, device: torch.device) -> bool:
    """Whether a signal came; in a distributed run all processes answer alike, which they settle now and then."""
    if not dist:
        return bool(_asked)
    if iteration % AGREE_EVERY:
        return False
    asked = torch.tensor(float(bool(_asked)), device=device)
    distributed.all_reduce(asked, distributed.ReduceOp.MAX)
    return bool(asked.item())
