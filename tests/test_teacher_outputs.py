"""Teachers run as far as a step needs them: nothing of what is learned changes by it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import cached
from test_multi_teacher_model import HINT, batch, made, stepped
from torch import Tensor, nn

from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_arch.teacher_outputs import TeacherOutputs
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

Options = dict[str, Any]
AT = {'type': 'ATDistiller', 'teachers': 'edsr'}
PARTS = {'accumulate': 2}
KD = {'type': 'OutputDistiller', 'teacher': 'edsr', 'loss': {'type': 'L1Loss'}}


def watched(ensemble: nn.Module) -> tuple[list[str], list[str]]:
    """Which networks of ``ensemble`` begin a pass from now on, and which end it."""
    begun, ended = [], []
    for name, network in (*ensemble.networks.items(), ('aggregator', ensemble.aggregator)):
        if network is not None:
            network.register_forward_pre_hook(lambda *_, name=name: begun.append(name))
            network.register_forward_hook(lambda *_, name=name: ended.append(name))
    return begun, ended


def with_terms(options: Options, **terms: Options) -> MultiTeacherSRModel:
    options['train']['distill'] = terms
    return made(options)


def test_a_teacher_whose_output_no_term_asks_for_stops_at_its_last_tap_and_the_student_learns_the_same(
    options: Options,
) -> None:
    short, whole = with_terms(options, at=AT), with_terms(options, at=AT)
    whole.outputs_asked.add('edsr')
    runs = watched(short.teachers), watched(whole.teachers)
    for model in (short, whole):
        stepped(model, batch(), steps=3)
    assert runs == ((['edsr'] * 3, []), (['edsr'] * 3, ['edsr'] * 3))
    assert short.get_current_log() == whole.get_current_log()
    assert all(torch.equal(a, b) for a, b in zip(short.net_g.parameters(), whole.net_g.parameters(), strict=True))


def test_a_teacher_of_which_taps_and_output_are_asked_for_runs_once_in_a_step(options: Options) -> None:
    model = with_terms(options, at=AT, kd=KD)
    begun, ended = watched(model.teachers)
    stepped(model, batch(), steps=2)
    assert begun == ended == ['edsr'] * 2


def test_the_target_is_computed_only_for_a_term_that_asks_for_it_and_once(options: Options) -> None:
    wavelet = options['train']['distill']['wavelet']
    without, once = with_terms(options, kd=KD), with_terms(options, one=wavelet, two=wavelet)
    runs = [watched(model.teachers)[0] for model in (without, once)]
    for model in (without, once):
        stepped(model, batch())
    assert runs[0] == ['edsr']
    assert sorted(runs[1]) == sorted([*once.teachers.networks, 'aggregator'])


def test_a_tapped_teacher_gives_features_and_output_of_the_crop_though_a_cache_has_its_images(
    options: Options, tmp_path: Path
) -> None:
    options['train']['distill'] = {'at': AT, 'kd': KD}
    model = made(cached(options, tmp_path, '--stores', 'edsr'))
    begun, ended = watched(model.teachers)
    data = batch()
    stepped(model, {**data, 'cached_edsr': torch.rand(2, 3, 64, 64)})
    assert begun == ended == ['edsr']
    expected = (model.output.detach() - model.teachers.run_teacher('edsr', data['lq'])).abs().mean()
    torch.testing.assert_close(model.losses['l_kd'], expected)


def test_a_batch_in_parts_has_the_losses_of_the_whole_with_teachers_that_stop_early(options: Options) -> None:
    whole, parts = with_terms(options, hint=HINT), with_terms({**options, 'train': options['train'] | PARTS}, hint=HINT)
    begun, ended = watched(parts.teachers)
    for model in (whole, parts):
        stepped(model, batch())
    assert (begun, ended) == (['edsr', 'rcan'] * 2, [])
    assert parts.get_current_log() == pytest.approx(whole.get_current_log(), rel=1e-5)


class Twice(nn.Module):
    """Runs one convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.up = nn.Conv2d(3, 3, 3, padding=1), nn.Upsample(scale_factor=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.shared(self.shared(x)))


@pytest.fixture
def ensemble(teachers: Options) -> TeacherEnsemble:
    return TeacherEnsemble(copy.deepcopy(teachers), 4)


def test_an_output_that_is_asked_for_late_is_computed_all_the_same_and_later_in_one_pass(
    ensemble: TeacherEnsemble,
) -> None:
    lq, asked = batch()['lq'], set()
    begun, ended = watched(ensemble)
    outputs = TeacherOutputs(ensemble, lq, asked=asked)
    features = outputs.features('edsr', ['body'])
    output = outputs['edsr']
    assert (begun, ended) == (['edsr', 'edsr'], ['edsr'])
    later = TeacherOutputs(ensemble, lq, asked=asked)
    assert torch.equal(later.features('edsr', ['body'])['body'], features['body'])
    assert torch.equal(later['edsr'], output)
    assert ended == ['edsr', 'edsr']
    asked.clear()
    assert ('rcan' in later, 'other' in later, asked) == (True, False, set())


def test_a_module_that_runs_twice_is_tapped_at_its_last_output(ensemble: TeacherEnsemble) -> None:
    torch.manual_seed(0)
    lq, asked, network = batch()['lq'], set(), Twice()
    ensemble.networks['edsr'].network = network
    with torch.no_grad():
        expected = network.shared(network.shared(lq))
    for run in ('probe', 'features'):
        found = getattr(TeacherOutputs(ensemble, lq, asked=asked), run)('edsr', ['shared'])
        torch.testing.assert_close(found['shared'], expected)
    assert asked == {'edsr'}


def test_a_first_pass_runs_every_teacher_to_its_end_so_that_misfits_show(
    ensemble: TeacherEnsemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    lq = batch()['lq']
    monkeypatch.setattr(ensemble.networks['rcan'].network, 'forward', lambda x: x[:, :1].repeat(1, 1, 4, 4))
    outputs = TeacherOutputs(ensemble, lq)
    assert outputs.features('rcan', []) == {}
    with pytest.raises(ValueError, match=r"teacher 'rcan' turns \(2, 3, 16, 16\) into \(2, 1, 64, 64\)"):
        outputs.probe('rcan', [])
