"""The gradient of a held-out loss with respect to what shaped the training loss of one step."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.taps import record_taps

Parameters = dict[str, Tensor]
Features = dict[str, Tensor]
StudentRun = Callable[[Parameters], tuple[Tensor, Features]]  # output and tapped features under these parameters
KnowledgeLoss = Callable[[Features], Tensor]
NEARNESS = 0.01  # how far, in all, `first` moves the student's parameters; DARTS (1806.09055), section 2.3


class WithParameters(nn.Module):
    """``network`` run with other parameters, differentiable in them."""

    def __init__(self, network: nn.Module, parameters: Parameters) -> None:
        super().__init__()
        self.network, self.parameters_ = network, parameters

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.network, self.parameters_, (x,))


def student_run(network: nn.Module, paths: Sequence[str], lq: Tensor, scale: int, window: int) -> StudentRun:
    """``run(parameters)`` gives the network's output for ``lq`` of any size and its features at ``paths``."""

    def run(parameters: Parameters) -> tuple[Tensor, Features]:
        with record_taps(network, paths) as features:
            output = forward_padded(WithParameters(network, parameters), lq, scale, window)
        return output, features

    return run


def leaves(network: nn.Module) -> Parameters:
    """The trainable parameters of ``network`` as leaves of a graph of their own."""
    return {name: p.detach().requires_grad_() for name, p in network.named_parameters() if p.requires_grad}


@dataclass(frozen=True)
class MetaStep:
    """What an outer step needs: student and KRNets' parameters, both halves of the batch, and the losses' settings.

    Args:
        theta: the student's parameters, leaves.
        phi: the KRNets' parameters.
        inner, inner_gt: the student on the half of the inner step, and its ground truth.
        outer, outer_gt: the same for the held-out half.
        knowledge: L_KR of the student's features on the first half.
        weight: factor of L_KR in the inner step.
        rate: learning rate of the inner step.
    """

    theta: Parameters
    phi: Sequence[Tensor]
    inner: StudentRun
    inner_gt: Tensor
    outer: StudentRun
    outer_gt: Tensor
    knowledge: KnowledgeLoss
    weight: float
    rate: float


def exact_gradient(step: MetaStep) -> list[Tensor]:
    """d L_rec(theta') / d phi on the held-out half, theta' = theta - rate * grad_theta(L_rec + weight * L_KR).

    By the chain rule it is ``-rate * weight * grad_phi <g, grad_theta L_KR(theta, phi)>`` with
    ``g = grad L_rec(theta')`` held fixed. That is no approximation, since phi enters theta' only through the gradient
    of L_KR; but only that part needs second derivatives, neither L_rec's half of the inner step nor the outer pass.
    """
    output, features = step.inner(step.theta)
    knowledge_loss = step.knowledge(features)
    from_gt = _gradients(reconstruction(output, step.inner_gt), step.theta, retain_graph=True)
    from_knowledge = _gradients(knowledge_loss, step.theta, create_graph=True)
    held_out = _held_out_gradient(step, from_gt, from_knowledge)
    product = sum((g * k).sum() for g, k in zip(held_out, from_knowledge, strict=True))
    gradients = torch.autograd.grad(product, step.phi, allow_unused=True, materialize_grads=True)
    return [-step.rate * step.weight * gradient for gradient in gradients]


def first_order_gradient(step: MetaStep) -> list[Tensor]:
    """The same without second derivatives: the mixed derivative along g is the difference of two first derivatives.

    ``(grad_phi L_KR(theta + e * g) - grad_phi L_KR(theta - e * g)) / 2e`` with ``e = 0.01 / |g|``, as in DARTS
    (https://arxiv.org/abs/1806.09055, eq. 8): exact up to the third derivatives, times e^2. The student runs at the two
    points without a graph. For a student with operations that cannot be differentiated twice, and to save memory.

    The L1 distance in L_KR has kinks. The step of e crosses some, and what they contribute is in the difference, while
    second derivatives by autograd, the exact ones almost everywhere, know nothing of them: the two agree for small e
    only, and ``first`` is the noisier.
    """
    output, features = step.inner(step.theta)
    from_gt = _gradients(reconstruction(output, step.inner_gt), step.theta, retain_graph=True)
    from_knowledge = _gradients(step.knowledge(features), step.theta)
    held_out = _held_out_gradient(step, from_gt, from_knowledge)
    length = torch.stack([g.square().sum() for g in held_out]).sum().sqrt().clamp_min(1e-12)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            pairs = zip(step.theta.items(), held_out, strict=True)
            _, features = step.inner({name: p + sign * NEARNESS / length * g for (name, p), g in pairs})
        sides.append(torch.autograd.grad(step.knowledge(features), step.phi, allow_unused=True, materialize_grads=True))
    factor = -step.rate * step.weight * length / (2 * NEARNESS)
    return [factor * (after - before) for after, before in zip(*sides, strict=True)]


def reconstruction(output: Tensor, gt: Tensor) -> Tensor:
    """L_rec, ``mean|S - G|``."""
    return (output - gt).abs().mean()


def _held_out_gradient(step: MetaStep, from_gt: Sequence[Tensor], from_knowledge: Sequence[Tensor]) -> list[Tensor]:
    pieces = zip(step.theta.items(), from_gt, from_knowledge, strict=True)
    stepped = {n: (p - step.rate * (g + step.weight * k)).detach().requires_grad_() for (n, p), g, k in pieces}
    output, _ = step.outer(stepped)
    return [gradient.detach() for gradient in _gradients(reconstruction(output, step.outer_gt), stepped)]


def _gradients(loss: Tensor, parameters: Parameters, **how: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True, **how)


@contextmanager
def whole_precision(device: torch.device) -> Iterator[None]:
    """Float32 with gradients: second derivatives are small numbers, autocast is off."""
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield
