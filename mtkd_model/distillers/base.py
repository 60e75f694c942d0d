"""The contract of a distillation method."""

from basicsr.utils.registry import Registry
from torch import Tensor, nn

from mtkd_model.step import Step

DISTILLER_REGISTRY = Registry('distiller')


class Distiller(nn.Module):
    """Base of all methods. A subclass registers with ``DISTILLER_REGISTRY`` and gives ``forward``.

    ``student_taps`` and ``teacher_taps`` name the features wanted (``body.-1``; ``edsr/body.-1``). Trainable parts are
    ordinary submodules, made in ``__init__`` or, where their size depends on the features, in ``build``: they join the
    optimizer, are synchronised between processes, saved and resumed beside the student.
    """

    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def build(self, step: Step) -> None:
        """Called once with a tiny step, before the optimizer exists: make adapters, refuse misfits."""

    def forward(self, step: Step) -> Tensor | dict[str, Tensor]:
        """The loss of one step, a scalar, or several by name; already times ``loss_weight``."""
        raise NotImplementedError
