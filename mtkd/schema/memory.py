"""How much memory a run would take, from the model that was built and one small step of it on the CPU."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtkd_arch.merged_upsampling import tails_apart
from mtkd_model.multi_teacher_model import probe_size

BATCH = 2  # the fewest images that every term takes
STEP = 16  # a multiple of the usual windows: both sizes are padded alike
# tensors of the size of a parameter that an optimizer keeps
STATES = {'Adam': 2, 'AdamW': 2, 'Adamax': 2, 'NAdam': 2, 'RAdam': 2, 'Rprop': 2, 'RMSprop': 1, 'ASGD': 1, 'SGD': 0}


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step, by what takes them; ``activations`` are for the whole batch."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    measured: str

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


def estimate(model: Any, batch: int, gt_size: int, on_gpu: bool) -> Memory:
    """The memory of a step of ``model`` (built on the CPU) with ``batch`` patches of ``gt_size`` at a time.

    Weights, gradients, the state of the optimizers and the average are counted. What the graph keeps is measured in
    steps of two sizes of small images, and continued in a straight line to the pixels of the batch: so it grows for
    convolutions and windows, while relations between all pixels (FAKD) grow faster. What a pass without gradient holds
    for a moment, and the libraries themselves, come on top.
    """
    learned = [
        (type(optimizer).__name__, group, parameter)
        for optimizer in model.optimizers
        for group in optimizer.param_groups
        for parameter in group['params']
    ]
    patch = gt_size // model.scale
    sides = probe_size(patch), probe_size(patch) + STEP
    with tails_apart(model.net_g) if on_gpu else contextlib.nullcontext():
        small, large = (_kept(model, side) for side in sides)
    slope = (large - small) / (sides[1] ** 2 - sides[0] ** 2) / BATCH
    return Memory(
        weights=sum(map(size, modules_of(model))),
        gradients=sum(_bytes(parameter) for _, _, parameter in learned),
        optimizer=sum(_states(name, group) * _bytes(parameter) for name, group, parameter in learned),
        average=size(getattr(model, 'net_g_ema', None)),
        activations=max(0, int(large + slope * (batch * patch**2 - BATCH * sides[1] ** 2))),
        measured=f'{BATCH} LR patches of {sides[0]} and {sides[1]}',
    )


def _kept(model: Any, side: int) -> int:
    feed(model, BATCH, side)
    return kept_by_the_graph(model)


def modules_of(model: Any) -> Iterable[nn.Module]:
    """The networks that a model holds besides the average."""
    found = (model.net_g, model.teachers, model.distillers, model.cri_pix, model.cri_perceptual)
    return [module for module in found if isinstance(module, nn.Module)]


def feed(model: Any, batch: int, side: int) -> None:
    """Give ``model`` a batch of random LQ patches of ``side`` with all that belongs to them."""
    names = ('gt', *(f'cached_{name}' for name in model.cached_stores))
    large = {name: torch.rand(batch, 3, side * model.scale, side * model.scale) for name in names}
    model.feed_data({'lq': torch.rand(batch, 3, side, side), **large})


def kept_by_the_graph(model: Any) -> int:
    """Bytes of the tensors that the graph of a step keeps for its gradients, parameters not among them."""
    own = {parameter.untyped_storage().data_ptr() for module in modules_of(model) for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is given twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model.compute_losses(1)
    found = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)
    del losses
    return found


def size(module: nn.Module | None) -> int:
    """Bytes of the parameters and buffers of a module."""
    return sum(map(_bytes, module.state_dict().values())) if module is not None else 0


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _states(name: str, group: dict[str, Any]) -> int:
    more = int(bool(group.get('amsgrad'))) + int(bool(group.get('momentum'))) + int(bool(group.get('centered')))
    return STATES.get(name, 2) + more
