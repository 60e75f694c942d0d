"""The contract of a distillation method."""

from collections.abc import Mapping

from basicsr.utils.registry import Registry
from torch import Tensor, nn
from torch.optim import Optimizer

from mtkd_model.step import Step

DISTILLER_REGISTRY = Registry('distiller')


class Distiller(nn.Module):
    """Base of all methods. A subclass registers with ``DISTILLER_REGISTRY`` and gives ``forward``.

    ``student_taps``, ``teacher_taps`` name the features wanted (``body.-1``; ``edsr/body.-1``); a method with
    defaults per architecture sets them in ``choose_taps``. Trainable parts are plain submodules, made in ``__init__``
    or, where their size depends on the features, in ``build``: they join the optimizer, are synchronised between
    processes, saved and resumed beside the student. A part that the method trains itself has its optimizer in
    ``own_optimizers``: it is left out of the model's optimizer, and synchronising its gradients is the method's affair.
    """

    needs_teachers: bool = True
    needs_networks: bool = True  # False: outputs are enough, also when they come from a cache
    smallest_batch: int = 1  # images per process
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def choose_taps(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Called once, before anything runs: set ``student_taps`` and ``teacher_taps`` that the option leaves open."""

    def own_optimizers(self) -> list[Optimizer]:
        """Optimizers of the parts this method trains itself; saved, resumed and scheduled with the student's."""
        return []

    def build(self, step: Step) -> None:
        """Called once with a tiny step, before the optimizer exists: make adapters, refuse misfits."""

    def forward(self, step: Step) -> Tensor | dict[str, Tensor]:
        """The loss of one step, a scalar, or several by name; already times ``loss_weight``."""
        raise NotImplementedError
