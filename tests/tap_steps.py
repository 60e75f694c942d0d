"""Steps for the tests of methods that compare features: real networks of differing width and depth, plain taps."""

import contextlib
from typing import Any

import torch
from conftest import build_arch, small_network
from torch import Tensor, nn

from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_model.distillers import Distiller
from mtkd_model.step import Step
from mtkd_model.taps import record_taps

TEACHERS = {
    'edsr': small_network('edsr', num_feat=12, num_block=5),
    'rcan': small_network('rcan', num_group=4),
    'swinir': small_network('swinir', embed_dim=16, depths=[1, 1, 1], num_heads=[2, 2, 2]),
}


def made_teachers() -> TeacherEnsemble:
    torch.manual_seed(0)
    options = {name: {'network': network, 'path': None} for name, network in TEACHERS.items()}
    return TeacherEnsemble(options, 4, random_weights=True)


def made_student(name: str) -> nn.Module:
    torch.manual_seed(1)
    # so that every parameter has a part in the features: no dropped paths, no squeezed attention that a ReLU kills
    changes = {'swinir': {'drop_path_rate': 0.0}, 'rcan': {'squeeze_factor': 1}}
    return build_arch(small_network(name, **changes.get(name, {})))


def noise(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(batch: int = 3, height: int = 8, width: int = 16) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def taken_step(term: Distiller, student: nn.Module, teachers: TeacherEnsemble, lq: Tensor, **changes: Any) -> Step:
    """A step with the taps that ``term`` chooses, through padding as in training."""
    term.choose_taps(student, teachers.bare())
    with record_taps(student, term.student_taps) as student_taps:
        output = forward_padded(student, lq, 4, 8 if type(student).__name__ == 'SwinIR' else 1)
    taps = {}
    for name, frozen in teachers.networks.items():
        paths = [path.partition('/')[2] for path in term.teacher_taps if path.startswith(f'{name}/')]
        with record_taps(frozen.network, paths) as recorded:
            teachers.run_teacher(name, lq)
        taps |= {f'{name}/{path}': value for path, value in recorded.items()}
    step = Step(
        lq=lq,
        gt=torch.zeros_like(output),
        student=output,
        target=output.detach(),
        student_taps=student_taps,
        teacher_taps=taps,
        **changes,
    )
    term.build(step)
    return step


def feature_step(student: Tensor, teacher: Tensor, lq: Tensor | None = None, **changes: Any) -> Step:
    """A step that is nothing but one pair of taps, ``body`` and ``edsr/body``."""
    lq = torch.zeros(len(student), 3, *student.shape[2:]) if lq is None else lq
    return Step(lq, lq, lq, lq, student_taps={'body': student}, teacher_taps={'edsr/body': teacher}, **changes)


def total(losses: Tensor | dict[str, Tensor]) -> Tensor:
    return sum(losses.values()) if isinstance(losses, dict) else losses


def reached(network: nn.Module) -> set[str]:
    """Parameters with a gradient other than zero; a gradient that is not finite fails."""
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    return {name for name, gradient in gradients.items() if gradient.abs().sum() > 0}


def without_tail(network: nn.Module, *tail: str) -> set[str]:
    return {name for name, _ in network.named_parameters() if not name.startswith(tail)}


# the parameters behind the last default tap
TAILS = {
    'edsr': ('conv_after_body', 'upsample', 'conv_last'),
    'rcan': ('upsample', 'conv_last'),
    'swinir': ('norm.', 'conv_after_body', 'upsample', 'conv_last'),
}


def check_it_moves_the_student_and_no_teacher(term: Distiller, student_name: str, lq: Tensor) -> None:
    """Every parameter up to the last tap gets a gradient, the teachers get none and keep no graph."""
    student, teachers = made_student(student_name), made_teachers()
    step = taken_step(term, student, teachers, lq)
    assert all(not value.requires_grad for value in step.teacher_taps.values())
    before = {name: value.clone() for name, value in (*step.student_taps.items(), *step.teacher_taps.items())}
    losses = term(step)
    after = {**step.student_taps, **step.teacher_taps}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    total(losses).backward()
    missing = without_tail(student, *TAILS[student_name]) - reached(student)
    assert not missing, f'no gradient for {sorted(missing)}'
    assert reached(student) <= without_tail(student, *TAILS[student_name])
    assert all(parameter.grad is None for parameter in teachers.parameters())


def check_it_is_finite_under_autocast(term: Distiller, student_name: str, lq: Tensor) -> None:
    """bf16 features give a finite float32 loss near that of float32, and finite gradients."""
    values = []
    for enabled in (False, True):
        student, teachers = made_student(student_name), made_teachers()
        with torch.autocast('cpu', torch.bfloat16) if enabled else contextlib.nullcontext():
            loss = total(term(taken_step(term, student, teachers, lq)))
        assert loss.dtype == torch.float32
        loss.backward()
        assert reached(student)
        values.append(loss.item())
    assert abs(values[0] - values[1]) < 0.2 * values[0]  # bf16 keeps 8 bits, through a whole network
