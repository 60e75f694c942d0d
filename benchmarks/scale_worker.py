"""One process of ``benchmarks/scale.py``: steps alone, side by side and joined, and all-reduce. Started by it alone."""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mtkd  # noqa: E402, F401  registers the networks

# isort: split
import numpy as np  # noqa: E402
import torch  # noqa: E402
from basicsr.utils.registry import MODEL_REGISTRY  # noqa: E402
from torch import distributed  # noqa: E402

from benchmarks import record  # noqa: E402
from benchmarks.networks import Options, build_network, random_batch, tiny_cache  # noqa: E402
from benchmarks.steps import one_step  # noqa: E402
from mtkd.schema import memory  # noqa: E402
from mtkd.schema.as_parsed import as_parsed  # noqa: E402
from mtkd.schema.problems import problems, refuse  # noqa: E402
from mtkd.schema.reader import read  # noqa: E402
from mtkd_eval.memory import peak_memory  # noqa: E402

FASTEST = 10  # per cent: what other work on the machine disturbed least
MEMORY_STEPS = 3
Work = Callable[[], Any]


class Group(NamedTuple):
    """This process among the others."""

    rank: int
    world: int
    device: torch.device

    def meet(self) -> None:
        if self.world > 1:
            distributed.barrier()

    def over_all(self, seconds: float, how: Any) -> float:
        if self.world == 1:
            return seconds
        value = torch.tensor(seconds, device=self.device, dtype=torch.float64)
        distributed.all_reduce(value, how)
        return value.item()


def join(args: argparse.Namespace) -> Group:
    """Meet the processes that torchrun started."""
    torch.set_num_threads(args.threads)
    rank, world = (int(os.environ.get(name, default)) for name, default in (('RANK', '0'), ('WORLD_SIZE', '1')))
    if args.device == 'cuda':
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', '0')))
    if world > 1:
        distributed.init_process_group('nccl' if args.device == 'cuda' else 'gloo')
    return Group(rank, world, torch.device(args.device))


def options(args: argparse.Namespace, group: Group, folder: Path) -> Options:
    """The option file for one of the processes, with random weights where a file is missing."""
    found = read(args.opt).options
    refuse(problems(found), str(args.opt))
    opt = as_parsed(found, folder)
    opt.update(dist=group.world > 1, rank=group.rank, world_size=group.world, num_gpu=int(args.device == 'cuda'))
    opt['path'] |= {'resume_state': None, 'pretrain_network_g': None}
    parts = {**(opt.get('teachers') or {}), 'aggregator': opt.get('aggregator')}
    for name, part in parts.items():
        if part and part.get('path') and 'network' in part and not Path(part['path']).is_file():
            torch.manual_seed(0)
            path = folder / f'{name}_{group.rank}.pth'
            state = build_network(part['network']).state_dict()
            torch.save({'params': state, 'mtkd': {'inputs': part.get('inputs')}}, path)
            part.update(path=str(path), param_key='params')
    train_set = opt['datasets']['train']
    for key in ('dataroot_cache', 'cached'):
        train_set.pop(key, None)
    if args.variant == 'cached' and opt.get('teachers'):
        train_set['dataroot_cache'] = str(tiny_cache(folder / f'cache_{group.rank}'))
    return opt


def build(opt: Options) -> Any:
    torch.manual_seed(0)
    return MODEL_REGISTRY.get(opt['model_type'])(deepcopy(opt))  # BasicSR takes out of it


@contextmanager
def apart(model: Any) -> Iterator[None]:
    """Within, a step exchanges nothing with other processes."""
    joined = model.net_g, model.distillers
    model.net_g, model.distillers = (net and model.get_bare_model(net) for net in joined)
    try:
        with patch('mtkd_model.step_guard.anywhere', lambda flag: flag):  # one number goes round beside the gradients
            yield
    finally:
        model.net_g, model.distillers = joined


