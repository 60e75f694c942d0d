"""MKD: the distance through kernels, and KRNets that learn by looking one step ahead."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from conftest import SMALL, small_network
from distilling import built_step, ensemble, image_batch, reached, student_of
from torch import Tensor, nn
from torch.func import functional_call

from mtkd_arch.weights import read_weights
from mtkd_loss.knowledge_representation_loss import dynamic_convolution, knowledge_representation
from mtkd_model import meta_step
from mtkd_model.distiller_bank import DistillerBank, trainable
from mtkd_model.distillers.mkd_distiller import MKDDistiller
from mtkd_model.krnet import KRNet
from mtkd_model.step import Step


@pytest.fixture
def lq() -> Tensor:
    return image_batch(2, 3, 8, 16)


def small(**arguments: Any) -> MKDDistiller:
    return MKDDistiller(**{'width': 4, 'kernels': 2, **arguments})


def copied(distiller: MKDDistiller) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in distiller.krnets.parameters()]


# the loss


def convolved(feature: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """(B, C, H, W) and (B, N, k, k) to (B, N, C, H, W), pixel by pixel."""
    side = kernels.shape[-1]
    padded = np.pad(feature, ((0, 0), (0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    batch, channels, height, width = feature.shape
    result = np.zeros((batch, kernels.shape[1], channels, height, width))
    for b, n, c, y, x in np.ndindex(result.shape):
        result[b, n, c, y, x] = (padded[b, c, y : y + side, x : x + side] * kernels[b, n]).sum()
    return result


@pytest.mark.parametrize(('batch', 'side'), [(1, 1), (2, 3), (3, 5)])
def test_every_image_is_convolved_with_its_own_kernels(batch: int, side: int) -> None:
    student, teacher = (image_batch(batch, 2, 5, 4, seed=seed).double() for seed in (1, 2))
    kernels = image_batch(batch, 3, side, side, seed=3).double()
    oracle = [convolved(feature.numpy(), kernels.numpy()) for feature in (student, teacher)]
    np.testing.assert_allclose(dynamic_convolution(student, kernels).numpy(), oracle[0], rtol=1e-12)
    expected = sum(np.abs(oracle[0] - oracle[1])[:, n].mean() for n in range(3))
    assert knowledge_representation(student, teacher, kernels).item() == pytest.approx(expected, rel=1e-12)


def test_the_distance_through_the_identity_kernel_is_the_plain_one_per_kernel() -> None:
    kernels = torch.zeros(2, 2, 3, 3)
    kernels[:, 0, 1, 1], kernels[:, 1, 1, 1] = 1, 0.5
    student, teacher = torch.full((2, 3, 4, 4), 0.7), torch.full((2, 3, 4, 4), 0.3)
    assert knowledge_representation(student, teacher, kernels).item() == pytest.approx(0.4 + 0.2, rel=1e-6)
    assert knowledge_representation(student, student, kernels).item() == 0


def test_the_loss_has_the_right_first_and_second_derivatives() -> None:
    arguments = [image_batch(2, 2, 3, 4, seed=seed).double().requires_grad_() for seed in (1, 2)]
    arguments.append(image_batch(2, 2, 3, 3, seed=3).double().requires_grad_())
    assert torch.autograd.gradcheck(knowledge_representation, arguments)
    assert torch.autograd.gradgradcheck(knowledge_representation, arguments)


def test_a_krnet_makes_kernels_per_image_that_sum_to_one_whatever_the_range_of_the_network() -> None:
    torch.manual_seed(0)
    network = KRNet(student=3, teacher=5, width=4, kernels=2, kernel_size=3)
    student, teacher = image_batch(2, 3, 6, 6), image_batch(2, 5, 6, 6)
    kernels = network.make_kernels(network.adapt_student(student), network.adapt_teacher(teacher))
    assert kernels.shape == (2, 2, 3, 3)
    torch.testing.assert_close(kernels.sum(dim=(2, 3)), torch.ones(2, 2))
    assert not torch.allclose(kernels[0], kernels[1])
    torch.testing.assert_close(network(255 * student, teacher), network(student, 100 * teacher))
    batch = sum(network(student[b : b + 1], teacher[b : b + 1]) for b in range(2)) / 2
    torch.testing.assert_close(network(student, teacher), batch)


# the outer step


class TinyStudent(nn.Module):
    """Smooth but for the L1 losses, x1, with one tap."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.tapped = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.tapped(self.first(x)))


