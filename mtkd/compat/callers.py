"""Who imported a function of BasicSR by its name."""

import sys
import types
from collections.abc import Iterator


def callers_of(function: str) -> Iterator[types.ModuleType]:
    """Those of BasicSR's train and test modules that know ``function``; also the script being run, where it is a copy.

    The scripts of other projects often import ``train_pipeline`` and nothing else: they know neither function.
    """
    import basicsr  # noqa: F401  imports basicsr.train and basicsr.test

    for module in ('basicsr.train', 'basicsr.test', '__main__'):
        if hasattr(sys.modules.get(module), function):
            yield sys.modules[module]
