"""The schema of option files: what ships has no problem, every mutation has the expected one, with its line."""

import copy
import importlib.util
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY
from conftest import REPO, read_option

from mtkd import checks
from mtkd.schema import basicsr_keys, cross, reader, typed
from mtkd.schema.force import force, forced_value
from mtkd.schema.json_schema import json_schema
from mtkd.schema.kinds import Context, Number
from mtkd.schema.places import OptionFile, with_places
from mtkd.schema.problem import Problem
from mtkd.schema.problems import problems, refuse
from mtkd.schema.words import kind_of_words
from mtkd_arch.teacher_ensemble_arch import AGGREGATOR_KEYS, TEACHER_KEYS
from mtkd_data.dataset_keys import CACHE_KEYS, LOADER_KEYS, PAIR_KEYS
from mtkd_model.acceleration import COMPILE_MODES
from mtkd_model.encoders import ENCODER_KEYS
from mtkd_model.hierarchical_model import HEADS_KEYS
from mtkd_model.slice_init import INIT_KEYS
from mtkd_model.validation_options import METRIC_KEYS, VAL_KEYS

Options = dict[str, Any]
FILES = sorted(path for path in (REPO / 'options').rglob('*.yml') if path.parent.name != 'study')
SHIPPED = 'train_mtkd_x4.yml'
TABLES = (
    checks.OUR_TOP_LEVEL_KEYS, checks.TRAIN_KEYS, TEACHER_KEYS, AGGREGATOR_KEYS, LOADER_KEYS, PAIR_KEYS, CACHE_KEYS,
    ENCODER_KEYS, HEADS_KEYS, INIT_KEYS, METRIC_KEYS, VAL_KEYS, basicsr_keys.TOP_LEVEL_KEYS, basicsr_keys.TRAIN_KEYS,
    basicsr_keys.PATH_KEYS, basicsr_keys.LOGGER_KEYS, basicsr_keys.WANDB_KEYS, basicsr_keys.DIST_KEYS,
    basicsr_keys.IO_KEYS,
)  # fmt: skip


@pytest.fixture(scope='module')
def shipped() -> Options:
    """The main option file, as the safe reader gives it."""
    return reader.read(REPO / 'options' / SHIPPED).options


@pytest.fixture(scope='module')
def schema() -> Options:
    return json_schema()


def changed(options: Options, path: str, value: Any) -> Options:
    """A copy in which the key at a dotted path has another value; a missing section is made."""
    options = copy.deepcopy(options)
    *sections, last = path.split('.')
    section = options
    for key in sections:
        section = section.setdefault(key, {})
    if value is ...:
        del section[last]
    else:
        section[last] = value
    return options


def test_all_shipped_files_are_found() -> None:
    assert len(FILES) >= 144


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.relative_to(REPO / 'options').as_posix())
def test_a_shipped_file_has_no_problem_and_reads_safely_as_basicsr_reads_it(path: Path) -> None:
    file = reader.read(path)
    assert with_places(problems(file.options), file) == []
    assert file.options == read_option(path)


@pytest.mark.parametrize('table', TABLES, ids=lambda table: next(iter(table)))
def test_the_words_of_every_table_are_a_kind_that_says_them_again(table: dict[str, tuple[str, str, str]]) -> None:
    for words, _, _ in table.values():
        said = str(kind_of_words(words))
        assert said == words.replace('above zero', 'above 0').replace('number above', 'number, above')


def test_words_that_say_nothing_are_refused() -> None:
    for words in ('true, false or a mode', 'whole number, from 3', 'something else'):
        with pytest.raises(ValueError):
            kind_of_words(words)


