"""Results that a study.json of another folder or machine holds, put into a study as if they had been run there."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtkd_eval.study.collect import clock_plan, keep_clock_plan
from mtkd_eval.study.grid import Run, cache_digest, clock_cells, clock_runs
from mtkd_eval.study.report import to_markdown
from mtkd_eval.study.running import Study


def read_study(path: Path) -> dict[str, Any]:
    """The content of a study.json, one that can be written up. Raises FileNotFoundError, or ValueError for another."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        to_markdown(content)
        for each in (*content['results'], *content['networks'].values()):
            each['digest'], each['test_sets']
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: no study.json: {type(error).__name__}: {error}') from error
    return content


def take_over(study: Study, planned: Sequence[Run], files: Iterable[Path]) -> int:
    """Keep what ``files`` hold of ``planned``, of the runs at equal time, and of networks, where the study has none.

    Returns how many results were kept. What has been begun here is left alone, and so is what the grid does not plan,
    and what ran at equal time for another number of steps than are planned here. Of what several files hold the first
    one's is kept.
    The files' networks are not there: a run that needs one trained elsewhere trains it again. Raises ValueError,
    before anything is written, where a result is of other options, weights, images or test sets than the grid's.
    """
    contents = {path: read_study(path) for path in files}
    steps = {
        (each['student'], each['method']): each['iterations']
        for content in reversed(contents.values())
        for each in content['results']
        if each['clock'] and (each['student'], each['method']) in clock_cells(study.grid)
    }
    steps |= clock_plan(study, planned, keep=False)  # a number once planned stays
    runs = {run.name: run for run in (*planned, *clock_runs(study.grid, steps))}
    found: list[tuple[Run, Mapping[str, Any]]] = []
    for path, content in contents.items():
        known = [(runs[each['run']], each) for each in content['results'] if each['run'] in runs]
        ours = [(run, each) for run, each in known if not run.clock or run.iterations == each['iterations']]
        foreign = [
            run.name for run, each in ours if (run.digest(), study.test_sets) != (each['digest'], each['test_sets'])
        ]
        if foreign or not ours:
            raise ValueError(
                f'{path}: of other options, weights, images or test sets than {study.grid.path}: '
                f'{", ".join(foreign) or "all of it"}: run it here, without --from'
            )
        found += ours
    keep_clock_plan(study, steps)
    new = {run.name: (run, result) for run, result in reversed(found) if not study.is_begun(run)}
    for run, result in new.values():
        study.keep_result(run, result)
    for content in contents.values():
        for title, network in content['networks'].items():
            if title in study.grid.networks and title not in study.networks() and study.fits(title, network):
                study.keep_network(title, network)
        digests = [each['digest'] for each in content['networks'].values()]
        for name, seconds in content.get('cache_seconds', {}).items():
            wanted = name in study.grid.caches and name not in study.cache_seconds()
            if wanted and any(each.startswith(f'{cache_digest(study.grid, name)}:') for each in digests):
                study.keep_cache_seconds(name, seconds)
    return len(new)
