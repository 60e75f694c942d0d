"""Checks of an option file that need no network: pure functions that raise before anything is built or written."""

import difflib
import functools
import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

NUMBER_IN_A_STRING = re.compile(r'[+-]?\d+(\.\d*)?[eE][+-]?\d+')
# key: (type, default, meaning); docs/options.md is written from these tables
OUR_TOP_LEVEL_KEYS = {
    'teachers': ('mapping', 'no teachers', 'named frozen networks'),
    'aggregator': ('mapping', 'the mean of the teachers', 'merges their outputs into the target'),
    'network_g': ('mapping', 'required', 'the network that is trained: the student, in stage 1 the aggregator'),
    'plugin': ('text', 'none', '`!!python/name:mtkd.__version__` brings the plugin into an unmodified BasicSR'),
    'datasets': ('mapping', 'required', '`train` and any number of `val_1`, `val_2`, ...; in testing `test_1`, ...'),
    'train': ('mapping', 'required in training', 'losses, terms, optimizer, schedule'),
    'val': ('mapping', 'no validation', 'how often, which metrics, tiles'),
    'path': ('mapping', 'required', "BasicSR's: pretrain_network_g, param_key_g, strict_load_g, resume_state"),
    'logger': ('mapping', 'required in training', "BasicSR's: print_freq, save_checkpoint_freq, use_tb_logger"),
}


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'? `` for the best match among ``known``, or an empty string."""
    matches = difflib.get_close_matches(str(name), [str(key) for key in known], n=5, cutoff=0.5)
    return f"did you mean '{max(matches, key=functools.partial(_likeness, str(name)))}'? " if matches else ''


def _likeness(one: str, other: str) -> float:
    """Similarity in [0, 2] that also sees swapped letters: EDRS is nearer to EDSR than to EDVR."""
    ordered = difflib.SequenceMatcher(None, one, other).ratio()
    return ordered + difflib.SequenceMatcher(None, sorted(one), sorted(other)).ratio()


