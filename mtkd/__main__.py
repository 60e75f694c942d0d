"""Command line of the plugin: ``python -m mtkd options [FOLDER]`` shows the option files, or copies them."""

import argparse
import shutil
import sys
from pathlib import Path

import mtkd


def options_folder() -> Path:
    """Where the option files lie: inside an installed package, or beside it in a checkout."""
    package = Path(mtkd.__file__).parent
    installed = package / 'options'
    return installed if installed.is_dir() else package.parent / 'options'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m mtkd', description=mtkd.__doc__.splitlines()[0])
    parser.add_argument('--version', action='version', version=mtkd.__version__)
    commands = parser.add_subparsers(dest='command', required=True)
    options = commands.add_parser('options', help='print the folder of option files, or copy it to FOLDER')
    options.add_argument('folder', nargs='?', type=Path, help='must not exist yet')
    args = parser.parse_args(argv)
    if args.folder is None:
        print(options_folder())
    elif args.folder.exists():
        print(f'error: {args.folder} exists already; give a new folder', file=sys.stderr)
        return 2
    else:
        shutil.copytree(options_folder(), args.folder, ignore=shutil.ignore_patterns('__pycache__', '__init__.py'))
        print(f'copied to {args.folder}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