def works(model: Any, args: argparse.Namespace, group: Group) -> dict[tuple[str, int], Work]:
    """What is timed, by kind and size; ``alone`` is done by the first process while the others wait."""
    found: dict[tuple[str, int], Work] = {}

    def without_others(step: Work) -> Work:
        def run() -> None:
            with apart(model):
                step()

        return run

    def teach(batch: dict[str, torch.Tensor]) -> Work:
        def run() -> None:
            with torch.no_grad():
                model.teachers(batch['lq'])

        return run

    for size in args.batches:
        batch = random_batch(size, args.lq, args.device, model.scale)
        step = one_step(model, batch)
        found['alone', size] = without_others(step)
        if model.teachers is not None:
            found['teachers', size] = teach(batch)
        if group.world > 1:
            found['apart', size], found['joined', size] = without_others(step), step
    for size in args.sizes if group.world > 1 and args.variant == 'cached' else ():
        tensor = torch.zeros(size // 4, device=group.device)
        found['all_reduce', size] = lambda tensor=tensor: distributed.all_reduce(tensor)
    return found


def timed(work: Work, kind: str, group: Group, device: str) -> float:
    """Seconds of one go: of the first process, the mean of those side by side, the last of those that are joined."""
    group.meet()
    seconds = 0.0
    if group.rank == 0 or kind not in ('alone', 'teachers'):
        begun = time.perf_counter()
        work()
        record.synchronise(device)
        seconds = time.perf_counter() - begun
    group.meet()
    if kind == 'apart':
        return group.over_all(seconds, distributed.ReduceOp.SUM) / group.world
    return group.over_all(seconds, distributed.ReduceOp.MAX)


def points(times: dict[tuple[str, int], list[float]], args: argparse.Namespace, world: int) -> list[dict[str, Any]]:
    """Every kind and size with the fastest tenth, the median and the spread of its times."""
    return [
        {
            'kind': kind,
            'variant': args.variant,
            'processes': 1 if kind in ('alone', 'teachers') else world,
            'size': size,
            'fastest_s': float(np.percentile(seconds, FASTEST)),
            **record.summary(seconds),
        }
        for (kind, size), seconds in times.items()
    ]


def measure(args: argparse.Namespace, group: Group, folder: Path) -> dict[str, Any]:
    """All kinds of work in turn, ``runs`` rounds after one that warms up."""
    opt = options(args, group, folder)
    model = build(opt)
    all_works = works(model, args, group)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in all_works}
    for number in range(args.runs + 1):
        for (kind, size), work in all_works.items():
            seconds = timed(work, kind, group, args.device)
            if number:
                times[kind, size].append(seconds)
    learned = [p for net in (model.net_g, model.distillers) if net is not None for p in net.parameters()]
    learned = [parameter for parameter in learned if parameter.requires_grad]
    return {
        'points': points(times, args, group.world),
        'gradient_bytes': sum(parameter.numel() * parameter.element_size() for parameter in learned),
        **(besides(model, args, group, opt) if args.variant == 'cached' else {}),
    }


def besides(model: Any, args: argparse.Namespace, group: Group, opt: Options) -> dict[str, float]:
    """Seconds of a validation image and of a checkpoint."""
    for key in ('models', 'training_states'):
        Path(opt['path'][key]).mkdir(parents=True, exist_ok=True)
    lq = torch.rand(1, 3, args.validation_side, args.validation_side, device=group.device)
    image = [timed(lambda: model.infer(lq), 'alone', group, args.device) for _ in range(6)]
    saved = [timed(lambda: model.save(0, 1), 'joined', group, args.device) for _ in range(3)]
    return {'image_s': min(image), 'checkpoint_s': min(saved)}


def measure_memory(args: argparse.Namespace, group: Group, folder: Path) -> dict[str, Any]:
    """What the model and some steps add to this process at their peak, and what was predicted."""
    opt = options(args, group, folder)
    one_step(build(opt), random_batch(2, 16, args.device, opt['scale']))()  # loads the libraries
    gc.collect()
    with peak_memory(group.device) as peak:
        batch = random_batch(args.batches[0], args.lq, args.device, opt['scale'])
        model = build(opt)
        for _ in range(MEMORY_STEPS):
            one_step(model, batch)()
    on_gpu = args.device == 'cuda'
    model = build({**opt, 'num_gpu': 0, 'dist': False})  # as mtkd check does
    found = memory.estimate(model, args.batches[0], args.lq * opt['scale'], on_gpu, processes=group.world)
    parts = {name: value for name, value in vars(found).items() if name != 'measured'}
    return {
        'variant': args.variant, 'processes': group.world, 'batch': args.batches[0],
        'measured': peak.bytes, 'predicted': found.total, 'parts': parts,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('-opt', type=Path, required=True)
    parser.add_argument('--device', required=True, choices=('cpu', 'cuda'))
    parser.add_argument('--variant', choices=('cached', 'online'), default='cached')
    parser.add_argument('--batches', type=int, nargs='+', required=True)
    parser.add_argument('--sizes', type=int, nargs='*', default=[], help='bytes of the all-reduces')
    parser.add_argument('--lq', type=int, required=True)
    parser.add_argument('--validation-side', type=int, default=128)
    parser.add_argument('--runs', type=int, required=True)
    parser.add_argument('--threads', type=int, required=True)
    parser.add_argument('--memory', action='store_true')
    parser.add_argument('--json', type=Path, required=True)
    args = parser.parse_args()
    group = join(args)
    with tempfile.TemporaryDirectory() as folder:
        found = (measure_memory if args.memory else measure)(args, group, Path(folder))
    if group.rank == 0:
        args.json.write_text(json.dumps(found))
    if group.world > 1:
        distributed.destroy_process_group()
    return 0


if __name__ == '__main__':
    sys.exit(main())
