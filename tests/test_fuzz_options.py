"""Option files mutated in every way: accepted or refused by a message of ours, alike by ``check`` and by training."""

import copy
import datetime
import math
import re
import resource
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import basicsr.train
import pytest
import torch
import yaml
from conftest import REPO, small_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtkd.__main__ import main
from mtkd.schema.command_line import _is_ours
from mtkd.schema.reader import read
from mtkd_data.command_line import ERRORS
from mtkd_eval.load import load_network

Options = dict[str, Any]
Key = tuple[Any, ...]
FUZZ = {'derandomize': True, 'deadline': None, 'database': None, 'suppress_health_check': list(HealthCheck)}
SHIPPED = sorted((REPO / 'options').rglob('*.yml'))
READY = 'it goes on to make folders'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory and root of the runs: a folder with nothing in it but the option file."""
    folder = tmp_path / 'place'
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder / 'option.yml'


@pytest.fixture
def checked(place: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """What ``python -m mtkd check`` says of the file: its error, empty where it accepts; nothing may be written."""

    def run(path: Path = place, *flags: str) -> str:
        before = listing(place.parent)
        code = main(['check', '-opt', str(path), *flags])
        said = capsys.readouterr()
        assert listing(place.parent) == before, 'something was written'
        assert 'Traceback' not in said.err
        if code == 0:
            return ''
        assert code == 2
        assert re.match(r'error: .', said.err), said.err
        return said.err

    return run


@pytest.fixture
def trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What training says of the file before it makes its first folder; READY where it would make one."""

    class Reached(Exception):
        pass

    def reach(opt: Options) -> None:
        raise Reached

    monkeypatch.setattr(basicsr.train, 'make_exp_dirs', reach)
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', False)

    def run(path: Path = place, *flags: str) -> str:
        before = listing(place.parent)
        monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', str(path), *flags])
        try:
            basicsr.train.train_pipeline(str(place.parent))
        except Reached:
            return READY
        except ERRORS as error:
            return str(error) or 'an error that says nothing'
        finally:
            assert listing(place.parent) == before, 'something was written'
        raise AssertionError('training ended')

    return run


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob('*'))


# mutations of the tree

VALUES = [
    None, True, False, 0, -1, 1, 3, 10**30, 10**400, -(10**400), 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf,
    '', 'a', '1e-4', '~', 'yes', '\x00', '\u202e\ufeff', '\ud7ff\ue000', '超解像', 'x' * 10_000, '/',
    '../..', '~nobody/x',
    [], [1], ['a'], [[]], [None], [{'type': 'L1Loss'}], {}, {'type': 'EDSR'}, {'type': None}, {'type': ['a']},
    {'type': {}}, {'type': 'MultiTeacherSRModel'}, {1: 2}, {None: None}, {'': ''}, {'a': {'b': {'c': 1}}},
    datetime.date(2020, 1, 1), b'\xff',
]  # fmt: skip
NAMES = [1, None, True, 1.5, datetime.date(2020, 1, 1), '', '\x00', 'ключ', 'a.b', 'a:b', '\u200b', '<<', 'x' * 1000]


