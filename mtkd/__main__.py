"""Command line of the plugin: what ships with it, checks of option files and the installation, BasicSR's trainer."""

import argparse
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mtkd
from mtkd import pretrained
from mtkd_data.command_line import exit_code
from mtkd_data.whole_files import whole_folder

PIPELINES = ('train', 'test')


def options_folder() -> Path:
    """Where the option files lie: inside an installed package, or beside it in a checkout."""
    package = Path(mtkd.__file__).parent
    installed = package / 'options'
    return installed if installed.is_dir() else package.parent / 'options'


def copy_options(folder: Path) -> None:
    """Copy the option files into the new folder ``folder``, which appears when all are there.

    Raises FileExistsError for one that is there.
    """
    source = options_folder()
    files = [path for path in sorted(source.rglob('*')) if path.is_file() and '__pycache__' not in path.parts]
    with whole_folder(folder) as made:
        for path in files:
            if path.name != '__init__.py':
                target = made / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)  # not its permissions: an installation may forbid to write


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


def check_option_file(args: argparse.Namespace) -> str:
    """The command ``check``; what to tell the user."""
    from mtkd.schema.check import check

    return check(args.opt, [entry for entries in args.force_yml for entry in entries], args.time)


def show_schema(args: argparse.Namespace) -> str:
    """The command ``schema``; what to tell the user."""
    from mtkd.schema.json_schema import json_schema
    from mtkd_data.whole_files import write_atomically

    text = json.dumps(json_schema(), indent=1)
    if args.out is None:
        return text
    write_atomically(args.out, f'{text}\n'.encode())
    return f'written to {args.out}'


def show_installation(args: argparse.Namespace) -> str:
    """The command ``doctor``; what to tell the user. Raises ValueError for a fault that is not mended here."""
    from mtkd import doctor

    found = doctor.mends()
    print(doctor.report(found))
    left = doctor.unmended(found)
    if left:
        raise ValueError(f'present and not mended: {", ".join(left)}')
    return ''


def run_pipeline(name: str, arguments: Sequence[str]) -> None:
    """The commands ``train`` and ``test``: those of BasicSR, with the plugin, in the working directory."""
    sys.argv = [f'mtkd {name}', *arguments]  # where BasicSR reads them
    pipeline = importlib.import_module(f'basicsr.{name}')
    getattr(pipeline, f'{name}_pipeline')(str(Path.cwd()))


EXAMPLES = """\
examples:
  python -m mtkd options my_options
  python -m mtkd teachers my_teachers
  python -m mtkd check -opt my_options/train_mtkd_x4.yml --force_yml train:total_iter=1000
  python -m mtkd train -opt my_options/train_mtkd_x4.yml --auto_resume
  torchrun --nproc_per_node=8 -m mtkd train -opt my_options/train_mtkd_x4.yml --launcher pytorch
  python -m mtkd schema --out mtkd.schema.json
  python -m mtkd doctor
exit code: 0 done, 2 refused or failed, 130 interrupted; train leaves with 75 when it is asked to"""


def _command(commands: Any, name: str, what: str, run: Callable[[argparse.Namespace], str]) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=what, description=what)
    command.set_defaults(run=run)
    return command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m mtkd',
        description=mtkd.__doc__.splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=mtkd.__version__)
    commands = parser.add_subparsers(dest='command', required=True)
    options = 'print the folder of option files, or copy it to FOLDER'
    teachers = 'list the networks that ship, with size and PSNR, or copy them and their cards to FOLDER'
    for name, what, run in (('options', options, show_options), ('teachers', teachers, show_teachers)):
        command = _command(commands, name, what, lambda args, run=run: run(args.folder))
        command.add_argument('folder', nargs='?', type=Path, metavar='FOLDER', help='must not exist yet')
    what = (
        'all problems of an option file with their lines, or what it would do; the model is built, nothing is written'
    )
    command = _command(commands, 'check', what, check_option_file)
    command.add_argument('-opt', type=Path, required=True, metavar='FILE', help='the option file')
    command.add_argument(
        '--force_yml',
        nargs='+',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='as in training: train:total_iter=10',
    )
    command.add_argument('--time', action='store_true', help='measure a few training steps on this CPU')
    command = _command(commands, 'schema', 'the JSON Schema of option files, for editors', show_schema)
    command.add_argument('--out', type=Path, metavar='FILE', help='write it there instead of printing it')
    for name in PIPELINES:  # for the list of commands: main passes their arguments on
        _command(commands, name, f'python basicsr/{name}.py with this plugin; takes its arguments', lambda args: '')
    _command(commands, 'doctor', 'versions, faults of other packages, and whether they are mended', show_installation)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed, 130 interrupted. Training has its own."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in PIPELINES:
        run_pipeline(argv[0], argv[1:])
        return 0
    args = _parser().parse_args(argv)

    def run() -> None:
        text = args.run(args)
        if text:
            print(text)

    return exit_code(run, 'nothing was changed')


if __name__ == '__main__':
    sys.exit(main())
