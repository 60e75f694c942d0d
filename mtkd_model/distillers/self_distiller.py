"""Self-distillation: the student imitates the average, or a former state, of itself."""

from torch import Tensor

from mtkd_loss.image_distance import mean_distance
from mtkd_model.distillers.base import DISTILLER_REGISTRY, Distiller
from mtkd_model.snapshots import Snapshot, check_pace
from mtkd_model.step import Step


@DISTILLER_REGISTRY.register()
class SelfDistiller(Distiller):
    """``loss_weight * mean|S - S'|``, S' being the output of a copy of the student that follows it.

    Ours, after Mean Teacher (Tarvainen and Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780), where the copy
    is the exponential moving average of the student, with L1 on the images in place of class probabilities. The copy
    starts as the student is, so the first loss is zero (up to random depth, which the copy has not); it is updated at
    the start of a step from what the step before made of the student. It is saved and resumed with the run.

    Args:
        decay: weight of the copy when it is updated, 0 <= decay < 1; 0 replaces it.
        every: iterations between two updates. ``decay: 0.999, every: 1`` is the moving average, ``decay: 0, every:
            1000`` the history student.
        loss_weight: factor of the term. Beside L1 to the ground truth of weight 1 keep it well below 1: where S lies
            between G and S' the two gradients have opposite signs, and at 1 they cancel.

    Raises ValueError for a ``decay`` or ``every`` out of range.
    """

    needs_teachers = False
    needs_networks = False

    def __init__(self, decay: float = 0.999, every: int = 1, loss_weight: float = 0.1) -> None:
        super().__init__(loss_weight)
        check_pace(decay, every)
        self.decay, self.every = decay, every

    def build(self, step: Step) -> None:
        self.snapshot = Snapshot(step.student_network, self.decay, self.every)

    def forward(self, step: Step) -> Tensor:
        self.snapshot.follow(step.student_network, step.iteration)
        return self.loss_weight * mean_distance(step.student, self.snapshot(step.lq, step.scale))
