"""The option file that the running command line names, for messages that say the line."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr.utils.registry import MODEL_REGISTRY

from mtkd.schema.force import force, forced_keys
from mtkd.schema.missing_files import missing_files, refuse_missing
from mtkd.schema.places import OptionFile, with_places
from mtkd.schema.problems import problems, refuse
from mtkd.schema.reader import read


def refuse_options(opt: Mapping[str, Any]) -> None:
    """Raise one ValueError with all problems of ``opt``, with lines where ``-opt`` names its file."""
    found = problems(opt)
    file, forced = option_file()
    if file is None:
        refuse(found)
        return
    # BasicSR has read the file already, whatever its tags: left are keys given twice and numbers that are others
    file.problems = [problem for problem in file.problems if 'tag ' not in problem.message]
    refuse(with_places(found, file, forced), str(file.path))


def refuse_missing_files(opt: Mapping[str, Any]) -> None:
    """Raise one FileNotFoundError with all that ``opt`` names and is not there, with lines where they are known."""
    found = missing_files(opt)
    file, forced = option_file()
    if file is None:
        refuse_missing(found)
    else:
        file.problems = []
        refuse_missing(with_places(found, file, forced), str(file.path))


def refuse_unread(is_train: bool) -> None:
    """Raise one ValueError with all problems of the file behind ``-opt``, before BasicSR's own loader reads it.

    That loader runs what Python tags say; here any but that of the ``plugin:`` line is refused. What else is wrong with
    files without anything of this plugin is left to BasicSR.
    """
    args = _arguments()
    if args is None or not args.opt:
        return
    file = read(Path(args.opt))
    if not isinstance(file.options, Mapping):  # nobody's
        refuse(with_places(problems(file.options), file), str(file.path))
    if not _is_ours(file.options):
        refuse([problem for problem in file.problems if 'tag ' in problem.message], str(file.path))
        return
    found = problems({**force(file.options, args.force_yml), 'is_train': is_train})
    refuse(with_places(found, file, forced_keys(args.force_yml)), str(file.path))


def _is_ours(opt: Mapping[str, Any]) -> bool:
    name = opt.get('model_type')
    checked = isinstance(name, str) and name in MODEL_REGISTRY and hasattr(MODEL_REGISTRY.get(name), 'check_options')
    return checked or 'plugin' in opt or 'teachers' in opt


def option_file() -> tuple[OptionFile | None, dict[str, str]]:
    """The file behind ``-opt`` and what ``--force_yml`` changes; None where there is none that can be read."""
    args = _arguments()
    try:
        return (read(Path(args.opt)) if args and args.opt else None), forced_keys(args.force_yml if args else ())
    except (ValueError, OSError):
        return None, {}


def _arguments() -> argparse.Namespace | None:
    """``-opt`` and ``--force_yml``; None for a command line that BasicSR will refuse."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument('-opt')
    parser.add_argument('--force_yml', nargs='+', default=[])
    try:
        return parser.parse_known_args(sys.argv[1:])[0]
    except argparse.ArgumentError:
        return None
