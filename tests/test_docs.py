"""The site builds without a warning, is complete, and what it says can be done: commands, options, messages."""

import ast
import importlib.util
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from inspect import signature
from pathlib import Path

import pytest
import yaml
from conftest import REPO

from mtkd import compat
from mtkd_arch.frozen_network import FrozenNetwork
from mtkd_arch.teacher_ensemble_arch import RUN_KEYS
from mtkd_data.paired_crops import PairedCrops

sys.path.insert(0, str(REPO / 'scripts'))
import make_options_reference
from options_reference import arguments, page, type_names

DOCS = REPO / 'docs'
PAGES = sorted(path.name for path in DOCS.glob('*.md'))
SITE = 'the site needs mkdocs-material: pip install -e .[docs]'
# what a reader makes, fetches or finds elsewhere
NOT_SHIPPED = ('options/own/', 'my_options/', 'experiments/', 'datasets/', 'results/', '/path/to/')


class Links(HTMLParser):
    """``ids`` of a page, and what it links to or loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.ids |= {given[name] for name in ('id', 'name') if given.get(name)}
        if tag == 'a' and given.get('href'):
            self.links.append(given['href'])
        elif tag in ('img', 'script', 'link', 'iframe'):
            self.loaded += filter(None, [given.get('src'), given.get('href')])


@pytest.fixture(scope='module')
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; any warning fails it (not with --quiet, which hides them from --strict too)."""
    if importlib.util.find_spec('mkdocs') is None or importlib.util.find_spec('material') is None:
        pytest.skip(SITE)
    folder = tmp_path_factory.mktemp('site')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope='module')
def built(site: Path) -> dict[str, Links]:
    """The pages of the site by name."""
    return {path.name: Links(path) for path in site.glob('*.html') if path.name != '404.html'}


def test_every_page_is_built_and_none_is_missing_in_the_menu(built: dict[str, Links]) -> None:
    assert set(built) == {Path(name).with_suffix('.html').name for name in PAGES}
    for name, links in built.items():
        reached = {link.partition('#')[0] for link in links.links}
        assert set(built) - {name} <= reached | {'index.html'}, name
    assert yaml.safe_load((REPO / 'mkdocs.yml').read_text())['theme']['name'] == 'material'


def test_every_link_within_the_site_leads_somewhere(site: Path, built: dict[str, Links]) -> None:
    for name, links in built.items():
        for link in links.links:
            target, _, anchor = link.partition('#')
            if re.match(r'\w+:', link):
                continue
            page_name = name if target in ('', '.') else target
            assert (site / page_name).is_file(), f'{name}: {link}'
            assert not anchor or anchor in built[page_name].ids, f'{name}: {link}'


def test_nothing_is_loaded_from_another_place(site: Path, built: dict[str, Links]) -> None:
    for name, links in built.items():
        for source in links.loaded:
            assert not re.match(r'(https?:)?//', source), f'{name} loads {source}'
            assert (site / source.partition('?')[0]).is_file(), f'{name}: {source}'


def test_the_search_knows_every_page(site: Path) -> None:
    entries = json.loads((site / 'search/search_index.json').read_text())['docs']
    assert {entry['location'].partition('#')[0] or 'index.html' for entry in entries} == {
        Path(name).with_suffix('.html').name for name in PAGES
    }


