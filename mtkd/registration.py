"""Finds the parts of a package by BasicSR's file suffixes, so that a new part is a new file and nothing else."""

import importlib
import pkgutil
import sys


def import_submodules(package: str, suffix: str) -> None:
    """Import every module of ``package`` whose name ends in ``suffix`` (``_arch``, ``_loss``, ``_model``, ...)."""
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        if module.name.endswith(suffix):
            importlib.import_module(f'{package}.{module.name}')
