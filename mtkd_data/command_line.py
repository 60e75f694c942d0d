"""What every command of the project does with errors and interrupts; nothing heavy is imported here."""

import sys
from collections.abc import Callable

ERRORS = (ValueError, OSError, MemoryError, ImportError)
GO_ON = 'the same command goes on from here'


def exit_code(command: Callable[[], int | None], interrupted: str = GO_ON) -> int:
    """Run ``command`` and give its exit code: its own or 0, 2 where it raised, 130 where the user stopped it.

    The message goes to stderr; ``interrupted`` says what state a stopped command leaves.
    """
    try:
        return command() or 0
    except ERRORS as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f'interrupted: {interrupted}', file=sys.stderr)
        return 130
