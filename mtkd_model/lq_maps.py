"""Taps as maps without the padding to a network's window."""

from torch import Tensor

from mtkd_arch.feature_maps import lq_map, unpadded_map, window_in
from mtkd_model.step import Step

STUDENT = ''


def windows(step: Step) -> dict[str, int]:
    """The window to which each network pads: the student's under ``STUDENT``, the teachers' by name."""
    networks = {STUDENT: step.student_network, **step.teacher_networks}
    return {name: window_in(network) for name, network in networks.items() if network is not None}


def student_map(step: Step, path: str, windows: dict[str, int], any_size: bool = False) -> Tensor:
    """A tap of the student as (B, C, H, W) with LQ's height and width; raises ValueError for one of another size.

    With ``any_size`` a map of another size stays as it is.
    """
    return _placed(step.student_taps[path], step.lq, windows.get(STUDENT, 1), any_size, f'student tap {path}')


def teacher_map(step: Step, path: str, windows: dict[str, int], any_size: bool = False) -> Tensor:
    """A tap ``<teacher>/<module path>``, likewise."""
    window = windows.get(path.partition('/')[0], 1)
    return _placed(step.teacher_taps[path], step.lq, window, any_size, f'teacher tap {path}')


def _placed(feature: Tensor, lq: Tensor, window: int, any_size: bool, where: str) -> Tensor:
    try:
        return (unpadded_map if any_size else lq_map)(feature, *lq.shape[-2:], window)
    except ValueError as error:
        raise ValueError(f'{where}: {error}: choose one before the upsampling') from error