@pytest.mark.parametrize(
    ('words', 'right', 'wrong'),
    [
        ('whole number, at least 1', [1, 7, 10**400], [0, 1.0, True, '1', None, float('nan')]),
        ('number, at least 0 and below 1', [0, 0.999, False + 0], [1, -0.1, float('nan'), float('inf'), 'a', True]),
        ('number above zero', [1e-9, 3], [0, -1]),
        ('whole number, 1 to 8', [1, 8], [0, 9]),
        ('null, bf16, fp16 or auto', [None, 'bf16'], ['fp6', False, 'null']),
        ('null, true, false or default', [True, None, 'default'], ['true', 1, 0]),
        ('list of whole numbers, at least 1', [[], [1, 2], (3,)], [[0], 1, 'a', [1.5]]),
        ('list of 2 numbers, at least 0 and below 1', [[0, 0.9]], [[0.9], [0, 1], [0, 0, 0]]),
        ('list of teachers', [['edsr']], [[1], 'edsr', {'edsr': 1}]),
        ('path', ['a/b'], [3, date(2024, 1, 1), None]),
        ('mapping', [{}, {'a': 1}], [[], 'a', 3]),
    ],
)
def test_a_kind_accepts_what_its_words_say(words: str, right: list[Any], wrong: list[Any]) -> None:
    kind = kind_of_words(words)
    for value in right:
        assert kind.accepts(value), value
        assert not list(kind.problems(value, 'key', Context()))
    for value in wrong:
        assert not kind.accepts(value), value
        assert list(kind.problems(value, 'key', Context())), value


def test_the_modes_of_the_table_are_those_of_the_code() -> None:
    kind = kind_of_words(checks.TRAIN_KEYS['compile'][0])
    assert all(kind.accepts(mode) for mode in (*COMPILE_MODES, True, False, None))
    assert not kind.accepts('fast')


