"""Distillation methods, one per ``*_distiller.py``."""

from mtkd.registration import import_submodules
from mtkd_model.distillers.base import DISTILLER_REGISTRY, Distiller

import_submodules(__name__, '_distiller')

__all__ = ['DISTILLER_REGISTRY', 'Distiller']
