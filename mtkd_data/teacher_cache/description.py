"""What a teacher cache was made from, as cache.json has it, and how it is compared with an option file."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtkd_data.weights_path import weights_path

CACHE_VERSION = 1
FORMATS = ('lmdb', 'disk')
NETWORK_ITEMS = ('network', 'window', 'param_key', 'strict', 'weights')


def teacher_order(opt: Mapping[str, Any]) -> list[str]:
    """The teachers that make the target, in their order: ``aggregator.inputs``, or all as listed."""
    return list((opt.get('aggregator') or {}).get('inputs') or opt['teachers'])


def choose_stores(opt: Mapping[str, Any], asked: Sequence[str]) -> tuple[str, ...]:
    """The stores to make, the target first, then teachers as listed.

    Asked for nothing, the target, or for ``AggregationModel``, which makes it, the teachers it takes. ``all`` is the
    target and every teacher. Raises ValueError, with the nearest match, for a name that is neither.
    """
    from mtkd.checks import nearest  # here: importing mtkd loads torch, and reading a cache needs none

    known = ('target', *opt['teachers'])
    if not asked:
        asked = teacher_order(opt) if opt.get('model_type') == 'AggregationModel' else ['target']
    elif 'all' in asked:
        asked = known
    for name in asked:
        if name not in known:
            raise ValueError(f"no store '{name}': {nearest(name, known)}Stores: {', '.join(known)}, or all")
    return tuple(name for name in known if name in asked)


def involved_teachers(stores: Iterable[str], order: Iterable[str], names: Iterable[str]) -> list[str]:
    """Those of the teachers ``names`` that are needed to make ``stores``."""
    stores, order = set(stores), set(order)
    return [name for name in names if name in stores or ('target' in stores and name in order)]


def describe_networks(opt: Mapping[str, Any], stores: Iterable[str]) -> dict[str, Any]:
    """The items ``inputs``, ``teachers`` and ``aggregator`` of cache.json; reads all weights files involved."""
    order, aggregator = teacher_order(opt), opt.get('aggregator') or {}
    involved = involved_teachers(stores, order, opt['teachers'])
    described = None
    if 'target' in stores and 'network' in aggregator:
        described = {'inputs': order, **_describe_loaded(aggregator, 'aggregator')}
        del described['window']  # it pads by itself
    teachers = {name: _describe_loaded(opt['teachers'][name], f'teachers.{name}') for name in involved}
    return {'inputs': [name for name in order if name in involved], 'teachers': teachers, 'aggregator': described}


def _describe_loaded(opt: Mapping[str, Any], where: str) -> dict[str, Any]:
    described = describe_network(opt, where)
    if not opt.get('path'):
        raise ValueError(f'{where}.path is empty: it should name a file of trained weights')
    try:
        return {**described, 'weights': sha256_of_file(weights_path(opt['path']))}
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{where}.path: {error}') from error


def describe_network(opt: Mapping[str, Any], where: str) -> dict[str, Any]:
    """One network of an option file without its weights, as JSON would hold it; ``where`` is what errors call it."""
    if not isinstance(opt, Mapping) or not isinstance(opt.get('network'), Mapping):
        raise ValueError(f"{where} should be a mapping with the keys 'network' and 'path'; it is {opt!r}")
    network = json.loads(json.dumps(opt['network'], default=str))
    return {
        'network': network,
        'window': opt.get('window', network.get('window_size', 1)),
        'param_key': opt.get('param_key'),
        'strict': opt.get('strict', True),
    }


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file. Raises FileNotFoundError where there is none."""
    if not path.is_file():
        raise FileNotFoundError(f'no such weights file: {path}')
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()


def compare_teachers(made: Mapping[str, Any], opt: Mapping[str, Any], stores: Sequence[str], root: Path) -> None:
    """Raise ValueError for the first difference between cache.json, ``made``, and the option file that tells in
    ``stores``."""
    if not opt.get('teachers'):
        raise ValueError(f'{root} holds what teachers made, but the option file has no teachers: add its section')
    involved = involved_teachers(stores, made['inputs'], made['teachers'])
    aggregator = opt.get('aggregator') or {}
    if aggregator.get('path') and 'network' not in aggregator and 'target' in stores:
        opt = {**opt, 'aggregator': _named(aggregator, made['aggregator'], 'aggregator')}
    for name in involved:
        if name not in opt['teachers']:
            raise ValueError(
                f"{root} was made with the teacher '{name}', the option file has {', '.join(opt['teachers'])}: "
                'name the same teachers, or make a new cache'
            )
        _compare_network(made['teachers'][name], opt['teachers'][name], f'teachers.{name}', root)
    if 'target' in stores:
        _compare_target(made, opt, root)


def _compare_target(made: Mapping[str, Any], opt: Mapping[str, Any], root: Path) -> None:
    aggregator, order = opt.get('aggregator') or {}, teacher_order(opt)
    if made['inputs'] != order:
        raise _differs('the order of the teachers (aggregator.inputs)', made['inputs'], order, root)
    made_by, given = (
        'an aggregator' if there else 'the mean' for there in (made['aggregator'], 'network' in aggregator)
    )
    if made_by != given:
        raise _differs('what makes the target', made_by, given, root)
    if made['aggregator']:
        _compare_network(made['aggregator'], aggregator, 'aggregator', root)


def _compare_network(made: Mapping[str, Any], opt: Mapping[str, Any], where: str, root: Path) -> None:
    given = describe_network(_named(opt, made, where), where)
    for item in NETWORK_ITEMS:
        if item in made and item != 'weights' and made[item] != given[item]:
            raise _differs(f'{where}.{item}', made[item], given[item], root)
    path = weights_path(opt['path']) if opt.get('path') else None
    if path is None or not path.is_file():
        # not the logger: this comes before BasicSR has given it its file
        warnings.warn(
            f'{where}.path: no file {path} to compare; {root} was made from weights of SHA-256 {made["weights"]}',
            stacklevel=2,
        )
        return
    weights = sha256_of_file(path)
    if weights != made['weights']:
        raise _differs(f'the weights of {where} (SHA-256; now {path})', made['weights'], weights, root)


def _named(opt: Mapping[str, Any], made: Mapping[str, Any] | None, where: str) -> Mapping[str, Any]:
    """With the network that the weights file names; where the file is gone, the network of the cache will be meant."""
    if not isinstance(opt, Mapping) or 'network' in opt or not opt.get('path'):
        return opt
    if not weights_path(opt['path']).is_file():
        return {**opt, 'network': made['network']} if made else opt
    from mtkd_arch.named_network import with_named_network  # here: it loads torch, and reading a cache needs none

    return with_named_network(opt, where)


def _differs(what: str, made: Any, given: Any, root: Path) -> ValueError:
    return ValueError(
        f'{root} is a cache of other networks: {what}: in the cache {made}, in the option file {given}: give what it '
        'was made from, or make a new cache with scripts/cache_teachers.py'
    )