def keys_in(value: Any, path: Key = ()) -> Iterator[Key]:
    """The paths of all that is in a mapping or list."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from keys_in(item, (*path, key))


def at(options: Any, path: Key) -> Any:
    for key in path:
        options = options[key]
    return options


@st.composite
def mutated(draw: st.DrawFn, options: Options, most: int) -> Options:
    """``options`` with one to ``most`` keys of other values, missing, misspelt, wrapped, or standing elsewhere."""
    options = copy.deepcopy(options)
    for _ in range(draw(st.integers(1, most))):
        paths = list(keys_in(options))
        if not paths:
            return options
        *above, key = draw(st.sampled_from(paths))
        section, value = at(options, tuple(above)), at(options, (*above, key))
        how = draw(st.sampled_from(['value', 'value', 'value', 'lose', 'rename', 'copy', 'wrap', 'add']))
        if how == 'value':
            section[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif how == 'lose':
            del section[key]
        elif how == 'copy':
            section[key] = copy.deepcopy(at(options, draw(st.sampled_from(paths))))
        elif how == 'wrap':
            section[key] = draw(st.sampled_from([[value], {key: value}, {'type': value}, [value, value]]))
        elif isinstance(section, dict):
            cut = draw(st.integers(0, len(str(key))))
            misspelt = [f'{str(key)[:cut]}{more}{str(key)[cut + 1 :]}' for more in ('', 'x')]
            section[draw(st.sampled_from([*NAMES, *misspelt]))] = value
            if how == 'rename':
                section.pop(key, None)
    return options


def written(options: Any, path: Path) -> str:
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    path.write_bytes(text.encode('utf-8', 'surrogatepass'))
    return text


def test_shipped_files_that_were_mutated_are_refused_by_a_message(
    checked: Callable[..., str], place: Path, tally: Callable[..., Any]
) -> None:
    shipped = {path: read(path).options for path in SHIPPED}
    with tally('bad input', 'option files with wrong, missing or misplaced keys') as count:

        @settings(max_examples=250, **FUZZ)
        @given(st.data())
        def try_one(data: st.DataObject) -> None:
            path = data.draw(st.sampled_from(SHIPPED))
            options = data.draw(mutated(shipped[path], 3))
            written(options, place)
            count(bool(checked()), path)  # their data is not there: none is accepted

        try_one()


@pytest.fixture
def small(options: Options) -> Options:
    """A file that trains, with networks that are built in a moment."""
    options['plugin'] = 'any'
    options['teachers'] = {'edsr': options['teachers']['edsr']}
    del options['aggregator']
    options['train']['distill']['hint'] = {'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1'}}
    options['network_g'] = small_network('edsr', num_block=1)
    return options


def test_what_check_accepts_training_accepts_and_nothing_else(
    small: Options,
    checked: Callable[..., str],
    trained: Callable[..., str],
    place: Path,
    tally: Callable[..., Any],
) -> None:
    written(small, place)
    assert (checked(), trained()) == ('', READY)
    outcomes = []
    with tally('bad input', 'option files with wrong, missing or misplaced keys') as count:

        @settings(max_examples=120, **FUZZ)
        @given(mutated(small, 1))
        def try_one(options: Options) -> None:
            text = written(options, place)
            if not _is_ours(read(place).options):
                return
            said, then = checked(), trained()
            outcomes.append(not said)
            count((said == '') == (then == READY), f'check: {said}\ntraining: {then}\n{text}')

        try_one()
    assert sum(outcomes) > 10, 'hardly any was accepted'
    assert outcomes.count(False) > 10


# mutations of the text

DEEP = 10_000
LAUGHS = ''.join(f'{key}: &{key} [{", ".join(["*" + other] * 10)}]\n' for other, key in pairwise('abcdefghij'))
PIECES = [
    'no', 'yes', 'on', 'off', '1e-4', '010', '0x1F', '12:30', '1_000', '2020-01-01', '~', '.inf', '-.Inf', '.nan', '=',
    '<<: *x', '&x', '*x', '!!python/none', '!!python/object/apply:os.system ["touch ran"]', '!!python/name:os.system',
    '!!python/module:os', '!!python/object:os.PathLike {}', '!!python/object/new:os.mkdir ["ran"]', '!!binary aGk=',
    '!!float 1', '!!int abc', '!!timestamp nonsense', '!!set {a, b}', '!!omap [a: 1]', '!own tag', '%YAML 1.1',
    '%TAG ! !',
    '---', '...', '--- a\n--- b', '\t', '\n\tname: a', ': ', '- ', '? ', '{', '}', '[', ']', '"', "'", '|', '>', '#',
    '&', '*',
    '!', '%', '@', '`', '\x00', '\x07', '\x1b[31m', '\x85', '\u2028', '\ufeff', '\u202e', '\ud800', '"\\ud800"',
    '"\\x00"',
    '9' * 5_000, 'x' * 100_000, '[' * 500, '{a: ' * 500, '1e' + '9' * 50, '!!float 1e999',
    '9:' * 300 + '9', '名前: いいえ',
]  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """The bytes of a shipped file with pieces put in, lines lost or doubled, bits flipped, or its end cut off."""
    raw = bytearray(draw(st.sampled_from(SHIPPED)).read_bytes())
    for _ in range(draw(st.integers(1, 3))):
        where = int(draw(st.floats(0, 1)) * len(raw))
        how = draw(
            st.sampled_from(['piece', 'piece', 'value', 'value', 'line', 'double', 'flip', 'cut', 'bytes', 'utf-16'])
        )
        piece = draw(st.sampled_from(PIECES)).encode('utf-8', 'surrogatepass')
        start = raw.find(b'\n', where) + 1
        end = raw.find(b'\n', start) + 1 or len(raw)
        if how == 'piece':
            raw[where:where] = piece
        elif how == 'value':
            colon = raw.find(b':', start, end)
            raw[colon + 1 : end] = b' ' + piece + b'\n'
        elif how == 'line':
            del raw[start:end]
        elif how == 'double':
            raw[start:start] = raw[start:end]
        elif how == 'flip' and where < len(raw):
            raw[where] ^= 1 << draw(st.integers(0, 7))
        elif how == 'cut':
            del raw[where:]
        elif how == 'bytes':
            raw[where:where] = draw(st.binary(max_size=8))
        elif how == 'utf-16':
            raw = bytearray(raw.decode('latin-1').encode('utf-16'))
    return bytes(raw)


def test_a_text_that_was_mutated_is_refused_by_a_message_and_runs_nothing(
    checked: Callable[..., str], place: Path, tally: Callable[..., Any]
) -> None:
    with tally('bad input', 'option files with another text') as count:

        @settings(max_examples=250, **FUZZ)
        @given(texts())
        def try_one(raw: bytes) -> None:
            place.write_bytes(raw)
            count(bool(checked()), raw)

        try_one()


HOSTILE: dict[str, bytes] = {
    'nothing': b'',
    'a comment': b'# nothing\n',
    'null': b'~\n',
    'a list': b'- name: a\n',
    'text': b'name\n',
    'several documents': b'name: a\n---\nname: b\n',
    'ten thousand lists': b'teachers: ' + b'[' * DEEP + b']' * DEEP,
    'ten thousand open lists': b'teachers: ' + b'[' * DEEP,
    'ten thousand mappings': b'teachers: ' + b'{a: ' * DEEP + b'}' * DEEP,
    'a thousand indents': b''.join(b' ' * depth + b'a:\n' for depth in range(1000)),
    'ten thousand dashes': b'teachers: \n  ' + b'- ' * DEEP + b'a',
    'a billion laughs': f'teachers: &a [lol]\n{LAUGHS}'.encode(),
    'a billion merges': b'a: &a {x: 1}\n' + b''.join(b'k%d: &a {<<: [*a, *a]}\n' % number for number in range(30)),
    'itself': b'teachers: &a\n  a: *a\n',
    'itself as a key': b'teachers: {}\nx: &a {*a : 1}\n',
    'itself in a list': b'teachers: &a [*a]\n',
    'a mapping as a key': b'{a: 1}: 2\nteachers: {}\n',
    'a list as a key': b'teachers: {}\n? [a, b]\n: 1\n',
    'no such anchor': b'teachers: *nowhere\n',
    'two mebibytes': b'teachers: ' + b'x' * 2**21,
    'many keys': b'teachers:\n' + b''.join(b'  k%d: 1\n' % number for number in range(20_000)),
    'a number of a million digits': b'teachers: {}\nscale: ' + b'9' * 10**6,
    'a sexagesimal of a million digits': b'teachers: {}\nscale: 1' + b':59' * 300_000,
    'a float of a million digits': b'teachers: {}\nscale: 1.' + b'9' * 10**6,
    'a binary number': b'teachers: {}\nscale: 0b' + b'1' * 10**6,
    'a tag': b'teachers: !!python/object/apply:os.mkdir [ran]\n',
    'a tag of a key': b'!!python/object/apply:os.mkdir [ran]: 1\n',
    'a tag of all': b'!!python/object/apply:os.mkdir [ran]\n',
    'a tag with state': b'teachers: !!python/object/new:type {args: [z, !!python/tuple [], {}], state: 3}\n',
    'a tag by another name': b'%TAG !x! tag:yaml.org,2002:python/\n---\nteachers: !x!object/apply:os.mkdir [ran]\n',
    'a module': b'plugin: !!python/module:antigravity\nteachers: {}\n',
    'another name than ours': b'plugin: !!python/name:os.system\nteachers: {}\n',
    'zero bytes': bytes(4096),
    'a picture': b'\x89PNG\r\n\x1a\n' + bytes(range(256)) * 16,
    'no UTF-8': b'name: \xff\xfe\xfa\nteachers: {}\n',
    'a surrogate': b'name: "\\ud800"\nteachers: {}\n',
    'a surrogate that is compared with names': b'name: a\nteachers: {}\nval: {metrics: {psnr: {type: "\\ud800"}}}\n',
    'a key that is a surrogate': b'name: a\nteachers: {}\n"\\ud800": 1\n',
    'a tag that does not fit': b'name: !!timestamp soon\nteachers: {}\n',
    'a key of a tag that does not fit': b'!!bool maybe: 1\nteachers: {}\n',
    'UTF-16': 'name: a\nteachers: {}\n'.encode('utf-16'),
    'a mark of byte order within': 'name: a\n\ufeffteachers: {}\n'.encode(),
    'tabs': b'teachers:\n\tedsr: 1\n',
    'carriage returns': b'name: a\rteachers: {}\rscale: x\r',
    'a directive': b'%YAML 9.9\n---\nteachers: {}\n',
}


@pytest.mark.parametrize('what', HOSTILE)
def test_a_hostile_file_is_refused_at_once_by_check_and_training(
    what: str,
    checked: Callable[..., str],
    trained: Callable[..., str],
    place: Path,
    tally: Callable[..., Any],
) -> None:
    place.write_bytes(HOSTILE[what])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tally('bad input', 'option files with another text') as count:
        for said in (checked(), trained(), refused_reading(place)):
            count(said not in ('', READY), what)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 300 * 2**10  # KiB


def refused_reading(path: Path) -> str:
    """What the other commands, which read option files too, say of the file."""
    try:
        load_network(f'{path}:target')
    except ERRORS as error:
        return str(error)
    return ''


def test_what_is_no_file_is_refused(
    checked: Callable[..., str], trained: Callable[..., str], place: Path, tally: Callable[..., Any]
) -> None:
    locked = place.with_name('locked.yml')
    locked.mkdir()
    loop = place.with_name('loop.yml')
    loop.symlink_to(loop)
    names = [place, locked, loop, Path('/dev/null'), Path('x' * 300), Path('a\x00b'), Path('')]
    with tally('bad input', 'option files with another text') as count:
        for path in names:
            count(checked(path) != '' and trained(path) != READY, path)


FORCED = ['train:total_iter=~', 'train=3', 'a:b:c=1', '=', '', 'train:total_iter', 'x=[1,', 'scale=[__import__("os")]',
          'scale=!!float x', 'train:optim_g:lr=1e-4', 'scale=' + '9' * 5000, ':scale=1', 'train::lr=1', 'scale=4=4',
          'datasets:train:gt_size=inf', 'name=\x00', 'teachers:edsr=~', 'scale="]=4;import os;opt["x']  # fmt: skip


def test_entries_of_the_command_line_are_refused_alike(
    small: Options,
    checked: Callable[..., str],
    trained: Callable[..., str],
    place: Path,
    tally: Callable[..., Any],
) -> None:
    written(small, place)
    with tally('bad input', 'entries of --force_yml') as count:
        for entry in FORCED:
            said, then = checked(place, '--force_yml', entry), trained(place, '--force_yml', entry)
            count(said != '' and then != READY, f'{entry}: {said or "accepted"}, {then}')
