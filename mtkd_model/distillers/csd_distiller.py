"""CSD: contrastive self-distillation; the student's features near the teacher's, far from blurred other images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtkd_loss.contrastive_loss import contrastive_loss, other_samples
from mtkd_model.distillers.base import DISTILLER_REGISTRY, Distiller
from mtkd_model.encoders import build_encoder, weights_per_feature
from mtkd_model.step import Step
from mtkd_model.teacher_weights import Teachers, available_outputs, output_of, weights_of


@DISTILLER_REGISTRY.register()
class CSDDistiller(Distiller):
    """``loss_weight * sum_i w_i mean|phi_i(T) - phi_i(S)| / mean_k mean|phi_i(N_k) - phi_i(S)|``.

    "Towards Compact Single Image Super-Resolution via Contrastive Self-distillation" (Wang et al., IJCAI 2021,
    https://arxiv.org/abs/2105.11683): phi = VGG19 at relu1_1 ... relu5_1 with w = 1/32, 1/16, 1/8, 1/4, 1; the
    negatives are the LR images of the other samples of the batch, upsampled bicubically. The sample itself is never
    among them, as it is in the released code. The published weight of 200 for images in [0, 255] is 0.78 here. There
    the student is a slice of its teacher and starts from its weights; that is a matter of initialisation.

    Args:
        encoder: the feature space: ``{weights: path/to/vgg19-dcbb9e9d.pth}``, or ``network``, ``path``, ``taps`` of
            any registered network (see ``build_encoder``). Frozen, and in no checkpoint.
        teachers: name -> weight, one name, or the aggregated ``target``, which is the default.
        negatives: number of negatives per sample, at most; each keeps a difference per feature for the gradient.
        feature_weights: one per feature.
        loss_weight: factor of the term.

    Raises ValueError for an encoder without weights, unknown teachers, fewer than one negative, a wrong number of
    weights and, at the first step, a batch of one, which has no other samples.
    """

    needs_networks = False
    smallest_batch = 2

    def __init__(
        self,
        encoder: Mapping[str, Any],
        teachers: Teachers = None,
        negatives: int = 10,
        feature_weights: Sequence[float] | None = None,
        loss_weight: float = 200 / 255,
    ) -> None:
        super().__init__(loss_weight)
        if not isinstance(negatives, int) or isinstance(negatives, bool) or negatives < 1:
            raise ValueError(f'negatives is {negatives!r}, expected a number of at least 1')
        self.encoder = build_encoder(encoder)
        self.feature_weights = weights_per_feature(feature_weights, self.encoder)
        self.teachers, self.negatives = teachers, negatives

    def build(self, step: Step) -> None:
        self.encoder.to(step.lq.device)
        self.weights = weights_of(self.teachers, available_outputs(step), target=True)

    def forward(self, step: Step) -> Tensor:
        if len(step.lq) < 2:
            raise ValueError('a batch of 1 has no other samples as negatives: set batch_size_per_gpu to at least 2')
        student = self.encoder(step.student)
        with torch.no_grad():
            enlarged = F.interpolate(step.lq, step.student.shape[-2:], mode='bicubic', align_corners=False)
            negatives = [other_samples(feature, self.negatives) for feature in self.encoder(enlarged)]
            teachers = {name: self.encoder(output_of(step, name)) for name in self.weights}
        return self.loss_weight * sum(
            weight * contrastive_loss(student, teachers[name], negatives, self.feature_weights)
            for name, weight in self.weights.items()
        )
