"""Does a student trained from the cache end where one trained with the teachers at hand does? Same seeds, both ways.

Teachers, aggregator and student of an option file, by default the quickstart's, on a folder of photographs; PSNR-Y on a
test set. A cached target saw the whole image, an online one the crop alone, so the two runs differ a little from the
first step on; the question is whether by more than two seeds do.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  registers the networks

# isort: split
import yaml

from benchmarks import record
from benchmarks.networks import log_of_training
from mtkd.option_file import read_option
from mtkd_data.preparation.plan import Settings
from mtkd_data.preparation.prepare import prepare_dataset
from mtkd_data.teacher_cache.command import main as cache_teachers

SCALE = 4
RESULT = re.compile(r'# psnr: ([\d.]+)')


def option(args: argparse.Namespace, data: Path) -> dict[str, Any]:
    """The option file of ``args`` on the data prepared in ``data``."""
    opt = read_option(args.opt)
    for part in (*opt['teachers'].values(), opt['aggregator']):
        part['path'] = str(Path(part['path']).absolute())
    train_set = opt['datasets']['train']
    train_set |= {'dataroot_gt': str(data / 'GT.lmdb'), 'dataroot_lq': str(data / f'LRbicx{SCALE}.lmdb')}
    train_set['gt_size'] = args.gt_size
    opt['datasets'] = {'train': train_set, 'val': opt['datasets']['val']}
    opt['datasets']['val'] |= {'dataroot_gt': str(args.test_hr.absolute()), 'name': args.test_hr.parent.name}
    opt['datasets']['val'] |= {'dataroot_lq': str(args.test_lq.absolute()), 'filename_tmpl': args.filename_tmpl}
    opt['train']['total_iter'] = args.iterations
    opt['train']['scheduler']['milestones'] = [args.iterations * part // 4 for part in (2, 3)]
    opt['val']['val_freq'] = opt['logger']['save_checkpoint_freq'] = 10**9
    return opt


def psnr_after_training(opt: dict[str, Any], folder: Path) -> float:
    """PSNR-Y of the averaged student at the end of a run of BasicSR's trainer."""
    return float(RESULT.findall(log_of_training(opt, folder))[-1])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """PSNR-Y of every run, means, the spread over seeds and the paired difference."""
    found: dict[str, list[float]] = {'online': [], 'cached': []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_dataset(args.hr, folder / 'data', Settings((SCALE,), 0, compression_level=0), workers=2)
        opt = option(args, folder / 'data')
        own = {'type': 'CachedTeacherDataset', 'dataroot_cache': str(folder / 'data/cache')}
        option_file = folder / 'cache.yml'
        option_file.write_text(yaml.safe_dump(opt))
        if cache_teachers(['-opt', str(option_file), '--out', own['dataroot_cache']]):
            raise SystemExit('the cache could not be made')
        for seed in args.seeds:
            for mode, change in (('online', {}), ('cached', own)):
                run = json.loads(json.dumps({**opt, 'name': f'{mode}_{seed}', 'manual_seed': seed}))
                run['datasets']['train'] |= change
                found[mode].append(psnr_after_training(run, folder))
                print(f'seed {seed}, {mode}: {found[mode][-1]:.4f} dB', flush=True)
    differences = [cached - online for online, cached in zip(found['online'], found['cached'], strict=True)]
    return {
        'what': f'{args.opt.name} on {args.hr.name}, {args.iterations} iterations; PSNR-Y, {args.test_hr.parent.name}',
        'seeds': args.seeds,
        **found,
        'mean': {mode: statistics.mean(values) for mode, values in found.items()},
        'deviation_over_seeds': {mode: statistics.stdev(values) for mode, values in found.items()},
        'cached_minus_online': {'mean': statistics.mean(differences), 'deviation': statistics.stdev(differences)},
    }


def main(argv: list[str] | None = None) -> int:
    shared = Path('../shared/data')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--opt', type=Path, default=Path('options/quickstart/train_mtkd.yml'))
    parser.add_argument('--hr', type=Path, default=shared / 'T91', help='photographs to train on')
    parser.add_argument('--gt-size', type=int, default=72, help='T91 has images of 76 pixels')
    parser.add_argument('--test-hr', type=Path, default=shared / 'Set5/HR')
    parser.add_argument('--test-lq', type=Path, default=shared / 'Set5/LRbicx4')
    parser.add_argument('--filename-tmpl', default='{}x4')
    parser.add_argument('--iterations', type=int, default=1500)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--json', type=Path, default=Path('benchmarks/results/cached_training.json'))
    args = parser.parse_args(argv)
    if len(args.seeds) < 2:
        parser.error('--seeds: a spread takes at least two')
    found = measure(args)
    record.write(args.json, 'cpu', found)
    print(json.dumps(found, indent=2))
    return 0


if __name__ == '__main__':
    sys.exit(main())
