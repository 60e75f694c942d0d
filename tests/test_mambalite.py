"""The selective scan equals its definition at any length; the network on it takes any input size, and learns."""

from typing import Any

import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from conftest import build_arch
from torch import Tensor
from torch.nn.functional import interpolate

from mtkd_arch.mambalite_arch import MambaLiteSR, SelectiveScan2d, _lines, _unlined
from mtkd_arch.selective_scan import selective_scan
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

TINY = {'type': 'MambaLiteSR', 'num_feat': 8, 'num_group': 1, 'num_block': 1, 'rank': 2, 'state': 2}


def inputs(length: int, batch: tuple[int, ...] = (2,), channels: int = 3, states: int = 4, **to: Any) -> list[Tensor]:
    """u, delta, A, B, C, D as Mamba has them: positive steps, negative decay."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, delta = normal(*batch, channels, length), normal(*batch, channels, length).exp()
    A, B, C = -normal(channels, states).exp(), normal(*batch, states, length), normal(*batch, states, length)
    return [tensor.to(**to) if to else tensor for tensor in (u, delta, A, B, C, normal(channels))]


def oracle(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The definition, one position after the other, in float64."""
    u, delta, A, B, C, D = (tensor.double() for tensor in (u, delta, A, B, C, D))
    state = torch.zeros(*u.shape[:-1], A.shape[-1], dtype=torch.float64)
    outputs = []
    for t in range(u.shape[-1]):
        step = delta[..., t, None]
        state = (step * A).exp() * state + step * u[..., t, None] * B[..., None, :, t]
        outputs.append((state * C[..., None, :, t]).sum(-1) + D * u[..., t])
    return torch.stack(outputs, dim=-1)


def test_two_positions_by_hand() -> None:
    u, delta = torch.tensor([[2.0, 3.0]]), torch.tensor([[1.0, 0.5]])
    A, B, C = torch.tensor([[-2.0]]), torch.tensor([[1.0, 4.0]]), torch.tensor([[10.0, 100.0]])
    first = 1.0 * 1.0 * 2.0
    second = torch.exp(torch.tensor(-1.0)) * first + 0.5 * 4.0 * 3.0
    expected = torch.stack([torch.tensor(10 * first + 7 * 2), 100 * second + 7 * 3])
    torch.testing.assert_close(selective_scan(u, delta, A, B, C, torch.tensor([7.0])), expected[None])


@pytest.mark.parametrize('length', [1, 2, 7, 31, 32, 33, 100, 1000])
@pytest.mark.parametrize('chunk', [1, 8, 32])
def test_the_scan_equals_the_sequential_loop_at_any_length(length: int, chunk: int) -> None:
    tensors = inputs(length)
    torch.testing.assert_close(selective_scan(*tensors, chunk=chunk), oracle(*tensors), rtol=1e-10, atol=1e-10)
    single = [tensor.float() for tensor in tensors]
    expected = oracle(*single)
    scale = expected.abs().max().clamp_min(1)
    assert ((selective_scan(*single, chunk=chunk).double() - expected) / scale).abs().max() < 1e-5


def test_leading_dimensions_broadcast_the_decay() -> None:
    u, delta, A, B, C, D = inputs(9, batch=(2, 5))
    A, D = A * torch.arange(1.0, 6)[:, None, None], D * torch.arange(5.0)[:, None]  # (5, N, S), (5, N)
    together = selective_scan(u, delta, A, B, C, D, chunk=4)
    for k in range(5):
        alone = selective_scan(u[:, k], delta[:, k], A[k], B[:, k], C[:, k], D[k])
        torch.testing.assert_close(together[:, k], alone)


def test_neither_a_strong_nor_a_vanishing_decay_overflows() -> None:
    u, delta, A, B, C, D = inputs(500)
    for factor in (1e-6, 1e4):  # exp(-1e4 * 500) and back would be a quotient of zeros
        tensors = [tensor.float().requires_grad_() for tensor in (u, delta * factor, A, B / factor, C, D)]
        output = selective_scan(*tensors, chunk=32)
        expected = oracle(*tensors).detach()
        assert ((output - expected) / expected.abs().max()).abs().max() < 1e-5
        output.sum().backward()
        assert all(torch.isfinite(tensor.grad).all() for tensor in tensors)


def test_the_gradient_of_the_scan_is_right() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(7, channels=2, states=2)]
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, chunk=3), tensors)


