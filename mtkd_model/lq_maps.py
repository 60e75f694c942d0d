"""Taps as maps of the size of LQ, whatever a network padded its input to."""

from torch import Tensor

from mtkd_model.step import Step
from mtkd_model.teacher_tails import map_of_tap, window_in

STUDENT = ''


def windows(step: Step) -> dict[str, int]:
    """The window to which each network pads: the student's under ``STUDENT``, the teachers' by name."""
    networks = {STUDENT: step.student_network, **step.teacher_networks}
    return {name: window_in(network) for name, network in networks.items() if network is not None}


def student_map(step: Step, path: str, windows: dict[str, int]) -> Tensor:
    """A tap of the student as (B, C, H, W) with LQ's height and width; raises ValueError for one of another size."""
    return _placed(step.student_taps[path], step.lq, windows.get(STUDENT, 1), f'student tap {path}')


def teacher_map(step: Step, path: str, windows: dict[str, int]) -> Tensor:
    """A tap ``<teacher>/<module path>``, likewise."""
    return _placed(step.teacher_taps[path], step.lq, windows.get(path.partition('/')[0], 1), f'teacher tap {path}')


def _placed(feature: Tensor, lq: Tensor, window: int, where: str) -> Tensor:
    try:
        return map_of_tap(feature, lq, window)
    except ValueError as error:
        raise ValueError(f'{where}: {error}: choose one before the upsampling') from error
