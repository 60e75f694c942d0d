"""Every method is documented and measured, the table is that of the registry, and the worked example works."""

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPO

from benchmarks import method_cost
from mtkd.schema.problems import problems
from mtkd_model.distillers import DISTILLER_REGISTRY
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

sys.path.insert(0, str(REPO / 'scripts'))
import make_method_table

SHIPPED = method_cost.methods()
METHODS = (REPO / 'docs/methods.md').read_text()
GUIDE = (REPO / 'docs/adding-a-method.md').read_text()


@pytest.mark.parametrize('name', SHIPPED)
def test_every_method_has_a_row_and_a_section(name: str) -> None:
    assert METHODS.count(f'| `{name}` |') == 1
    (section,) = re.findall(rf'^## [^\n]*`{name}`\n(.*?)(?=^## |\Z)', METHODS, flags=re.MULTILINE | re.DOTALL)
    for word in ('Formula', 'Taps', 'xtra parameters', 'Extra cost', 'Ours', 'Advice'):
        assert word in section, f'{name}: nothing on {word}'


def test_the_table_names_no_method_that_is_gone() -> None:
    assert re.findall(r'^\| \w+ \| `(\w+)` \|', METHODS, flags=re.MULTILINE) == SHIPPED


def test_the_table_is_what_the_registry_gives(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_method_table.main(['--check']) == 0, capsys.readouterr().err


def test_a_table_that_is_out_of_date_is_found_and_mended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / 'methods.md'
    page.write_text(METHODS.replace('| yes |', '| maybe |'))
    monkeypatch.setattr(make_method_table, 'PAGE', page)
    assert make_method_table.main(['--check']) == 1
    assert make_method_table.main([]) == 0
    assert page.read_text() == METHODS
    page.write_text('no markers')
    with pytest.raises(ValueError, match='lacks the markers'):
        make_method_table.main([])


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (
            'MTKD (2024, https://arxiv.org/abs/2404.09571). More.',
            '[arXiv 2404.09571](https://arxiv.org/abs/2404.09571)',
        ),
        ('X (https://doi.org/10.1016/j.n.2023.1), or', '[doi 10.1016/j.n.2023.1](https://doi.org/10.1016/j.n.2023.1)'),
        ('known by its abstract', 'see below'),
    ],
)
def test_a_paper_is_found_in_the_docstring(text: str, expected: str) -> None:
    assert make_method_table.paper(text) == expected


@pytest.mark.slow
def test_the_benchmark_measures_every_method_beside_the_scratch_step(tmp_path: Path) -> None:
    path = tmp_path / 'cost.json'
    arguments = ['--batch', '4', '--lq', '8', '--runs', '1', '--warmup', '0', '--json', str(path)]
    assert method_cost.main(arguments) == 0
    figures = json.loads(path.read_text())
    assert set(figures['methods']) == {'scratch', *SHIPPED}
    assert figures['methods']['scratch']['ratio'] == 1
    assert all(entry['median_s'] > 0 and entry['ratio'] > 0 for entry in figures['methods'].values())
    early = {name for name, entry in figures['methods'].items() if 'to_the_end' in entry}
    assert {'ATDistiller', 'FAKDDistiller'} <= early
    assert not early & {'scratch', 'OutputDistiller', 'CrossKDDistiller'}  # they compare outputs
    assert {'date', 'commit', 'torch', 'device'} <= figures.keys()


@pytest.mark.parametrize(('name', 'weight'), [('CSDDistiller', 200 / 255), ('DCKDDistiller', 0.1)])
def test_a_contrastive_method_has_its_published_weight_where_none_is_given(name: str, weight: float) -> None:
    assert inspect.signature(DISTILLER_REGISTRY.get(name)).parameters['loss_weight'].default == weight


def test_the_sections_to_copy_are_understood_and_leave_no_method_without_an_option(options: dict[str, Any]) -> None:
    (section,) = re.findall(r'^```yaml\n(.*?)^```$', METHODS, flags=re.MULTILINE | re.DOTALL)
    terms = yaml.safe_load(section)['distill']
    options['train']['distill'] = terms
    assert [str(problem) for problem in problems(options)] == []
    files = (REPO / 'options/baselines').rglob('*.yml')
    given = {term for file in files for term in re.findall(r'type: (\w+Distiller)', file.read_text())}
    assert given | {term['type'] for term in terms.values()} == set(SHIPPED)
    assert not given & {term['type'] for term in terms.values()} - {'OutputDistiller'}


def blocks(language: str) -> list[str]:
    """The guide's code in one language, in its order."""
    return re.findall(rf'^```{language}\n(.*?)^```$', GUIDE, flags=re.MULTILINE | re.DOTALL)


def test_the_worked_example_of_the_guide_trains_and_passes_its_own_tests(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, tests = blocks('python')
    (term,) = blocks('yaml')
    monkeypatch.setattr(DISTILLER_REGISTRY, '_obj_map', dict(DISTILLER_REGISTRY._obj_map))
    module: dict[str, Any] = {'__name__': 'sp_distiller'}
    exec(compile(code, 'sp_distiller.py', 'exec'), module)
    options['train']['distill'] = yaml.safe_load(term)['distill']
    model = MultiTeacherSRModel({**options, 'is_train': True, 'dist': False})
    before = model.net_g.body[0].conv1.weight.clone()
    model.feed_data({'lq': torch.rand(3, 3, 8, 8), 'gt': torch.rand(3, 3, 32, 32)})
    model.optimize_parameters(1)
    assert model.get_current_log()['l_sp'] > 0
    assert not torch.equal(before, model.net_g.body[0].conv1.weight)
    checks = {'similarity': module['similarity']}
    exec(tests.replace('from mtkd_model.distillers.sp_distiller import similarity\n', ''), checks)
    found = [check for name, check in checks.items() if name.startswith('test_')]
    assert len(found) == 2
    for check in found:
        check()