def test_the_scan_is_finite_and_of_the_inputs_type_under_autocast() -> None:
    tensors = [tensor.bfloat16() for tensor in inputs(50)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = selective_scan(*tensors)
    assert output.dtype == torch.bfloat16
    expected = oracle(*tensors)
    assert ((output.double() - expected) / expected.abs().max()).abs().max() < 2**-8  # one rounding


@pytest.mark.parametrize(('index', 'changed'), [(1, (2, 3, 8)), (2, (3, 5)), (3, (2, 4, 8)), (4, (1, 4, 9))])
def test_shapes_that_do_not_belong_together_are_refused(index: int, changed: tuple[int, ...]) -> None:
    tensors = inputs(9)
    tensors[index] = torch.zeros(changed)
    with pytest.raises(ValueError, match=r'selective_scan wants .* given u \(2, 3, 9\)'):
        selective_scan(*tensors)


def test_a_chunk_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match='chunk 0'):
        selective_scan(*inputs(4), chunk=0)


@pytest.mark.parametrize('directions', [1, 2, 3, 4])
def test_lines_return_to_their_places(directions: int) -> None:
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(_unlined(_lines(x, directions), 4, 5), directions * x)


def test_the_four_directions_reach_every_pixel_from_every_pixel() -> None:
    torch.manual_seed(0)
    scan = SelectiveScan2d(2, 2, directions=4, step_rank=1)
    x = torch.randn(1, 2, 4, 3, requires_grad=True)
    for row, column in ((0, 0), (2, 1), (3, 2)):
        (gradient,) = torch.autograd.grad(scan(x)[0, :, row, column].sum(), x)
        assert (gradient.abs().sum(1) > 0).all()


def test_the_default_network_has_the_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in MambaLiteSR().parameters()) == pytest.approx(370_000, rel=0.03)


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('size', [(1, 1), (5, 8), (13, 11)])
def test_any_size_is_upsampled(scale: int, size: tuple[int, int]) -> None:
    network = build_arch({**TINY, 'upscale': scale})
    assert network(torch.rand(1, 3, *size)).shape == (1, 3, size[0] * scale, size[1] * scale)


def test_a_batch_equals_its_images() -> None:
    network, images = build_arch(TINY), torch.rand(3, 3, 6, 7)
    torch.testing.assert_close(network(images), torch.cat([network(image[None]) for image in images]))


def test_every_parameter_gets_a_finite_gradient_also_under_autocast() -> None:
    torch.manual_seed(0)
    network = build_arch(TINY)
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            output = network(torch.rand(2, 3, 9, 6))
        output.float().pow(2).mean().backward()
        for name, parameter in network.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name


def test_the_low_rank_is_kept() -> None:
    project = build_arch(TINY).body[0].blocks[0].project_in
    assert torch.linalg.matrix_rank(project[1].weight @ project[0].weight) == 2


@pytest.mark.parametrize(('argument', 'value'), [('rank', 0), ('directions', 5), ('state', -1), ('num_feat', 0)])
def test_sizes_that_cannot_be_are_refused_by_name(argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=f'{argument} is {value}|{argument}_times'):
        build_arch({**TINY, argument: value})


def test_the_network_is_registered() -> None:
    assert ARCH_REGISTRY.get('MambaLiteSR') is MambaLiteSR


def test_it_learns_as_a_student_with_the_convex_loss_of_the_paper(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    options['network_g'] = dict(TINY)
    options['train']['pixel_opt']['loss_weight'] = 0.8
    options['train']['distill'] = {
        'kd': {'type': 'OutputDistiller', 'loss': {'type': 'L1Loss'}, 'teacher': 'edsr', 'loss_weight': 0.2}
    }
    model = MultiTeacherSRModel({**options, 'is_train': True, 'dist': False})
    lq = torch.rand(2, 3, 8, 8)
    model.feed_data({'lq': lq, 'gt': interpolate(lq, scale_factor=4, mode='bilinear')})
    losses = []
    for iteration in range(1, 41):
        model.optimize_parameters(iteration)
        losses.append(sum(model.get_current_log().values()))
    assert losses[-1] < 0.9 * losses[0]
    target, output = model.teachers(model.lq)['edsr'], model.net_g(model.lq)
    expected = 0.2 * (output - target).abs().mean() + 0.8 * (output - model.gt).abs().mean()
    torch.testing.assert_close(sum(model.compute_losses(41).values()), expected)
