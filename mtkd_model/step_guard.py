"""Numbers gone bad: steps that are not finite are left out and counted, too many stop the run; divergence is warned of.

What a step gives stays on the device. On a GPU it is read every ``READ_EVERY`` steps and for the log, so a message, or
the end of the run, may come that much later; the step itself is left out at once.
"""

import logging
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from basicsr.utils import get_root_logger
from torch import Tensor, nn
from torch.optim import Optimizer

from mtkd_data.resident import image_names
from mtkd_model.acceleration import MixedPrecision
from mtkd_model.guarded_step import Outcome, Undo, anywhere

READ_EVERY = 20
REMEDY = (
    'lower train.optim_g.lr, set train.clip_grad_norm, take train.amp: bf16 instead of fp16, or look at these images'
)


@dataclass(frozen=True)
class GuardOptions:
    """``train.max_nonfinite``, ``divergence_factor``, ``clip_grad_norm`` and ``accumulate``."""

    max_nonfinite: int = 10
    divergence_factor: float | None = None
    clip_grad_norm: float | None = None
    accumulate: int = 1


def guard_options(train_opt: Mapping[str, Any], batch: int) -> GuardOptions:
    """The options of the guard from ``train``; ValueError for what cannot be, also a ``batch`` that does not divide."""
    given = {key: train_opt[key] for key in GuardOptions.__annotations__ if train_opt.get(key) is not None}
    for key, lowest in (('max_nonfinite', 0), ('accumulate', 1)):
        value = given.get(key, lowest)
        if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
            raise ValueError(f'train.{key} is {value!r}, expected a whole number, at least {lowest}')
    for key, lowest in (('divergence_factor', 1), ('clip_grad_norm', 0)):
        value = given.get(key, 2)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not lowest < value < math.inf:
            raise ValueError(f'train.{key} is {value!r}, expected null or a number above {lowest}')
    options = GuardOptions(**given)
    if batch % options.accumulate:
        raise ValueError(
            f'train.accumulate is {options.accumulate}, which does not divide the batch: set '
            f'datasets.train.batch_size_per_gpu, now {batch}, to a multiple of it'
        )
    return options


class DivergenceWatch:
    """Says when the loss has been ``factor`` times the median of the last ``window`` for ``steps`` steps on end.

    It is silent until ``fewest`` losses are known, for ``quiet`` iterations after it spoke, and where the median is not
    above zero, which then is no measure.
    """

    def __init__(self, factor: float, window: int = 100, fewest: int = 20, steps: int = 3, quiet: int = 200) -> None:
        self.factor, self.fewest, self.steps, self.quiet = factor, fewest, steps, quiet
        self._losses: deque[float] = deque(maxlen=window)
        self._above, self._silent_until = 0, 0

    def update(self, iteration: int, loss: float) -> float | None:
        """Take a finite loss; the median it is compared with when it is time to warn, else None."""
        middle = median(self._losses) if len(self._losses) >= self.fewest else 0.0
        self._losses.append(loss)
        self._above = self._above + 1 if middle > 0 and loss > self.factor * middle else 0
        if self._above < self.steps or iteration < self._silent_until:
            return None
        self._silent_until = iteration + self.quiet
        return middle


@dataclass(frozen=True)
class _Taken:
    """A step that has been taken or left out, not yet read from the device."""

    iteration: int
    losses: Mapping[str, Tensor]
    total: Tensor
    outcome: Outcome
    names: Sequence[str]
    origin: Mapping[str, Any]

    def row(self) -> Tensor:
        outcome = self.outcome
        values = (outcome.counted, outcome.skipped, outcome.bad_loss, self.total, *self.losses.values())
        return torch.stack([value.detach().float() for value in values])

    def not_finite(self, losses: Mapping[str, float], total: float, bad_loss: bool) -> str:
        """What was not finite, for a message."""
        terms = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if not math.isfinite(total):
            return ', '.join(terms) or 'the sum of the losses'
        if bad_loss:
            return 'a loss of another process'
        bad = (~self.outcome.norms.isfinite()).tolist()
        first = next((name for name, is_bad in zip(self.names, bad, strict=True) if is_bad), 'all, taken together')
        return f'gradient of {first}'


