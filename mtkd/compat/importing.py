"""What stops or clutters importing BasicSR and what it stands on."""

import importlib
import importlib.resources
import importlib.util
import sys
import types
import warnings


def restore_functional_tensor() -> None:
    """``import basicsr`` fails on torchvision >= 0.17, which dropped ``transforms.functional_tensor``.

    Upstream: issues 533 and 663, mended on master. Ends with the first release after 1.4.2.
    """
    name = 'torchvision.transforms.functional_tensor'
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    from torchvision.transforms import functional

    module = types.ModuleType(name)
    module.rgb_to_grayscale = functional.rgb_to_grayscale
    sys.modules[name] = module


def import_wavelets_without_pkg_resources() -> None:
    """pytorch-wavelets reads its tables by ``pkg_resources``, which setuptools >= 81 no longer has and 67 warns about.

    A stand-in serves while it is imported. Upstream: fbcotter/pytorch_wavelets has no release after 1.3.0.
    """
    if 'pytorch_wavelets' in sys.modules:
        return
    stand_in = types.ModuleType('pkg_resources')
    stand_in.resource_stream = lambda package, name: importlib.resources.files(package).joinpath(name).open('rb')
    real = sys.modules.get('pkg_resources')
    sys.modules['pkg_resources'] = stand_in
    try:
        importlib.import_module('pytorch_wavelets')
    finally:
        del sys.modules['pkg_resources']
        if real is not None:
            sys.modules['pkg_resources'] = real


def leave_out_the_warning_of_meshgrid() -> None:
    """Every SwinIR that is built warns that ``torch.meshgrid`` will want its ``indexing``; nothing a user could do.

    Just that message. Ends when torch changes its default, which BasicSR would have to follow. No upstream issue.
    """
    warnings.filterwarnings('ignore', 'torch.meshgrid: in an upcoming release', UserWarning)