MUTATIONS = [
    ('scale', 9, 'scale should be a whole number, 1 to 8; it is 9'),
    ('scale', ..., "the option file lacks the key 'scale'"),
    ('name', True, 'name should be text; it is True: YAML 1.1 reads on, off, yes and no as true and false'),
    ('name', date(2024, 1, 1), 'it is datetime.date(2024, 1, 1): YAML 1.1 reads it as a date: put text in quotes'),
    ('num_gpu', 'all', "num_gpu should be auto or a whole number, at least 0; it is 'all'"),
    ('manual_seed', -1, 'manual_seed should be a whole number, 0 to 4294967295; it is -1'),
    ('manul_seed', 3, "unknown key 'manul_seed' in the option file: did you mean 'manual_seed'?"),
    ('model_type', 'MultiTeacherModel', "unknown type 'MultiTeacherModel': did you mean 'MultiTeacherSRModel'?"),
    ('datasets', None, 'datasets is empty: it should be a mapping of data sets'),
    ('datasets.train', ..., "datasets lacks the key 'train'"),
    ('datasets.vall', {}, "unknown key 'vall' in datasets: in training it should be train or train_1, val or val_1"),
    ('datasets.train', [1], "datasets.train should be a mapping with the key 'type'; it is [1]"),
    ('datasets.train.type', 'PairedImageDatset', "did you mean 'PairedImageDataset'?"),
    ('datasets.train.gt_size', 130, 'datasets.train.gt_size 130 is not a multiple of the scale 4'),
    ('datasets.train.gt_size', '128', "it is '128': write 128, without quotes"),
    ('datasets.train.batch_size_per_gpu', 0, 'datasets.train.batch_size_per_gpu should be a whole number, at least 1'),
    ('datasets.train.num_worker_per_gpu', ..., "datasets.train lacks the key 'num_worker_per_gpu'"),
    ('datasets.train.num_worker_per_gpus', 3, "did you mean 'num_worker_per_gpu'?"),
    ('datasets.train.dataset_enlarge_ratio', 0, 'dataset_enlarge_ratio should be a number, above 0; it is 0'),
    ('datasets.train.prefetch_mode', 'gpu', "prefetch_mode should be null, cpu or cuda; it is 'gpu'"),
    ('datasets.train.io_backend', {'type': 'lmbd'}, "io_backend.type should be lmdb, disk or memcached; it is 'lmbd'"),
    ('datasets.train.use_hflip', 'true', "it is 'true': write true, without quotes"),
    ('datasets.val.dataroot_gt', None, 'datasets.val.dataroot_gt is empty: it should be a path'),
    ('teachers', ['edsr'], "teachers should be a mapping of named networks; it is ['edsr']"),
    ('teachers.edsr', 'edsr.pth', "teachers.edsr should be a mapping with keys among network, path"),
    ('teachers.edsr.strct', True, "unknown key 'strct' in teachers.edsr: did you mean 'strict'?"),
    ('teachers.edsr.precision', 'fp8', "teachers.edsr.precision should be fp32, bf16, fp16 or auto; it is 'fp8'"),
    ('teachers.edsr.network.num_feat', '256', "num_feat should be a whole number, at least 1; it is '256': write 256"),
    ('teachers.edsr.network.num_in_ch', ..., "teachers.edsr.network lacks the key 'num_in_ch'"),
    ('teachers.edsr.network.rgb_mean', 0.4, 'teachers.edsr.network.rgb_mean should be a list of numbers; it is 0.4'),
    ('teachers.swinir.network.depths', [6, 'six'], "teachers.swinir.network.depths.1 should be a whole number"),
    ('teachers.swinir.network.num_heads', [6], 'depths has 6 entries, teachers.swinir.network.num_heads has 1'),
    ('teachers.swinir.network.embed_dims', 60, "unknown key 'embed_dims' in teachers.swinir.network: did you mean"),
    ('aggregator.inputs', ..., "aggregator lacks the key 'inputs'"),
    ('aggregator.network.dct', 'fft', "should be orthonormal, unnormalised, none or null; it is 'fft'"),
    ('network_g', None, 'network_g is empty: it should be a mapping'),
    ('network_g.type', ['EDSR'], 'network_g.type: unknown type'),
    ('network_g.upscale', 16, 'network_g.upscale should be a whole number, 1 to 8; it is 16'),
    ('path', 'experiments', "path should be a mapping with keys among pretrain_network_g"),
    ('path.resume_sate', 'x', "unknown key 'resume_sate' in path: did you mean 'resume_state'?"),
    ('path.strict_load_g', 'maybe', "path.strict_load_g should be true or false; it is 'maybe'"),
    ('train', ..., "the option file lacks the key 'train'"),
    ('train.ema_decay', 1, 'train.ema_decay should be a number, at least 0 and below 1; it is 1'),
    ('train.total_iter', 1000.5, 'train.total_iter should be a whole number, at least 1; it is 1000.5'),
    (
        'train.amp',
        False,
        'train.amp should be null, bf16, fp16 or auto; it is False: YAML 1.1 reads on, off, yes and no',
    ),
    ('train.warmup_iters', 3, "unknown key 'warmup_iters' in train: did you mean 'warmup_iter'?"),
    ('train.optim_g.lr', '1e-4', "lr is the string '1e-4', not a number: YAML 1.1 wants 0.0001 or !!float 1e-4"),
    ('train.optim_g.lr', f'1e{9**30}', 'train.optim_g.lr should be a number, at least 0; it is'),
    ('train.optim_g.lr', -1, 'train.optim_g.lr should be a number, at least 0; it is -1'),
    ('train.optim_g.betas', [0.9], 'train.optim_g.betas should be a list of 2 numbers, at least 0 and below 1'),
    ('train.optim_g.weight_decy', 0, "unknown key 'weight_decy' in train.optim_g: did you mean 'weight_decay'?"),
    ('train.optim_g.type', 'Adm', "train.optim_g.type: unknown type 'Adm': did you mean 'Adam'?"),
    ('train.scheduler.milestones', 1000, 'train.scheduler.milestones should be a list of whole numbers, at least 0'),
    ('train.scheduler.type', 'StepLR', "train.scheduler.type: unknown type 'StepLR'"),
    ('train.scheduler', {'type': 'CosineAnnealingRestartLR', 'periods': [1, 2]}, 'periods has 2 entries'),
    ('train.pixel_opt.reduction', 'average', "reduction should be none, mean or sum; it is 'average'"),
    ('train.distill', {'a': None}, 'train.distill.a is empty: it should be a mapping'),
    ('train.distill.wavelet.loss', {'type': 'WaveletLos'}, "distill.wavelet.loss.type: unknown type 'WaveletLos'"),
    ('train.distill.wavelet.loss.level', 1.5, 'wavelet.loss.level should be a whole number; it is 1.5'),
    ('train.distill.wavelet.loss_weight', '1e-2', 'YAML 1.1 wants 0.01 or !!float 1e-2'),
    ('train.distill.a', {'type': 'ATDistiller', 'norm': 'l3'}, "train.distill.a.norm should be l1 or l2; it is 'l3'"),
    ('train.distill.a', {'type': 'ATDistiller', 'taps': {'x': [1]}}, 'train.distill.a.taps.x'),
    ('train.distill.a', {'type': 'CSDDistiller', 'encoder': {'wights': 'x'}}, "did you mean 'weights'?"),
    ('train.something.deep', '1e-4', "train.something.deep is the string '1e-4'"),
    ('train.init_from_teacher', {'teachr': 'edsr'}, "unknown key 'teachr' in train.init_from_teacher"),
    ('val.val_freq', 0, 'val.val_freq should be a whole number, at least 1; it is 0'),
    ('val.metrics.psnr.type', 'calculate_pnsr', "did you mean 'calculate_psnr'?"),
    ('val.metrics.niqe', {'type': 'calculate_niqe'}, "val.metrics.niqe lacks the key 'crop_border'"),
    ('logger.print_freq', ..., "logger lacks the key 'print_freq'"),
    ('logger.print_frq', 3, "unknown key 'print_frq' in logger: did you mean 'print_freq'?"),
    ('logger.wandb', True, 'logger.wandb should be a mapping'),
    ('dist_params.port', 70000, 'dist_params.port should be a whole number, 1 to 65535; it is 70000'),
]  # fmt: skip


