"""Peak memory and time of FAKD's affinity term: in chunks, as it is shipped, against the matrices written out.

Batch 16, three taps of 48 x 48 with 64 channels each in student and teacher, value and gradient. Every variant runs in
a process of its own; memory is the process's peak beyond what it held before the term (on a GPU, the allocator's).

    python benchmarks/fakd_memory.py --json benchmarks/results/fakd_memory_cpu.json
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import record  # noqa: E402
from mtkd_loss.feature_affinity_loss import feature_affinity  # noqa: E402

MEGABYTE = 10**6


def dense_affinity(student: Tensor, teacher: Tensor) -> Tensor:
    """The formula as it stands: two (B, H * W, H * W) and their difference."""
    units = [F.normalize(x.flatten(2), dim=1) for x in (student, teacher)]
    own, theirs = (unit.transpose(1, 2) @ unit for unit in units)
    return (own - theirs).abs().mean()


VARIANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {'chunked': feature_affinity, 'dense': dense_affinity}


def held(field: str, device: str) -> float:
    """Bytes the process holds (``VmRSS``) or held at most (``VmHWM``)."""
    if device == 'cuda':
        return torch.cuda.memory_allocated() if field == 'VmRSS' else torch.cuda.max_memory_allocated()
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def taps(args: argparse.Namespace) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    shape = (args.batch, args.channels, args.side, args.side)
    return [
        (torch.randn(shape, device=args.device).requires_grad_(), torch.randn(shape, device=args.device))
        for _ in range(args.taps)
    ]


def run(variant: str, pairs: list[tuple[Tensor, Tensor]], device: str) -> tuple[float, list[Tensor]]:
    """Value and gradients of the term over all taps."""
    loss = sum(VARIANTS[variant](student, teacher) for student, teacher in pairs)
    gradients = torch.autograd.grad(loss, [student for student, _ in pairs])
    record.synchronise(device)
    return loss.item(), list(gradients)


def measure(variant: str, args: argparse.Namespace) -> dict[str, float]:
    """One variant in this process: what it took the first time, then the times of the runs after it."""
    run(variant, [tuple(x[:1, :, :4, :4] for x in pair) for pair in taps(args)], args.device)  # loads the libraries
    pairs = taps(args)
    before = held('VmRSS', args.device)
    value, gradients = run(variant, pairs, args.device)
    memory = held('VmHWM', args.device) - before
    seconds = []
    for _ in range(args.runs):
        start = time.perf_counter()
        run(variant, pairs, args.device)
        seconds.append(time.perf_counter() - start)
    gradient = max(gradient.abs().max().item() for gradient in gradients)
    figures = {'extra_mb': memory / MEGABYTE, 'value': value, 'largest_gradient': gradient}
    return {**figures, **(record.summary(seconds) if seconds else {})}


def in_process(variant: str, args: argparse.Namespace) -> dict[str, float]:
    options = {name: getattr(args, name) for name in ('batch', 'side', 'channels', 'taps', 'runs', 'device')}
    flags = [part for name, value in options.items() for part in (f'--{name}', str(value))]
    command = [sys.executable, __file__, '--variant', variant, *flags]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=16, help='images (default 16)')
    parser.add_argument('--side', type=int, default=48, help='side of the taps (default 48)')
    parser.add_argument('--channels', type=int, default=64, help='channels of the taps (default 64)')
    parser.add_argument('--taps', type=int, default=3, help='number of taps (default 3)')
    parser.add_argument('--runs', type=int, default=5, help='timed runs (default 5)')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--variant', choices=list(VARIANTS), help='only this one, in this process, printed as JSON')
    parser.add_argument('--json', type=Path, help='where to write the result')
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args.variant, args)))
        return
    variants = {name: in_process(name, args) for name in VARIANTS}
    figures = {
        'benchmark': 'fakd_memory',
        'student_and_teacher_taps': [args.taps, args.batch, args.channels, args.side, args.side],
        **variants,
        'dense_to_chunked_memory': variants['dense']['extra_mb'] / variants['chunked']['extra_mb'],
    }
    if args.runs:
        figures['dense_to_chunked_time'] = variants['dense']['median_s'] / variants['chunked']['median_s']
    print(json.dumps(figures, indent=2))
    if args.json:
        record.write(args.json, args.device, figures)


if __name__ == '__main__':
    main()
