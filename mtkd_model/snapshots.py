"""A frozen copy of the student that follows it: its moving average, or the student of some iterations ago."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from mtkd_arch.feature_maps import window_in
from mtkd_arch.frozen_network import FrozenNetwork


class Snapshot(nn.Module):
    """A copy of ``student`` that every ``every`` iterations becomes ``decay * copy + (1 - decay) * student``.

    ``every`` 1 and a ``decay`` near 1 make an exponential moving average, ``decay`` 0 a history student. Frozen and
    in eval mode whatever the mode of the student; not trained, but saved and resumed with what it belongs to. It
    pads its input to the largest window of the student's modules.

    Raises ValueError for a ``decay`` outside [0, 1) or an ``every`` below 1; see ``check_pace``.
    """

    def __init__(self, student: nn.Module, decay: float, every: int) -> None:
        super().__init__()
        check_pace(decay, every)
        self.decay, self.every = decay, every
        self.followed = 0  # the iteration it last took over in
        self.frozen = FrozenNetwork(deepcopy(student), window_in(student), channels_last=False, merged=False)

    def follow(self, student: nn.Module, iteration: int) -> None:
        """Take over from ``student`` if it is time; once in an iteration, whose batch may come in parts.

        Iteration 0, while building, is not counted.
        """
        if iteration != self.followed and iteration % self.every == 0:
            self.followed = iteration
            blend(self.frozen.network, student, self.decay)

    def forward(self, lq: Tensor, scale: int) -> Tensor:
        """``lq`` (B, 3, H, W), RGB in [0, 1], to (B, 3, scale * H, scale * W), without gradient."""
        return self.frozen(lq, scale)


def check_pace(decay: float, every: int) -> None:
    """Raise ValueError unless 0 <= decay < 1 and ``every`` is a whole number of iterations."""
    if not 0 <= decay < 1:
        raise ValueError(f'decay is {decay}: the copy follows the student only with 0 <= decay < 1')
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f'every is {every!r}, expected a number of iterations, at least 1')


@torch.no_grad()
def blend(copy: nn.Module, student: nn.Module, decay: float) -> None:
    """``copy = decay * copy + (1 - decay) * student`` for the parameters; buffers are taken over as they are."""
    for own, new in zip(copy.parameters(), student.parameters(), strict=True):
        own.lerp_(new, 1 - decay)
    for own, new in zip(copy.buffers(), student.buffers(), strict=True):
        own.copy_(new)
