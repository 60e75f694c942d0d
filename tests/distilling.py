"""Real steps for tests of methods: networks, taps and views as the training model gives them, but none of its code."""

import contextlib
from typing import Any

import torch
from conftest import build_arch, small_network
from torch import Tensor, nn

from mtkd_arch.feature_maps import window_in
from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.taps import record_taps
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_model.distillers import Distiller
from mtkd_model.step import Step

SCALE = 4
TEACHERS = {  # of other widths and depths than the students
    'edsr': small_network('edsr', num_feat=12, num_block=5),
    'rcan': small_network('rcan', num_group=4),
    'swinir': small_network('swinir', embed_dim=16, depths=[1, 1, 1], num_heads=[2, 2, 2]),
}
# every parameter has a part in the features: no dropped paths, no squeezed attention that a ReLU kills
WHOLE = {'swinir': {'drop_path_rate': 0.0}, 'rcan': {'squeeze_factor': 1}}
NARROW = {
    'edsr': {'num_feat': 6, 'num_block': 1},
    'rcan': {'num_feat': 4, 'num_group': 1},
    'swinir': {'embed_dim': 8, 'depths': [1], 'num_heads': [2]},
}


def ensemble(**networks: dict[str, Any]) -> TeacherEnsemble:
    """Untrained x4 teachers by name, by default ``TEACHERS``."""
    torch.manual_seed(0)
    options = {name: {'network': network, 'path': None} for name, network in (networks or TEACHERS).items()}
    return TeacherEnsemble(options, SCALE, random_weights=True)


def small_ensemble(*names: str) -> TeacherEnsemble:
    """Untrained teachers as small as the students, faster."""
    return ensemble(**{name: small_network(name) for name in names})


def student_of(name: str, **changes: Any) -> nn.Module:
    """A small student."""
    torch.manual_seed(1)
    return build_arch(small_network(name, **{**WHOLE.get(name, {}), **changes}))


def narrow_student(name: str, **changes: Any) -> nn.Module:
    """A student that is narrower and shallower than any teacher."""
    torch.manual_seed(1)
    return build_arch(small_network(name, **{**NARROW[name], **changes}))


def image_batch(*shape: int, seed: int = 1) -> Tensor:
    """Reproducible images in [0, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def noise(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def step_of(term: Distiller, student: nn.Module, teachers: TeacherEnsemble, lq: Tensor, iteration: int = 1) -> Step:
    """One step of ``student`` on ``lq`` of any size with everything that ``term`` taps."""

    def run(images: Tensor) -> Tensor:
        return forward_padded(student, images, SCALE, window_in(student))

    with record_taps(student, term.student_taps) as student_taps:
        output = run(lq)
    with contextlib.ExitStack() as stack:
        taps = {}
        for name, network in teachers.bare().items():
            paths = [path.partition('/')[2] for path in term.teacher_taps if path.partition('/')[0] == name]
            taps[name] = stack.enter_context(record_taps(network, paths))
        outputs = teachers(lq)
    return Step(
        lq=lq,
        gt=image_batch(len(lq), 3, SCALE * lq.shape[-2], SCALE * lq.shape[-1], seed=2),
        student=output,
        aggregated=outputs.pop('target'),
        teachers=outputs,
        student_taps=student_taps,
        teacher_taps={f'{name}/{path}': value for name, tapped in taps.items() for path, value in tapped.items()},
        iteration=iteration,
        scale=SCALE,
        run_student=run,
        run_teacher=teachers.run_teacher,
        student_network=student,
        teacher_networks=teachers.bare(),
    )


def feature_step(student: Tensor, teacher: Tensor, lq: Tensor | None = None, **changes: Any) -> Step:
    """A step that is nothing but one pair of taps, ``body`` and ``edsr/body``."""
    lq = torch.zeros(len(student), 3, *student.shape[2:]) if lq is None else lq
    return Step(lq, lq, lq, lq, student_taps={'body': student}, teacher_taps={'edsr/body': teacher}, **changes)


def built(term: Distiller, student: nn.Module, teachers: TeacherEnsemble, lq: Tensor) -> Distiller:
    """``term`` after what the training model does before the first step."""
    torch.manual_seed(2)
    term.choose_taps(student, teachers.bare())
    was_training = student.training
    student.eval()
    with torch.no_grad():
        term.build(step_of(term, student, teachers, lq, iteration=0))
    torch.clear_autocast_cache()  # as where the model's context ends; torch before 2.11 keeps weights without gradient
    student.train(was_training)
    return term


def built_step(term: Distiller, student: nn.Module, teachers: TeacherEnsemble, lq: Tensor, iteration: int = 1) -> Step:
    """Build ``term`` and give a step for it."""
    return step_of(built(term, student, teachers, lq), student, teachers, lq, iteration)


def total(losses: Tensor | dict[str, Tensor]) -> Tensor:
    return sum(losses.values()) if isinstance(losses, dict) else losses


def reached(module: nn.Module) -> set[str]:
    """Parameters with a gradient other than zero; a gradient that is not finite fails."""
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    return {name for name, gradient in gradients.items() if gradient.abs().sum() > 0}


def without_gradient(module: nn.Module) -> list[str]:
    """Parameters that no gradient has reached, or a zero one."""
    return sorted({name for name, _ in module.named_parameters()} - reached(module))