@pytest.mark.parametrize(('path', 'value', 'message'), MUTATIONS)
def test_a_mutation_has_the_one_problem_expected(shipped: Options, path: str, value: Any, message: str) -> None:
    found = problems(changed(shipped, path, value))
    assert len(found) == 1, [str(problem) for problem in found]
    assert message in str(found[0])
    section = path.rpartition('.')[0]
    assert found[0].path.startswith(section) or section.startswith(found[0].path)


def test_all_problems_come_at_once_in_the_order_of_the_file(shipped: Options) -> None:
    wrong = {
        'datasets.train.gt_size': 'a', 'network_g.num_feat': 0, 'train.total_iter': -1, 'val.val_freq': None,
        'logger.print_freq': 0, 'dist_params.port': 0,
    }  # fmt: skip
    options = shipped
    for path, value in reversed(wrong.items()):
        options = changed(options, path, value)
    assert [problem.path for problem in problems(options)] == list(wrong)


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        ('gt_usm', True),  # keys of other projects
        ('degradation', {'resize_prob': [0.2, 0.7, 0.1]}),
        ('network_d', {'type': 'UNetDiscriminatorSN'}),
        ('train.net_d_iters', 1),
        ('train.gan_opt', {'type': 'GANLoss'}),
        ('train.optim_d', {'type': 'Adam', 'lr': 0.1}),
        ('path.pretrain_network_d', None),
        ('path.param_key_d', 'params'),
        ('datasets.train.mean', [0.5, 0.5, 0.5]),  # PairedImageDataset itself reads it
        ('datasets.train.color', 'y'),
        ('datasets.train.client_keys', ['lq', 'gt']),
        ('network_g', {'type': 'SRVGGNetCompact', 'upscale': 4}),  # registered as SRVGGNetCompact_basicsr
        ('train.total_iter', 5e5),  # as BasicSR's own files say it
        ('val.val_freq', 5e3),
        ('logger.save_checkpoint_freq', 5e3),
        ('dist', False),  # what parse_options adds
        ('rank', 0),
        ('root_path', '/tmp'),
        ('path.experiments_root', '/tmp/x'),
        ('datasets.train.phase', 'train'),
        ('teachers', None),
        ('aggregator', None),
        ('val', None),
        ('train.perceptual_opt', {'type': 'PerceptualLoss', 'layer_weights': {'conv5_4': 1}, 'criterion': 'l1'}),
    ],
)
def test_what_basicsr_or_another_project_may_say_is_let_through(shipped: Options, path: str, value: Any) -> None:
    assert problems(changed(shipped, path, value)) == []


class AnArch(torch.nn.Module):
    """A network of another project: no hints, keys of its own."""

    def __init__(self, num_feat=64, window=(8, 32), act='gelu', shift=False, extra=None, **kwargs) -> None:
        super().__init__()


class AnotherDataset:
    """Reads 'gt_size_h', which is nearly 'gt_size'."""