def blocks(name: str, *languages: str) -> list[str]:
    """The code of a page in some languages."""
    kinds = '|'.join(languages)
    return re.findall(rf'^```(?:{kinds})\n(.*?)^```$', (DOCS / name).read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    """Every command of a shell block, with the page it is on."""
    for name in PAGES:
        for block in blocks(name, 'bash'):
            for line in block.replace('\\\n', ' ').splitlines():
                line = re.sub(r'\s#.*', '', line).strip()
                if line and not line.startswith('#'):
                    yield name, line


COMMANDS = list(commands())


def test_the_pages_hold_commands() -> None:
    assert {name for name, _ in COMMANDS} >= {'getting-started.md', 'evaluation.md', 'performance.md'}
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(('name', 'command'), COMMANDS)
def test_what_a_command_names_is_there(name: str, command: str) -> None:
    for path in re.findall(r'(?<![\w/.-])((?:scripts|options|basicsr|benchmarks|docs)/[\w./-]+)', command):
        if not path.startswith(NOT_SHIPPED):
            assert (REPO / path).is_file(), f'{name}: {path}'
    for module in re.findall(r'-m ([\w.]+)', command):
        assert importlib.util.find_spec(module) is not None, f'{name}: {module}'


def scripts_with_flags() -> dict[str, set[str]]:
    """The flags that the pages give to each Python script, and the kind of picture before those of plot.py."""
    given: dict[str, set[str]] = {}
    for _, command in COMMANDS:
        found = re.search(r'scripts/(\w+)\.py( (?:sheet|bands|curves|scatter|gains)\b)?(.*)', command)
        if found:
            flags = re.findall(r'(?<=\s)(--[\w-]+|-opt\b)', found[3])
            given.setdefault(found[1] + (found[2] or ''), set()).update(flags)
    return given


@pytest.mark.parametrize(('script', 'flags'), scripts_with_flags().items())
def test_a_script_knows_the_flags_it_is_given(
    script: str, flags: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *kind = script.split()
    path = REPO / f'scripts/{name}.py'
    monkeypatch.setattr(sys, 'argv', [str(path), *kind, '--help'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name='__main__')
    text = capsys.readouterr().out
    assert end.value.code == 0
    for flag in flags:
        assert re.search(rf'{flag}\b', text), f'{script} does not know {flag}'


@pytest.mark.parametrize('name', PAGES)
def test_a_file_of_the_repository_that_a_page_names_is_there(name: str) -> None:
    folders = 'scripts|options|basicsr|benchmarks|docs|mtkd|mtkd_arch|mtkd_data|mtkd_eval|mtkd_loss|mtkd_model|tests'
    text = re.sub(r'^```.*?^```$', '', (DOCS / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    for path in re.findall(rf'`((?:{folders})/[\w./-]+\.\w+)[`:]', text):
        if not path.startswith(NOT_SHIPPED) and 'sp_distiller' not in path:  # the guide's example
            assert (REPO / path).is_file(), f'{name}: {path}'


def templates() -> list[list[str]]:
    """Every message in the code as its fixed pieces in order; too short ones tell nothing."""
    found = []
    for path in sorted(REPO.glob('mtkd*/**/*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            pieces = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            if sum(map(len, pieces)) >= 16:
                found.append(pieces)
    return found


def contains(message: str, pieces: list[str]) -> bool:
    """Whether the pieces stand in the message in their order."""
    place = 0
    for piece in pieces:
        found = message.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    return True


def test_every_message_of_ours_is_one_that_the_code_gives() -> None:
    _, ours = (DOCS / 'troubleshooting.md').read_text().split('\n## Options\n')
    messages = [
        line
        for block in re.findall(r'^```text\n(.*?)^```$', ours, flags=re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    known = templates()
    assert len(messages) > 25
    assert not [message for message in messages if not any(contains(message, pieces) for pieces in known)]
    assert not any(contains('teachers.rcan.path is void: put a file there', pieces) for pieces in known)


def test_the_table_of_reliability_says_that_nothing_was_lost() -> None:
    rows = re.findall(r'^\| ([^|]+) \| (\d+) \| (\d+) \| (\d+) \|$', (DOCS / 'reliability.md').read_text(), flags=re.M)
    assert len(rows) > 20
    assert [row for row in rows if row[1] != row[2] or row[3] != '0'] == []


def test_every_mend_of_the_plugin_is_explained() -> None:
    mends = [mend.__name__ for mend in compat.MENDS]
    page_text = (DOCS / 'troubleshooting.md').read_text()
    assert len(mends) == 14
    assert not [mend for mend in mends if f'`{mend}`' not in page_text]


def test_the_options_reference_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_options_reference.main(['--check']) == 0, capsys.readouterr().err


def test_a_reference_that_is_out_of_date_is_found_and_mended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / 'options.md'
    monkeypatch.setattr(make_options_reference, 'PAGE', stale)
    assert make_options_reference.main(['--check']) == 1
    assert 'out of date' in capsys.readouterr().err
    assert make_options_reference.main([]) == 0
    assert stale.read_text() == (DOCS / 'options.md').read_text()
    stale.write_text(stale.read_text().replace('| required |', '| optional |'))
    assert make_options_reference.main(['--check']) == 1


def test_the_defaults_of_the_tables_are_those_of_the_code() -> None:
    frozen = signature(FrozenNetwork).parameters
    for key, (_, default, _) in RUN_KEYS.items():
        assert default == type_names.yaml_value(frozen[key].default), key
    assert set(PairedCrops.keys) >= {'dataroot_gt', 'resident', 'name'}


def test_an_option_in_a_shipped_file_is_in_the_reference() -> None:
    text = (DOCS / 'options.md').read_text()
    for path in ('train_mtkd_x4.yml', 'baselines/csd/train_edsr_x4_csd.yml', 'cached/train_mtkd_x4.yml'):
        option = yaml.load((REPO / 'options' / path).read_text(), Loader=yaml.FullLoader)
        for section in (option['train'], option['datasets']['train'], option['val'], *option['teachers'].values()):
            unknown = [key for key in section if f'| `{key}` |' not in text]
            assert unknown in ([], ['ema_decay', 'warmup_iter'], ['ema_decay']), path  # BasicSR's own


@pytest.mark.parametrize(
    ('annotation', 'words'),
    [
        (int | None, 'whole number or null'),
        (bool | None, 'true, false or null'),
        (str | Path, 'path'),
        (type_names.Literal['a', 'b'] | None, 'a, b or null'),
        (type_names.Sequence[float], 'list of numbers'),
        (type_names.Mapping[str, str | type_names.Sequence[str]], 'mapping of text to (text or list of text)'),
    ],
)
def test_types_are_said_in_words(annotation: object, words: str) -> None:
    assert type_names.type_name(annotation) == words


def test_a_type_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match='no words for the type'):
        type_names.type_name(set)


class Base:
    """A base.

    Args:
        first, second: of both,
            in two lines.
        third: of the third; fourth: of the fourth.

    Raises: nothing.
    """


class Undocumented(Base):
    """Args: as Base."""

    def __init__(self, first: int, fifth: float = 10 / 255) -> None:
        """An argument that nobody explains."""


def test_meanings_are_read_from_the_docstring_of_the_class_or_a_base() -> None:
    assert arguments.documented(Base.__doc__ or '') == {
        'first': 'of both, in two lines.',
        'second': 'of both, in two lines.',
        'third': 'of the third',
        'fourth': 'of the fourth.',
    }
    assert arguments.meaning_of(Undocumented, 'first') == 'of both, in two lines'
    with pytest.raises(ValueError, match='says nothing about the argument fifth'):
        arguments.meaning_of(Undocumented, 'fifth')


def test_a_default_that_is_a_formula_is_shown_as_one() -> None:
    assert type_names.written_defaults(Undocumented.__init__) == {'fifth': '10 / 255'}
    assert type_names.yaml_value(10 / 255) == '0.03922'
    assert type_names.yaml_value((4, None, False, 0.0001)) == '[4, null, false, 0.0001]'


def test_a_cell_that_would_break_the_table_is_refused() -> None:
    for meaning in ('a | b', 'l_<name>'):
        with pytest.raises(ValueError, match='would break the table'):
            page.rows('key', [('name', 'text', 'null', meaning)])
    assert page.rows('key', [('name', 'text', 'null', '`l_<name>`')]).endswith('| `l_<name>` |')
