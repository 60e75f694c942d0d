"""The environment, and the faults of other packages that ``mtkd.compat`` mends: present here, and mended?"""

import importlib.metadata
import importlib.util
import inspect
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import mtkd
from mtkd import compat
from mtkd.advisories import open_here

PACKAGES = (
    'torch', 'torchvision', 'basicsr', 'numpy', 'opencv-python', 'lmdb', 'pytorch-wavelets', 'PyWavelets', 'spandrel',
    'safetensors', 'PyYAML', 'setuptools',
)  # fmt: skip
OTHER_NAMES = {'opencv-python': ('opencv-python-headless', 'opencv-contrib-python')}


@dataclass(frozen=True)
class Mend:
    """A function of ``mtkd.compat``: the fault in one line, whether it is in this installation, whether it is mended.

    None where nothing tells.
    """

    name: str
    fault: str
    present: bool | None
    mended: bool | None


def versions() -> list[tuple[str, str]]:
    """What is installed, by name."""
    rows = [
        ('mtkd', f'{mtkd.__version__}, {Path(mtkd.__file__).parent}'),
        ('python', f'{platform.python_version()}, {sys.executable}'),
        ('system', f'{platform.system()} {platform.machine()}'),
        *((name, _version(name)) for name in PACKAGES),
        ('CUDA', _cuda()),
    ]
    return [(name, f'{value}, {_home("basicsr")}' if name == 'basicsr' else value) for name, value in rows]


def _version(package: str) -> str:
    for name in (package, *OTHER_NAMES.get(package, ())):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return 'from a folder' if importlib.util.find_spec(package.replace('-', '_')) else 'not installed'


def _home(module: str) -> str:
    return str(Path(sys.modules[module].__file__).parent) if module in sys.modules else 'not imported'


def _cuda() -> str:
    if not torch.cuda.is_available():
        return f'not available (torch built for {torch.version.cuda or "the CPU"})'
    names = ', '.join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return f'{torch.version.cuda}: {names}'


def mends() -> list[Mend]:
    """Every function that ``compat.apply`` calls, in its order."""
    return [
        Mend(mend.__name__, _fault(mend), *map(_asked, CHECKS.get(mend.__name__, (None, None))))
        for mend in compat.MENDS
    ]


def _fault(mend: Callable[[], None]) -> str:
    paragraph = ' '.join(inspect.cleandoc(mend.__doc__ or '').split('\n\n')[0].split())
    return paragraph.replace('``', '').split('. ')[0].rstrip('.')


def _asked(question: Callable[[], bool] | None) -> bool | None:
    if question is None:
        return None
    try:
        return question()
    except (OSError, ImportError, AttributeError):  # an installation of another shape
        return None


def _text(package: str, file: str) -> str:
    """The source of a file of an installed package, as it is on the disk."""
    home = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    return (home / file).read_text(encoding='utf-8')


def _misses_functional_tensor() -> bool:
    there = importlib.util.find_spec('torchvision').submodule_search_locations[0]
    wanted = 'torchvision.transforms.functional_tensor' in _text('basicsr', 'data/degradations.py')
    return wanted and not (Path(there) / 'transforms/functional_tensor.py').is_file()


def _warns_of_meshgrid() -> bool:
    return 'torch.meshgrid(' in _text('basicsr', 'archs/swinir_arch.py').replace("indexing='ij'", '')


def _trainer(name: str) -> object:
    import basicsr.train

    return getattr(basicsr.train, name)


def _ours(function: object) -> bool:
    return getattr(function, '__module__', '').startswith('mtkd')


def _serves_cpu() -> bool:
    from basicsr.models.base_model import BaseModel

    return hasattr(BaseModel.model_to_device, 'serves_cpu')


def _checks_nodes() -> bool:
    import basicsr.utils.dist_util

    return hasattr(basicsr.utils.dist_util._init_dist_slurm, 'checks_nodes')


def _seeds_anew() -> bool:
    import basicsr.data

    return _ours(basicsr.data.worker_init_fn)


def _loads_anything() -> bool:
    lines = [line for line in _text('basicsr', 'models/base_model.py').splitlines() if 'torch.load(' in line]
    return not all('weights_only=True' in line for line in lines)


