"""The section ``val`` of an option file, checked before anything is built: a mistake in it would show hours later."""

import difflib
from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import METRIC_REGISTRY

from mtkd.checks import lookup, require_keys, require_known_keys
from mtkd_model.validation import DEVICE_METRICS, KEPT_BYTES, TILE_OVERLAP

# key: (type, default, meaning); docs/options.md is written from these tables
VAL_KEYS = {
    'val_freq': ('whole number', 'required in training', 'iterations from one validation to the next'),
    'save_img': ('true or false', 'required', 'write the images below visualization/'),
    'suffix': ('text', 'the name of the run', 'at the end of the names of saved images, in testing'),
    'metrics': ('mapping', 'null', 'named metrics, see below'),
    'pbar': ('true or false', 'shown in a terminal', 'the progress bar'),
    'tile': ('whole number', '0', 'side of the tiles in LR pixels; 0 for whole images'),
    'tile_overlap': ('whole number', str(TILE_OVERLAP), 'LR pixels that a tile sees around itself'),
    'keep_images': (
        'true or false',
        'true',
        f'decoded images stay on the device between validations, up to {KEPT_BYTES // 2**30} GiB for each set',
    ),
}
METRIC_KEYS = {
    'type': ('text', 'required', f'{" and ".join(DEVICE_METRICS)} run on the device; any other of BasicSR on the host'),
    'crop_border': ('whole number', 'required', 'pixels left out at each side; the scale is usual'),
    'test_y_channel': ('true or false', 'false', 'on Y of YCbCr instead of RGB'),
    'input_order': ('HWC', 'HWC', 'for files of BasicSR that say it'),
    'better': ('higher or lower', 'higher', 'which value is the best so far'),
}


def check_validation(opt: Mapping[str, Any]) -> None:
    """Raise ValueError for anything in ``val`` that is missing, mistyped or of another type than it should be."""
    val = opt.get('val')
    if val is None:
        return
    if not isinstance(val, Mapping):
        raise ValueError(f'val should be a mapping with keys among {", ".join(VAL_KEYS)}; it is {val!r}')
    for key in val:
        close = difflib.get_close_matches(str(key), VAL_KEYS, n=1, cutoff=0.7)
        if close and key not in VAL_KEYS:
            raise ValueError(f"unknown key '{key}' in val: did you mean '{close[0]}'?")
    require_keys(val, ('val_freq', 'save_img') if opt['is_train'] else ('save_img',), 'val')
    for key, least in (('val_freq', 1), ('tile', 0), ('tile_overlap', 0)):
        if key in val and not _is_whole(val[key], least):
            raise ValueError(f'val.{key} should be a whole number, at least {least}; it is {val[key]!r}')
    for key in ('save_img', 'keep_images', 'pbar'):
        if not isinstance(val.get(key, False), bool) and (key, val[key]) != ('pbar', None):
            raise ValueError(f'val.{key} should be true or false; it is {val[key]!r}')
    _check_metrics(val.get('metrics'))


def _check_metrics(metrics: Any) -> None:
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise ValueError(f'val.metrics should be a mapping of named metrics; it is {metrics!r}')
    for name, metric in metrics.items():
        where = f'val.metrics.{name}'
        if not isinstance(metric, Mapping) or 'type' not in metric:
            raise ValueError(f"{where} should be a mapping with the key 'type'; it is {metric!r}")
        lookup(METRIC_REGISTRY, metric['type'], f'{where}.type')
        if metric.get('better', 'higher') not in ('higher', 'lower'):
            raise ValueError(f'{where}.better should be higher or lower; it is {metric["better"]!r}')
        if metric['type'] in DEVICE_METRICS:
            _check_device_metric(metric, where)
        elif metric['type'].removesuffix('_pt') in DEVICE_METRICS:
            instead = metric['type'].removesuffix('_pt')
            raise ValueError(
                f'{where}: {metric["type"]} takes no images of 8 bit; {instead} runs on the device already'
            )


def _check_device_metric(metric: Mapping[str, Any], where: str) -> None:
    require_known_keys(metric, METRIC_KEYS, where)
    require_keys(metric, ('crop_border',), where)
    if not _is_whole(metric['crop_border'], 0):
        raise ValueError(f'{where}.crop_border should be a whole number, at least 0; it is {metric["crop_border"]!r}')
    if not isinstance(metric.get('test_y_channel', False), bool):
        raise ValueError(f'{where}.test_y_channel should be true or false; it is {metric["test_y_channel"]!r}')
    if metric.get('input_order', 'HWC') != 'HWC':
        raise ValueError(f'{where}.input_order should be HWC, as images are in validation; leave it out')


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
