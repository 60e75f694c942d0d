"""Steps for tests of single methods, made with plain taps and nothing of the training model."""

import torch
from conftest import build_arch, small_network
from torch import Tensor, nn

from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_model.distillers import Distiller
from mtkd_model.step import Step
from mtkd_model.taps import record_taps

WINDOWS = {'SwinIR': 8}


def ensemble(**networks: dict) -> TeacherEnsemble:
    """Untrained x4 teachers by name, by default of other widths and depths than the students."""
    networks = networks or {
        'edsr': small_network('edsr', num_feat=12, num_block=4),
        'rcan': small_network('rcan', num_group=3),
        'swinir': small_network('swinir', embed_dim=16, depths=[1, 1, 1], num_heads=[2, 2, 2]),
    }
    options = {name: {'network': network, 'path': None} for name, network in networks.items()}
    return TeacherEnsemble(options, 4, random_weights=True)


def image_batch(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def step_for(
    term: Distiller, student: nn.Module, teachers: TeacherEnsemble, lq: Tensor, iteration: int = 1, scale: int = 4
) -> Step:
    """One step of ``student`` on ``lq`` with everything that ``term`` taps."""
    dtype = lq.dtype
    with record_taps(student, term.student_taps) as student_taps:
        output = forward_padded(student, lq, scale, WINDOWS.get(type(student).__name__, 1))
    teacher_taps, outputs = {}, {}
    for name, frozen in teachers.networks.items():
        paths = [path.partition('/')[2] for path in term.teacher_taps if path.partition('/')[0] == name]
        with record_taps(frozen.network, paths) as recorded:
            outputs[name] = teachers.run_teacher(name, lq).to(dtype)
        teacher_taps |= {f'{name}/{path}': value for path, value in recorded.items()}
    return Step(
        lq=lq,
        gt=image_batch(*lq.shape[:2], lq.shape[2] * scale, lq.shape[3] * scale, seed=2).to(dtype),
        student=output,
        target=torch.stack(list(outputs.values())).mean(dim=0),
        teachers=outputs,
        student_taps=student_taps,
        teacher_taps=teacher_taps,
        iteration=iteration,
        scale=scale,
        student_network=student,
        teacher_networks=teachers.bare(),
    )


def built(
    term: Distiller, student: nn.Module, teachers: TeacherEnsemble, lq: Tensor, iteration: int = 1, scale: int = 4
) -> Step:
    """Choose the taps, build ``term`` on a probe as the bank does, and give a step for it."""
    term.choose_taps(student, teachers.bare())
    with torch.no_grad():
        term.build(step_for(term, student, teachers, lq, 0, scale))
    term.to(lq.dtype)
    return step_for(term, student, teachers, lq, iteration, scale)


def reached(network: nn.Module) -> set[str]:
    """Names of the parameters with a gradient other than zero."""
    return {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def student_of(name: str, **changes: int) -> nn.Module:
    torch.manual_seed(0)
    return build_arch(small_network(name, **changes))