def test_classes_of_other_projects_are_read_leniently(shipped: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCH_REGISTRY._obj_map, 'AnArch', AnArch)
    network = {'type': 'AnArch', 'num_feat': [48, 64], 'window': [4, 4], 'act': None, 'extra': {'any': 1}, 'own': 3}
    assert problems(changed(shipped, 'network_g', network)) == []
    wrong = {**network, 'act': 3, 'num_faet': 3}
    assert {problem.path for problem in problems(changed(shipped, 'network_g', wrong))} == {
        'network_g.act', 'network_g.num_faet',
    }  # fmt: skip


def test_a_key_that_the_class_itself_speaks_of_is_no_mistake(shipped: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASET_REGISTRY._obj_map, 'AnotherDataset', AnotherDataset)
    dataset = {**shipped['datasets']['train'], 'type': 'AnotherDataset', 'batch_size_per_gpu_h': 3}
    assert len(problems(changed(shipped, 'datasets.train', dataset))) == 0  # this file speaks of it
    del dataset['batch_size_per_gpu_h']
    found = problems(changed(shipped, 'datasets.train', {**dataset, '_'.join(('num', 'worker', 'per', 'gpus')): 3}))
    assert [problem.nearest for problem in found] == ['num_worker_per_gpu']


def test_a_problem_says_its_parts(shipped: Options) -> None:
    (problem,) = problems(changed(shipped, 'train.ema_decy', 0.5))
    assert (problem.path, problem.given, problem.nearest) == ('train.ema_decy', 'ema_decy', 'ema_decay')
    (problem,) = problems(changed(shipped, 'train.ema_decay', 2))
    assert (problem.path, problem.given, problem.expected) == (
        'train.ema_decay', 2, 'a number, at least 0 and below 1',
    )  # fmt: skip


def test_nothing_is_changed_by_looking(shipped: Options) -> None:
    before = copy.deepcopy(shipped)
    problems(shipped)
    assert shipped == before


def test_one_error_lists_all_problems(shipped: Options) -> None:
    refuse([])
    with pytest.raises(ValueError, match=r'^scale should be a whole number, 1 to 8; it is 9$'):
        refuse(problems(changed(shipped, 'scale', 9)))
    with pytest.raises(ValueError, match=r'(?s)^2 problems found in the option file:\nscale should.*\nval should'):
        refuse(problems(changed(changed(shipped, 'scale', 9), 'val', 3)))


@pytest.mark.parametrize('options', [None, 3, [], 'text', {}, {1: 2}, {None: None}, {'train': {'distill': []}}])
def test_whatever_is_given_gets_problems_and_no_other_error(options: Any) -> None:
    found = problems(options)
    assert found
    assert all(isinstance(problem, Problem) and str(problem) for problem in found)


def test_every_key_may_be_anything_without_a_crash(shipped: Options) -> None:
    strange = (
        None,
        True,
        -1,
        10**400,
        float('nan'),
        '',
        'ü\x00',
        [],
        [[]],
        {},
        {'type': []},
        {'type': 3},
        date(1, 1, 1),
    )
    for path in _paths(shipped):
        for value in strange:
            assert all(str(problem) for problem in problems(changed(shipped, path, value)))


def _paths(options: Any, path: str = '') -> Iterator[str]:
    for key, value in options.items():
        yield f'{path}{key}'
        if isinstance(value, dict) and (path or key in ('train', 'datasets', 'val', 'network_g')):
            yield from _paths(value, f'{path}{key}.')


@pytest.mark.injects('bad input', 'option files that are no options, or hold code')
def test_options_that_refer_to_themselves_are_refused(shipped: Options) -> None:
    endless: Options = {}
    endless['train'] = endless
    assert 'nested deeper than' in str(problems(endless)[0])
    wide: Any = 'lol'
    for _ in range(30):
        wide = [wide] * 10
    assert 'holds over' in str(problems({**shipped, 'extra': wide})[0])


def text_of(options: Options) -> str:
    return yaml.safe_dump(options, sort_keys=False)


def parsed(text: str) -> OptionFile:
    return reader.parse(text, Path('x.yml'))


