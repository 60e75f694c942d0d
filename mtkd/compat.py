"""Mends for the faults of BasicSR that stop this plugin's users: one function per fault, applied on ``import mtkd``.

Every function may run more than once and does nothing where the fault is gone. "Ends with" names the release that makes
the function needless. BasicSR's release 1.4.2 (PyPI) and its GitHub master are meant unless one is named.
"""

import functools
import importlib
import importlib.resources
import importlib.util
import multiprocessing.connection
import multiprocessing.util
import os
import random
import re
import signal
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

Options = MutableMapping[str, Any]
STATE_KEYS = ('epoch', 'iter', 'optimizers', 'schedulers')


def apply() -> None:
    """Apply every mend below, in order."""
    restore_functional_tensor()
    import_wavelets_without_pkg_resources()
    accept_local_rank_with_a_dash()
    resume_on_cpu_and_from_the_experiment()
    check_options_before_writing()
    distribute_on_cpu()
    keep_node_lists_from_the_shell()
    seed_workers_anew_each_epoch()
    draw_crops_by_their_place()
    copy_option_files_whole()
    name_damaged_images()
    pass_on_errors_of_prefetching()
    leave_out_the_warning_of_meshgrid()
    read_weights_as_tensors_alone()


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


def accept_local_rank_with_a_dash() -> None:
    """``torch.distributed.launch`` of torch 2 passes ``--local-rank``; BasicSR's parser knows only ``--local_rank``.

    Upstream: issue 626, open. Works in this project's launchers only, since elsewhere the command line is parsed
    before the option file is read; there, ``torchrun`` avoids the fault.
    """
    sys.argv[:] = [re.sub(r'^--local-rank(?==|$)', '--local_rank', argument) for argument in sys.argv]


def resume_on_cpu_and_from_the_experiment() -> None:
    """Resuming calls ``torch.cuda.current_device()`` on machines without CUDA, and ``--auto_resume`` looks in the
    working directory instead of the root path: it then finds nothing and moves the run to an archive.

    No upstream issue names the cause (679 asks for help with the symptom). See :func:`load_resume_state`.
    """
    for module in _callers_of('load_resume_state'):
        module.load_resume_state = load_resume_state


def load_resume_state(opt: Options) -> dict[str, Any] | None:
    """Stands in for BasicSR's function of this name; the state comes back on the CPU, read without running code.

    With ``auto_resume`` the newest state of the experiment is taken whose files are all whole; a broken one is skipped
    with a warning that names it.
    """
    from basicsr.utils import check_resume

    path = _newest_whole_state(opt) if opt.get('auto_resume') else opt['path'].get('resume_state')
    state = None
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f'path.resume_state: no such file: {path}')
        opt['path']['resume_state'] = str(path)
        state = _read_state(Path(path))
        check_resume(opt, state['iter'])
    _check(opt)
    return state


def _read_state(path: Path) -> dict[str, Any]:
    from mtkd_arch.tensor_file import read_tensor_file

    try:
        state = read_tensor_file(path)
    except ValueError as error:
        raise ValueError(f'path.resume_state: {error}') from error
    lacking = [key for key in STATE_KEYS if key not in state] if isinstance(state, dict) else STATE_KEYS
    if lacking or not isinstance(state['iter'], int):
        found = ', '.join(map(str, list(state)[:5])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f'path.resume_state: {path} is no training state, which holds {", ".join(STATE_KEYS)}; it holds {found}'
        )
    return state


def _newest_whole_state(opt: Options) -> Path | None:
    states = [path for path in Path(opt['path']['training_states']).glob('*.state') if path.stem.isdigit()]
    for path in sorted(states, key=lambda path: int(path.stem), reverse=True):
        broken = _first_broken([path, *Path(opt['path']['models']).glob(f'*_{path.stem}.pth')])
        missing = [name for name in _network_files(opt, path.stem) if not name.is_file()]
        if broken is None and not missing:
            return path
        warnings.warn(f'auto_resume skips {path}: {broken or missing[0]} is missing or cut short', stacklevel=2)
    if states:  # starting anew would archive them; whoever asked to resume should decide that
        raise ValueError(
            f'auto_resume: no state in {states[0].parent} is whole; move that folder away, or leave --auto_resume out'
        )
    return None


