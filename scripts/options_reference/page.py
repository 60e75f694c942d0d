"""The page docs/options.md: sections of an option file in the order in which they stand in it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import mtkd  # noqa: F401  registers everything, and mends the upstream faults before BasicSR is imported

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

from mtkd.checks import OUR_TOP_LEVEL_KEYS, TRAIN_KEYS
from mtkd.schema import basicsr_keys
from mtkd_arch.teacher_ensemble_arch import AGGREGATOR_KEYS, TEACHER_KEYS
from mtkd_data.dataset_keys import CACHE_KEYS, LOADER_KEYS, PAIR_KEYS
from mtkd_model.distillers import DISTILLER_REGISTRY
from mtkd_model.encoders import ENCODER_KEYS
from mtkd_model.hierarchical_model import HEADS_KEYS
from mtkd_model.slice_init import INIT_KEYS
from mtkd_model.validation_options import METRIC_KEYS, VAL_KEYS
from options_reference.arguments import arguments_of, summary

OURS = ('mtkd_arch.', 'mtkd_data.', 'mtkd_loss.', 'mtkd_model.')
BUILT_BY_THE_MODEL = ('TeacherEnsemble',)  # from the sections teachers and aggregator, not from a type in a file
HEAD = '| {} | type | default | meaning |\n|---|---|---|---|'
INTRODUCTION = """\
# Options reference

Written by `scripts/make_options_reference.py` from the code that checks and reads the options: what stands here is what
a run accepts. Sections not named here are BasicSR's own and mean what they mean there.

An option file is YAML as PyYAML's full loader reads it: write `0.0001`, since `1e-4` would be text. A key that a
section does not know is refused with the nearest match, before anything is written. `required` has no default; `null`
is nothing. BasicSR's own sections may hold other keys, unless they look like a mistyped one of these.

`python -m mtkd check -opt FILE` names every mistake of a file with its line, or says what a run of it would do. Editors
complete and check option files by a JSON Schema: `python -m mtkd schema --out mtkd.schema.json`, and as the first line
of an option file `# yaml-language-server: $schema=/path/to/mtkd.schema.json`. They read YAML 1.2, where `1e-4` is a
number, and want to be told of the tag in the line `plugin:`; in VS Code that is
`"yaml.customTags": ["tag:yaml.org,2002:python/name:mtkd.__version__ scalar"]`.

In a table of arguments, the key `type` that names the class is left out. A mapping of text to number is written
`{edsr: 1.0, rcan: 0.5}`, a list `[1, 2]`. A *tap* is the path of a module, such as `body.-1`: the number of a block may
count from the end. In a teacher it is `<teacher>/<path>`, such as `edsr/body.-1`."""


def page() -> str:
    """The whole page."""
    return '\n\n'.join([INTRODUCTION, *_sections()]) + '\n'


def _sections() -> Iterator[str]:
    yield '## The option file\n\n' + table('key', {**basicsr_keys.TOP_LEVEL_KEYS, **OUR_TOP_LEVEL_KEYS})
    yield '## `model_type`\n\n' + '\n'.join(f'- `{name}`: {summary(kind)}' for name, kind in ours(MODEL_REGISTRY))
    yield '## `teachers`\n\nA mapping of names (letters, digits, `_`) to mappings:\n\n' + table('key', TEACHER_KEYS)
    yield (
        '## `aggregator`\n\nIn stage 2 the trained network; in stage 1 (`AggregationModel`) `inputs` alone.\n\n'
        + table('key', AGGREGATOR_KEYS)
    )
    yield '## `train`\n\n' + table('key', {**TRAIN_KEYS, **HEADS_KEYS, **basicsr_keys.TRAIN_KEYS})
    yield '### `train.init_from_teacher`\n\n' + table('key', INIT_KEYS)
    yield (
        '## `train.distill`\n\nA mapping of names to terms, each with the `type` of a method. Names are for the log '
        'and the checkpoint;\n`pix`, `percep` and `style` are taken. What each method does: [The methods](methods.md).'
    )
    for name, kind in ours(DISTILLER_REGISTRY):
        yield _class(name, kind, level=3, note=_needs(kind))
    yield (
        '### `encoder`\n\nThe feature space of `CSDDistiller` and `DCKDDistiller`: VGG19 by its `weights`, or any '
        'network.\n\n' + table('key', ENCODER_KEYS)
    )
    yield '## Losses\n\nFor `loss` of a term and for `pixel_opt`, beside those of BasicSR.'
    for name, kind in ours(LOSS_REGISTRY):
        yield _class(name, kind, level=3)
    yield '## Networks\n\nFor `network_g` and `network` of a teacher or aggregator, beside those of BasicSR.'
    for name, kind in ours(ARCH_REGISTRY):
        if name not in BUILT_BY_THE_MODEL:
            yield _class(name, kind, level=3)
    yield '## `datasets`\n\nBasicSR has its data sets; ours take the same keys and refuse others. Of both:\n\n' + table(
        'key', {**LOADER_KEYS, **PAIR_KEYS}
    )
    for name, kind in ours(DATASET_REGISTRY):
        keys = {key: row for key, row in kind.keys.items() if key in CACHE_KEYS}
        yield f'### `{name}`\n\n{sentence(summary(kind))}' + (f'\n\n{table("key", keys)}' if keys else '')
    yield '## `val`\n\n' + table('key', VAL_KEYS)
    yield '### `val.metrics`\n\nA mapping of names to metrics:\n\n' + table('key', METRIC_KEYS)
    yield "## `path`\n\nBasicSR's; it makes a folder of every other key.\n\n" + table('key', basicsr_keys.PATH_KEYS)
    yield "## `logger`\n\nBasicSR's.\n\n" + table('key', basicsr_keys.LOGGER_KEYS)
    yield "## `dist_params`\n\nBasicSR's.\n\n" + table('key', basicsr_keys.DIST_KEYS)


def ours(registry: Any) -> list[tuple[str, type]]:
    """The classes of this project in a registry, by name."""
    return sorted((name, kind) for name, kind in registry if kind.__module__.startswith(OURS))


def table(head: str, keys: Mapping[str, tuple[str, str, str]]) -> str:
    """A table of the keys of a section."""
    return rows(head, ((name, *row) for name, row in keys.items()))


def rows(head: str, lines: Iterable[tuple[str, str, str, str]]) -> str:
    """A table with a head; raises ValueError for a text that would break it."""
    lines = list(lines)
    for line in lines:
        prose = re.sub('`.*?`', '', ' '.join(line))
        if any('|' in cell for cell in line) or re.search(r'<\w', prose):
            raise ValueError(f'a bar, or an angle bracket outside a code span, would break the table: {line}')
    return '\n'.join([HEAD.format(head), *(f'| `{n}` | {t} | {d} | {m} |' for n, t, d, m in lines)])


def _class(name: str, kind: type, level: int, note: str = '') -> str:
    parts = [f'{"#" * level} `{name}`', sentence(summary(kind)), note, rows('argument', arguments_of(kind))]
    return '\n\n'.join(part for part in parts if part)


def _needs(kind: type) -> str:
    if not kind.needs_teachers:
        needs = 'Needs no teachers.'
    elif kind.needs_networks:
        needs = "Needs the teachers' networks."
    else:
        needs = 'Compares outputs: a teacher cache is enough.'
    return needs + (f' At least {kind.smallest_batch} images in a batch.' if kind.smallest_batch > 1 else '')


def sentence(text: str) -> str:
    """``text``, ending in a full stop."""
    return text if text.endswith(('.', ':')) else f'{text}.'
