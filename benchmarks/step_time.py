"""One MTKD stage-2 step at published size: ours against the same step with the teachers inside the autograd graph.

The second is how the authors released it: the teachers' and the aggregator's parameters ask for gradients, nothing is
detached, and the backward pass of the wavelet loss runs through 72 M parameters whose gradients nobody uses. Student,
losses, optimizer, batch, aggregator and weights are alike. Times are interleaved in one process; peak memory is that of
a process for each variant (on a GPU, of the allocator), with and without what importing the libraries takes.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mtkd  # noqa: F401  registers the networks

# isort: split
from basicsr.utils.options import ordered_yaml
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn
from yaml import load

from benchmarks import record
from mtkd.checks import build
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_loss.wavelet_loss import WaveletLoss

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ('frozen', 'graph')


class Step:
    """A stage-2 training step; ``graph`` keeps the teachers in the autograd graph."""

    def __init__(self, variant: str, networks: dict[str, Any], batch: dict[str, Tensor]) -> None:
        self.variant, self.batch = variant, batch
        self.ensemble: TeacherEnsemble = networks['ensemble']
        self.student: nn.Module = networks['student']
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-4)
        self.wavelet, self.pixel = networks['wavelet'], nn.L1Loss()

    def target(self) -> Tensor:
        """The aggregated target for the batch."""
        lq = self.batch['lq']
        if self.variant == 'frozen':
            return self.ensemble(lq)['target']
        outputs = {name: frozen.network(lq) for name, frozen in self.ensemble.networks.items()}
        return self.ensemble.aggregator.network(self.ensemble.stack(outputs))

    def __call__(self) -> float:
        self.ensemble.requires_grad_(self.variant == 'graph')
        self.optimizer.zero_grad()
        output = self.student(self.batch['lq'])
        loss = self.wavelet(output, self.target()) + 0.1 * self.pixel(output, self.batch['gt'])
        loss.backward()
        self.optimizer.step()
        return loss.item()


def published(args: argparse.Namespace, variant: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Networks of options/train_mtkd_x4.yml with random weights, and a random batch."""
    torch.manual_seed(0)
    with (ROOT / 'options/train_mtkd_x4.yml').open() as file:
        opt = load(file, Loader=ordered_yaml()[0])
    for part in (*opt['teachers'].values(), opt['aggregator']):
        part.update(path=None, channels_last=variant == 'frozen')
    networks = {
        'ensemble': TeacherEnsemble(opt['teachers'], 4, opt['aggregator'], random_weights=True),
        'student': build(ARCH_REGISTRY, opt['network_g'], 'network_g'),
        'wavelet': WaveletLoss(),
    }
    networks = {name: network.to(args.device) for name, network in networks.items()}
    lq, gt = (torch.rand(args.batch, 3, side, side) for side in (args.lq, 4 * args.lq))
    return networks, {'lq': lq.to(args.device), 'gt': gt.to(args.device)}


def measure_times(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each variant, run in turn, and their ratio pair by pair."""
    steps = {variant: Step(variant, *published(args, variant)) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for run in range(args.warmup + args.runs):
        for variant, step in steps.items():
            record.synchronise(args.device)
            begun = time.perf_counter()
            step()
            record.synchronise(args.device)
            if run >= args.warmup:
                times[variant].append(time.perf_counter() - begun)
    ratios = [slow / fast for slow, fast in zip(times['graph'], times['frozen'], strict=True)]
    ratio = record.summary(ratios)
    return {
        **{variant: record.summary(values) for variant, values in times.items()},
        'graph_over_frozen': {'median': ratio['median_s'], 'iqr': ratio['iqr_s']},
    }


def peak_memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak of this process before and after two steps of ``args.memory_of``, in GB."""
    imports = high_water(args.device)
    step = Step(args.memory_of, *published(args, args.memory_of))
    step()
    step()
    return {'whole_gb': high_water(args.device), 'above_imports_gb': high_water(args.device) - imports}


def high_water(device: str) -> float:
    """The most memory this process has held, in GB; on a GPU the most that was allocated there."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated() / 1e9
    # not ru_maxrss, which starts at the size of the process that started this one
    found = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())
    return int(found[1]) * 1024 / 1e9


def measure_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of each variant, each in a process of its own."""
    peaks = {}
    for variant in VARIANTS:
        options = ['--batch', str(args.batch), '--lq', str(args.lq), '--device', args.device, '--memory-of', variant]
        output = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True, check=True)
        peaks[variant] = json.loads(output.stdout.splitlines()[-1])
    ratios = {key.removesuffix('_gb'): peaks['frozen'][key] / peaks['graph'][key] for key in peaks['frozen']}
    return {**peaks, 'frozen_over_graph': ratios}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 4], help='default: 1 4')
    parser.add_argument('--lq', type=int, default=32, help='side of the LR patch (default: %(default)s)')
    parser.add_argument('--runs', type=int, default=5, help='timed steps of each variant (default: %(default)s)')
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', type=Path, help='default: benchmarks/results/step_time_<device>.json')
    parser.add_argument('--memory-of', choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument('--batch', type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory_of:
        print(json.dumps(peak_memory(args)))
        return 0
    figures = {
        'what': 'MTKD stage-2 step, EDSR student, three published teachers and the aggregator, x4',
        'lq': args.lq,
    }
    for batch in args.batches:
        args.batch = batch
        figures[f'batch_{batch}'] = {'time': measure_times(args), 'peak_memory': measure_memory(args)}
    path = args.json or ROOT / f'benchmarks/results/step_time_{args.device}.json'
    record.write(path, args.device, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())
