"""How much memory a computation takes at its peak, beyond what is held before it."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STATUS, RESET = Path('/proc/self/status'), Path('/proc/self/clear_refs')


class Peak:
    """Filled in when ``peak_memory`` ends: ``bytes``, None where it cannot be measured."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure what the block adds at its peak.

    On a GPU what PyTorch's allocator hands out; on the CPU what the process holds in memory (resident set, as Linux
    has it), buffers of the libraries included. None elsewhere.
    """
    peak = Peak()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    before = _reset() if device.type == 'cpu' else None
    yield peak
    if before is not None:
        peak.bytes = max(_resident('VmHWM') - before, 0)


def _reset() -> int | None:
    """Bytes in memory, from which the peak counts on; None where the system does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would be taken again without a trace
        RESET.write_text('5')  # resets the peak of the resident set, see proc(5)
        return _resident('VmRSS')
    except (OSError, AttributeError, TypeError, ValueError):
        return None


def _resident(field: str) -> int:
    found = re.search(rf'^{field}:\s+(\d+) kB', STATUS.read_text(), flags=re.MULTILINE)
    if found is None:
        raise ValueError(f'{STATUS} has no {field}')
    return int(found[1]) * 1024
