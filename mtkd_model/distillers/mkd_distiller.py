"""MKD: networks learn, by looking one step ahead, which knowledge lowers the student's error."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from mtkd_model.distillers.base import DISTILLER_REGISTRY
from mtkd_model.distillers.tap_pairs import PairedTapsDistiller
from mtkd_model.krnet import KRNet
from mtkd_model.lq_maps import STUDENT, student_map, teacher_map, windows
from mtkd_model.meta_step import (
    MetaStep,
    StudentRun,
    exact_gradient,
    first_order_gradient,
    leaves,
    student_run,
    whole_precision,
)
from mtkd_model.step import Step

GRADIENTS = {'exact': exact_gradient, 'first': first_order_gradient}
Teachers = Mapping[str, float] | str | None


@DISTILLER_REGISTRY.register()
class MKDDistiller(PairedTapsDistiller):
    """``loss_weight * sum over the pairs of taps of L_KR(F_S, F_T)``, compared through meta-learned KRNets.

    MKD (Zhu, Liu, Chen 2022, https://arxiv.org/abs/2207.08356). The abstract says that the knowledge-representation
    networks (KRNets, phi) are meta-optimised so that the transfer lowers the student's reconstruction error; the rest
    of it was not readable to us and is ours. Every ``every`` iterations, before the student's own step:

    - inner step, on the first half of the batch: theta'(phi) = theta - inner_lr * grad(L_rec + loss_weight * L_KR);
    - outer step, on the second half: phi goes down the gradient of L_rec(theta'(phi)), by an Adam of its own.

    L_rec is ``mean|S - G|``; the student itself is not touched. Then L_KR with the new, frozen phi is the loss that
    the student learns from. See :class:`KRNet` and, for ``order``, ``mtkd_model/meta_step.py``: ``exact`` needs second
    derivatives of L_KR, ``first`` takes a difference of first derivatives instead.

    Args:
        taps: student module path -> ``<teacher>/<module path>``, or a list of them; None takes ``body_taps`` of both.
        teachers: a name, or names with weights; None is every teacher with equal weights that add up to 1.
        kernels, kernel_size, width: number and odd side of the kernels, channels in which features are compared.
        inner_lr: rate of the inner step; lr: rate of the KRNets' Adam.
        every: iterations from one outer step to the next; the first iteration has one.
        order: ``exact`` or ``first``.
        loss_weight: factor of the term, in the inner step also.

    Raises ValueError for arguments out of range, for taps of other sizes than LQ, and, when it is to learn, for a batch
    of one image per process, which has no two halves.
    """

    smallest_batch = 2

    def __init__(
        self,
        taps: Mapping[str, str | Sequence[str]] | None = None,
        teachers: Teachers = None,
        kernels: int = 4,
        kernel_size: int = 3,
        width: int = 32,
        inner_lr: float = 0.001,
        lr: float = 0.0001,
        every: int = 1,
        order: Literal['exact', 'first'] = 'exact',
        loss_weight: float = 0.01,
    ) -> None:
        super().__init__(taps, teachers, 3, loss_weight)
        _check_positive(kernels=kernels, kernel_size=kernel_size, width=width, inner_lr=inner_lr, lr=lr, every=every)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size is {kernel_size}: an odd one keeps the size of the features')
        if order not in GRADIENTS:
            raise ValueError(f"order '{order}' is unknown; expected one of {', '.join(GRADIENTS)}")
        self.shape = {'width': width, 'kernels': kernels, 'kernel_size': kernel_size}
        self.inner_lr, self.lr, self.every, self.order = inner_lr, lr, every, order
        self.optimizer: Optimizer | None = None
        self.in_step = False  # with the other processes

    def own_optimizers(self) -> list[Optimizer]:
        return [] if self.optimizer is None else [self.optimizer]

    def build(self, step: Step) -> None:
        self.windows = windows(step)
        networks = []
        for own, path, _ in self.pairs:
            student, teacher = student_map(step, own, self.windows), teacher_map(step, path, self.windows)
            networks.append(KRNet(student.shape[1], teacher.shape[1], **self.shape))
        self.krnets = nn.ModuleList(networks)
        # the gradients scale with inner_lr * loss_weight: Adam's usual eps of 1e-8 would swallow small ones
        self.optimizer = Adam(self.krnets.parameters(), lr=self.lr, eps=1e-15)

    def forward(self, step: Step) -> Tensor:
        if step.iteration > 0 and (step.iteration - 1) % self.every == 0 and torch.is_grad_enabled():
            self.learn(step)
        frozen = [{name: p.detach() for name, p in net.named_parameters()} for net in self.krnets]
        return self.loss_weight * self.knowledge_loss(step, frozen)

    def knowledge_loss(self, step: Step, parameters: list[dict[str, Tensor]]) -> Tensor:
        """L_KR of the taps with the KRNets' ``parameters``, without ``loss_weight``."""
        losses = []
        for network, phi, (own, path, weight) in zip(self.krnets, parameters, self.pairs, strict=True):
            maps = student_map(step, own, self.windows), teacher_map(step, path, self.windows)
            losses.append(weight * functional_call(network, phi, maps))
        return sum(losses)

    def learn(self, step: Step) -> None:
        """One outer step on the KRNets; the same on every process."""
        self._start_alike()
        phi = list(self.krnets.parameters())
        with whole_precision(step.lq.device):
            for parameter, gradient in zip(phi, self.outer_gradient(step), strict=True):
                parameter.grad = _mean_over_processes(gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def outer_gradient(self, step: Step) -> list[Tensor]:
        """The gradient of the held-out L_rec after the inner step with respect to the KRNets' parameters."""
        half = step.lq.shape[0] // 2
        if half == 0:
            raise ValueError(
                'MKDDistiller needs two halves of a batch, one for the inner step and one held out: set '
                'datasets.train.batch_size_per_gpu to 2 or more'
            )
        phi = [dict(network.named_parameters()) for network in self.krnets]
        teacher_taps = {path: step.teacher_taps[path][:half] for path in self.teacher_taps}
        first_half = replace(step, lq=step.lq[:half], teacher_taps=teacher_taps)

        def run(lq: Tensor) -> StudentRun:
            return student_run(step.student_network, self.student_taps, lq, step.scale, self.windows[STUDENT])

        meta_step = MetaStep(
            theta=leaves(step.student_network),
            phi=list(self.krnets.parameters()),
            inner=run(step.lq[:half]),
            inner_gt=step.gt[:half],
            outer=run(step.lq[half:]),
            outer_gt=step.gt[half:],
            knowledge=lambda features: self.knowledge_loss(replace(first_half, student_taps=features), phi),
            weight=self.loss_weight,
            rate=self.inner_lr,
        )
        return GRADIENTS[self.order](meta_step)

    def _start_alike(self) -> None:
        """Processes draw different KRNets, and DistributedDataParallel leaves these alone: take those of rank 0."""
        if not self.in_step and _processes() > 1:
            for parameter in self.krnets.parameters():
                dist.broadcast(parameter.data, src=0)
        self.in_step = True


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _mean_over_processes(gradient: Tensor) -> Tensor:
    if _processes() == 1:
        return gradient
    gradient = gradient.contiguous()
    dist.all_reduce(gradient)
    return gradient / _processes()


def _check_positive(**arguments: float) -> None:
    for name, value in arguments.items():
        if value <= 0:
            raise ValueError(f'{name} is {value}, expected a value above zero')
