"""Training models, taps and distillers."""

import mtkd  # noqa: F401  mends the upstream faults before BasicSR is imported
from mtkd.registration import import_submodules

import_submodules(__name__, '_model')
