"""What a user's input is refused with: the message alone, where Python would show twenty lines of traceback first."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

REFUSING = (ValueError, OSError)


class FailedInsideError(ValueError):
    """A class failed on what it was given, which may be its own fault: the traceback says where."""


@contextmanager
def told_briefly() -> Iterator[None]:
    """If what is raised in here, a ValueError or an OSError, ends the program, ``error: `` and its message are shown.

    The exception stays what it is, and the exit code 1.
    """
    try:
        yield
    except REFUSING as error:
        if not isinstance(error, FailedInsideError):
            error.is_told_briefly = True
            _change_hook()
        raise


def _change_hook() -> None:
    shown = sys.excepthook
    if getattr(shown, 'tells_briefly', False):
        return

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if getattr(error, 'is_told_briefly', False):
            print(f'error: {error}', file=sys.stderr)
        else:
            shown(kind, error, traceback)

    show.tells_briefly = True
    sys.excepthook = show
