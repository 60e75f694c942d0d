"""HKDSR: the student's intermediate images follow the teacher's, in the image and in its frequencies."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtkd_arch.default_taps import body_taps
from mtkd_arch.hierarchical_arch import HierarchicalSR, UpsamplingHead, image_of, upsampled
from mtkd_loss.frequency_similarity_loss import FrequencySimilarity
from mtkd_model.distillers.base import DISTILLER_REGISTRY, Distiller
from mtkd_model.lq_maps import STUDENT, student_map, windows
from mtkd_model.step import Step
from mtkd_model.teacher_weights import Teachers, weights_of


class AdaptiveFusion(nn.Module):
    """``w * T + (1 - w) * G`` with ``w = sigmoid(conv1x1([T; G]))`` per pixel and colour; w is 1/2 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(6, 3, 1)
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)

    def forward(self, teacher: Tensor, gt: Tensor) -> Tensor:
        weight = torch.sigmoid(self.weigh(torch.cat([teacher, gt], dim=1)))
        return weight * teacher + (1 - weight) * gt


@DISTILLER_REGISTRY.register()
class HKDSRDistiller(Distiller):
    """Four losses on the intermediate SR images S_k of the student's heads and T_k of the teacher's, summed over k.

    HKDSR (Neurocomputing 554:126592, 2023, https://doi.org/10.1016/j.neucom.2023.126592). Its abstract names the parts:
    a teacher pre-trained with intermediate upsampling layers, the frequency-similarity relations among G and both
    networks' intermediate SR (FSM), and an alignment with the teacher's intermediate SR merged with G (ACF). Its text
    was not readable to us, so all formulas are ours:

    - ``heads``: ``mean|S_k - G|``. The student's heads are a convolution and a pixel shuffle at 1/3, 2/3 and 3/3 of its
      body, added to the bicubic LQ; they live here, so the student that is saved has none.
    - ``acf``: ``mean|S_k - F_k|`` with ``F_k = w * T_k + (1 - w) * G``, detached: see :class:`AdaptiveFusion`.
    - ``fsm``: ``mean|M(S_k, G) - M(T_k, G)|``, see :class:`FrequencySimilarity`.
    - ``fusion``: ``mean|F_k - G|``, which trains the fusion alone. It pulls w to 0 in the long run, and the target F_k
      to G; with ``fusion_weight: 0`` the fusion stays the mean of T_k and G.

    Args:
        teachers: name, name -> weight, or None for all with equal weight; every one a HierarchicalSR.
        student_taps: module paths, one per head of a teacher; None takes the ends of as many equal parts of the body.
        acf_weight, heads_weight, fusion_weight: factors of the losses.
        fsm_weight: factor of FSM, whose gradient on photographs is 25 to 30 times that of a mean of absolute
            differences: at 1 it outweighs all others, and the student suffers (docs/results.md).
        loss_weight: factor of all of them.

    Raises ValueError for a teacher without heads, for teachers whose numbers of heads differ or do not match
    ``student_taps``, and for a tap that is not of the size of LQ.
    """

    def __init__(
        self,
        teachers: Teachers = None,
        student_taps: Sequence[str] | None = None,
        acf_weight: float = 1.0,
        fsm_weight: float = 0.01,
        heads_weight: float = 1.0,
        fusion_weight: float = 1.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.choice, self.student_taps = teachers, tuple(student_taps or ())
        self.weights = {'acf': acf_weight, 'fsm': fsm_weight, 'heads': heads_weight, 'fusion': fusion_weight}
        self.similarity = FrequencySimilarity()

    def choose_taps(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        self.teachers = weights_of(self.choice, teachers)
        taps = {name: _taps_of(teachers[name], name) for name in self.teachers}
        self.teacher_taps = tuple(f'{name}/{path}' for name, paths in taps.items() for path in paths)
        counts = {name: len(paths) for name, paths in taps.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f'teachers differ in their numbers of heads: {counts}: give them as many taps each')
        count = next(iter(counts.values()))
        self.student_taps = self.student_taps or tuple(body_taps(student, count))
        if len(self.student_taps) != count:
            raise ValueError(
                f'{len(self.student_taps)} student taps ({", ".join(self.student_taps)}) for {count} heads of the '
                f'teacher: name {count} under student_taps'
            )

    def build(self, step: Step) -> None:
        found = windows(step)
        self.window = found.get(STUDENT, 1)
        maps = [student_map(step, path, found) for path in self.student_taps]
        network = step.student_network
        network = getattr(network, 'network', network)  # a student that is a HierarchicalSR itself
        self.heads = nn.ModuleList(UpsamplingHead(feature.shape[1], step.scale, network) for feature in maps)
        self.fusions = nn.ModuleDict({name: nn.ModuleList(AdaptiveFusion() for _ in maps) for name in self.teachers})

    def forward(self, step: Step) -> dict[str, Tensor]:
        base = upsampled(step.lq, step.scale)
        images = [
            image_of(head, step.student_taps[path], base, self.window)
            for head, path in zip(self.heads, self.student_taps, strict=True)
        ]
        losses = {'heads': sum(_distance(image, step.gt) for image in images), 'acf': 0, 'fsm': 0, 'fusion': 0}
        for name, weight in self.teachers.items():
            pairs = zip(images, _images_of_teacher(step, name, base), self.fusions[name], strict=True)
            for image, target, fusion in pairs:
                fused = fusion(target, step.gt)
                losses['acf'] += weight * _distance(image, fused.detach())
                losses['fsm'] += weight * self.similarity(image, target, step.gt)
                losses['fusion'] += weight * _distance(fused, step.gt)
        return {name: self.loss_weight * self.weights[name] * losses[name] for name in self.weights}


def _distance(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().mean()


def _taps_of(teacher: nn.Module, name: str) -> tuple[str, ...]:
    if not isinstance(teacher, HierarchicalSR):
        raise ValueError(
            f"teacher '{name}' ({type(teacher).__name__}) has no heads: train it by HKDSR's first stage "
            f'(model_type: HierarchicalModel, network_g: {{type: HierarchicalSR, network: ...}}) and give '
            f'teachers.{name}.network the type HierarchicalSR'
        )
    return teacher.tap_paths


@torch.no_grad()
def _images_of_teacher(step: Step, name: str, base: Tensor) -> list[Tensor]:
    teacher = step.teacher_networks[name]
    features = {path: step.teacher_taps[f'{name}/{path}'] for path in teacher.tap_paths}
    return [image.to(step.gt.dtype) for image in teacher.intermediate(features, base)]