def test_lines_are_those_of_the_keys() -> None:
    file = parsed('name: a\ndatasets:\n  train:\n    # a comment\n    gt_size: 64\n    list: [1,\n      2]\n')
    places = {path: place.line for path, place in file.places.items()}
    assert places == {
        'name': 1, 'datasets': 2, 'datasets.train': 3, 'datasets.train.gt_size': 5, 'datasets.train.list': 6,
        'datasets.train.list.0': 6, 'datasets.train.list.1': 7,
    }  # fmt: skip
    assert str(file.located(Problem('datasets.train.none', 'is wrong'))) == 'x.yml:3: is wrong'
    assert str(file.located(Problem('', 'is wrong'))) == 'x.yml:1: is wrong'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('scale: 4\nscale: 2\n', 'x.yml:2: scale is given twice, first in line 1'),
        ('a:\n  b: 1\n  c: 2\n  b: 3\n', 'x.yml:4: a.b is given twice, first in line 2'),
        ('batch: 010\n', 'x.yml:1: batch: 010 is 8 in YAML 1.1, as a number that begins with 0 is octal'),
        ('time: 1:30\n', 'x.yml:1: time: 1:30 is 90 in YAML 1.1, as colons make it sexagesimal'),
        ('day: 2024-13-45\n', "x.yml:1: day is '2024-13-45', which YAML 1.1 takes for something it is not"),
        ('a: &x {b: 1}\nc:\n  <<: *x\n', "x.yml:3: BasicSR's loader knows no merging by <<: write the keys out"),
        ('? [1, 2]\n: 3\n', 'x.yml:1: a key in the option file is a sequence'),
        ('a: !mine 3\n', 'x.yml:1: the tag !mine is refused: it means nothing here'),
        ('a: !!set {b}\n', 'x.yml:1: the tag !!set is refused'),
        (
            'a: !!python/name:os.system\n',
            'x.yml:1: the tag !!python/name:os.system is refused: it would run Python code',
        ),
        ('a:\n- !!python/tuple [1]\n', 'x.yml:2: the tag !!python/tuple is refused'),
        ('a: &a [*a]\n', 'refers to itself'),
        ('a: ' + '[' * 60 + ']' * 60, 'nested deeper than 40 levels'),
    ],
)
@pytest.mark.injects('bad input', 'option files that are no options, or hold code')
def test_what_is_wrong_with_the_text_has_its_line(text: str, message: str) -> None:
    found = parsed(text).problems
    assert message in str(found[0])


@pytest.mark.injects('bad input', 'option files that are no options, or hold code')
def test_aliases_that_multiply_are_refused_in_time() -> None:
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
    lines += [f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 10)}]' for n in range(1, 12)]
    file = parsed('\n'.join(lines))
    assert 'too long' in str(file.problems[0])
    assert len(file.problems) < 5000


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: 1\n\tb: 2\n', r'^x\.yml:2: cannot be read as YAML: a tab: YAML is indented by spaces$'),
        ('a: [1, 2\nb: 3\n', r'^x\.yml:2: cannot be read as YAML: while parsing a flow sequence'),
        ('a: 1\n---\nb: 2\n', r'^x\.yml:2: cannot be read as YAML'),
        ('a: \x01\n', r'^x\.yml: cannot be read as YAML'),
        ('a: ' + '[' * 5000, r'^x\.yml: cannot be read as YAML: it is nested too deeply'),
    ],
)
@pytest.mark.injects('bad input', 'option files that are no options, or hold code')
def test_what_is_no_yaml_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(text)


@pytest.mark.injects('bad input', 'option files that are no options, or hold code')
def test_what_is_no_text_or_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'x.yml').write_bytes(b'\xff\xfe\x00a')
    with pytest.raises(ValueError, match=r'x\.yml: cannot be read as text in UTF-8'):
        reader.read(tmp_path / 'x.yml')
    (tmp_path / 'x.yml').write_bytes(b' ' * (reader.LARGEST + 1))
    with pytest.raises(ValueError, match='more than'):
        reader.read(tmp_path / 'x.yml')
    with pytest.raises(FileNotFoundError, match='no such option file'):
        reader.read(tmp_path)
    assert parsed('').options is None


ATTACKS = (
    '!!python/object/apply:os.system ["touch {mark}"]',
    '!!python/object/new:os.system ["touch {mark}"]',
    '!!python/object/apply:subprocess.check_output [[touch, "{mark}"]]',
    '!!python/name:attack.run',
    '!!python/module:attack',
    '!!python/object:attack.Run {{}}',
)