def tiny_step(term: MKDDistiller, batch: int = 3) -> Step:
    """A float64 step of a tiny student, whose teacher is nothing but a feature."""
    torch.manual_seed(3)
    student = TinyStudent().double()
    lq = image_batch(batch, 3, 5, 6).double()
    taps = student.tapped(student.first(lq))
    teacher = {'t/x': image_batch(batch, 6, 5, 6, seed=5).double()}
    step = Step(lq, image_batch(batch, 3, 5, 6, seed=6).double(), student(lq), lq, {}, {'tapped': taps}, teacher, 1, 1)
    step = dataclasses.replace(step, student_network=student)
    term.build(step)
    term.double()
    return step


def tiny(**arguments: Any) -> MKDDistiller:
    arguments = {'inner_lr': 0.1, 'width': 4, 'kernels': 2, 'loss_weight': 0.7, **arguments}
    return MKDDistiller({'tapped': 't/x'}, **arguments)


def held_out_loss(term: MKDDistiller, step: Step, half: int) -> Tensor:
    """L_rec(theta'(phi)), written down once more from the formula, with the whole graph."""
    student = step.student_network
    theta = {name: p.detach().requires_grad_() for name, p in student.named_parameters()}

    def run(parameters: dict[str, Tensor], lq: Tensor) -> tuple[Tensor, Tensor]:
        feature = torch.tanh(nn.functional.conv2d(lq, parameters['first.weight'], parameters['first.bias'], padding=1))
        residual = nn.functional.conv2d(feature, parameters['last.weight'], parameters['last.bias'], padding=1)
        return lq + residual, feature

    output, feature = run(theta, step.lq[:half])
    knowledge = term.krnets[0](feature, step.teacher_taps['t/x'][:half])
    inner = (output - step.gt[:half]).abs().mean() + term.loss_weight * knowledge
    gradients = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
    stepped = {n: p - term.inner_lr * g for (n, p), g in zip(theta.items(), gradients, strict=True)}
    return (run(stepped, step.lq[half:])[0] - step.gt[half:]).abs().mean()


