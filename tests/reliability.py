"""Counts faults, bad inputs and kills that tests inject, over all processes of a test run, for docs/reliability.md.

A test says what it injects and, each time, whether the program held::

    with tally('bad input', 'option files with a value of another type') as count:
        for option in options:
            count(refused_clearly(option), option)

or, where the whole test is one such case, ``@pytest.mark.injects('fault', 'signals')``: it held if the test passes.
``pytest --reliability=docs/reliability.md`` writes the table of the run between the markers of that file.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECTIONS = {
    'fault': ('Faults', 'injected', 'survived', 'lost'),
    'kill': ('Killed runs', 'killed', 'went on exactly', 'lost'),
    'bad input': ('Bad input', 'tried', 'refused or handled with a clear message', 'crashed'),
}
BEGIN, END = '<!-- table: begin -->', '<!-- table: end -->'
KEY = 'reliability'


class Tally:
    """How often something was injected, and what happened where the program did not hold."""

    def __init__(self) -> None:
        self.tried = 0
        self.lost: list[str] = []

    def __call__(self, held: bool, what: object = '') -> None:
        self.tried += 1
        if not held:
            self.lost.append(str(what))


@pytest.fixture
def tally(record_property: Callable[[str, Any], None]) -> Callable[[str, str], Any]:
    """``tally(section, title)``: a context that counts, and fails at its end if anything was lost."""

    @contextmanager
    def counting(section: str, title: str) -> Iterator[Tally]:
        assert section in SECTIONS
        count = Tally()
        yield count
        record_property(KEY, [section, title, count.tried, count.tried - len(count.lost)])
        assert count.tried, f'nothing was tried: {title}'
        assert not count.lost, '\n'.join(count.lost[:10])

    return counting


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """A test that is marked counts itself."""
    report = (yield).get_result()
    marker = item.get_closest_marker('injects')
    if marker is not None and call.when == 'call' and not report.skipped:
        section, title = marker.args
        assert section in SECTIONS
        report.user_properties.append((KEY, [section, title, 1, int(report.passed)]))


class Table:
    """Plugin of the process that collects the reports."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[tuple[str, str], list[int]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for key, value in report.user_properties if report.when == 'call' else ():
            if key == KEY:
                section, title, tried, held = value
                row = self.rows.setdefault((section, title), [0, 0])
                row[:] = row[0] + tried, row[1] + held

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for section, (title, tried, held, lost) in SECTIONS.items():
            counts = [row for (of, _), row in self.rows.items() if of == section]
            all_tried, all_held = (sum(row[number] for row in counts) for number in (0, 1))
            if counts:
                terminalreporter.write_line(
                    f'{title}: {all_tried} {tried}, {all_held} {held}, {all_tried - all_held} {lost}'
                )
        if self.path is not None:
            before, _, rest = self.path.read_text().partition(BEGIN)
            _, _, after = rest.partition(END)
            self.path.write_text(f'{before}{BEGIN}\n{as_markdown(self.rows)}\n{END}{after}')


def as_markdown(rows: dict[tuple[str, str], list[int]]) -> str:
    """A table for each section, rows by title, their sum last."""
    parts = []
    for section, (title, *heads) in SECTIONS.items():
        own = sorted((what, *row) for (of, what), row in rows.items() if of == section)
        if own:
            total = ('**all**', *(sum(row[number] for row in own) for number in (1, 2)))
            lines = [f'| {what} | {tried} | {held} | {tried - held} |' for what, tried, held in [*own, total]]
            parts.append('\n'.join([f'| {title} | {" | ".join(heads)} |', '|---|---:|---:|---:|', *lines]))
    return '\n\n'.join(parts)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--reliability', type=Path, help='write the table of injected faults into this Markdown file')


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line('markers', 'injects(section, title): a fault or a bad input, for docs/reliability.md')
    if not hasattr(config, 'workerinput'):  # under xdist: not in the processes that run the tests
        config.pluginmanager.register(Table(config.getoption('--reliability')), 'reliability-table')
