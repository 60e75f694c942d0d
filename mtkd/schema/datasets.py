"""The section ``datasets``: which phases there are, and what a data set of each may say."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mtkd.schema.basicsr_keys import FOREIGN_DATASET_KEYS, IO_KEYS
from mtkd.schema.kinds import Anything, Context, Kind
from mtkd.schema.mismatch import mismatch
from mtkd.schema.problem import Problem, join, shown
from mtkd.schema.sections import Key, Section, keys_of
from mtkd.schema.typed import mentions
from mtkd_data.dataset_keys import LOADER_KEYS, PAIR_KEYS
from mtkd_data.paired_crops import NORMALISING

OF_OURS_ALONE = ('resident', 'resident_shard')


def dataset_section(name: str, kind: Any) -> Section:
    """What a data set takes: ours have a table of their own, of BasicSR's only some keys are known here."""
    io_backend = {'io_backend': Section(keys_of(IO_KEYS), closed=False)}
    own = getattr(kind, 'keys', None)
    if isinstance(own, Mapping):
        keys = keys_of(own, io_backend) | {key: Key(Anything()) for key in NORMALISING}  # it refuses these itself
        return Section({key: one for key, one in keys.items() if key != 'type'})
    table = {**LOADER_KEYS, **PAIR_KEYS}
    if name == 'PairedImageDataset':
        keys = {key: one for key, one in keys_of(table, io_backend).items() if key not in OF_OURS_ALONE}
    else:
        keys = {key: one for key, one in keys_of(table).items() if key in FOREIGN_DATASET_KEYS}
    keys.pop('type')

    def elsewhere(key: str, context: Context) -> bool:
        return mentions(kind, key)

    return Section(keys, closed=False, elsewhere=elsewhere)


@dataclass(frozen=True)
class Datasets(Kind):
    """``train``, ``val``, ``val_1``, ...; in testing ``test``, ``test_1``, ...: each a ``dataset``."""

    dataset: Kind
    parts = ('mapping of data sets',)

    def problems(self, value: Any, path: str, context: Context) -> Iterator[Problem]:
        if not isinstance(value, Mapping):
            yield mismatch(value, path, self)
            return
        phases = ('train', 'val') if context.training else ('train', 'val', 'test')
        for name, dataset in value.items():
            phase = str(name).split('_')[0]
            if phase not in phases:
                run = 'training' if context.training else 'testing'
                expected = ', '.join(f'{known} or {known}_1' for known in phases)
                message = f'unknown key {shown(name)} in {path}: in {run} it should be {expected} and so on'
                yield Problem(join(path, name), message, name, expected)
            else:
                yield from self.dataset.problems(dataset, join(path, name), replace(context, training=phase == 'train'))
        if context.training and 'train' not in value:
            yield Problem(path, f"{path} lacks the key 'train'", None, 'a data set to train on', 'train')

    def json(self) -> dict[str, Any]:
        dataset = self.dataset.json()
        return {
            'type': 'object',
            'patternProperties': {'^(train|val|test)(_|$)': dataset},
            'additionalProperties': False,
        }
