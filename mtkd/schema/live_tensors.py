"""Counts the bytes of the tensors that are there at once."""

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveTensors(TorchDispatchMode):
    """Within, ``now`` and ``peak`` are the bytes of the tensors that operations made, each storage once.

    Args:
        known: tensors that are not counted, whatever works in them.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = list(known)  # held, so that no other storage takes their place
        self.seen = {tensor.untyped_storage()._cdata: 0 for tensor in self.known}

    def count(self, tensors: Iterable[Any]) -> None:
        """Count what is there already, or what an operation gave; anything but tensors is passed over."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if size and key not in self.seen:
                self.seen[key] = size
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key)  # as long as the memory, not as this tensor

    def _gone(self, key: int) -> None:
        self.now -= self.seen.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.count(found if isinstance(found, (tuple, list)) else (found,))
        return found
