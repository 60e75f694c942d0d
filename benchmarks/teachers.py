"""What more teachers and larger batches cost: an MTKD step online and from a cache, in units of one from scratch.

EDSR student and teachers at published size, x4, random weights; from the fourth on the teachers begin again. The three
steps of a point run in turn, round by round.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import record
from benchmarks.networks import ensemble_of, random_batch, step_model
from benchmarks.steps import one_step

KINDS = ('online', 'cached', 'scratch')


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Ratios to a step from scratch with 1 to 5 teachers, and for 1, 2 and 4 times the batch; seconds of the latter."""
    found: dict[str, Any] = {'by_teachers': {}, 'by_batch': {}}
    with tempfile.TemporaryDirectory() as name:
        models = {kind: step_model(kind, 'edsr', Path(name), args.device) for kind in KINDS}

        def times(batch: int, teachers: int) -> dict[str, list[float]]:
            models['online'].teachers = ensemble_of(teachers, Path(name), args.device)
            images = random_batch(batch, args.lq, args.device)
            steps = {kind: one_step(model, images) for kind, model in models.items()}
            return record.interleaved(steps, args.runs, args.device)

        for count in range(1, 6):
            found['by_teachers'][str(count)] = record.ratios(times(args.batch, count), 'scratch')
        for batch in (args.batch, 2 * args.batch, 4 * args.batch):
            measured = times(batch, 3)
            found['by_batch'][str(batch)] = {
                **record.ratios(measured, 'scratch'),
                'seconds': record.summaries(measured),
            }
    return {'what': f'steps of the EDSR student, LR {args.lq}, batch {args.batch}', **found}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The sizes."""
    gpu = torch.cuda.is_available()
    parser.add_argument('--batch', type=int, default=4 if gpu else 1, help='patches per step (default: %(default)s)')
    parser.add_argument('--lq', type=int, default=32, help='side of the LR patches (default: %(default)s)')


def main(argv: list[str] | None = None) -> int:
    return record.run_part(argv, __doc__, measure, 20 if torch.cuda.is_available() else 7, add_arguments)


if __name__ == '__main__':
    sys.exit(main())