@pytest.mark.parametrize('attack', ATTACKS)
@pytest.mark.injects('bad input', 'option files that are no options, or hold code')
def test_no_tag_runs_code(attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / 'owned'
    (tmp_path / 'attack.py').write_text(f'open({str(mark)!r}, "w")\nclass Run:\n  pass\nrun = 1\n')
    monkeypatch.syspath_prepend(tmp_path)
    text = attack.format(mark=mark)
    for place in (f'name: {text}', f'{text}: 1' if '[' not in text else f'? {text}\n: 1', f'a: [{text} ]', text):
        file = parsed(place)
        assert any('is refused: it would run Python code' in str(problem) for problem in file.problems), place
        assert 'attack' not in sys.modules
    assert not mark.exists()


def test_a_boolean_that_was_written_otherwise_is_shown_as_written(shipped: Options) -> None:
    file = parsed(text_of(shipped).replace('name: MTKD_edsr_x4', 'name: on', 1))
    (found,) = with_places(problems(file.options), file)
    assert str(found).startswith(
        'x.yml:1: name should be text; it is True, written on: YAML 1.1 reads on, off, yes and'
    )


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('~', None), ('None', None), ('true', True), ('False', False), ('12', 12), ('0.5', 0.5),
        ('!!float 1e-4', 0.0001),
        ('[1, 2]', [1, 2]), ('1e-4', '1e-4'), ('-1', '-1'), ('a/b.pth', 'a/b.pth'),
    ],
)  # fmt: skip
def test_a_forced_value_is_what_basicsr_makes_of_it(text: str, value: Any) -> None:
    from basicsr.utils.options import _postprocess_yml_value

    assert forced_value(text) == value
    assert _postprocess_yml_value(text) == value


@pytest.mark.injects('bad input', 'option files that are no options, or hold code')
def test_a_forced_list_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / 'owned'
    with pytest.raises(ValueError, match='is no list'):
        forced_value(f'[open({str(mark)!r}, "w")]')
    assert forced_value(f'[open({mark})]') == [f'open({mark})']
    assert not mark.exists()
    with pytest.raises(ValueError, match='is no list'):
        forced_value('[1')


def test_a_forced_key_needs_its_section(shipped: Options) -> None:
    assert force(shipped, ['train:new=3'])['train']['new'] == 3  # as BasicSR, which makes the last key
    assert 'new' not in shipped['train']
    for entry in ('train', 'trian:x=1', 'name:x=1', '=1', 'train:x=1=2'):
        with pytest.raises(ValueError, match='--force_yml'):
            force(shipped, [entry])


def test_the_optimizers_and_schedules_are_those_that_basicsr_builds() -> None:
    from basicsr.models.base_model import BaseModel

    known = typed.optimizers()
    assert known['Adam'] is torch.optim.Adam
    parameter = torch.nn.Parameter(torch.zeros(1))
    for name, kind in known.items():
        assert type(BaseModel.get_optimizer(None, name, [parameter], 0.1)) is kind
    assert set(typed.schedulers()) == {'MultiStepLR', 'MultiStepRestartLR', 'CosineAnnealingRestartLR'}


def test_lists_of_equal_length_are_asked_for_only_where_both_are_given() -> None:
    assert list(cross.across({'network_g': {'type': 'SwinIR', 'depths': [6]}})) == []
    assert Number(whole=True, or_float=True).accepts(5e3)


