"""The option file that the running command line names, for messages that say the line."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtkd.schema.force import forced_keys
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


def option_file() -> tuple[OptionFile | None, dict[str, str]]:
    """The file behind ``-opt`` and what ``--force_yml`` changes; None where there is none that can be read."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument('-opt')
    parser.add_argument('--force_yml', nargs='+', default=[])
    try:
        args, _ = parser.parse_known_args(sys.argv[1:])
        return (read(Path(args.opt)) if args.opt else None), forced_keys(args.force_yml)
    except (ValueError, OSError, argparse.ArgumentError):
        return None, {}
