"""The parts of an optimizer step that leaves out what is not finite, without asking the device in every step."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

Batch = tuple[Tensor, Tensor, dict[str, Tensor]]  # lq, gt and what is cached of the teachers


@dataclass(frozen=True)
class Outcome:
    """What became of a step, in scalars that stay on the device; the same on all processes.

    Args:
        skipped: whether the step was left out.
        counted: whether that was a fault, not the overflow with which loss scaling finds its scale.
        bad_loss: whether the loss of some process was not finite.
        norm: L2 norm of all gradients before clipping.
        norms: the norm of each gradient (N,).
    """

    skipped: Tensor
    counted: Tensor
    bad_loss: Tensor
    norm: Tensor
    norms: Tensor


@torch.no_grad()
def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norms (N,) of N gradients; that of a gradient with any inf or NaN is not finite."""
    return torch.stack(torch._foreach_norm(gradients))


@torch.no_grad()
def clip_(gradients: Sequence[Tensor], norm: Tensor, most: float) -> None:
    """Scale ``gradients``, whose common L2 ``norm`` is given, in place to a norm of ``most`` where it is above."""
    torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))


def gated_step(optimizer: Optimizer, skipped: Tensor) -> None:
    """``optimizer.step()`` unless ``skipped``, a bool on the device, which a fused optimizer reads in its kernel.

    Any other optimizer is asked for on the host: on a GPU that waits for the gradients, as torch's GradScaler does.
    """
    supported = getattr(optimizer, '_step_supports_amp_scaling', False)
    if supported and all(group.get('fused') for group in optimizer.param_groups):
        optimizer.grad_scale, optimizer.found_inf = None, skipped.float()
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale, optimizer.found_inf
    elif not skipped:
        optimizer.step()
    else:
        optimizer._opt_called = True  # else the scheduler warns that it steps before the optimizer


def anywhere(flag: Tensor) -> Tensor:
    """Whether ``flag``, a bool scalar, is true in any process.

    The gradients' norm does not tell: L1 against an inf or NaN has a finite gradient. So one number goes round.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return flag
    number = flag.float()
    distributed.all_reduce(number, distributed.ReduceOp.MAX)
    return number > 0


class Undo:
    """Takes back what a step moves beside the model's optimizer: the terms' own optimizers and running statistics.

    They move before the loss is known. Where there are none, as in most trainings, it costs nothing; else a copy of
    them per step and, on a GPU, waiting for the step.
    """

    def __init__(self, optimizers: Sequence[Optimizer], networks: Sequence[nn.Module]) -> None:
        self.optimizers = list(optimizers)
        modules = [module for network in networks for module in network.modules() if module.training]
        self.tensors = [b for m in modules if isinstance(m, _NormBase) for b in m.buffers(recurse=False)]
        self.tensors += [p for o in self.optimizers for group in o.param_groups for p in group['params']]
        self._kept: list[Tensor] = []
        self._states: list[dict[Tensor, dict[str, Any]]] = []

    def remember(self) -> None:
        """Keep everything as it is now."""
        self._kept = [tensor.detach().clone() for tensor in self.tensors]
        self._states = [{p: _copied(state) for p, state in o.state.items()} for o in self.optimizers]

    @torch.no_grad()
    def put_back(self, skipped: Tensor) -> None:
        """Make everything what it was if ``skipped``."""
        if not self.tensors or not skipped:
            return
        for tensor, kept in zip(self.tensors, self._kept, strict=True):
            tensor.copy_(kept)
        for optimizer, state in zip(self.optimizers, self._states, strict=True):
            optimizer.state.clear()
            optimizer.state.update(state)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}


def part_of(batch: Batch, number: int, count: int) -> Batch:
    """Part ``number`` of ``count`` equal ones; views."""
    lq, gt, cached = batch
    size = lq.shape[0] // count
    part = slice(number * size, (number + 1) * size)
    return lq[part], gt[part], {name: image[part] for name, image in cached.items()}


def mean_of(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The losses of a batch from those of its equal parts, without a graph."""
    return {name: sum(part[name].detach() for part in found) / len(found) for name in found[0]}


@contextlib.contextmanager
def alone(networks: Sequence[nn.Module | None], wanted: bool) -> Iterator[None]:
    """Within, if ``wanted``, gradients stay in this process: a later backward pass synchronises their sum."""
    with contextlib.ExitStack() as stack:
        for network in networks:
            if wanted and isinstance(network, DistributedDataParallel):
                stack.enter_context(network.no_sync())
        yield
