"""What makes a student's step fast without changing what is learned: precision, memory layout, compilation, EMA."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtkd.checks import nearest
from mtkd_arch.frozen_network import DTYPES, resolve_precision
from mtkd_model.guarded_step import Outcome, clip_, gated_step, gradient_norms

PRECISIONS = ('bf16', 'fp16', 'auto')
COMPILE_MODES = ('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs')
LOWEST_SCALE = 1.0  # torch halves further, without end; from here on an overflow is no fault of the scale


class MixedPrecision:
    """The precision of the student's passes: ``train.amp``, None (float32), ``bf16``, ``fp16`` or ``auto``.

    ``auto`` is bf16 where the device computes in it, else float32. Weights, outputs and losses stay float32. With
    ``fp16`` the losses are scaled so that small gradients survive, and a step whose gradients overflow is left out; the
    scale is part of the training state.

    Raises ValueError for another precision.
    """

    def __init__(self, precision: str | None, device: torch.device) -> None:
        if precision is not None and precision not in PRECISIONS:
            raise ValueError(
                f'train.amp is {precision!r}: {nearest(precision, PRECISIONS)}expected one of {", ".join(PRECISIONS)}'
            )
        self.device, self.dtype = device, DTYPES[resolve_precision(precision, device)]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == 'fp16')

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of the student's forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of ``loss``, scaled with ``fp16``."""
        self.scaler.scale(loss).backward()

    def step(
        self, optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor], bad_loss: Tensor, most: float | None = None
    ) -> Outcome:
        """Unscale the ``gradients`` of ``optimizer``, clip their norm to ``most``, take the step if all is finite.

        ``bad_loss``, a bool on the device: a loss was not finite, whatever the gradients are. Nothing is read from the
        device for a fused optimizer.
        """
        self.scaler.unscale_(optimizer)
        norms = gradient_norms(gradients)
        norm = torch.linalg.vector_norm(norms)
        overflow = ~norm.isfinite()
        skipped = overflow | bad_loss
        if most is not None:
            clip_(gradients, norm, most)
        gated_step(optimizer, skipped)
        counted = skipped
        if self.scaler.is_enabled():
            scale = self._scale_on_device()
            counted = bad_loss | (overflow & (scale <= LOWEST_SCALE))
            self.scaler.update()
            # a bad loss says nothing about the scale: images that give one now and then would halve it to nothing
            self.scaler.update(torch.where(bad_loss, scale, self._scale_on_device()))
        return Outcome(skipped, counted, bad_loss, norm, norms)

    def _scale_on_device(self) -> Tensor:
        return self.scaler.scale(torch.ones((), device=self.device))


def emulated_bf16(precision: str | None, device: torch.device) -> str:
    """A warning where ``train.amp`` asks for bf16 and ``device`` has no instructions for it, else an empty text."""
    if precision != 'bf16' or resolve_precision('auto', device) == 'bf16':
        return ''
    return (
        f'train.amp is bf16, for which this {device.type.upper()} has no instructions: a step takes longer than in '
        'float32, ten times as long on some: take train.amp: auto, which is bf16 only where the hardware has it'
    )


def compile_mode(option: Any) -> str | None:
    """``train.compile``: false, true (``default``) or a mode of torch.compile; ValueError for anything else."""
    if option in (None, False):
        return None
    mode = 'default' if option is True else option
    if mode not in COMPILE_MODES:
        raise ValueError(f'train.compile is {option!r}, expected true, false or one of {", ".join(COMPILE_MODES)}')
    return mode


def fused_where_possible(optim_opt: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """``optim_g`` with the one-kernel Adam on a GPU, unless the option says otherwise."""
    if device.type == 'cuda' and optim_opt.get('type') in ('Adam', 'AdamW') and not optim_opt.get('foreach'):
        return {'fused': True, **optim_opt}
    return dict(optim_opt)


@torch.no_grad()
def match_parameters(optimizer: torch.optim.Optimizer, fused: Sequence[bool | None]) -> None:
    """Give a loaded state the memory layout of its parameters, and each group the kernel of this machine.

    A fused step takes layouts as they are: a state saved in another one would be added to the wrong weights.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)
    for group, kernel in zip(optimizer.param_groups, fused, strict=True):
        if 'fused' in group:
            group['fused'] = kernel


@contextlib.contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """Within, ``network`` runs as it was written."""
    compiled, network._compiled_call_impl = network._compiled_call_impl, None
    try:
        yield
    finally:
        network._compiled_call_impl = compiled


@torch.no_grad()
def moving_average(average: nn.Module, network: nn.Module, decay: float, skipped: Tensor | None = None) -> None:
    """``average = decay * average + (1 - decay) * network`` for all parameters at once, as BasicSR does one by one.

    It stays as it is if ``skipped``, a bool on the device, which only a CPU is asked for.
    """
    own, new = list(average.parameters()), list(network.parameters())
    if skipped is None or (skipped.device.type == 'cpu' and not skipped):
        torch._foreach_mul_(own, decay)
        torch._foreach_add_(own, new, alpha=1 - decay)
    elif skipped.device.type != 'cpu':
        blend_unless(own, new, decay, skipped)


@torch.no_grad()
def blend_unless(own: Sequence[Tensor], new: Sequence[Tensor], decay: float, skipped: Tensor) -> None:
    """``own = decay * own + (1 - decay) * new`` unless ``skipped``, without asking the device; ``new`` is finite."""
    one = torch.ones((), device=skipped.device)
    torch._foreach_mul_(own, torch.where(skipped, one, one * decay))
    torch._foreach_add_(own, torch._foreach_mul(new, torch.where(skipped, one * 0, one * (1 - decay))))
