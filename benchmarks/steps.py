"""Training steps at published size: BasicSR's own, ours from scratch, KD, MTKD online, from a cache, and as released.

Networks, losses, optimizer and batch are those of the shipped option files; weights and images are random. All variants
of one student run in turn in one process, and ratios are taken pair by pair. Peak memory is that of a process per
variant (on a GPU, of its allocator), above what importing the libraries takes.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import record
from benchmarks.networks import (
    STUDENTS,
    Options,
    build_network,
    published,
    random_batch,
    step_model,
    tf32,
)
from mtkd_arch.frozen_network import FrozenNetwork
from mtkd_arch.merged_upsampling import merge_tails

VARIANTS = ('basicsr', 'scratch', 'kd', 'online_fp32', 'online', 'cached', 'graph')
SETTINGS = {  # name: options of train, whether TF32 is allowed
    'fp32': ({}, False),
    'tf32': ({}, True),
    'bf16': ({'amp': 'bf16'}, True),
    'bf16_compiled': ({'amp': 'bf16', 'compile': 'reduce-overhead'}, True),
}


def one_step(model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A training step, as BasicSR's loop makes it."""

    def step() -> None:
        model.feed_data(batch)
        model.optimize_parameters(1)

    return step


def measure_students(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds per step of every variant and its ratio to ``scratch``, for each student, in float32."""
    found = {}
    for student in args.students:
        batch = random_batch(args.batch, args.lq, args.device)
        models = {variant: step_model(variant, student, folder, args.device) for variant in VARIANTS}
        with tf32(False):
            times = record.interleaved({n: one_step(m, batch) for n, m in models.items()}, args.runs, args.device)
        found[student] = {**record.summaries(times), 'ratio': record.ratios(times, 'scratch')}
        found[student]['online_to_graph'] = record.ratio(times['online'], times['graph'])
        found[student]['online_fp32_to_graph'] = record.ratio(times['online_fp32'], times['graph'])
        found[student]['cached_to_online'] = record.ratio(times['cached'], times['online'])
        found[student]['cached_to_online_fp32'] = record.ratio(times['cached'], times['online_fp32'])
    return found


def measure_settings(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The EDSR student from a cache in each precision, against BasicSR's own model in float32."""
    names = list(SETTINGS) if args.device == 'cuda' else ['fp32', 'bf16']
    batch = random_batch(args.batch, args.lq, args.device)
    steps = {'basicsr': _within(one_step(step_model('basicsr', 'edsr', folder, args.device), batch), False)}
    for name in names:
        train, allowed = SETTINGS[name]
        steps[name] = _within(one_step(step_model('cached', 'edsr', folder, args.device, train), batch), allowed)
    times = record.interleaved(steps, args.runs, args.device, warmup=5 if args.device == 'cuda' else 1)
    return {**record.summaries(times), 'basicsr_over': {n: record.ratio(times['basicsr'], times[n]) for n in names}}


def _within(step: Callable[[], None], allowed: bool) -> Callable[[], None]:
    def run() -> None:
        with tf32(allowed) if torch.cuda.is_available() else nullcontext():
            step()

    return run


def measure_gains(args: argparse.Namespace) -> dict[str, Any]:
    """What each of our measures brings, one on top of the other: to the EDSR student's step and the teachers' pass."""
    opt, batch = published('edsr'), random_batch(args.batch, args.lq, args.device)

    def network(part: Options, channels_last: bool, merged: bool) -> nn.Module:
        torch.manual_seed(0)
        built = build_network(part).to(args.device)
        if channels_last:
            built = built.to(memory_format=torch.channels_last)
        if merged:
            merge_tails(built)
        return built

    def learn(student: nn.Module, half: bool) -> None:
        student.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=half):
            output = student(batch['lq'])
        (output.float() - batch['gt']).abs().mean().backward()

    def teach(teachers: list[Callable[[torch.Tensor], torch.Tensor]]) -> None:
        with torch.no_grad():
            for teacher in teachers:
                teacher(batch['lq'])

    stages = {'plain': (False, False), 'channels_last': (True, False), 'merged_tail': (True, True)}
    students = {name: network(opt['network_g'], *how) for name, how in stages.items()}
    steps = {name: partial(learn, student, False) for name, student in students.items()}
    steps['bf16'] = partial(learn, students['merged_tail'], True)
    parts = [teacher['network'] for teacher in opt['teachers'].values()]
    passes = {name: partial(teach, [network(part, *how).eval() for part in parts]) for name, how in stages.items()}
    half = [partial(FrozenNetwork(network(part, True, False), precision='bf16'), scale=4) for part in parts]
    passes['bf16'] = partial(teach, half)
    found = {}
    for what, works in (('student', steps), ('teachers', passes)):
        times = record.interleaved(works, args.runs, args.device, warmup=2)
        found[what] = {**record.summaries(times), 'ratio': record.ratios(times, 'plain')}
    return found


def measure_memory(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Peak memory of each variant of the EDSR student, each in a process of its own, in GB."""
    peaks = {}
    for variant in VARIANTS:
        path = folder / f'{variant}.json'
        command = [sys.executable, '-m', 'benchmarks.steps', '--memory-of', variant, '--folder', str(folder)]
        command += ['--batch', str(args.batch), '--lq', str(args.lq), '--device', args.device, '--json', str(path)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[variant] = {key: value for key, value in json.loads(path.read_text()).items() if key.endswith('_gb')}
    over = {
        f'{name}_to_graph': {key: peaks[name][key] / peaks['graph'][key] for key in peaks[name]}
        for name in ('online_fp32', 'online', 'cached')
    }
    return {**peaks, **over}


def peak_memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak of this process after two steps of ``args.memory_of``, in GB."""
    imports = high_water(args.device)
    model = step_model(args.memory_of, 'edsr', args.folder, args.device)
    step = one_step(model, random_batch(args.batch, args.lq, args.device))
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


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All of the above."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            'what': 'stage-2 steps, x4, three published teachers and the aggregator, random weights',
            'batch': args.batch,
            'lq': args.lq,
            'students': measure_students(args, folder),
            'settings': measure_settings(args, folder),
            'gains': measure_gains(args),
            'peak_memory': measure_memory(args, folder),
        }


def measure_or_peak(args: argparse.Namespace) -> dict[str, Any]:
    """``measure``, or the peak memory of one variant in this process."""
    return peak_memory(args) if args.memory_of else measure(args)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes."""
    gpu = torch.cuda.is_available()
    parser.add_argument('--batch', type=int, default=16 if gpu else 4, help='patches per step (default: %(default)s)')
    parser.add_argument('--lq', type=int, default=32, help='side of the LR patches (default: %(default)s)')
    parser.add_argument('--students', nargs='+', choices=STUDENTS, default=list(STUDENTS))
    parser.add_argument('--memory-of', choices=VARIANTS, help='only: peak memory of one variant in this process')
    parser.add_argument('--folder', type=Path, help='where the random weights of --memory-of lie')


def main(argv: list[str] | None = None) -> int:
    return record.run_part(argv, __doc__, measure_or_peak, 20 if torch.cuda.is_available() else 5, add_arguments)


if __name__ == '__main__':
    sys.exit(main())
