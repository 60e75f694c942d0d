"""Real steps for tests of methods: networks, taps and views as the training model gives them."""

from typing import Any

import torch
from conftest import build_arch, small_network
from torch import Tensor, nn

from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_model.distillers import Distiller
from mtkd_model.step import Step
from mtkd_model.taps import record_taps

SCALE = 4
STUDENTS = {  # widths and depths other than the teachers'
    'edsr': {'num_feat': 6, 'num_block': 1},
    'rcan': {'num_feat': 4, 'num_group': 1},
    'swinir': {'embed_dim': 8, 'depths': [1], 'num_heads': [2]},
}


def ensemble_of(*names: str, **changes: Any) -> TeacherEnsemble:
    """Small untrained teachers."""
    torch.manual_seed(0)
    options = {name: {'network': small_network(name, **changes), 'path': None} for name in names}
    return TeacherEnsemble(options, SCALE, random_weights=True)


def student_of(name: str, **changes: Any) -> nn.Module:
    """A small student."""
    torch.manual_seed(1)
    return build_arch(small_network(name, **{**STUDENTS[name], **changes}))


def images_of(*shape: int) -> Tensor:
    """Reproducible images in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(7))


def step_of(student: nn.Module, teachers: TeacherEnsemble, term: Distiller, lq: Tensor, iteration: int = 1) -> Step:
    """One step of ``student`` on ``lq``, tapped for ``term``."""
    window = 8 if type(student).__name__ == 'SwinIR' else 1

    def run(images: Tensor) -> Tensor:
        return forward_padded(student, images, SCALE, window)

    with record_taps(student, term.student_taps) as taps:
        output = run(lq)
    outputs = teachers(lq)
    return Step(
        lq=lq,
        gt=images_of(len(lq), 3, SCALE * lq.shape[-2], SCALE * lq.shape[-1]),
        student=output,
        target=outputs.pop('target'),
        teachers=outputs,
        student_taps=taps,
        iteration=iteration,
        scale=SCALE,
        run_student=run,
        run_teacher=teachers.run_teacher,
        student_network=student,
        teacher_networks=teachers.bare(),
    )


def built(term: Distiller, student: nn.Module, teachers: TeacherEnsemble, lq: Tensor) -> Distiller:
    """``term`` after what the training model does before the first step."""
    torch.manual_seed(2)
    term.choose_taps(student, teachers.bare())
    was_training = student.training
    student.eval()
    with torch.no_grad():
        term.build(step_of(student, teachers, term, lq, iteration=0))
    student.train(was_training)
    return term


def without_gradient(module: nn.Module) -> list[str]:
    """Names of the parameters of ``module`` that no gradient has reached, or a zero one."""
    return [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
