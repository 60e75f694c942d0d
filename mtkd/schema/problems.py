"""All mistakes of an option file at once."""

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY

from mtkd.schema.cross import across
from mtkd.schema.kinds import Context
from mtkd.schema.option_schema import SCHEMA
from mtkd.schema.problem import Problem

DEEPEST, MOST = 40, 100_000
SHOWN = 200


def problems(opt: Any) -> list[Problem]:
    """Every mistake in an option file, in the order of its sections; nothing is built, opened or changed.

    ``opt`` is the mapping as it stands in the file, or with what BasicSR's ``parse_options`` adds. A run is one of
    training when ``opt`` says so (``is_train``), else when it has a section ``train`` or trains on a data set.
    """
    if not isinstance(opt, Mapping):
        return [Problem('', f'expected an option file, a mapping; it holds {type(opt).__name__}', opt, 'a mapping')]
    too_large = _too_large(opt)
    if too_large:
        return [too_large]
    found = list(SCHEMA.problems(_read_in(opt, is_training(opt)), '', _context(opt)))
    return found + [one for one in across(opt) if not any(other.path.startswith(one.path) for other in found)]


def refuse(found: list[Problem], what: str = 'the option file') -> None:
    """Raise one ValueError with all that was ``found``, if anything was."""
    if len(found) == 1:
        raise ValueError(str(found[0]))
    if found:
        head = f'{len(found)} problems found in {what}:'
        raise ValueError(f'{head}\n{listed(found)}')


def listed(found: list[Problem]) -> str:
    """A line for each problem, for as many as anyone would read."""
    more = [f'... and {len(found) - SHOWN} more'] if len(found) > SHOWN else []
    return '\n'.join([*map(str, found[:SHOWN]), *more])


def is_training(opt: Mapping[str, Any]) -> bool:
    """Whether these are the options of a training run."""
    datasets = opt.get('datasets')
    return bool(opt.get('is_train', 'train' in opt or (isinstance(datasets, Mapping) and 'train' in datasets)))


def _context(opt: Mapping[str, Any]) -> Context:
    name = opt.get('model_type')
    known = isinstance(name, str) and name in MODEL_REGISTRY
    return Context(is_training(opt), MODEL_REGISTRY.get(name) if known else None)


def _read_in(opt: Mapping[str, Any], training: bool) -> dict[str, Any]:
    """The sections that a run of this sort reads: in testing neither losses nor the log."""
    return {key: value for key, value in opt.items() if training or key not in ('train', 'logger')}


def _too_large(opt: Any) -> Problem | None:
    """A problem for options that refer to themselves, or are nested or repeated beyond what anyone writes."""
    level: list[Any] = [opt]
    count = 0
    for _ in range(DEEPEST):
        level = [item for value in level if isinstance(value, Mapping | list | tuple) for item in _items(value)]
        count += len(level)
        if not level:
            return None
        if count > MOST:
            break
    return Problem('', f'the option file is nested deeper than {DEEPEST} levels or holds over {MOST} values')


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, Mapping) else value
