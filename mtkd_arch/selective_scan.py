"""The selective scan of state-space networks in plain PyTorch: no CUDA extension, any device, any length."""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, chunk: int = 32
) -> Tensor:
    """``h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t`` and ``y_t = C_t h_t + D u_t``, from ``h = 0``.

    Mamba (Gu & Dao, 2023, eq. 2 with the discretisation of its algorithm 2, https://arxiv.org/abs/2312.00752). The
    line is cut into chunks that are walked side by side, ``chunk`` steps in all; then the state at the end of each
    chunk is handed to the next, ``L / chunk`` steps, and carried into it by the decay since its start. No quotient of
    decays is formed, so nothing overflows however long the line or strong the decay. Computes in float32 (float64 for
    float64), also under autocast; the result has the type of ``u``.

    Args:
        u: input, (..., N, L) with N channels and L >= 1 positions.
        delta: step sizes >= 0, (..., N, L).
        A: decay <= 0, (..., N, S) with S states; leading dimensions broadcast to those of ``u``.
        B, C: input and output maps, (..., S, L).
        D: direct path, (..., N), or None.
        chunk: positions per chunk; of influence on speed and memory alone, best near the root of L.

    Raises ValueError for shapes that do not belong together or a ``chunk`` below 1.
    """
    _check(u, delta, A, B, C, chunk)
    length = u.shape[-1]
    with torch.autocast(u.device.type, enabled=False):
        dtype = torch.promote_types(u.dtype, torch.float32)
        x, delta, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
        steps, drive, B, C = (_chunks(tensor, chunk) for tensor in (delta, delta * x, B, C))  # (K, ..., N or S, M)
        exponent = steps.unsqueeze(-2) * A.unsqueeze(-1)  # (K, ..., N, S, M)
        local = _recurrence(exponent.exp(), drive.unsqueeze(-2) * B.unsqueeze(-3))
        decay = exponent.cumsum(0).exp()  # since the start of the chunk
        ends = _recurrence(decay[-1].movedim(-1, 0), local[-1].movedim(-1, 0)).movedim(0, -1)  # (..., N, S, M)
        states = local + decay * F.pad(ends[..., :-1], (1, 0))  # each chunk starts where the last one ended
        y = (states * C.unsqueeze(-3)).sum(-2)  # (K, ..., N, M)
        y = y.movedim(0, -1).flatten(-2)[..., :length]
        if D is not None:
            y = y + D.to(dtype).unsqueeze(-1) * x
    return y.to(u.dtype)


def _recurrence(decay: Tensor, drive: Tensor) -> Tensor:
    """``h_t = decay_t * h_(t-1) + drive_t`` along the first dimension, from ``h = 0``."""
    states = [drive[0]]
    for factor, term in zip(decay[1:].unbind(), drive[1:].unbind(), strict=True):
        states.append(torch.addcmul(term, factor, states[-1]))
    return torch.stack(states)


def _chunks(x: Tensor, chunk: int) -> Tensor:
    """(..., L) to (chunk, ..., M): position within the chunk first, zeros (steps of size 0) behind the end."""
    padded = F.pad(x, (0, -x.shape[-1] % chunk))
    return padded.unflatten(-1, (-1, chunk)).movedim(-1, 0).contiguous()


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> None:
    fits = (
        delta.shape == u.shape
        and B.shape == C.shape
        and B.shape[:-2] == u.shape[:-2]
        and B.shape[-1] == u.shape[-1]
        and A.shape[-2:] == (u.shape[-2], B.shape[-2])
    )
    if not fits or u.shape[-1] < 1 or chunk < 1:
        shapes = {'u': u, 'delta': delta, 'A': A, 'B': B, 'C': C}
        given = ', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in shapes.items())
        raise ValueError(
            f'selective_scan wants u and delta (..., N, L), A (..., N, S), B and C (..., S, L), L and chunk >= 1; '
            f'given {given}, chunk {chunk}'
        )
