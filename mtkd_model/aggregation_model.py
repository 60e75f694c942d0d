"""Stage 1 of MTKD: trains the aggregator on what the frozen teachers give."""

from collections.abc import Mapping
from typing import Any

import torch
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn

from mtkd.checks import require_known_keys
from mtkd_arch.teacher_ensemble_arch import check_input_channels
from mtkd_model.multi_teacher_model import MultiTeacherSRModel


@MODEL_REGISTRY.register()
class AggregationModel(MultiTeacherSRModel):
    """Trains ``network_g`` to turn the teachers' outputs, concatenated along the channels, into the ground truth.

    MTKD (Jiang et al., ECCV 2024, https://arxiv.org/abs/2404.09571), stage 1: ``mean|D(T_1(x), ..., T_N(x)) - G|``.
    ``aggregator.inputs`` names the teachers in the order of the channels (default: as listed); it is stored in the
    checkpoint, and stage 2 compares it.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        if not opt.get('teachers'):
            raise ValueError('AggregationModel needs a teachers section: it learns from their outputs')
        require_known_keys(opt.get('aggregator') or {}, ('inputs',), 'aggregator')
        if opt.get('train', {}).get('distill'):
            raise ValueError('AggregationModel knows no train.distill: the aggregator learns from the ground truth')
        super().__init__(opt)
        self.teachers.to(self.device)
        lacking = [name for name in self.teachers.inputs if self.cached_stores and name not in self.cached_stores]
        if lacking:
            raise ValueError(
                f'datasets.train.dataroot_cache holds {", ".join(self.cached_stores)}, AggregationModel reads the '
                f'teachers, and {", ".join(lacking)} are not there: cache_teachers.py --stores {" ".join(lacking)}'
            )

    def networks_needed(self, opt: Mapping[str, Any]) -> bool:
        return True  # validation images are not in the cache

    def init_training_settings(self) -> None:
        check_input_channels(self.opt['network_g'], self.teachers.inputs, 'network_g')
        super().init_training_settings()

    def predict(self, net: nn.Module, lq: Tensor) -> Tensor:
        known = self.cached if lq is getattr(self, 'lq', None) else {}
        return net(self.teachers.stack(self.teachers.outputs(lq, known)))

    def metadata(self) -> dict[str, Any]:
        return {'inputs': list(self.teachers.inputs), 'scale': self.scale, 'torch': str(torch.__version__)}
