"""What the teachers of an option file agree on, as one network."""

import math

from torch import Tensor, nn

from mtkd_arch.frozen_network import FrozenNetwork, Precision
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble


def own_part(network: nn.Module) -> nn.Module | None:
    """The module whose weights are a network's own: of a target its aggregator, None for a mean; else all of it."""
    if not isinstance(network, TargetNetwork):
        return network
    aggregator = network.ensemble.aggregator
    return None if aggregator is None else aggregator.network


class TargetNetwork(nn.Module):
    """The aggregator on its teachers, or their mean: (B, 3, H, W) of any size to (B, 3, scale * H, scale * W)."""

    def __init__(self, ensemble: TeacherEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    @property
    def align(self) -> int:
        """The multiple at which a tile may begin, so that every teacher's windows lie as in the whole image."""
        return math.lcm(*(frozen.window for frozen in self.ensemble.networks.values()))

    def set_precision(self, precision: Precision) -> None:
        """Run every network in ``precision`` from now on."""
        ensemble = self.ensemble
        for name, frozen in ensemble.networks.items():
            ensemble.networks[name] = FrozenNetwork(frozen.network, frozen.window, precision)
        if ensemble.aggregator is not None:
            ensemble.aggregator = FrozenNetwork(ensemble.aggregator.network, ensemble.aggregator.window, precision)

    def forward(self, lq: Tensor) -> Tensor:
        outputs = self.ensemble.outputs(lq)
        return self.ensemble.target(outputs)
