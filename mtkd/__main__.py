"""Command line of the plugin: ``python -m mtkd options|teachers [FOLDER]`` shows what ships with it, or copies it."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import mtkd
from mtkd import pretrained


def options_folder() -> Path:
    """Where the option files lie: inside an installed package, or beside it in a checkout."""
    package = Path(mtkd.__file__).parent
    installed = package / 'options'
    return installed if installed.is_dir() else package.parent / 'options'


def copy_options(folder: Path) -> None:
    """Copy the option files into the new folder ``folder``; FileExistsError for one that is there."""
    if folder.exists():
        raise FileExistsError(f'{folder} exists already; give a new folder')
    shutil.copytree(options_folder(), folder, ignore=shutil.ignore_patterns('__pycache__', '__init__.py'))


def show_options(folder: Path | None) -> str:
    """The command ``options``; what to tell the user."""
    if folder is None:
        return str(options_folder())
    copy_options(folder)
    return f'copied to {folder}'


def show_teachers(folder: Path | None) -> str:
    """The command ``teachers``; what to tell the user."""
    if folder is not None:
        copied = pretrained.copy_to(folder)
        weights = next(path for path in copied if path.suffix == '.safetensors')
        return f'copied to {folder}; in an option file: teachers: {{{weights.stem}: {{path: {weights}}}}}'
    found = pretrained.shipped_networks()
    if not found:
        return f'{pretrained.FOLDER}: no networks ship with this version'
    return f'{pretrained.FOLDER}\n{pretrained.table(found)}'


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed."""
    parser = argparse.ArgumentParser(
        prog='python -m mtkd',
        description=mtkd.__doc__.splitlines()[0],
        epilog='examples:\n  python -m mtkd options my_options\n  python -m mtkd teachers my_teachers\n'
        'exit code: 0 done, 2 refused or failed',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=mtkd.__version__)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, what in (
        ('options', 'print the folder of option files, or copy it to FOLDER'),
        ('teachers', 'list the networks that ship, with size and PSNR, or copy them and their cards to FOLDER'),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument('folder', nargs='?', type=Path, metavar='FOLDER', help='must not exist yet')
    args = parser.parse_args(argv)
    try:
        print({'options': show_options, 'teachers': show_teachers}[args.command](args.folder))
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