def _network_files(opt: Options, iteration: str) -> list[Path]:
    names = [key.removeprefix('network_') for key in opt if key.startswith('network_')]
    return [Path(opt['path']['models']) / f'net_{name}_{iteration}.pth' for name in names]


def _first_broken(paths: list[Path]) -> Path | None:
    from mtkd_arch.tensor_file import read_tensor_file

    for path in paths:
        try:
            read_tensor_file(path, 'meta')
        except (ValueError, OSError):
            return path
    return None


def check_options_before_writing() -> None:
    """BasicSR makes the experiment's folders, and archives an older run of that name, before it looks at the options.

    Models that have a ``check_options(opt)`` of their own get it called first. Where this plugin is there before the
    option file is read, a safe reader looks through it before BasicSR's, which runs Python tags and fails where a
    section is missing. No upstream issue.
    """
    for module in _callers_of('parse_options'):
        module.parse_options = _looked_through(module.parse_options)
    for module in _callers_of('make_exp_dirs'):
        module.make_exp_dirs = _checked_first(module.make_exp_dirs)


def _looked_through(parse_options: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(parse_options, 'looks_first'):
        return parse_options

    @functools.wraps(parse_options)
    def looked_through(root_path: str, is_train: bool = True) -> Any:
        from mtkd.schema.command_line import refuse_unread

        refuse_unread(is_train)
        try:
            return parse_options(root_path, is_train)
        except yaml.YAMLError as error:  # its parser is another one, in C, which takes a little less
            raise ValueError(f'the option file cannot be read as YAML: {" ".join(str(error).split())}') from error

    looked_through.looks_first = True
    return looked_through


def _checked_first(make_exp_dirs: Callable[[Options], None]) -> Callable[[Options], None]:
    if hasattr(make_exp_dirs, 'checks_first'):
        return make_exp_dirs

    @functools.wraps(make_exp_dirs)
    def checked(opt: Options) -> None:
        if not opt['is_train']:  # a training run was checked when its resume state was looked for
            _check(opt)
        make_exp_dirs(opt)

    checked.checks_first = True
    return checked


def _check(opt: Options) -> None:
    from basicsr.utils.registry import MODEL_REGISTRY

    from mtkd.checks import lookup

    if 'plugin' in opt or 'teachers' in opt:
        lookup(MODEL_REGISTRY, opt.get('model_type'), 'model_type')
    if opt.get('model_type') in MODEL_REGISTRY:
        check = getattr(MODEL_REGISTRY.get(opt['model_type']), 'check_options', None)
        if check is not None:
            check(opt)


def distribute_on_cpu() -> None:
    """``--launcher pytorch`` needs NCCL and a GPU; without CUDA, gloo serves. No upstream issue."""
    import basicsr.utils.dist_util
    import basicsr.utils.options
    from basicsr.models.base_model import BaseModel

    if not hasattr(BaseModel.model_to_device, 'serves_cpu'):
        BaseModel.model_to_device = _model_to_any_device(BaseModel.model_to_device)
        init_dist = _init_dist_anywhere(basicsr.utils.dist_util.init_dist)
        basicsr.utils.dist_util.init_dist = basicsr.utils.options.init_dist = init_dist


def _init_dist_anywhere(upstream: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(upstream)
    def init_dist(launcher: str, backend: str = 'nccl', **kwargs: Any) -> None:
        if torch.cuda.is_available() or launcher != 'pytorch':
            upstream(launcher, backend, **kwargs)
        else:
            torch.distributed.init_process_group('gloo')

    return init_dist


def _model_to_any_device(upstream: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    @functools.wraps(upstream)
    def model_to_device(self: Any, net: torch.nn.Module) -> torch.nn.Module:
        if not self.opt['dist'] or self.device.type != 'cpu':
            return upstream(self, net)
        unused = self.opt.get('find_unused_parameters', False)
        return DistributedDataParallel(net.to(self.device), find_unused_parameters=unused)

    model_to_device.serves_cpu = True
    return model_to_device


def keep_node_lists_from_the_shell() -> None:
    """``--launcher slurm`` puts the value of SLURM_NODELIST into a shell command: CVE-2024-27763, no released mend.

    https://github.com/XPixelGroup/BasicSR/issues/729
    """
    import basicsr.utils.dist_util

    upstream = basicsr.utils.dist_util._init_dist_slurm
    if not hasattr(upstream, 'checks_nodes'):
        basicsr.utils.dist_util._init_dist_slurm = _with_checked_nodes(upstream)


def _with_checked_nodes(upstream: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(upstream)
    def init_dist_slurm(backend: str, port: int | None = None) -> None:
        nodes = os.environ.get('SLURM_NODELIST', '')
        if not re.fullmatch(r'[\w.,\[\]-]+', nodes, re.ASCII):
            raise ValueError(
                f'SLURM_NODELIST is {nodes!r}: expected host names as in node[1-4],node7; --launcher slurm runs inside '
                'srun, which sets it'
            )
        upstream(backend, port)

    init_dist_slurm.checks_nodes = True
    return init_dist_slurm


def seed_workers_anew_each_epoch() -> None:
    """Loader workers get one seed for all epochs, so every image is cropped alike in every epoch. No upstream issue."""
    import basicsr.data

    if basicsr.data.worker_init_fn is not worker_init_fn:
        basicsr.data.worker_init_fn = worker_init_fn
        multiprocessing.util.Finalize(None, _end_workers, exitpriority=100)


def _end_workers() -> None:
    """As Python does when it exits; but it waits for ever where SIGTERM is ignored, as our loader workers do."""
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    for process in workers:
        process.terminate()
    multiprocessing.connection.wait([process.sentinel for process in workers], timeout=1)
    for process in workers:
        process.kill()


def draw_crops_by_their_place() -> None:
    """A resumed run starts its epoch again and draws other crops: neither the place in the epoch nor the states of the
    generators are kept. No upstream issue. See :mod:`mtkd_data.placed_sampler`; models save the place, ours do.
    """
    from mtkd_data.placed_sampler import PlacedSampler

    for module in _callers_of('EnlargedSampler'):
        module.EnlargedSampler = PlacedSampler
    for module in _callers_of('build_dataloader'):
        module.build_dataloader = _with_places(module.build_dataloader)


def _with_places(upstream: Callable[..., DataLoader]) -> Callable[..., DataLoader]:
    from mtkd_data.placed_sampler import PlacedSampler, SeededDataset, note_validation
    from mtkd_data.skipping import SkippingDataset

    if hasattr(upstream, 'knows_places'):
        return upstream

    @functools.wraps(upstream)
    def build_dataloader(
        dataset: Any,
        dataset_opt: Options,
        num_gpu: int = 1,
        dist: bool = False,
        sampler: Any = None,
        seed: int | None = None,
    ) -> DataLoader:
        if isinstance(sampler, PlacedSampler):
            sampler.seed = seed or 0
            dataset = dataset if getattr(dataset, 'draws_by_place', False) else SeededDataset(dataset)
            if dataset_opt.get('skip_damaged'):
                dataset = SkippingDataset(dataset, dataset_opt['skip_damaged'])
        loader = upstream(dataset, dataset_opt, num_gpu, dist, sampler, seed)
        loader.generator = torch.Generator()  # its own: a loader that starts takes nothing from the training's draws
        loader.generator.manual_seed(seed or 0)
        if dataset_opt['phase'] != 'train':
            note_validation(loader)
        return loader

    build_dataloader.knows_places = True
    return build_dataloader


def name_damaged_images() -> None:
    """Damaged images are decoded to wrong pixels in silence, a damaged LMDB kills the process, nothing is named.

    What BasicSR's FileClient reads is looked at once, see :mod:`mtkd_data.checked_client`. A GT that does not fit its
    LQ is named, too. No upstream issue.
    """
    from basicsr.data import paired_image_dataset, realesrgan_paired_dataset
    from basicsr.utils import FileClient

    from mtkd_data.checked_client import gets_soundly, opens_soundly

    if not hasattr(FileClient.get, '__wrapped__'):
        FileClient.__init__ = opens_soundly(FileClient.__init__)
        FileClient.get = gets_soundly(FileClient.get)
    for module in (paired_image_dataset, realesrgan_paired_dataset):
        if not hasattr(module.paired_random_crop, '__wrapped__'):
            module.paired_random_crop = _naming_the_gt(module.paired_random_crop)


def _naming_the_gt(upstream: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(upstream)
    def paired_random_crop(gts: Any, lqs: Any, gt_patch_size: int, scale: int, gt_path: Any = None) -> Any:
        try:
            return upstream(gts, lqs, gt_patch_size, scale, gt_path)
        except ValueError as error:
            what = ''.join(map(str, error.args))
            raise ValueError(f'{gt_path}: GT and LQ do not belong together: {what}') from error

    return paired_random_crop


def pass_on_errors_of_prefetching() -> None:
    """With ``prefetch_mode: cpu`` an error in a loader ends the thread that fetches, and the run waits for ever.

    No upstream issue.
    """
    from basicsr.data.prefetch_dataloader import PrefetchGenerator

    if not hasattr(PrefetchGenerator.__next__, '__wrapped__'):
        PrefetchGenerator.run = _run_to_the_error
        PrefetchGenerator.__next__ = _raising(PrefetchGenerator.__next__)


def _run_to_the_error(self: Any) -> None:
    self.error = None
    try:
        for item in self.generator:
            self.queue.put(item)
    except Exception as error:  # whatever it is, the thread of the training shall see it
        self.error = error
    self.queue.put(None)


def _raising(upstream: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(upstream)
    def __next__(self: Any) -> Any:
        try:
            return upstream(self)
        except StopIteration:
            if self.error is not None:
                raise self.error from None
            raise

    return __next__


def copy_option_files_whole() -> None:
    """The copy of the option file in an experiment is written in place: a run killed meanwhile leaves a part of it.

    Evaluation and export read that copy. No upstream issue.
    """
    for module in _callers_of('copy_opt_file'):
        module.copy_opt_file = copy_opt_file


def copy_opt_file(opt_file: str, experiments_root: str) -> None:
    """Stands in for BasicSR's function of this name: the option file behind the time and the command, by rank 0."""
    from basicsr.utils.dist_util import get_dist_info

    from mtkd_data.whole_files import write_atomically

    if get_dist_info()[0] == 0:
        header = f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {" ".join(sys.argv)}\n\n'
        write_atomically(Path(experiments_root) / Path(opt_file).name, header.encode() + Path(opt_file).read_bytes())


def leave_out_the_warning_of_meshgrid() -> None:
    """Every SwinIR that is built warns that ``torch.meshgrid`` will want its ``indexing``; nothing a user could do.

    Just that message. Ends when torch changes its default, which BasicSR would have to follow. No upstream issue.
    """
    warnings.filterwarnings('ignore', 'torch.meshgrid: in an upcoming release', UserWarning)


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

        return read_tensor_file(Path(path))


def worker_init_fn(worker_id: int, num_workers: int, rank: int, seed: int) -> None:
    """Seed NumPy and Python in a loader worker from torch's seed, which the loader draws anew for every epoch.

    Signals that a whole job gets are left to the process of the training, which may still want batches to come.
    """
    from mtkd_model.leaving import SIGNALS

    for number in SIGNALS if torch.utils.data.get_worker_info() is not None else ():
        signal.signal(number, signal.SIG_IGN)
    worker_seed = (torch.initial_seed() + num_workers * rank + seed) % 2**32
    np.random.seed(worker_seed)  # noqa: NPY002  BasicSR's augmentation uses the global generators
    random.seed(worker_seed)


def _callers_of(function: str) -> Iterator[types.ModuleType]:
    """Those of BasicSR's train and test modules that know ``function``; also the script being run, where it is a copy.

    The scripts of other projects often import ``train_pipeline`` and nothing else: they know neither function.
    """
    import basicsr  # noqa: F401  imports basicsr.train and basicsr.test

    for module in ('basicsr.train', 'basicsr.test', '__main__'):
        if hasattr(sys.modules.get(module), function):
            yield sys.modules[module]
