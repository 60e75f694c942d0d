"""Reading weights."""

import types
from pathlib import Path
from typing import Any

import torch


def read_weights_as_tensors_alone() -> None:
    """BasicSR reads weights by ``torch.load``, which compares no checksums: a flipped bit is another weight.

    Those of its models and of the perceptual loss are read as ours are, as tensors alone. No upstream issue.
    """
    from basicsr.archs import vgg_arch
    from basicsr.models import base_model

    for module in (base_model, vgg_arch):
        if not isinstance(module.torch, _TensorsAlone):
            module.torch = _TensorsAlone(torch.__name__)


class _TensorsAlone(types.ModuleType):
    """torch, save that ``load`` reads tensors alone."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def load(path: str | Path, *_: Any, **__: Any) -> Any:
        """What the file holds, on the CPU, where BasicSR wants it. Raises what ``read_tensor_file`` raises."""
        from mtkd_arch.tensor_file import read_tensor_file
        from mtkd_data.weights_path import weights_path

        return read_tensor_file(weights_path(path))
