"""What must fit between keys; each section is right by itself already."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mtkd.schema.problem import Problem, join, shown
from mtkd_model.validation_options import on_the_device

Options = Mapping[str, Any]
LONGEST_NAME = 200  # BasicSR adds to it for its log and archive
CONTROL = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff]')
AS_MANY = (('periods', 'restart_weights', 1), ('restarts', 'restart_weights', 1), ('depths', 'num_heads', None))


def across(opt: Options) -> Iterator[Problem]:
    """Problems between keys of an option file; what is of another type than it should be is passed over."""
    yield from _name(opt.get('name'))
    yield from _patch(opt.get('scale'), _get(opt, 'datasets', 'train'))
    datasets = _get(opt, 'datasets')
    for name, dataset in (datasets if isinstance(datasets, Mapping) else {}).items():
        if str(name).split('_')[0] != 'train' and _get(dataset, 'skip_damaged'):
            path = f'datasets.{name}.skip_damaged'
            yield Problem(path, f'{path}: only training skips damaged images: leave it out', dataset['skip_damaged'])
    for path, section in _sections(opt, ''):
        yield from _as_many(path, section)
    metrics = _get(opt, 'val', 'metrics')
    for name, metric in (metrics if isinstance(metrics, Mapping) else {}).items():
        yield from _metric(f'val.metrics.{name}', metric)


def _name(name: Any) -> Iterator[Problem]:
    """The run's folder has this name: one that leads elsewhere would move other folders to an archive."""
    if not isinstance(name, str):
        return
    parts = name.split('/')
    elsewhere = any(part.strip() in ('', '.', '..') for part in parts)
    if elsewhere or CONTROL.search(name) or len(name.encode()) > LONGEST_NAME:
        expected = f'a name for a folder, of at most {LONGEST_NAME} bytes, without control characters'
        yield Problem('name', f'name should be {expected}; it is {shown(name)}', name, expected)


def _get(opt: Any, *keys: str) -> Any:
    for key in keys:
        opt = opt.get(key) if isinstance(opt, Mapping) else None
    return opt


def _patch(scale: Any, train_set: Any) -> Iterator[Problem]:
    size = _get(train_set, 'gt_size')
    if isinstance(scale, int) and isinstance(size, int) and 1 <= scale <= 8 and size % scale:
        path = 'datasets.train.gt_size'
        yield Problem(path, f'{path} {size} is not a multiple of the scale {scale}', size, f'a multiple of {scale}')


def _sections(opt: Any, path: str) -> Iterator[tuple[str, Options]]:
    """All mappings with a ``type``."""
    if isinstance(opt, Mapping):
        if 'type' in opt:
            yield path, opt
        for key, value in opt.items():
            yield from _sections(value, join(path, key))


def _as_many(path: str, section: Options) -> Iterator[Problem]:
    for one, other, default in AS_MANY:
        lists = section.get(one), section.get(other)
        if isinstance(lists[0], list) and (isinstance(lists[1], list) or (lists[1] is None and default)):
            lengths = len(lists[0]), len(lists[1]) if lists[1] is not None else default
            if lengths[0] != lengths[1]:
                message = f'{path}.{one} has {lengths[0]} entries, {path}.{other} has {lengths[1]}: give as many'
                yield Problem(f'{path}.{one}', message, lists[0], f'{lengths[1]} entries')


def _metric(path: str, metric: Any) -> Iterator[Problem]:
    kind = _get(metric, 'type')
    instead = on_the_device(kind) if isinstance(kind, str) else None
    if instead and instead != kind:
        message = f'{path}: {kind} takes no images of 8 bit; {instead} runs on the device already'
        yield Problem(f'{path}.type', message, kind, instead, instead)
