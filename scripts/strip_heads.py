"""Take the heads off a HierarchicalSR checkpoint: what is left loads into the plain network; see --help."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mtkd  # noqa: F401  before BasicSR
from mtkd_arch.hierarchical_arch import strip_heads
from mtkd_arch.tensor_file import read_tensor_file
from mtkd_arch.weights import read_weights
from mtkd_model.checkpoint import save_whole

KEYS = ('params', 'params_ema')


def strip_file(source: Path, target: Path) -> list[str]:
    """Write ``target`` with every set of weights in ``source``, stripped of heads; gives their keys.

    Raises FileNotFoundError, or ValueError for a file that cannot be read or holds no HierarchicalSR.
    """
    content = read_tensor_file(source.expanduser())
    keys = [key for key in KEYS if isinstance(content, Mapping) and key in content]
    try:
        stripped = {key or 'params': strip_heads(read_weights(source, key)) for key in keys or [None]}
    except ValueError as error:
        raise ValueError(str(error) if str(source) in str(error) else f'{source}: {error}') from error
    target.parent.mkdir(parents=True, exist_ok=True)
    save_whole(stripped, target)
    return list(stripped)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0 written, 2 the file does not serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--in', dest='source', type=Path, required=True, help='checkpoint of HierarchicalModel')
    parser.add_argument('--out', type=Path, required=True, help='file to write; BasicSR reads it')
    args = parser.parse_args(argv)
    try:
        keys = strip_file(args.source, args.out)
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{args.out}: {", ".join(keys)} without heads')
    return 0


if __name__ == '__main__':
    sys.exit(main())
