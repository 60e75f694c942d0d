"""The ``distill:`` section as one module: builds the terms, knows their taps, sums nothing, names every loss."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from mtkd.checks import build, nearest
from mtkd_arch.taps import find_module
from mtkd_model.distillers import DISTILLER_REGISTRY
from mtkd_model.step import Step

NOT_A_KEY = ('pix', 'percep', 'style')  # their log entries are SRModel's own losses


class DistillerBank(nn.Module):
    """All distillation terms of an option file; ``forward(step)`` gives the losses as ``l_<key>``.

    Args:
        opt: term key -> option of a distiller (``type`` and its arguments).

    Raises ValueError for an unknown type or argument or a key that cannot serve, naming ``train.distill.<key>``.
    """

    def __init__(self, opt: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        if not isinstance(opt, Mapping) or not opt:
            raise ValueError(f'train.distill should be a mapping of named terms; it is {opt!r}')
        self.terms = nn.ModuleDict()
        for key, term in opt.items():
            where = f'train.distill.{key}'
            try:
                distiller = build(DISTILLER_REGISTRY, term, where)
            except ValueError as error:
                raise _placed(error, where) from error
            _check_key(key, where)
            self.terms[key] = distiller

    @property
    def student_taps(self) -> tuple[str, ...]:
        """Module paths in the student that any term taps, each once."""
        return tuple(dict.fromkeys(path for term in self.terms.values() for path in term.student_taps))

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """``<teacher>/<module path>`` that any term taps, each once."""
        return tuple(dict.fromkeys(path for term in self.terms.values() for path in term.teacher_taps))

    def taps_of(self, teacher: str) -> tuple[str, ...]:
        """Module paths tapped in one teacher."""
        return tuple(path.partition('/')[2] for path in self.teacher_taps if path.partition('/')[0] == teacher)

    def own_optimizers(self) -> list[Optimizer]:
        """Optimizers of the terms that train parts of theirs themselves."""
        return [optimizer for term in self.terms.values() for optimizer in term.own_optimizers()]

    def check_setting(self, has_teachers: bool, batch: int) -> None:
        """Raise ValueError for a term that lacks teachers, or other images in its batch."""
        for key, term in self.terms.items():
            where, name = f'train.distill.{key}', type(term).__name__
            if term.needs_teachers and not has_teachers:
                raise ValueError(f'{where}: {name} needs teachers: the option file has no teachers section')
            if batch < term.smallest_batch:
                raise ValueError(
                    f'{where}: {name} needs several images in a batch: '
                    f'set datasets.train.batch_size_per_gpu, now {batch}, to at least {term.smallest_batch}'
                )

    def choose_taps(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Let every term choose the taps its option leaves open."""
        for key, term in self.terms.items():
            try:
                term.choose_taps(student, teachers)
            except ValueError as error:
                raise _placed(error, f'train.distill.{key}') from error

    def check_taps(self, student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
        """Raise ValueError for a tap that does not exist, naming the term and what there is."""
        for key, term in self.terms.items():
            where = f'train.distill.{key}'
            for path in term.student_taps:
                find_module(student, path, f'{where}: student tap')
            for path in term.teacher_taps:
                teacher, _, module = path.partition('/')
                if teacher not in teachers or not module:
                    raise ValueError(
                        f"{where}: teacher tap '{path}' should be <teacher>/<module path>: "
                        f'{nearest(teacher, teachers)}Teachers: {", ".join(teachers)}'
                    )
                find_module(teachers[teacher], module, f'{where}: teacher tap')

    def build(self, step: Step) -> None:
        """Let every term make its adapters and compute one loss, so that misfits show now and by name."""
        taken: dict[str, str] = {}
        for key, term in self.terms.items():
            try:
                term.build(step)
                term.to(step.lq.device)
                losses = _named(key, term(step))
            except ValueError as error:
                raise _placed(error, f'train.distill.{key}') from error
            for name, loss in losses.items():
                if taken.setdefault(name, key) != key:
                    raise ValueError(f'train.distill.{key}: {name} is a loss of train.distill.{taken[name]} already')
                if loss.dim() != 0:
                    raise ValueError(f'train.distill.{key}: {name} is {tuple(loss.shape)}, a loss must be a scalar')

    def forward(self, step: Step) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for key, term in self.terms.items():
            losses |= _named(key, term(step))
        return losses


def needs_networks(opt: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether any term of ``train.distill`` needs more of the networks than their outputs."""
    types = [term.get('type') for term in opt.values() if isinstance(term, Mapping)]
    return any(DISTILLER_REGISTRY.get(name).needs_networks for name in types if name in DISTILLER_REGISTRY)


def _check_key(key: Any, where: str) -> None:
    # the key becomes the name of a submodule and of an entry in the log
    if not isinstance(key, str) or not key or '.' in key or hasattr(nn.ModuleDict, key):
        raise ValueError(f"{where}: the name {key!r} will not do: letters, digits and '_' please")
    if key in NOT_A_KEY:
        raise ValueError(f'{where}: l_{key} is the log entry of a loss to the ground truth: choose another name')


def _named(key: str, loss: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(loss, Mapping):
        return {f'l_{key}_{name}': value for name, value in loss.items()}
    return {f'l_{key}': loss}


def _placed(error: ValueError, where: str) -> ValueError:
    return error if where in str(error) else ValueError(f'{where}: {error}')


def trainable(module: nn.Module | None) -> list[nn.Parameter]:
    """The parameters of ``module`` that want a gradient from the model's own optimizer; none of None."""
    if module is None:
        return []
    others = {id(parameter) for parameter in self_trained(module)}
    return [p for p in module.parameters() if p.requires_grad and id(p) not in others]


def self_trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that the terms of a bank (also a wrapped one) train by optimizers of their own."""
    optimizers = getattr(getattr(module, 'module', module), 'own_optimizers', list)()
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group['params']]