def require_known_keys(section: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise ValueError when ``section`` is no mapping or has a key that is not ``known``; names the nearest match."""
    if not isinstance(section, Mapping):
        raise ValueError(f'{where} should be a mapping with keys among {", ".join(known)}; it is {section!r}')
    for key in section:
        if key not in known:
            raise ValueError(f"unknown key '{key}' in {where}: {nearest(key, known)}Known keys: {', '.join(known)}")


def require_keys(section: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Raise ValueError naming the first of ``keys`` that ``section`` lacks."""
    for key in keys:
        if key not in section:
            raise ValueError(f"{where} lacks the key '{key}'")


def lookup(registry: Any, name: Any, where: str) -> Any:
    """The object of a BasicSR registry, or a ValueError that names the nearest and all registered names."""
    if name is not None and f'{name}_basicsr' in registry and name not in registry:
        name = f'{name}_basicsr'  # as BasicSR's own look-up does
    if name is None or name not in registry:
        names = sorted(registry.keys())
        raise ValueError(f"{where}: unknown type '{name}': {nearest(name, names)}Registered: {', '.join(names)}")
    return registry.get(name)


def require_known_arguments(constructor: Any, arguments: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for a key that ``constructor`` does not name, also where its ``**kwargs`` would swallow it.

    An argument without a near match is let through to a constructor with ``**kwargs``: it may well be read there.
    """
    parameters = inspect.signature(constructor).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    known = [name for name, parameter in parameters.items() if parameter.kind not in (VAR_POSITIONAL, VAR_KEYWORD)]
    for key in arguments:
        if key not in known and (VAR_KEYWORD not in kinds or nearest(key, known)):
            raise ValueError(f"unknown key '{key}' in {where}: {nearest(key, known)}Known keys: {', '.join(known)}")


VAR_POSITIONAL, VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def build(registry: Any, opt: Mapping[str, Any], where: str) -> Any:
    """Build what ``opt`` (``type`` and constructor arguments) describes, with errors that name ``where`` it stands."""
    if not isinstance(opt, Mapping) or 'type' not in opt:
        raise ValueError(f"{where} should be a mapping with the key 'type'; it is {opt!r}")
    constructor = lookup(registry, opt['type'], f'{where}.type')
    arguments = {key: value for key, value in opt.items() if key != 'type'}
    require_known_arguments(constructor, arguments, where)
    try:
        return constructor(**arguments)
    except TypeError as error:  # a missing argument
        raise ValueError(f'{where}: {error}') from error


def _leaves(opt: Any, where: str = '') -> Iterator[tuple[str, Any]]:
    if isinstance(opt, Mapping):
        for key, value in opt.items():
            yield from _leaves(value, f'{where}.{key}' if where else str(key))
    elif isinstance(opt, list | tuple):
        for index, value in enumerate(opt):
            yield from _leaves(value, f'{where}.{index}')
    else:
        yield where, opt


def refuse_numbers_in_strings(opt: Mapping[str, Any]) -> None:
    """Raise ValueError where YAML 1.1 read a number such as ``1e-4`` as a string."""
    for where, value in _leaves(opt):
        if isinstance(value, str) and NUMBER_IN_A_STRING.fullmatch(value) and where != 'name':
            number = positional(float(value))
            raise ValueError(
                f"{where} is the string '{value}', not a number: YAML 1.1 wants {number} or !!float {value}"
            )


def positional(number: float) -> str:
    """``number`` in positional notation: 0.0001, not 1e-04."""
    return f'{number:.20f}'.rstrip('0').rstrip('.') if abs(number) < 1 else f'{number:.1f}'


def check_top_level(opt: Mapping[str, Any]) -> None:
    """Raise ValueError for a top-level or training key that is nearly one of ours, such as ``teacher:``."""
    for section, ours, where in ((opt, OUR_TOP_LEVEL_KEYS, 'the option file'), (opt.get('train'), TRAIN_KEYS, 'train')):
        for key in section or ():
            close = difflib.get_close_matches(str(key), ours, n=1, cutoff=0.8)
            if close and key not in ours and key not in KNOWN_ELSEWHERE:
                raise ValueError(f"unknown key '{key}' in {where}: did you mean '{close[0]}'?")


TRAIN_KEYS = {
    'distill': ('mapping', 'no terms', 'named distillation terms; `l_<name>` is the entry in the log'),
    'init_from_teacher': ('mapping', 'null', 'start the student from slices of a teacher'),
    'pixel_opt': ('mapping', 'null', "BasicSR's loss to the ground truth, such as `{type: L1Loss, loss_weight: 0.1}`"),
    'perceptual_opt': ('mapping', 'null', "BasicSR's perceptual loss to the ground truth"),
    'optim_g': ('mapping', 'required', "BasicSR's: `type` and arguments of the optimizer; fused Adam on a GPU"),
    'optim_distill': ('mapping', 'as optim_g', 'lr, weight_decay and the like for the parameters of the terms'),
    'amp': ('null, bf16 or fp16', 'null', "precision of the student's passes; fp16 with loss scaling"),
    'compile': ('true, false or a mode', 'false', 'torch.compile of the student, for terms that compare outputs'),
    'channels_last': ('true or false', 'true', "the student's memory layout; speed alone"),
    'scheduler': ('mapping', 'required', "BasicSR's: `type` and arguments of the learning-rate schedule"),
    'total_iter': ('whole number', 'required', "BasicSR's: length of the run in iterations"),
}
KNOWN_ELSEWHERE = ('network_d', 'optim_d', 'gan_opt')


def check_datasets(opt: Mapping[str, Any]) -> None:
    """Raise FileNotFoundError or ValueError for data roots that are missing, empty, of different keys or too few."""
    scale = opt.get('scale')
    for phase, dataset in opt['datasets'].items():
        where = f'datasets.{phase}'
        if dataset.get('dataroot_gt') is None or dataset.get('dataroot_lq') is None:
            continue
        lmdb = dataset.get('io_backend', {}).get('type') == 'lmdb'
        gt, lq = (_keys(Path(dataset[root]), lmdb, f'{where}.{root}') for root in ('dataroot_gt', 'dataroot_lq'))
        if lmdb and gt != lq:
            only_gt, only_lq = sorted(gt - lq)[:3], sorted(lq - gt)[:3]
            raise ValueError(f'{where}: GT and LQ hold different keys; only in GT: {only_gt}; only in LQ: {only_lq}')
        if len(gt) != len(lq) and not dataset.get('meta_info_file'):
            raise ValueError(f'{where}: {len(gt)} GT images, but {len(lq)} LQ images')
        if phase == 'train':
            _check_train_size(dataset, len(gt), scale, where)
            if lmdb:
                _check_patch_fits(Path(dataset['dataroot_gt']), dataset['gt_size'], where)


def _check_train_size(dataset: Mapping[str, Any], images: int, scale: int | None, where: str) -> None:
    batch = dataset['batch_size_per_gpu']
    enlarged = images * dataset.get('dataset_enlarge_ratio', 1)
    if enlarged < batch:
        raise ValueError(
            f'{where}: {images} images x dataset_enlarge_ratio make {enlarged} samples, fewer than one batch of {batch}'
        )
    if scale and dataset['gt_size'] % scale:
        raise ValueError(f'{where}.gt_size {dataset["gt_size"]} is not a multiple of the scale {scale}')


def _check_patch_fits(root: Path, gt_size: int, where: str) -> None:
    # lines of meta_info.txt: key.png (height,width,channels) compression_level
    lines = re.findall(r'^(.+?)\.\w+ \((\d+),(\d+),\d+\)', (root / 'meta_info.txt').read_text(), flags=re.MULTILINE)
    small = [f'{key} ({height} x {width})' for key, height, width in lines if min(int(height), int(width)) < gt_size]
    if small:
        raise ValueError(
            f'{where}: {len(small)} of {len(lines)} images are smaller than gt_size {gt_size}, such as '
            f'{", ".join(small[:3])}: lower gt_size or leave them out'
        )


def _keys(root: Path, lmdb: bool, where: str) -> set[str]:
    if lmdb and root.suffix != '.lmdb':
        raise ValueError(f'{where}: an LMDB folder must end in .lmdb: {root}')
    listing = root / 'meta_info.txt' if lmdb else root
    if not listing.exists():
        raise FileNotFoundError(f'{where}: no such {"LMDB (no meta_info.txt)" if lmdb else "folder"}: {root}')
    if lmdb:
        keys = {line.split('.')[0] for line in listing.read_text().splitlines() if line.strip()}
    else:
        keys = {path.name for path in root.iterdir() if path.is_file() and not path.name.startswith('.')}
    if not keys:
        raise ValueError(f'{where}: the dataset is empty: {root}')
    return keys