def _reads_tensors_alone() -> bool:
    from basicsr.models import base_model

    return _ours(type(base_model.torch))


def _looks_at_images() -> bool:
    from basicsr.utils import FileClient

    return hasattr(FileClient.get, '__wrapped__')


def _passes_on_errors() -> bool:
    from basicsr.data.prefetch_dataloader import PrefetchGenerator

    return _ours(PrefetchGenerator.run)


# by the function of compat: is the fault in the files of this installation, is it mended in this process
CHECKS: dict[str, tuple[Callable[[], bool] | None, Callable[[], bool] | None]] = {
    'restore_functional_tensor': (
        _misses_functional_tensor,
        lambda: 'torchvision.transforms.functional_tensor' in sys.modules,
    ),
    'import_wavelets_without_pkg_resources': (
        lambda: 'pkg_resources' in _text('pytorch_wavelets', 'dtcwt/coeffs.py'),
        lambda: 'pytorch_wavelets' in sys.modules,
    ),
    'accept_local_rank_with_a_dash': (
        lambda: "'--local-rank'" not in _text('basicsr', 'utils/options.py'),
        lambda: not any(argument.startswith('--local-rank') for argument in sys.argv),
    ),
    'resume_on_cpu_and_from_the_experiment': (
        lambda: 'torch.cuda.current_device()' in _text('basicsr', 'train.py'),
        lambda: _ours(_trainer('load_resume_state')),
    ),
    'check_options_before_writing': (
        lambda: 'check_options' not in _text('basicsr', 'train.py'),
        lambda: hasattr(_trainer('make_exp_dirs'), 'checks_first'),
    ),
    'distribute_on_cpu': (
        lambda: 'rank % num_gpus' in _text('basicsr', 'utils/dist_util.py'),
        _serves_cpu,
    ),
    'keep_node_lists_from_the_shell': (
        lambda: 'getoutput(f' in _text('basicsr', 'utils/dist_util.py'),
        _checks_nodes,
    ),
    'seed_workers_anew_each_epoch': (
        lambda: 'worker_seed = num_workers * rank + worker_id + seed' in _text('basicsr', 'data/__init__.py'),
        _seeds_anew,
    ),
    'draw_crops_by_their_place': (
        lambda: 'state_dict' not in _text('basicsr', 'data/data_sampler.py'),
        lambda: _ours(_trainer('EnlargedSampler')),
    ),
    'name_damaged_images': (
        lambda: 'crc32' not in _text('basicsr', 'utils/file_client.py'),
        _looks_at_images,
    ),
    'pass_on_errors_of_prefetching': (
        lambda: (
            'except' not in _text('basicsr', 'data/prefetch_dataloader.py').partition('class PrefetchDataLoader')[0]
        ),
        _passes_on_errors,
    ),
    'copy_option_files_whole': (
        lambda: 'copyfile(opt_file, filename)' in _text('basicsr', 'utils/options.py'),
        lambda: _ours(_trainer('copy_opt_file')),
    ),
    'leave_out_the_warning_of_meshgrid': (
        _warns_of_meshgrid,
        lambda: any('meshgrid' in str(getattr(entry[1], 'pattern', '')) for entry in warnings.filters),
    ),
    'read_weights_as_tensors_alone': (_loads_anything, _reads_tensors_alone),
}


def report(found: list[Mend]) -> str:
    """The environment, the mends ``found``, and the security flaws of what is installed, in words."""
    rows = versions()
    width = max(len(name) for name, _ in rows)
    said = {True: 'yes', False: 'no', None: 'not known'}
    lines = [f'{name:<{width}}  {value}' for name, value in rows]
    for mend in found:
        lines += [
            '',
            f'{mend.name}',
            f'  {mend.fault}',
            f'  fault present: {said[mend.present]}; mended: {said[mend.mended]}',
        ]
    for advisory in open_here():
        remedy = f'update {advisory.package} to {advisory.fixed}' if advisory.fixed else 'no release mends it'
        lines += ['', advisory.name, f'  {advisory.meaning}: {remedy}']
    return '\n'.join(lines)


def unmended(found: list[Mend]) -> list[str]:
    """The names of faults that are present and not mended."""
    return [mend.name for mend in found if mend.present and mend.mended is False]
