"""MiPKD: student and teacher features are mixed, and the mixture should serve the teacher as well as its own."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mtkd_loss.mixed_prior_loss import mixed, random_mask, random_route, root_mean_square
from mtkd_model.distillers.base import DISTILLER_REGISTRY
from mtkd_model.distillers.tap_pairs import PairedTapsDistiller
from mtkd_model.step import Step
from mtkd_model.teacher_tails import replaced_output
from mtkd_model.teacher_weights import Teachers


class FeatureMixer(nn.Module):
    """Encodes both features by 1 x 1 convolutions, mixes them by a random mask, decodes to the teacher's channels."""

    def __init__(self, student: int, teacher: int, width: int, mask_ratio: float) -> None:
        super().__init__()
        self.encode_student, self.encode_teacher = nn.Conv2d(student, width, 1), nn.Conv2d(teacher, width, 1)
        self.decode = nn.Conv2d(width, teacher, 1)
        self.mask_ratio = mask_ratio

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, C_S, H, W) and (B, C_T, H, W) to (B, C_T, H, W)."""
        own, other = self.encode_student(student), self.encode_teacher(teacher)
        return self.decode(mixed(own, other, random_mask(own, self.mask_ratio)))


@DISTILLER_REGISTRY.register()
class MiPKDDistiller(PairedTapsDistiller):
    """``loss_weight * (feature_weight * sum_k mean|M_k - F_T^k| + block_weight * mean|T~ - T|)`` per teacher.

    MiPKD (mixed-prior knowledge distillation for image super-resolution, ICLR 2025) from a second-hand summary: a
    feature prior mixer with random 3-D masks and a block prior mixer that routes randomly through student or teacher
    blocks, L1 losses with weights 1 and 0.1. What goes beyond that is ours:

    - ``feature``: M_k is the mixture of F_S^k and F_T^k, see :class:`FeatureMixer`, masks drawn per sample, channel and
      position. Features are divided by their root mean square per image first, so that the weight does not depend on
      whether a network computes in [0, 1] or in [0, 255].
    - ``block``: the part of a body before each tap is the student's with probability ``route_ratio``, else the
      teacher's; where it is the student's, M_k (in F_T's magnitude) replaces the output of the teacher's tapped module.
      At least one part is the student's. The frozen teacher finishes with T~, the gradient passing through it; its long
      skips bring its own shallow features. It costs another forward and backward pass of the teacher.

    Args:
        taps: student module path -> ``<teacher>/<module path>``, or a list of them; None takes ``body_taps`` of both.
        teachers: a name, or names with weights; None is every teacher with equal weights that add up to 1.
        width: channels in which features are mixed.
        mask_ratio: share of the teacher in a mixture, in [0, 1).
        route_ratio: probability of the student's part, in [0, 1].
        feature_weight, block_weight: factors of the two losses.
        loss_weight: factor of both.

    Raises ValueError for arguments out of range and for taps whose maps are not of the size of LQ.
    """

    any_size = False

    def __init__(
        self,
        taps: Mapping[str, str | Sequence[str]] | None = None,
        teachers: Teachers = None,
        width: int = 64,
        mask_ratio: float = 0.5,
        route_ratio: float = 0.5,
        feature_weight: float = 1.0,
        block_weight: float = 0.1,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(taps, teachers, 3, loss_weight)
        if width < 1:
            raise ValueError(f'width is {width}, expected at least 1')
        if not 0 <= mask_ratio < 1:
            raise ValueError(f'mask_ratio is {mask_ratio}, expected 0 <= mask_ratio < 1: at 1 the student has no part')
        if not 0 <= route_ratio <= 1:
            raise ValueError(f'route_ratio is {route_ratio}, expected a probability from 0 to 1')
        self.width, self.mask_ratio, self.route_ratio = width, mask_ratio, route_ratio
        self.feature_weight, self.block_weight = feature_weight, block_weight

    def build(self, step: Step) -> None:
        super().build(step)
        self.mixers = nn.ModuleList(
            FeatureMixer(student.shape[1], teacher.shape[1], self.width, self.mask_ratio)
            for student, teacher, _ in self.features(step)
        )

    def forward(self, step: Step) -> dict[str, Tensor]:
        feature, block = 0, 0
        mixtures: dict[str, dict[str, Tensor]] = {}  # by teacher and module path
        weights = {}
        for mixer, pair, maps in zip(self.mixers, self.pairs, self.features(step), strict=True):
            student, teacher = (each.to(mixer.decode.weight.dtype) for each in maps[:2])
            size = root_mean_square(teacher)
            mixture = mixer(student / root_mean_square(student), teacher / size)
            feature = feature + pair.weight * (mixture - teacher / size).abs().mean()
            name, path = pair.place
            mixtures.setdefault(name, {})[path] = mixture * size
            weights[name] = pair.weight
        for name, replacements in mixtures.items() if self.block_weight else ():
            route = random_route(len(replacements), self.route_ratio)
            taken = {path: each for (path, each), own in zip(replacements.items(), route, strict=True) if own}
            output = replaced_output(step.teacher_networks[name], taken, step.lq)
            block = block + weights[name] * (output - step.teachers[name]).abs().mean()
        losses = {'feature': self.feature_weight * feature}
        if self.block_weight:
            losses['block'] = self.block_weight * block
        return {name: self.loss_weight * loss for name, loss in losses.items()}