class StepGuard:
    """Takes the optimizer's steps of a training and watches over them.

    Args:
        options: see GuardOptions.
        optimizers: the model's optimizer, then those of the terms.
        networks: what learns, by the prefix of its parameters' names in messages.
        device: of the model.
    """

    def __init__(
        self,
        options: GuardOptions,
        optimizers: Sequence[Optimizer],
        networks: Mapping[str, nn.Module],
        device: torch.device,
    ) -> None:
        self.options, self.optimizer = options, optimizers[0]
        self.undo = Undo(optimizers[1:], list(networks.values()))
        names = {id(p): f'{prefix}{name}' for prefix, net in networks.items() for name, p in net.named_parameters()}
        parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        self.parameters = [(names.get(id(p), f'parameter {i}'), p) for i, p in enumerate(parameters)]
        self.read_every = 1 if device.type == 'cpu' else READ_EVERY
        self.nonfinite = self.in_a_row = 0
        self.norm: Tensor | None = None
        self._taken: list[_Taken] = []
        factor = options.divergence_factor
        self._divergence = None if factor is None else DivergenceWatch(factor)

    def begin(self) -> None:
        """Before the losses of a step are computed."""
        self.undo.remember()

    def step(
        self, precision: MixedPrecision, losses: Mapping[str, Tensor], iteration: int, origin: Mapping[str, Any]
    ) -> Tensor:
        """Take the step the gradients ask for, or leave it out; whether it was, as a bool on the device.

        ``origin`` is that of the batch (see ``mtkd_data.resident.origin_of``). Raises FloatingPointError after more
        than ``max_nonfinite`` steps in a row that were not finite, on every process.
        """
        learning = [(name, p.grad) for name, p in self.parameters if p.grad is not None]
        names, gradients = [name for name, _ in learning], [gradient for _, gradient in learning]
        total = sum(losses.values())
        bad_loss = anywhere(~total.isfinite())
        outcome = precision.step(self.optimizer, gradients, bad_loss, self.options.clip_grad_norm)
        self.undo.put_back(outcome.skipped)
        self.norm = outcome.norm
        self._taken.append(_Taken(iteration, losses, total, outcome, names, origin))
        if len(self._taken) >= self.read_every:
            self.read()
        return outcome.skipped

    def log(self) -> dict[str, float]:
        """``nonfinite``, the number of steps left out, if there are any; ``grad_norm`` of the last step if clipped."""
        self.read()
        entries = {'nonfinite': float(self.nonfinite)} if self.nonfinite else {}
        if self.options.clip_grad_norm is not None and self.norm is not None:
            entries['grad_norm'] = self.norm.item()
        return entries

    def read(self) -> None:
        """Read the steps that wait from the device, all at once, and judge them."""
        taken, self._taken = self._taken, []
        values = iter(torch.cat([each.row() for each in taken]).tolist() if taken else ())
        for each in taken:
            self._judge(each, values)

    def _judge(self, taken: _Taken, values: Iterator[float]) -> None:
        counted, skipped, bad_loss = (bool(next(values)) for _ in range(3))
        total = next(values)
        losses = {name: next(values) for name in taken.losses}
        if counted:
            self._count(taken, losses, total, bad_loss)
        elif not skipped:  # an overflow in scaling neither ends a row nor makes one
            self.in_a_row = 0
            self._watch_divergence(taken.iteration, losses, total)

    def _count(self, taken: _Taken, losses: Mapping[str, float], total: float, bad_loss: bool) -> None:
        self.nonfinite += 1
        self.in_a_row += 1
        stopping = self.in_a_row > self.options.max_nonfinite
        if not stopping and self.in_a_row > 1:
            return
        what = taken.not_finite(losses, total, bad_loss)
        images = ', '.join(image_names(taken.origin)) or 'unknown'
        place = f'iteration {taken.iteration}: {what}; images of the batch: {images}'
        if stopping:
            raise FloatingPointError(
                f'loss or gradient not finite in {self.in_a_row} steps in a row, train.max_nonfinite is '
                f'{self.options.max_nonfinite}; {place}: {REMEDY}'
            )
        # only errors are shown of processes other than the first, and this one alone knows the images
        level = logging.WARNING if math.isfinite(total) else logging.ERROR
        get_root_logger().log(level, f'loss or gradient not finite, step left out; {place}')

    def _watch_divergence(self, iteration: int, losses: Mapping[str, float], total: float) -> None:
        if self._divergence is None:
            return
        middle = self._divergence.update(iteration, total)
        if middle is not None:
            terms = ', '.join(f'{name} {loss:.4g}' for name, loss in losses.items())
            get_root_logger().warning(
                f'the loss diverges: iteration {iteration}: {total:.4g}, the median of those before is {middle:.4g} '
                f'(train.divergence_factor {self.options.divergence_factor}): {terms}'
            )
