"""The first stage of HKDSR: trains a teacher with heads on features inside it."""

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from mtkd.checks import nearest
from mtkd_arch.hierarchical_arch import HierarchicalSR, upsampled
from mtkd_arch.taps import record_taps
from mtkd_arch.weights import read_weights
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

# key: (type, default, meaning); docs/options.md is written from this table
HEADS_KEYS = {'heads_weight': ('number above zero', '1', "factor of the heads' loss (HierarchicalModel alone)")}


@MODEL_REGISTRY.register()
class HierarchicalModel(MultiTeacherSRModel):
    """Trains a HierarchicalSR ``network_g``: SRModel's losses plus ``heads_weight * sum_k mean|SR_k - G|``.

    HKDSR (Neurocomputing 554:126592, 2023, https://doi.org/10.1016/j.neucom.2023.126592) pre-trains its teacher with
    intermediate upsampling layers; the loss is ours. ``pixel_opt: {type: L1Loss}`` is the term of the output,
    ``train.heads_weight`` (default 1) the factor of the heads', logged as ``l_heads``. ``path.pretrain_network_g`` may
    name weights of the network without heads, which then start anew: a published teacher needs the heads only, and
    ``network_g.frozen: true`` trains them alone.

    Raises ValueError for a ``network_g`` of another type, ``train.distill`` and a ``heads_weight`` not above zero.
    """

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        if not isinstance(self.get_bare_model(self.net_g), HierarchicalSR):
            raise ValueError(
                f'HierarchicalModel trains a network_g of type HierarchicalSR; it is {self.opt["network_g"]["type"]}: '
                'write network_g: {type: HierarchicalSR, network: {...}, upscale: ...}'
            )
        if train_opt.get('distill'):
            raise ValueError('HierarchicalModel knows no train.distill: it trains a teacher on the ground truth')
        if train_opt.get('compile'):
            raise ValueError('train.compile: HierarchicalModel taps its network, and a compiled one passes by its taps')
        self.heads_weight = _heads_weight(train_opt)
        super().init_training_settings()

    def compute_losses(self, iteration: int) -> dict[str, Tensor]:
        network = self.get_bare_model(self.net_g)
        with record_taps(network, network.tap_paths) as features:
            losses = super().compute_losses(iteration)
        images = network.intermediate(features, upsampled(self.lq, network.upscale))
        return {**losses, 'l_heads': self.heads_weight * sum((image - self.gt).abs().mean() for image in images)}

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        bare = self.get_bare_model(net)
        if isinstance(bare, HierarchicalSR) and not any(n.startswith('heads.') for n in read_weights(load_path)):
            bare = bare.network
        super().load_network(bare, load_path, strict, param_key)


def _heads_weight(train_opt: Mapping[str, Any]) -> float:
    for key in train_opt:
        if key not in HEADS_KEYS and 'head' in str(key):
            raise ValueError(f"unknown key '{key}' in train: {nearest(key, HEADS_KEYS)}")
    weight = train_opt.get('heads_weight', 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight <= 0:
        raise ValueError(f'train.heads_weight should be a number above zero; it is {weight!r}')
    return weight
