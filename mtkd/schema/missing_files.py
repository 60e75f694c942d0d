"""Files and folders that an option file names and that are not there, all of them at once."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtkd.checks import missing_root
from mtkd.schema.problem import Problem
from mtkd.schema.problems import listed
from mtkd_data.teacher_cache.cache import RECORD, REMAKE
from mtkd_data.weights_path import weights_path
from mtkd_model.encoders import missing_weights


def missing_files(opt: Mapping[str, Any]) -> list[Problem]:
    """What a run with ``opt``, an option file without problems, would open and not find: data, then weights."""
    found = [*_data(opt['datasets']), *_weights(opt)]
    return [Problem(path, f'{path}: {message}') for path, message in found]


def refuse_missing(found: list[Problem], what: str = 'the option file') -> None:
    """Raise one FileNotFoundError that names all that was ``found`` missing, if anything was."""
    if len(found) == 1:
        raise FileNotFoundError(str(found[0]))
    if found:
        raise FileNotFoundError(f'{len(found)} files or folders that {what} names are missing:\n{listed(found)}')


def _data(datasets: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for phase, dataset in datasets.items():
        lmdb = dataset.get('io_backend', {}).get('type') == 'lmdb'
        for key in ('dataroot_gt', 'dataroot_lq'):
            message = missing_root(Path(dataset[key]), lmdb) if dataset.get(key) else ''
            if message:
                yield f'datasets.{phase}.{key}', message
        cache = Path(dataset.get('dataroot_cache') or '.')  # without one: a folder that is there
        if not cache.exists() and not cache.with_name(f'{cache.name}.partial').exists():
            yield (
                f'datasets.{phase}.dataroot_cache',
                f'{cache}: expected a teacher cache, {RECORD} is missing: {REMAKE}',
            )


def _weights(opt: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Of networks: those of a run from a cache are left out, as it may not need them."""
    train, paths = (opt.get('train') or {}) if opt['is_train'] else {}, opt['path']
    named: dict[str, Any] = {}
    if not opt['datasets'].get('train', {}).get('dataroot_cache'):
        named = {f'teachers.{name}.path': teacher.get('path') for name, teacher in (opt.get('teachers') or {}).items()}
        named['aggregator.path'] = (opt.get('aggregator') or {}).get('path')
    if not paths.get('resume_state') and not opt.get('auto_resume'):
        named['path.pretrain_network_g'] = paths.get('pretrain_network_g')
        named['train.init_from_teacher.path'] = (train.get('init_from_teacher') or {}).get('path')
    for where, path in named.items():
        if path and not weights_path(path).is_file():
            yield where, f'no such weights file: {path}'
    for name, term in (train.get('distill') or {}).items():
        encoder = term.get('encoder') or {}
        whole = 'weights' in encoder or {'network', 'path'} <= encoder.keys()
        missing = missing_weights(encoder) if whole else None
        if missing:
            yield f'train.distill.{name}.encoder.{missing[0]}', missing[1]