def errors(schema: Options, value: Any, root: Options, path: str = '') -> Iterator[str]:
    """A validator of just the words of JSON Schema that ours uses, written for this test."""
    if schema is True or not isinstance(schema, dict):
        return
    names = {'object': dict, 'array': list, 'string': str, 'boolean': bool, 'null': type(None)}
    wanted = schema.get('type')
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted in names and not isinstance(value, names[wanted]):
        yield f'{path}: no {wanted}'
    if wanted in ('number', 'integer') and not (number and (wanted == 'number' or value == int(value))):
        yield f'{path}: no {wanted}'
    if 'const' in schema and value != schema['const']:
        yield f'{path}: not {schema["const"]}'
    if 'enum' in schema and not any(type(value) is type(one) and value == one for one in schema['enum']):
        yield f'{path}: {value} not among {schema["enum"]}'
    if number:
        low, high = schema.get('minimum', value), schema.get('maximum', value)
        if not low <= value <= high or value <= schema.get('exclusiveMinimum', value - 1):
            yield f'{path}: {value} out of range'
        if value >= schema.get('exclusiveMaximum', value + 1):
            yield f'{path}: {value} out of range'
    if '$ref' in schema:
        yield from errors(root['$defs'][schema['$ref'].removeprefix('#/$defs/')], value, root, path)
    for part in schema.get('allOf', ()):
        yield from errors(part, value, root, path)
    if 'anyOf' in schema and all(any(True for _ in errors(one, value, root)) for one in schema['anyOf']):
        yield f'{path}: none of several kinds'
    if 'if' in schema and not any(True for _ in errors(schema['if'], value, root)):
        yield from errors(schema.get('then', True), value, root, path)
    if isinstance(value, dict):
        yield from object_errors(schema, value, root, path)
    if isinstance(value, list):
        if not schema.get('minItems', 0) <= len(value) <= schema.get('maxItems', len(value)):
            yield f'{path}: {len(value)} items'
        for number, item in enumerate(value):
            yield from errors(schema.get('items', True), item, root, f'{path}.{number}')


def object_errors(schema: Options, value: Options, root: Options, path: str) -> Iterator[str]:
    known = {**schema.get('properties', {})}
    for key in value:
        if key not in known and any(
            key.startswith(('train', 'val', 'test')) for _ in schema.get('patternProperties', ())
        ):
            (known[key],) = schema['patternProperties'].values()
    for key, item in value.items():
        rest = schema.get('additionalProperties', True)
        if key not in known and rest is False:
            yield f'{path}: unknown {key}'
        yield from errors(known.get(key, rest), item, root, f'{path}.{key}')
    lacking = [key for key in schema.get('required', ()) if key not in value]
    for given, needed in schema.get('dependentRequired', {}).items():
        lacking += [key for key in needed if given in value and key not in value]
    if lacking:
        yield f'{path}: lacks {lacking}'


@pytest.mark.parametrize('path', FILES[::6], ids=lambda path: path.name)
def test_a_shipped_file_fits_the_json_schema(path: Path, schema: Options) -> None:
    assert list(errors(schema, reader.read(path).options, schema)) == []


def test_the_json_schema_refuses_what_the_check_refuses(shipped: Options, schema: Options) -> None:
    """All but near names in open sections, numbers in text, and what must fit between sections."""
    left = []
    for path, value, message in MUTATIONS:
        if value is not ... and isinstance(value, date):
            continue
        if not any(True for _ in errors(schema, changed(shipped, path, value), schema)):
            left.append(message)
    beyond = ('did you mean', 'is the string', 'has 1', 'entries', 'not a multiple')
    assert [message for message in left if not any(words in message for words in beyond)] == []
    assert len(left) < len(MUTATIONS) / 3


@pytest.mark.skipif(importlib.util.find_spec('jsonschema') is None, reason='jsonschema is not installed')
def test_jsonschema_agrees(shipped: Options, schema: Options) -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for path in FILES[::12]:
        assert list(validator.iter_errors(reader.read(path).options)) == []
    for path, value, _ in MUTATIONS:
        if not isinstance(value, date):
            options = changed(shipped, path, value)
            assert any(True for _ in errors(schema, options, schema)) != validator.is_valid(options), (path, value)


def test_every_reference_of_the_json_schema_leads_somewhere(schema: Options) -> None:
    found = []

    def look(part: Any) -> None:
        if isinstance(part, dict):
            found.extend([part['$ref']] if '$ref' in part else [])
            list(map(look, part.values()))
        elif isinstance(part, list):
            list(map(look, part))

    look(schema)
    assert set(found) == {f'#/$defs/{name}' for name in schema['$defs']}
    assert schema['$schema'] == 'https://json-schema.org/draft/2020-12/schema'
    assert set(schema['$defs']['network']['properties']['type']['enum']) >= {'EDSR', 'RCAN', 'SwinIR', 'DCTSwin'}
