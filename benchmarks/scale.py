"""What more GPUs bring: measures on this machine what the model of docs/scale.md asks for, and checks its predictions.

    python benchmarks/scale.py -opt options/train_mtkd_x4.yml --processes 1 2 --json scale.json
    python benchmarks/scale.py --show scale.json                     # the tables again, nothing is measured
    python benchmarks/scale.py --show scale.json --page docs/scale.md

Steps of the student from a cache and with its teachers online, by one process, by several side by side and by several
that exchange gradients (torchrun; NCCL on GPUs, gloo on CPUs), in turn, and all-reduce of some sizes. The fastest tenth
counts. One process is measured within every group of several, while the others wait. Weights and images are random.
Memory is that of processes of their own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import record  # noqa: E402
from benchmarks.scale_fit import checks  # noqa: E402
from benchmarks.scale_report import text_of  # noqa: E402
from mtkd.schema import memory  # noqa: E402
from mtkd.schema.reader import read  # noqa: E402
from mtkd_data.whole_files import write_atomically  # noqa: E402

# isort: split
import torch  # noqa: E402

KIB = 2**10
SIZES = (64 * KIB, 256 * KIB, 1024 * KIB, 4096 * KIB, 16384 * KIB)
# glibc holds freed memory back unless it is told where to draw the line
RETURNED_AT_ONCE = {'MALLOC_MMAP_THRESHOLD_': '65536'}


def worker(args: argparse.Namespace, processes: int, *flags: str, **environment: str) -> dict[str, Any]:
    """What ``processes`` workers found; raises RuntimeError with what they said where they fail."""
    started = [] if processes == 1 else ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    inherited = {**os.environ, 'OMP_NUM_THREADS': str(args.threads), **environment}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'found.json'
        command = [sys.executable, *started, str(ROOT / 'benchmarks/scale_worker.py'), '-opt', str(args.opt), *flags]
        command += ['--device', args.device, '--lq', str(args.lq), '--threads', str(args.threads), '--json', str(path)]
        command += ['--validation-side', str(args.validation_side)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=inherited)
        if done.returncode:
            raise RuntimeError(f'{processes} workers failed:\n{(done.stdout + done.stderr)[-3000:]}')
        return json.loads(path.read_text())


def measure(args: argparse.Namespace, variants: list[str]) -> dict[str, Any]:
    """Points of every number of processes and variant; the first group gives the other constants too."""
    numbers = [number for number in args.processes if number > 1] or [1]
    found: dict[str, Any] = {'points': []}
    for number in numbers:
        for variant in variants:
            runs = args.runs if variant == 'cached' else max(1, args.runs // 4)
            flags = ['--variant', variant, '--batches', *map(str, args.batches), '--runs', str(runs)]
            print(f'{number} process{"es" if number > 1 else ""}, {variant} ...', flush=True)
            job = worker(args, number, *flags, '--sizes', *map(str, SIZES))
            known = {(p['kind'], p['variant'], p['processes'], p['size']) for p in found['points']}
            new = job.pop('points')
            found['points'] += [p for p in new if (p['kind'], p['variant'], p['processes'], p['size']) not in known]
            found = {**job, **found}
    return found


def measure_memory(args: argparse.Namespace, variants: list[str]) -> list[dict[str, Any]]:
    """Peak memory and its prediction, of one process for each variant, and of several from a cache."""
    rows = []
    for number, variant in [*((1, variant) for variant in variants), (max(args.processes), 'cached')]:
        if (number, variant) in [(row['processes'], row['variant']) for row in rows]:
            continue
        flags = ['--memory', '--variant', variant, '--batches', str(args.memory_batch), '--runs', '1']
        print(f'memory of {number} process{"es" if number > 1 else ""}, {variant} ...', flush=True)
        row = worker(args, number, *flags, **RETURNED_AT_ONCE)
        rows.append({**row, 'measured_as_is': worker(args, number, *flags)['measured']})
    return rows


def run_of_file(opt: dict[str, Any]) -> dict[str, Any]:
    """What the option file says of its run; ``prefetched`` bytes are those of one process from a cache."""
    train_set, scale = opt['datasets']['train'], opt['scale']
    batch, workers = train_set['batch_size_per_gpu'], train_set['num_worker_per_gpu']
    return {
        'lq': train_set['gt_size'] // scale,
        'batch': batch,
        'workers': workers,
        'prefetched': memory.prefetched(batch, train_set['gt_size'], scale, 1, workers),
        'iterations': int(opt['train']['total_iter']),
        'val_freq': (opt.get('val') or {}).get('val_freq'),
        'save_freq': (opt.get('logger') or {}).get('save_checkpoint_freq'),
    }


def figures(args: argparse.Namespace) -> dict[str, Any]:
    """All that goes into the JSON."""
    opt = read(args.opt).options
    run = run_of_file(opt)
    args.lq = args.lq or run['lq']
    variants = ['cached', *(['online'] if opt.get('teachers') and not args.cached_only else [])]
    before = os.getloadavg()
    found = measure(args, variants)
    found['memory'] = measure_memory(args, variants) if args.memory_batch else []
    found |= {
        'option': str(args.opt), 'what': 'steps by one process and by several, all-reduce, memory; random weights',
        'variants': variants, 'lq': args.lq, 'batches': args.batches, 'sizes': list(SIZES), 'threads': args.threads,
        'backend': 'nccl' if args.device == 'cuda' else 'gloo', 'cores': os.cpu_count(),
        'load': {'before': before, 'after': os.getloadavg()}, 'loader_rate': args.loader_rate,
        'gpus_per_node': args.gpus_per_node, 'link_gbps': args.link_gbps, 'link_latency_us': args.link_latency_us,
        'validation_images': args.validation_images, 'validation_side': args.validation_side,
        'run': run,
    }  # fmt: skip
    return {**found, 'checks': checks(found)}


def parser() -> argparse.ArgumentParser:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument('-opt', type=Path, help='option file of a training; its terms compare with the target')
    made.add_argument('--json', type=Path, help='where to write the figures')
    made.add_argument('--show', type=Path, metavar='JSON', help='measure nothing, print the tables of this file')
    made.add_argument('--page', type=Path, help='page that shows the tables between its markers')
    made.add_argument('--device', default='cuda' if gpus else 'cpu', choices=('cpu', 'cuda'))
    made.add_argument('--processes', type=int, nargs='+', default=[1, max(2, gpus)], help='default: %(default)s')
    made.add_argument('--threads', type=int, default=1, help='of each process (default: %(default)s)')
    made.add_argument('--batches', type=int, nargs='+', default=[2, 4, 8], help='patches of a process; at least two')
    made.add_argument('--lq', type=int, help="side of the LR patches (default: the option file's)")
    made.add_argument('--runs', type=int, default=40, help='rounds from a cache; a quarter of them online')
    made.add_argument('--cached-only', action='store_true', help='leave the teachers out')
    made.add_argument('--memory-batch', type=int, default=16, help='patches of the memory check; 0: none')
    made.add_argument('--gpus-per-node', type=int, default=8)
    made.add_argument('--link-gbps', type=float, default=25.0, help='between nodes, Gb/s (default: %(default)s)')
    made.add_argument('--link-latency-us', type=float, default=20.0, help='between nodes (default: %(default)s)')
    made.add_argument('--loader-rate', type=float, help='patches/s of one loader, see benchmarks/loader.py')
    made.add_argument('--validation-images', type=int, default=5)
    made.add_argument('--validation-side', type=int, default=128, help='LR pixels (default: %(default)s)')
    return made


def work(args: argparse.Namespace) -> None:
    """Measure, unless ``--show``; print the tables, and write them into ``--page``."""
    if args.show is None:
        record.write(args.json, args.device, figures(args))
    found = json.loads((args.show or args.json).read_text())
    text = text_of(found)
    print(text)
    if args.page is not None:
        start, end = f'<!-- scale: {found["option"]} -->', f'<!-- end of scale: {found["option"]} -->'
        page = record.replace_between(args.page.read_text(), start, end, text)
        write_atomically(args.page, page.encode())


def main(argv: list[str] | None = None) -> int:
    made = parser()
    args = made.parse_args(argv)
    if args.show is None:
        if args.opt is None or args.json is None:
            made.error('give -opt and --json, or --show')
        if len(set(args.batches)) < 2 or min(*args.batches, *args.processes) < 1:
            made.error('--batches: a cost per patch takes at least two; none is below 1, nor are --processes')
    try:
        work(args)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
