"""MTKD for BasicSR: import it and every network, loss, dataset and model of the plugin is registered.

An option file does this by its line ``plugin: !!python/name:mtkd.__version__``, a launcher by ``import mtkd``.
"""

__version__ = '0.1.0'

from mtkd import compat

compat.apply()  # before anything of BasicSR is imported: its release does not import on a current torchvision

import mtkd_arch
import mtkd_data
import mtkd_loss
import mtkd_model
from mtkd.registration import import_submodules

import_submodules('mtkd_data', '_dataset')  # here, not in the package: its preparation tools start without torch

__all__ = ['__version__', 'compat', 'mtkd_arch', 'mtkd_data', 'mtkd_loss', 'mtkd_model']
