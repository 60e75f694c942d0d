"""Checks of an option file that need no network: pure functions that raise before anything is built or written."""

import inspect
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from mtkd.schema.problem import nearest_name, unknown_key
from mtkd_data.lmdb_pages import sound_keys

# key: (type, default, meaning); the schema (the words of a type are those of mtkd/schema/words.py) and docs/options.md
# are made from these tables
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


LEFT_OF_START = 0.01  # of the initial weights in the averaged ones: more is worth a warning
FORGOTTEN = 0.001
A_TRIAL = 100  # iterations below which nobody expects weights of use


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'? `` for the best match among ``known``, or an empty string."""
    match = nearest_name(name, known)
    return f"did you mean '{match}'? " if match else ''


def unknown_type(name: Any, known: Iterable[str], where: str) -> str:
    """The message for a ``type`` that is not among the ``known`` ones."""
    return f"{where}: unknown type '{name}': {nearest(name, known)}Registered: {', '.join(known)}"


def require_known_keys(section: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raise ValueError when ``section`` is no mapping or has a key that is not ``known``; names the nearest match."""
    if not isinstance(section, Mapping):
        raise ValueError(f'{where} should be a mapping with keys among {", ".join(known)}; it is {section!r}')
    for key in section:
        if key not in known:
            raise ValueError(unknown_key(key, where, nearest_name(key, known), known))


def require_keys(section: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Raise ValueError naming the first of ``keys`` that ``section`` lacks."""
    for key in keys:
        if key not in section:
            raise ValueError(f"{where} lacks the key '{key}'")


def left_of_start(opt: Mapping[str, Any]) -> str:
    """What to say of a moving average that ends before it has forgotten the random weights it began with, or ''.

    BasicSR's average starts as a copy of the network: ``ema_decay ** total_iter`` of it is left in the end. Nothing is
    said of a trial of a few steps.
    """
    train, paths = opt['train'], opt.get('path') or {}
    decay = train.get('ema_decay') or 0
    if not decay or train.get('init_from_teacher') or paths.get('pretrain_network_g'):
        return ''
    iterations = int(train['total_iter'])
    left = decay**iterations
    if left <= LEFT_OF_START or iterations < A_TRIAL:
        return ''
    return (
        f'train.ema_decay is {decay:g}: after {iterations} iterations {left:.0%} of the averaged weights, which '
        f'validation and test take, are still the initial ones: {FORGOTTEN ** (1 / iterations):.4g} would leave '
        f'{FORGOTTEN:.1%}'
    )


def lookup(registry: Any, name: Any, where: str) -> Any:
    """The object of a BasicSR registry, or a ValueError that names the nearest and all registered names."""
    if isinstance(name, str) and f'{name}_basicsr' in registry and name not in registry:
        name = f'{name}_basicsr'  # as BasicSR's own look-up does
    if not isinstance(name, str) or name not in registry:
        raise ValueError(unknown_type(name, sorted(registry.keys()), where))
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
            raise ValueError(unknown_key(key, where, nearest_name(key, known), known))


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


TRAIN_KEYS = {
    'distill': ('mapping', 'no terms', 'named distillation terms; `l_<name>` is the entry in the log'),
    'init_from_teacher': ('mapping', 'null', 'start the student from slices of a teacher'),
    'pixel_opt': ('mapping', 'null', "BasicSR's loss to the ground truth, such as `{type: L1Loss, loss_weight: 0.1}`"),
    'perceptual_opt': ('mapping', 'null', "BasicSR's perceptual loss to the ground truth"),
    'optim_g': ('mapping', 'required', "BasicSR's: `type` and arguments of the optimizer; fused Adam on a GPU"),
    'optim_distill': ('mapping', 'as optim_g', 'lr, weight_decay and the like for the parameters of the terms'),
    'amp': (
        'null, bf16, fp16 or auto',
        'null',
        "precision of the student's passes; fp16 with loss scaling; auto is bf16 where the device computes in it",
    ),
    'compile': (
        'null, true, false, default, reduce-overhead, max-autotune or max-autotune-no-cudagraphs',
        'false',
        'torch.compile of the student, for terms that compare outputs; a text is the mode',
    ),
    'channels_last': ('true or false', 'true', "the student's memory layout; speed alone"),
    'accumulate': (
        'whole number, at least 1',
        '1',
        'compute a batch in so many equal parts, for less memory; the step is that of the whole batch for terms that '
        'average over images (RKD and CSD compare those of one part; MKD refuses it)',
    ),
    'clip_grad_norm': (
        'null or number, above 0',
        'null',
        'largest L2 norm of all gradients together; that before clipping is `grad_norm` in the log',
    ),
    'max_nonfinite': (
        'whole number, at least 0',
        '10',
        'steps in a row whose loss or gradient is not finite before the run stops; each is left out and counted as '
        '`nonfinite` in the log',
    ),
    'divergence_factor': (
        'null or number, above 1',
        'null',
        'warn when the loss stays above so many times the median of the last 100',
    ),
    'scheduler': ('mapping', 'required', "BasicSR's: `type` and arguments of the learning-rate schedule"),
    'total_iter': ('whole number, at least 1', 'required', "BasicSR's: length of the run in iterations"),
}


def check_datasets(opt: Mapping[str, Any]) -> None:
    """Raise FileNotFoundError or ValueError for data roots that are missing, empty, of different keys or too few."""
    for phase, dataset in opt['datasets'].items():
        where = f'datasets.{phase}'
        if dataset.get('dataroot_gt') is None or dataset.get('dataroot_lq') is None:
            continue
        lmdb = dataset.get('io_backend', {}).get('type') == 'lmdb'
        gt, lq = (image_keys(Path(dataset[root]), lmdb, f'{where}.{root}') for root in ('dataroot_gt', 'dataroot_lq'))
        if lmdb and gt != lq:
            only_gt, only_lq = sorted(gt - lq)[:3], sorted(lq - gt)[:3]
            raise ValueError(f'{where}: GT and LQ hold different keys; only in GT: {only_gt}; only in LQ: {only_lq}')
        if len(gt) != len(lq) and not dataset.get('meta_info_file'):
            raise ValueError(f'{where}: {len(gt)} GT images, but {len(lq)} LQ images')
        if phase == 'train':
            _check_train_size(dataset, len(gt), where)
            if lmdb:
                _check_patch_fits(Path(dataset['dataroot_gt']), dataset['gt_size'], where)


def _check_train_size(dataset: Mapping[str, Any], images: int, where: str) -> None:
    batch = dataset['batch_size_per_gpu']
    enlarged = images * dataset.get('dataset_enlarge_ratio', 1)
    if enlarged < batch:
        raise ValueError(
            f'{where}: {images} images x dataset_enlarge_ratio make {enlarged} samples, fewer than one batch of {batch}'
        )


def _check_patch_fits(root: Path, gt_size: int, where: str) -> None:
    # lines of meta_info.txt: key.png (height,width,channels) compression_level
    lines = re.findall(r'^(.+?)\.\w+ \((\d+),(\d+),\d+\)', (root / 'meta_info.txt').read_text(), flags=re.MULTILINE)
    small = [f'{key} ({height} x {width})' for key, height, width in lines if min(int(height), int(width)) < gt_size]
    if small:
        raise ValueError(
            f'{where}: {len(small)} of {len(lines)} images are smaller than gt_size {gt_size}, such as '
            f'{", ".join(small[:3])}: lower gt_size or leave them out'
        )


def missing_root(root: Path, lmdb: bool) -> str:
    """What to say of a data root that is not there, or an empty text."""
    if (root / 'meta_info.txt' if lmdb else root).exists():
        return ''
    return f'no such LMDB (no meta_info.txt): {root}' if lmdb else f'no such folder: {root}'


def image_keys(root: Path, lmdb: bool, where: str) -> set[str]:
    """The names of the images in a data root; raises ValueError or FileNotFoundError, naming ``where``, without any.

    Raises OSError for an LMDB whose pages are damaged.
    """
    if lmdb and root.suffix != '.lmdb':
        raise ValueError(f'{where}: an LMDB folder must end in .lmdb: {root}')
    missing = missing_root(root, lmdb)
    if missing:
        raise FileNotFoundError(f'{where}: {missing}')
    if lmdb:
        keys = _listed_keys(root / 'meta_info.txt', where)
        if (root / 'data.mdb').is_file():
            sound_keys(root)  # once, for this process and the loader workers it forks
    else:
        keys = {path.name for path in root.iterdir() if path.is_file() and not path.name.startswith('.')}
    if not keys:
        raise ValueError(f'{where}: the dataset is empty: {root}')
    return keys


def _listed_keys(listing: Path, where: str) -> set[str]:
    try:
        return {line.split('.')[0] for line in listing.read_text().splitlines() if line.strip()}
    except UnicodeDecodeError as error:
        raise ValueError(f'{where}: {listing} is damaged: it is no text ({error}): copy it again') from error
