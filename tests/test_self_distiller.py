"""The copy of the student starts as the student, follows it at its pace, never trains, and is resumed with the run."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from distilling import built, image_batch, narrow_student, small_ensemble, step_of, without_gradient
from test_multi_teacher_model import batch, made, stepped
from torch import nn

from mtkd_model.distiller_bank import trainable
from mtkd_model.distillers.self_distiller import SelfDistiller
from mtkd_model.snapshots import Snapshot, blend

TERM = {'type': 'SelfDistiller', 'decay': 0.5}
TEACHERS = small_ensemble('edsr')


def moved(student: nn.Module, distance: float = 0.01) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(distance * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize('name', SMALL)
def test_the_copy_starts_as_the_student(name: str) -> None:
    student, lq = narrow_student(name).eval(), image_batch(1, 3, 9, 13)
    term = built(SelfDistiller(), student, TEACHERS, lq)
    assert term(step_of(term, student, TEACHERS, lq)).item() == 0


def test_the_term_is_the_distance_to_the_copy() -> None:
    student, lq = narrow_student('edsr'), image_batch(2, 3, 8, 8)
    term = built(SelfDistiller(decay=0, every=100, loss_weight=0.5), student, TEACHERS, lq)
    former = student(lq).detach().double().numpy()
    with torch.no_grad():
        student.conv_last.bias.add_(255 * torch.tensor([0.1, 0.2, 0.3]))  # EDSR divides by 255
    step = step_of(term, student, TEACHERS, lq)
    expected = 0.5 * np.abs(step.student.detach().double().numpy() - former).mean()
    assert term(step).item() == pytest.approx(expected, rel=1e-5)
    assert term(step).item() == pytest.approx(0.5 * 0.2, rel=1e-4)  # by hand; differences of float32 images


@pytest.mark.parametrize(('decay', 'expected'), [(0.0, 5.0), (0.75, 2.0), (0.5, 3.0)])
def test_blending_is_the_weighted_mean(decay: float, expected: float) -> None:
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(one.weight, 1.0)
    nn.init.constant_(other.weight, 5.0)
    other.running_mean.fill_(7.0)
    blend(one, other, decay)
    assert one.weight.tolist() == [expected] * 2
    assert one.running_mean.tolist() == [7.0] * 2  # buffers are taken over


def test_the_average_follows_at_every_step_and_the_history_at_its_own() -> None:
    student = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(student.weight)
    average, history = Snapshot(student, 0.5, 1), Snapshot(student, 0.0, 3)
    values = []
    for iteration in range(7):
        for copied in (average, history):
            copied.follow(student, iteration)
        values.append((average.frozen.network.weight.item(), history.frozen.network.weight.item()))
        nn.init.constant_(student.weight, iteration + 1.0)  # what the optimizer makes of it
    assert [history for _, history in values] == [0, 0, 0, 3, 3, 3, 6]
    assert [average for average, _ in values] == [0, 0.5, 1.25, 2.125, 3.0625, 4.03125, 5.015625]


@pytest.mark.parametrize('name', SMALL)
def test_the_gradient_reaches_the_student_and_not_the_copy(name: str) -> None:
    student, lq = narrow_student(name), image_batch(1, 3, 7, 9)
    term = built(SelfDistiller(), student, TEACHERS, lq)
    moved(student)
    term(step_of(term, student, TEACHERS, lq)).backward()
    assert without_gradient(student) == []
    assert all(p.grad is None and not p.requires_grad for p in term.parameters())
    assert trainable(term) == []


def test_the_copy_stays_in_eval_mode_and_is_not_tied_to_the_student() -> None:
    student, lq = narrow_student('swinir', drop_path_rate=0.9).train(), image_batch(1, 3, 8, 8)
    term = built(SelfDistiller(decay=0, every=50), student, TEACHERS, lq).train()
    before = copy.deepcopy(term.state_dict())
    moved(student)
    assert all(not module.training for module in term.snapshot.frozen.modules())
    assert all(torch.equal(before[name], value) for name, value in term.state_dict().items())
    assert torch.equal(term.snapshot(lq, 4), term.snapshot(lq, 4))


def test_it_is_finite_under_autocast() -> None:
    student, lq = narrow_student('edsr'), image_batch(1, 3, 8, 8)
    term = built(SelfDistiller(), student, TEACHERS, lq)
    moved(student)
    with torch.autocast('cpu', torch.bfloat16):
        loss = term(step_of(term, student, TEACHERS, lq))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_a_resumed_run_goes_on_with_the_copy_it_had(options: dict[str, Any], tmp_path: Path) -> None:
    options['train']['distill'] = {'self': TERM, 'wavelet': options['train']['distill']['wavelet']}
    options['path'] |= {'models': str(tmp_path), 'training_states': str(tmp_path)}
    whole, half = stepped(made(options), batch(), steps=3), stepped(made(options), batch(), steps=2)
    half.save(0, 2)
    options['path']['pretrain_network_g'] = str(tmp_path / 'net_g_2.pth')
    resumed = made(options)
    resumed.resume_training(torch.load(tmp_path / '2.state', weights_only=False))
    resumed.feed_data(batch())
    resumed.optimize_parameters(3)
    expected = whole.distillers.state_dict()
    assert any(name.startswith('terms.self.snapshot.') for name in expected)
    for name, value in resumed.distillers.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    assert resumed.get_current_log() == whole.get_current_log()


@pytest.mark.parametrize('arguments', [{'decay': 1.0}, {'decay': -0.1}, {'every': 0}, {'every': 1.5}])
def test_a_pace_that_never_follows_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f'{next(iter(arguments))} is '):
        SelfDistiller(**arguments)
