"""How much memory a run would take, from the model that was built and one small step of it on the CPU."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtkd.schema.live_tensors import LiveTensors
from mtkd_arch.merged_upsampling import tails_apart
from mtkd_model.multi_teacher_model import probe_size

BATCH = 2  # the fewest images that every term takes
STEP = 16  # a multiple of the usual windows: both sizes are padded alike
AHEAD = 2  # batches of each worker, torch's default
# tensors of the size of a parameter that an optimizer keeps
STATES = {'Adam': 2, 'AdamW': 2, 'Adamax': 2, 'NAdam': 2, 'RAdam': 2, 'Rprop': 2, 'RMSprop': 1, 'ASGD': 1, 'SGD': 0}


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step of one process, by what takes them.

    ``activations`` is what the graph of the whole batch keeps, ``passing`` what is there besides at the peak: the
    batch, results without gradient such as those of teachers, gradients of activations. ``buckets`` are those in which
    several processes exchange their gradients.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    passing: int
    measured: str
    buckets: int = 0

    @property
    def total(self) -> int:
        kept = self.weights + self.gradients + self.optimizer + self.average + self.buckets
        return kept + self.activations + self.passing


def estimate(model: Any, batch: int, gt_size: int, on_gpu: bool, processes: int = 1) -> Memory:
    """The memory of a step of ``model`` (built on the CPU) with ``batch`` patches of ``gt_size`` at a time.

    It is that of one process: with several, each holds all of it and buckets for the exchange besides.

    Weights, gradients, the state of the optimizers and the average are counted. What the graph keeps, and what is
    there at the peak, is measured in steps of two sizes of small images, and continued in a straight line to the pixels
    of the batch: so it grows for convolutions and windows, while relations between all pixels (FAKD) grow faster. What
    the libraries take, and what an allocator holds back, comes on top.
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
        found = [_measured(model, side) for side in sides]

    def of_batch(small: int, large: int) -> int:
        slope = (large - small) / (sides[1] ** 2 - sides[0] ** 2) / BATCH
        return max(0, int(large + slope * (batch * patch**2 - BATCH * sides[1] ** 2)))

    kept, live = (of_batch(*sizes) for sizes in zip(*found, strict=True))
    gradients = sum(_bytes(parameter) for _, _, parameter in learned)
    return Memory(
        weights=sum(map(size, modules_of(model))),
        gradients=gradients,
        optimizer=sum(_states(name, group) * _bytes(parameter) for name, group, parameter in learned),
        average=size(getattr(model, 'net_g_ema', None)),
        activations=kept,
        passing=max(0, live - kept),
        measured=f'{BATCH} LR patches of {sides[0]} and {sides[1]}',
        buckets=gradients if processes > 1 else 0,
    )


def prefetched(batch: int, gt_size: int, scale: int, stores: int, workers: int) -> int:
    """Bytes of the batches that the loader of one process holds ready, in the host's memory.

    GT, ``stores`` cached images of the same size, and LQ, all float32; torch's loader has two batches of each worker.
    """
    pixels = gt_size**2 * (1 + stores) + (gt_size // scale) ** 2
    return workers * AHEAD * batch * pixels * 3 * 4


def _measured(model: Any, side: int) -> tuple[int, int]:
    feed(model, BATCH, side)
    return kept_by_the_graph(model), peak_of_a_step(model)


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


def peak_of_a_step(model: Any) -> int:
    """Bytes of the tensors that are there at once, at most, in forward and backward pass, the batch among them.

    Parameters, buffers and the parameters' gradients are not counted.
    """
    own = [tensor for module in modules_of(model) for tensor in (*module.parameters(), *module.buffers())]
    learned = [parameter for optimizer in model.optimizers for g in optimizer.param_groups for parameter in g['params']]
    for parameter in learned:
        parameter.grad = torch.zeros_like(parameter)
    with LiveTensors([*own, *(parameter.grad for parameter in learned)]) as live:
        live.count([model.lq, model.gt, *model.cached.values()])
        sum(model.compute_losses(1).values()).backward()
    for parameter in learned:
        parameter.grad = None
    return live.peak


def size(module: nn.Module | None) -> int:
    """Bytes of the parameters and buffers of a module."""
    return sum(map(_bytes, module.state_dict().values())) if module is not None else 0


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _states(name: str, group: dict[str, Any]) -> int:
    more = int(bool(group.get('amsgrad'))) + int(bool(group.get('momentum'))) + int(bool(group.get('centered')))
    return STATES.get(name, 2) + more
