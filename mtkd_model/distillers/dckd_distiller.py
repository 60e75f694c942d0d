"""DCKD, its contrastive part: the student's features near the teacher's, far from what the student used to make."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtkd_loss.contrastive_loss import contrastive_loss
from mtkd_model.distillers.base import DISTILLER_REGISTRY, Distiller
from mtkd_model.encoders import build_encoder, weights_per_feature
from mtkd_model.snapshots import Snapshot, check_pace
from mtkd_model.step import Step
from mtkd_model.teacher_weights import Teachers, available_outputs, output_of, weights_of

NOISE = (1 / 255, 30 / 255)  # range of the standard deviation


@DISTILLER_REGISTRY.register()
class DCKDDistiller(Distiller):
    """``loss_weight * sum_i w_i mean|phi_i(T) - phi_i(S)| / mean_k mean|phi_i(N_k) - phi_i(S)|``, N_k by the student.

    "Dynamic Contrastive Knowledge Distillation for Efficient Image Restoration" (Zhou et al., AAAI 2025,
    https://arxiv.org/abs/2412.08939), the contrastive part, published with a weight of 0.1. The negatives are what a
    frozen history student makes of the LR images and of ``noisy_negatives`` noisy copies of them (Gaussian noise of
    random strength, grey with probability 1/2). The noise keeps the denominator away from zero while the history
    student equals the student, as it does at first. Departures: the history student follows the student itself, not
    its moving average, at one pace throughout (there after 1000, 2000 and 3000 iterations as training goes on); the
    encoder is of the user's choice (there a VQGAN's); the cross-entropy of codebook indices is left out.

    Args:
        encoder: the feature space, as for CSDDistiller; frozen, and in no checkpoint.
        teachers: name -> weight, one name, or the aggregated ``target``, which is the default.
        noisy_negatives: number of noisy copies, at least 1.
        decay: weight of the history student when it is updated, 0 <= decay < 1.
        every: iterations between two updates.
        feature_weights: one per feature; by default 1/32, 1/16, 1/8, 1/4, 1 for five, else 1 for each.
        loss_weight: factor of the term.

    Raises ValueError for an encoder without weights, unknown teachers, numbers out of range and a wrong number of
    weights. The history student is saved and resumed with the run.
    """

    needs_networks = False

    def __init__(
        self,
        encoder: Mapping[str, Any],
        teachers: Teachers = None,
        noisy_negatives: int = 4,
        decay: float = 0.1,
        every: int = 1000,
        feature_weights: Sequence[float] | None = None,
        loss_weight: float = 0.1,
    ) -> None:
        super().__init__(loss_weight)
        if not isinstance(noisy_negatives, int) or isinstance(noisy_negatives, bool) or noisy_negatives < 1:
            raise ValueError(f'noisy_negatives is {noisy_negatives!r}, expected a number of at least 1')
        check_pace(decay, every)
        self.encoder = build_encoder(encoder)
        self.feature_weights = weights_per_feature(feature_weights, self.encoder)
        self.teachers, self.noisy_negatives = teachers, noisy_negatives
        self.decay, self.every = decay, every

    def build(self, step: Step) -> None:
        self.encoder.to(step.lq.device)
        self.weights = weights_of(self.teachers, available_outputs(step), target=True)
        self.history = Snapshot(step.student_network, self.decay, self.every)

    def forward(self, step: Step) -> Tensor:
        self.history.follow(step.student_network, step.iteration)
        student = self.encoder(step.student)
        with torch.no_grad():
            negatives = self._negatives(step)
            teachers = {name: self.encoder(output_of(step, name)) for name in self.weights}
        return self.loss_weight * sum(
            weight * contrastive_loss(student, teachers[name], negatives, self.feature_weights)
            for name, weight in self.weights.items()
        )

    def _negatives(self, step: Step) -> list[tuple[Tensor, ...]]:
        """Per feature the negatives."""
        inputs = [step.lq, *(noisy(step.lq) for _ in range(self.noisy_negatives))]
        return list(zip(*(self.encoder(self.history(lq, step.scale)) for lq in inputs), strict=True))


def noisy(images: Tensor) -> Tensor:
    """``images`` (B, 3, H, W) plus noise of random strength per sample, in half of them grey, clamped to [0, 1]."""
    low, high = NOISE
    draws = torch.rand(2, len(images), 1, 1, 1, device=images.device)
    colour = torch.randn_like(images)
    noise = torch.where(draws[0] < 0.5, colour[:, :1], colour)
    return (images + (low + (high - low) * draws[1]) * noise).clamp(0, 1)
