"""Looks through an option file before BasicSR makes a folder or archives an older run of its name."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from basicsr.utils.logger import initialized_logger
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY
from torch import nn

from mtkd import checks
from mtkd.refusals import FailedInsideError
from mtkd_data.teacher_cache.cache import TeacherCache

# what classes raise that are given values which the schema cannot know to be wrong
DEEP_ERRORS = (TypeError, AssertionError, RuntimeError, LookupError, AttributeError, ArithmeticError)


def check(
    build_model: Callable[[dict[str, Any]], Any],
    opt: Mapping[str, Any],
    look: Callable[[Any], Any] | None = None,
) -> Any:
    """Build everything once on the CPU, run a tiny batch, throw it away: whatever is wrong raises here.

    Mistakes that the schema finds are raised together, with their lines in the file. Neither the random state nor
    ``opt`` nor the logger is changed. What ``look(model)`` gives, if it is given, comes back.
    """
    from mtkd.schema.command_line import (
        refuse_missing_files,
        refuse_options,
    )  # here: the schema reads tables of this package

    refuse_options(opt)
    refuse_missing_files(opt)
    opt = deepcopy(dict(opt))
    if opt['num_gpu'] > 1 and not opt['dist'] and opt.get('teachers'):
        raise ValueError(
            f'num_gpu is {opt["num_gpu"]} without a launcher: set num_gpu: 1, or run '
            f'torchrun --nproc_per_node={opt["num_gpu"]} basicsr/train.py --launcher pytorch -opt ...'
        )
    opt.update(num_gpu=0, dist=False)
    with placed('the data sets'):
        checks.check_datasets(opt)
    with torch.random.fork_rng(devices=[]), _silent_logger(), _without_compiling():
        with placed('network_g'):
            checks.build(ARCH_REGISTRY, opt['network_g'], 'network_g')
        for loss in ('pixel_opt', 'perceptual_opt'):
            if opt['is_train'] and opt['train'].get(loss):
                with placed(f'train.{loss}'):
                    checks.build(LOSS_REGISTRY, opt['train'][loss], f'train.{loss}')
        with placed('the model'):
            model = build_model(opt)
            model.check_output()
        with placed('the plan'):
            seen = look(model) if look else None
    with placed('the data sets'):
        _check_own_datasets(opt)
        _check_sharing(opt)
    return seen


@contextlib.contextmanager
def placed(what: str) -> Iterator[None]:
    """Turn what a class raises deep inside into a FailedInsideError that says what was being built."""
    try:
        yield
    except DEEP_ERRORS as error:
        text = f'{what} cannot be built from these options: {type(error).__name__}: {error}'
        raise FailedInsideError(text) from error


def _check_own_datasets(opt: Mapping[str, Any]) -> None:
    """The checks that datasets bring themselves, and that a cache comes from these teachers; they may take a while."""
    for phase, dataset in opt['datasets'].items():
        where = f'datasets.{phase}'
        kind = checks.lookup(DATASET_REGISTRY, dataset.get('type'), f'{where}.type')
        own_check = getattr(kind, 'check_options', None)
        if dataset.get('dataroot_cache') and own_check is None:
            raise ValueError(f'{where}.dataroot_cache is read by CachedTeacherDataset alone; type is {dataset["type"]}')
        if own_check is not None:
            own_check({'scale': opt['scale'], 'phase': phase.split('_')[0], **dataset})
        if dataset.get('dataroot_cache'):
            TeacherCache(Path(dataset['dataroot_cache'])).check_teachers(opt, dataset.get('cached'))


def _check_sharing(opt: Mapping[str, Any]) -> None:
    """LMDB opens a store once in a process, and BasicSR's datasets and ours would each do it."""
    readers: dict[str, tuple[str, bool]] = {}
    for phase, dataset in opt['datasets'].items():
        ours = hasattr(DATASET_REGISTRY.get(dataset['type']), 'check_options')
        for root in ('dataroot_gt', 'dataroot_lq'):
            path = str(Path(dataset.get(root) or phase).resolve())
            other, theirs = readers.setdefault(path, (phase, ours))
            if path.endswith('.lmdb') and theirs != ours:
                raise ValueError(
                    f'datasets.{phase} and datasets.{other} read {path} by datasets that cannot share an LMDB: take '
                    'PairedCropDataset instead of PairedImageDataset'
                )


@contextlib.contextmanager
def _without_compiling() -> Iterator[None]:
    """Compiling takes minutes, and what is built here is thrown away."""
    compiling = nn.Module.compile
    nn.Module.compile = lambda self, *args, **kwargs: None
    try:
        yield
    finally:
        nn.Module.compile = compiling


@contextlib.contextmanager
def _silent_logger(name: str = 'basicsr') -> Iterator[None]:
    """BasicSR's logger takes its file from whoever asks first; keep it silent and unclaimed meanwhile."""
    logger = logging.getLogger(name)
    claimed, disabled = name in initialized_logger, logger.disabled
    initialized_logger[name], logger.disabled = True, True
    try:
        yield
    finally:
        logger.disabled = disabled
        if not claimed:
            del initialized_logger[name]
