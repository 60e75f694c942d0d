"""WaveletLoss, forward and backward: ours on the difference against pytorch-wavelets on each of the two images."""

import argparse
import sys
from typing import Any

import mtkd  # noqa: F401  mends pytorch-wavelets' import

# isort: split

import torch
from pytorch_wavelets import DWTForward
from torch import Tensor

from benchmarks import record
from mtkd_loss.wavelet_loss import WaveletLoss

SHAPE = (16, 3, 128, 128)
CASES = (('haar', 1), ('haar', 2), ('db2', 1), ('sym4', 1))


def apart(transform: DWTForward, student: Tensor, target: Tensor) -> Tensor:
    """The same loss as the paper writes it, by the package's own transform of both images."""
    (low, high), (low_t, high_t) = transform(student), transform(target)
    details = [(s[:, :, i] - t[:, :, i]).abs().mean() for s, t in zip(high, high_t, strict=True) for i in range(3)]
    return (low - low_t).abs().mean() + sum(details)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, ratio and the largest difference of loss and gradient for each wavelet and level."""
    torch.manual_seed(0)
    student, target = torch.rand(2, *SHAPE, device=args.device).unbind()
    found: dict[str, Any] = {'shape': SHAPE}
    for wave, level in CASES:
        package = DWTForward(J=level, wave=wave, mode='symmetric').to(args.device)
        ours = WaveletLoss(wave=wave, level=level).to(args.device)

        def gradient(loss: Any) -> tuple[Tensor, Tensor]:
            leaf = student.clone().requires_grad_()
            value = loss(leaf)
            value.backward()
            return value.detach(), leaf.grad

        losses = {
            'ours': lambda s, ours=ours: ours(s, target),
            'package': lambda s, package=package: apart(package, s, target),
        }
        results = {name: gradient(loss) for name, loss in losses.items()}
        steps = {name: lambda loss=loss: gradient(loss) for name, loss in losses.items()}
        times = record.interleaved(steps, args.runs, args.device, warmup=3)
        found[f'{wave}_{level}'] = {
            **record.summaries(times),
            'ours_to_package': record.ratio(times['ours'], times['package']),
            'difference_of_loss': (results['ours'][0] - results['package'][0]).abs().item(),
        }
    return found


def main(argv: list[str] | None = None) -> int:
    return record.run_part(argv, __doc__, measure, runs=25)


if __name__ == '__main__':
    sys.exit(main())