def test_the_outer_gradient_is_that_of_finite_differences() -> None:
    term = tiny()
    step = tiny_step(term)
    gradients = term.outer_gradient(step)
    checked = 0
    for parameter, gradient in zip(term.krnets.parameters(), gradients, strict=True):
        for index in range(0, parameter.numel(), max(parameter.numel() // 4, 1)):
            sides = []
            for shift in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[index] += shift
                sides.append(held_out_loss(term, step, half=1).item())
                with torch.no_grad():
                    parameter.view(-1)[index] -= shift
            # the central difference is exact to 1e-10 / 1e-5; no kink of an L1 lies within
            assert gradient.reshape(-1)[index].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4, abs=1e-9)
            checked += 1
    assert checked > 30
    assert sum(gradient.abs().sum() for gradient in gradients) > 1e-4


def test_the_outer_gradient_is_that_of_the_whole_graph() -> None:
    term = tiny()
    step = tiny_step(term)
    whole = torch.autograd.grad(held_out_loss(term, step, half=1), list(term.krnets.parameters()))
    torch.testing.assert_close(term.outer_gradient(step), list(whole), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(('nearness', 'tolerance'), [(1e-6, 1e-5), (1e-5, 1e-4)])
def test_the_first_order_gradient_is_the_exact_one_where_it_crosses_no_kink(
    monkeypatch: pytest.MonkeyPatch, nearness: float, tolerance: float
) -> None:
    monkeypatch.setattr(meta_step, 'NEARNESS', nearness)
    exact, first = tiny(), tiny(order='first')
    step = tiny_step(exact)
    tiny_step(first)
    first.load_state_dict(exact.state_dict())
    one, other = (torch.cat([g.flatten() for g in term.outer_gradient(step)]) for term in (exact, first))
    assert (one - other).norm() < tolerance * one.norm()


def test_the_networks_learn_what_lowers_the_held_out_loss() -> None:
    term = tiny(inner_lr=1.0, lr=0.01)
    step = tiny_step(term)
    before = held_out_loss(term, step, half=1).item()
    for _ in range(10):
        term.learn(step)
    assert held_out_loss(term, step, half=1).item() < before


def test_the_outer_step_leaves_the_student_and_its_gradients_alone(lq: Tensor) -> None:
    student, term = student_of('edsr'), small()
    step = built_step(term, student, ensemble(), lq)
    before = copy.deepcopy(student.state_dict())
    term.learn(step)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert reached(student) == set()
    step.student.sum().backward()  # the graph of the student's own step is whole


# the term


def test_the_term_is_the_distance_through_each_pairs_network(lq: Tensor) -> None:
    taps = {'body.0': ['edsr/body.1', 'rcan/body.0'], 'conv_after_body': 'rcan/body.2'}
    term = small(taps=taps, teachers={'edsr': 0.3, 'rcan': 2.0}, loss_weight=0.5)
    step = built_step(term, student_of('edsr'), ensemble(), lq, iteration=0)
    pairs = [('body.0', 'edsr/body.1', 0.3), ('body.0', 'rcan/body.0', 2.0), ('conv_after_body', 'rcan/body.2', 2.0)]
    expected = 0
    for network, (own, path, weight) in zip(term.krnets, pairs, strict=True):
        features = [step.student_taps[own].detach(), step.teacher_taps[path]]
        features = [f / f.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() for f in features]
        student, teacher = network.adapt_student(features[0]), network.adapt_teacher(features[1])
        kernels = network.make_kernels(student, teacher).detach().numpy()
        distances = convolved((student - teacher).detach().numpy(), kernels)
        expected += weight * np.abs(distances).mean(axis=(0, 2, 3, 4)).sum()
    assert term(step).item() == pytest.approx(0.5 * expected, rel=1e-4)  # float32


def test_the_student_learns_from_frozen_networks(lq: Tensor) -> None:
    student, teachers, term = student_of('edsr', num_block=3), ensemble(), small(teachers='rcan')
    step = built_step(term, student, teachers, lq, iteration=0)
    term(step).backward()
    assert reached(student) == {n for n, _ in student.named_parameters() if n.startswith(('conv_first', 'body'))}
    assert reached(term) == reached(teachers) == set()


def test_the_networks_learn_every_few_iterations_and_never_in_the_probe(lq: Tensor) -> None:
    term = small(every=3)
    step = built_step(term, student_of('edsr'), ensemble(), lq)
    moved = []
    for iteration in range(7):
        before = copied(term)
        term(dataclasses.replace(step, iteration=iteration))
        moved.append(any(not torch.equal(old, new) for old, new in zip(before, copied(term), strict=True)))
    assert moved == [False, True, False, False, True, False, False]
    before = copied(term)
    with torch.no_grad():
        term(dataclasses.replace(step, iteration=4))
    assert all(torch.equal(old, new) for old, new in zip(before, copied(term), strict=True))


def test_every_parameter_of_the_networks_learns(lq: Tensor) -> None:
    term = small()
    step = built_step(term, student_of('edsr'), ensemble(), lq)
    before = copied(term)
    term(step)
    assert all(not torch.equal(old, new) for old, new in zip(before, copied(term), strict=True))


def test_the_networks_have_their_own_optimizer_and_are_saved(lq: Tensor) -> None:
    bank = DistillerBank({'mkd': {'type': 'MKDDistiller', 'lr': 0.002, 'width': 4}})
    built_step(bank, student_of('edsr'), ensemble(), lq)
    (optimizer,) = bank.own_optimizers()
    assert optimizer.param_groups[0]['lr'] == 0.002
    assert len(optimizer.param_groups[0]['params']) == len(list(bank.parameters()))
    assert trainable(bank) == []
    assert 'terms.mkd.krnets.0.generate.weight' in bank.state_dict()


@pytest.mark.parametrize('order', ['exact', 'first'])
@pytest.mark.parametrize('student', SMALL)
@pytest.mark.parametrize('size', [(2, 8, 16), (3, 13, 9)])
def test_any_student_learns_from_all_teachers_at_once(student: str, size: tuple[int, ...], order: str) -> None:
    batch, height, width = size
    network = student_of(student)
    term = small(order=order)
    step = built_step(term, network, ensemble(), image_batch(batch, 3, height, width))
    before = copied(term)
    loss = term(step)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 0
    assert 'conv_first.weight' in reached(network)
    assert all(torch.isfinite(new).all() for new in copied(term))
    assert any(not torch.equal(old, new) for old, new in zip(before, copied(term), strict=True))


def test_bf16_autocast_is_finite(lq: Tensor) -> None:
    student, term = student_of('edsr'), small()
    with torch.autocast('cpu', torch.bfloat16):
        loss = term(built_step(term, student, ensemble(), lq))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    assert all(torch.isfinite(parameter).all() for parameter in copied(term))


def test_a_batch_of_one_has_no_halves_and_is_refused_with_the_remedy() -> None:
    lq = image_batch(1, 3, 8, 8)
    term = small()
    step = built_step(term, student_of('edsr'), ensemble(), lq)
    with pytest.raises(ValueError, match='batch_size_per_gpu to 2 or more'):
        term(step)
    assert term(dataclasses.replace(step, iteration=0)) > 0  # without learning, one image is as good as two


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'order': 'second'}, "order 'second' is unknown; expected one of exact, first"),
        ({'kernel_size': 4}, 'kernel_size is 4: an odd one'),
        ({'every': 0}, 'every is 0, expected a value above zero'),
        ({'inner_lr': -1.0}, 'inner_lr is -1.0, expected'),
        ({'teachers': 'edr'}, "'edr' is unknown: did you mean 'edsr'"),
        (
            {'taps': {'upsample': 'edsr/body.0'}},
            r'student tap upsample: the map .* is not of the size of the input, 8 x 16',
        ),
        ({'taps': {'body.0': 'edsr/upsample.1'}}, 'teacher tap edsr/upsample.1: .* choose one before the upsampling'),
    ],
)
def test_misfits_are_refused(lq: Tensor, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built_step(small(**arguments), student_of('edsr'), ensemble(), lq)


# in training


@pytest.fixture
def with_mkd(options: dict[str, Any]) -> dict[str, Any]:
    options['network_g'] = small_network('edsr')
    options['train']['distill'] = {'mkd': {'type': 'MKDDistiller', 'width': 4, 'kernels': 2}}
    return options


def test_training_saves_and_resumes_networks_and_their_optimizer(
    with_mkd: dict[str, Any], train: Callable[..., Path]
) -> None:
    experiment = train(with_mkd)
    weights = [read_weights(experiment / f'models/distill_{i}.pth', 'params') for i in (2, 4)]
    assert any(not torch.equal(weights[0][name], value) for name, value in weights[1].items())
    state = torch.load(experiment / 'training_states/4.state', weights_only=True)
    assert len(state['optimizers']) == 2
    assert state['optimizers'][1]['state'][0]['step'] == 4
    with_mkd['train']['total_iter'] = 6
    resumed = train(with_mkd, '--auto_resume')
    assert torch.load(resumed / 'training_states/6.state', weights_only=True)['optimizers'][1]['state'][0]['step'] == 6


def one_of_two(rank: int, port: int, folder: str) -> None:
    """One process of two: other random weights, other images, one outer step."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    term = tiny()
    torch.manual_seed(rank)
    step = tiny_step(term)
    for network in term.krnets:
        nn.init.normal_(network.generate.weight, std=0.1 + rank)
    step = dataclasses.replace(step, gt=image_batch(3, 3, 5, 6, seed=10 + rank).double())
    term(step)
    torch.save(term.state_dict(), f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_start_alike_and_stay_alike(tmp_path: Path, free_port: int) -> None:
    mp.spawn(one_of_two, (free_port, str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f'{rank}.pth', weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_functional_pass_fires_the_taps() -> None:
    network, seen = TinyStudent(), []
    network.tapped.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    functional_call(network, dict(network.named_parameters()), (torch.zeros(1, 3, 4, 4),))
    assert len(seen) == 1
