"""What each method's step costs beside a step without a teacher: the quickstart's student by a small EDSR, x4.

Each distiller of the project is one variant: the student's L1 to the ground truth and that term. All variants take one
step in turn, round after round, in one process; figures are medians and the median ratio to the scratch step of the
same round. A method that needs no output of its teacher is also run with a teacher that computes it all the same. The
teachers' and encoders' weights are random: a step's time does not depend on them.
"""

import argparse
import copy
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mtkd  # noqa: F401  registers the networks

# isort: split
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from tqdm import trange

from benchmarks import record
from mtkd.checks import build
from mtkd_model.distillers import DISTILLER_REGISTRY
from mtkd_model.encoders import VGG19
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

ROOT = Path(__file__).resolve().parents[1]
SCALE = 4
EDSR = {'type': 'EDSR', 'num_in_ch': 3, 'num_out_ch': 3, 'upscale': SCALE}
STUDENT, TEACHER = {**EDSR, 'num_feat': 16, 'num_block': 4}, {**EDSR, 'num_feat': 48, 'num_block': 6}
HEADS = {'type': 'HierarchicalSR', 'upscale': SCALE, 'network': TEACHER}
ENCODED = ('CSDDistiller', 'DCKDDistiller')  # by VGG19
ARGUMENTS = {  # of the terms that do not build without
    'OutputDistiller': {'loss': {'type': 'L1Loss'}},
    'FitNetDistiller': {'taps': {'body.1': 'edsr/body.2', 'body.3': 'edsr/body.5'}},
}


def methods() -> list[str]:
    """The distillers of this project, by name; not those registered elsewhere."""
    return sorted(name for name, part in DISTILLER_REGISTRY if part.__module__.startswith('mtkd_model.distillers.'))


def weights(network: nn.Module, folder: Path) -> str:
    """A file of the random weights of ``network``."""
    path = folder / f'{len(list(folder.iterdir()))}.pth'
    torch.save(network.state_dict(), path)
    return str(path)


def option(distiller: str | None, folder: Path, device: str = 'cpu', lq: int = 24) -> dict[str, Any]:
    """The option of a run with one term, or with none for the scratch step."""
    opt: dict[str, Any] = {
        'is_train': True, 'dist': False, 'num_gpu': int(device == 'cuda'), 'scale': SCALE, 'path': {},
        'network_g': dict(STUDENT), 'datasets': {'train': {'gt_size': lq * SCALE, 'batch_size_per_gpu': 4}},
        'train': {
            'optim_g': {'type': 'Adam', 'lr': 0.0001},
            'scheduler': {'type': 'MultiStepLR', 'milestones': [1000], 'gamma': 0.5},
            'pixel_opt': {'type': 'L1Loss'},
        },
    }  # fmt: skip
    if distiller is not None:
        term = {'type': distiller, **ARGUMENTS.get(distiller, {})}
        if distiller in ENCODED:
            term['encoder'] = {'weights': weights(VGG19(), folder)}
        teacher = HEADS if distiller == 'HKDSRDistiller' else TEACHER
        built = build(ARCH_REGISTRY, teacher, 'teacher')
        opt['teachers'] = {'edsr': {'network': teacher, 'path': weights(built, folder)}}
        opt['train']['distill'] = {'term': term}
    return opt


def models(device: str = 'cpu', lq: int = 24) -> Iterator[tuple[str, MultiTeacherSRModel]]:
    """``scratch`` and every method by name, built at small size."""
    logging.getLogger('basicsr').setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for name in (None, *methods()):
            torch.manual_seed(0)
            yield name or 'scratch', MultiTeacherSRModel(option(name, Path(folder), device, lq))


def facts(model: MultiTeacherSRModel) -> dict[str, Any]:
    """Whether the term taps features, and how many parameters it trains beside the student's."""
    bank = model.get_bare_model(model.distillers)
    trained = sum(parameter.numel() for parameter in bank.parameters() if parameter.requires_grad)
    return {'taps': bool(bank.student_taps or bank.teacher_taps), 'extra_parameters': trained}


def to_the_end(model: MultiTeacherSRModel) -> MultiTeacherSRModel | None:
    """The same model with teachers that run to their ends, None where they do so anyway."""
    if model.teachers is None or model.outputs_asked >= set(model.teachers.networks):
        return None
    whole = copy.deepcopy(model)
    whole.outputs_asked.update(whole.teachers.networks)
    return whole


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step and the ratio to scratch, by method; ``to_the_end``, the ratio that its teacher's end costs."""
    variants = dict(models(args.device, args.lq))
    wholes = {f'{name} to the end': to_the_end(model) for name, model in variants.items()}
    batch = {'lq': torch.rand(args.batch, 3, args.lq, args.lq)}
    batch['gt'] = torch.rand(args.batch, 3, args.lq * SCALE, args.lq * SCALE)
    runs = variants | {name: model for name, model in wholes.items() if model is not None}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in trange(args.warmup + args.runs, unit='round', disable=None):
        for name, model in runs.items():
            model.feed_data(batch)
            record.synchronise(args.device)
            start = time.perf_counter()
            model.optimize_parameters(turn + 1)
            record.synchronise(args.device)
            if turn >= args.warmup:
                seconds[name].append(time.perf_counter() - start)
    figures = {
        name: {**record.summary(seconds[name]), 'ratio': median_ratio(seconds[name], seconds['scratch'])}
        for name in variants
    }
    for name, figure in figures.items():
        if whole := seconds.get(f'{name} to the end'):
            figure['to_the_end'] = median_ratio(whole, seconds[name])
    return figures


def median_ratio(times: list[float], base: list[float]) -> float:
    """The median of the ratios of every round."""
    return statistics.median(own / other for own, other in zip(times, base, strict=True))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=4, help='default: %(default)s')
    parser.add_argument('--lq', type=int, default=24, help='side of the LR patch (default: %(default)s)')
    parser.add_argument('--runs', type=int, default=15, help='timed rounds (default: %(default)s)')
    parser.add_argument('--warmup', type=int, default=2)
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--json', type=Path, help='default: benchmarks/results/method_cost_<device>.json')
    args = parser.parse_args(argv)
    figures = {
        'what': 'one training step per method, EDSR 16x4 student, EDSR 48x6 teacher, x4',
        'lq': args.lq, 'batch': args.batch, 'methods': measure(args),
    }  # fmt: skip
    record.write(args.json or ROOT / f'benchmarks/results/method_cost_{args.device}.json', args.device, figures)
    print(json.dumps(figures, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())
