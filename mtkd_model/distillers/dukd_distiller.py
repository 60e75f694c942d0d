"""DUKD: student and teacher meet on images that the training data brings for free."""

from collections.abc import Sequence

from torch import Tensor

from mtkd.checks import nearest
from mtkd_arch.feature_maps import window_in
from mtkd_loss.data_upcycling import (
    TRANSFORMS,
    Augmentation,
    choose_transforms,
    inverse_transform,
    random_crops,
    transform,
    zoom_out,
)
from mtkd_loss.image_distance import mean_distance
from mtkd_model.distillers.base import DISTILLER_REGISTRY, Distiller
from mtkd_model.step import Step
from mtkd_model.teacher_weights import Teachers, weights_of


@DISTILLER_REGISTRY.register()
class DUKDDistiller(Distiller):
    """Zoom-in and zoom-out terms of data upcycling; the ground-truth and the plain KD term are other terms.

    "Data Upcycling Knowledge Distillation for Image Super-Resolution" (Zhang et al., 2023,
    https://arxiv.org/abs/2309.14162; as AugKD at ICLR 2025), L1 throughout:

    - zoom-in: ``mean|f^-1(S(f(x))) - T(x)|`` for LR-sized crops x of the ground truth, f being a random choice among
      the invertible ``augmentations`` (each with probability 1/2, one draw for the batch);
    - zoom-out: ``mean|S(z) - LR| + mean|S(z) - T(z)|``, z being LR made smaller by the scale once more.

    f is undone in reverse order; forward order would turn part of the samples. The smaller images are made by bicubic
    interpolation with antialiasing (``zoom_out``). Several teachers count by their weights. The aggregated target
    does not exist for these images, so it cannot be named.

    Args:
        teachers: name -> weight, or one name; by default every teacher with an equal share.
        zoom_in_weight: factor of the zoom-in term; 0 leaves its passes out.
        zoom_out_weight: factor of the zoom-out term; 0 leaves its passes out.
        augmentations: any of invert, hflip, vflip, transpose.
        loss_weight: factor of both.

    Raises ValueError for unknown teachers or augmentations, two weights of 0, and when the zoomed-out image would be
    smaller than the window of a network, to which it would be mirrored: then ``gt_size`` should be larger.
    """

    def __init__(
        self,
        teachers: Teachers = None,
        zoom_in_weight: float = 1.0,
        zoom_out_weight: float = 1.0,
        augmentations: Sequence[Augmentation] = ('invert', 'hflip', 'vflip', 'transpose'),
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        if isinstance(augmentations, str) or not isinstance(augmentations, Sequence):
            raise ValueError(f'augmentations should be a list; it is {augmentations!r}')
        for name in augmentations:
            if name not in TRANSFORMS:
                known = ', '.join(TRANSFORMS)
                raise ValueError(f"augmentation '{name}' is unknown: {nearest(name, TRANSFORMS)}Available: {known}")
        if not (zoom_in_weight or zoom_out_weight):
            raise ValueError('zoom_in_weight and zoom_out_weight are both 0: nothing is left of the term')
        self.teachers, self.augmentations = teachers, tuple(augmentations)
        self.zoom_in_weight, self.zoom_out_weight = zoom_in_weight, zoom_out_weight

    def build(self, step: Step) -> None:
        self.weights = weights_of(self.teachers, step.teachers)
        networks = {
            'network_g': step.student_network,
            **{f'teacher {n}': step.teacher_networks[n] for n in self.weights},
        }
        self.windows = {name: window_in(network) for name, network in networks.items()}
        if step.patch:
            self._check_patch(step.patch, step.scale)

    def forward(self, step: Step) -> dict[str, Tensor]:
        losses = {}
        if self.zoom_in_weight:
            losses['zoom_in'] = self.loss_weight * self.zoom_in_weight * self._zoom_in(step)
        if self.zoom_out_weight:
            losses['zoom_out'] = self.loss_weight * self.zoom_out_weight * self._zoom_out(step)
        return losses

    def _zoom_in(self, step: Step) -> Tensor:
        images = random_crops(step.gt, *step.lq.shape[-2:])
        names = choose_transforms(self.augmentations)
        return self._to_teachers(step, inverse_transform(step.run_student(transform(images, names)), names), images)

    def _zoom_out(self, step: Step) -> Tensor:
        small, shown = zoom_out(step.lq, step.scale)
        student = step.run_student(small)
        return mean_distance(student, shown) + self._to_teachers(step, student, small)

    def _to_teachers(self, step: Step, student: Tensor, images: Tensor) -> Tensor:
        return sum(
            weight * mean_distance(student, step.run_teacher(name, images)) for name, weight in self.weights.items()
        )

    def _check_patch(self, side: int, scale: int) -> None:
        name, window = max(self.windows.items(), key=lambda item: item[1])
        if self.zoom_out_weight and side // scale < window:
            raise ValueError(
                f'an LR patch of {side} zooms out to {side // scale}, below the window of {name}, {window}: '
                f'set gt_size to at least {window * scale * scale}, or zoom_out_weight to 0'
            )
