"""The start of a run: command line, option file, and what is resumed from."""

import functools
import re
import sys
import time
import warnings
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import yaml

from mtkd.compat.callers import callers_of
from mtkd.refusals import told_briefly

Options = MutableMapping[str, Any]
STATE_KEYS = ('epoch', 'iter', 'optimizers', 'schedulers')


def accept_local_rank_with_a_dash() -> None:
    """``torch.distributed.launch`` of torch 2 passes ``--local-rank``; BasicSR's parser knows only ``--local_rank``.

    Upstream: issue 626, open. Works in this project's launchers only, since elsewhere the command line is parsed
    before the option file is read; there, ``torchrun`` avoids the fault.
    """
    sys.argv[:] = [re.sub(r'^--local-rank(?==|$)', '--local_rank', argument) for argument in sys.argv]


def resume_on_cpu_and_from_the_experiment() -> None:
    """Resuming calls ``torch.cuda.current_device()`` on machines without CUDA, and ``--auto_resume`` looks in the
    working directory instead of the root path: it then finds nothing and moves the run to an archive.

    No upstream issue names the cause (679 asks for help with the symptom). See :func:`load_resume_state`.
    """
    for module in callers_of('load_resume_state'):
        module.load_resume_state = load_resume_state


def load_resume_state(opt: Options) -> dict[str, Any] | None:
    """Stands in for BasicSR's function of this name; the state comes back on the CPU, read without running code.

    With ``auto_resume`` the newest state of the experiment is taken whose files are all whole; a broken one is skipped
    with a warning that names it.
    """
    with told_briefly():
        state = _whole_state(opt)
        _check(opt)
    return state


def _whole_state(opt: Options) -> dict[str, Any] | None:
    from basicsr.utils import check_resume

    path = _newest_whole_state(opt) if opt.get('auto_resume') else opt['path'].get('resume_state')
    state = None
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f'path.resume_state: no such file: {path}')
        opt['path']['resume_state'] = str(path)
        state = _read_state(Path(path))
        check_resume(opt, state['iter'])
    return state


def _read_state(path: Path) -> dict[str, Any]:
    from mtkd_arch.tensor_file import read_tensor_file

    try:
        state = read_tensor_file(path)
    except ValueError as error:
        raise ValueError(f'path.resume_state: {error}') from error
    lacking = [key for key in STATE_KEYS if key not in state] if isinstance(state, dict) else STATE_KEYS
    if lacking or not isinstance(state['iter'], int):
        found = ', '.join(map(str, list(state)[:5])) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f'path.resume_state: {path} is no training state, which holds {", ".join(STATE_KEYS)}; it holds {found}'
        )
    return state


def _newest_whole_state(opt: Options) -> Path | None:
    states = [path for path in Path(opt['path']['training_states']).glob('*.state') if path.stem.isdigit()]
    for path in sorted(states, key=lambda path: int(path.stem), reverse=True):
        broken = _first_broken([path, *Path(opt['path']['models']).glob(f'*_{path.stem}.pth')])
        missing = [name for name in _network_files(opt, path.stem) if not name.is_file()]
        if broken is None and not missing:
            return path
        warnings.warn(f'auto_resume skips {path}: {broken or missing[0]} is missing or cut short', stacklevel=2)
    if states:  # starting anew would archive them; whoever asked to resume should decide that
        raise ValueError(
            f'auto_resume: no state in {states[0].parent} is whole; move that folder away, or leave --auto_resume out'
        )
    return None


def _network_files(opt: Options, iteration: str) -> list[Path]:
    names = [key.removeprefix('network_') for key in opt if key.startswith('network_')]
    return [Path(opt['path']['models']) / f'net_{name}_{iteration}.pth' for name in names]


def _first_broken(paths: list[Path]) -> Path | None:
    from mtkd_arch.tensor_file import read_tensor_file

    for path in paths:
        try:
            read_tensor_file(path, 'meta')
        except (ValueError, OSError):
            return path
    return None


def check_options_before_writing() -> None:
    """BasicSR makes the experiment's folders, and archives an older run of that name, before it looks at the options.

    Models that have a ``check_options(opt)`` of their own get it called first. Where this plugin is there before the
    option file is read, a safe reader looks through it before BasicSR's, which runs Python tags and fails where a
    section is missing. No upstream issue.
    """
    for module in callers_of('parse_options'):
        module.parse_options = _looked_through(module.parse_options)
    for module in callers_of('make_exp_dirs'):
        module.make_exp_dirs = _checked_first(module.make_exp_dirs)


def _looked_through(parse_options: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(parse_options, 'looks_first'):
        return parse_options

    @functools.wraps(parse_options)
    def looked_through(root_path: str, is_train: bool = True) -> Any:
        from mtkd.schema.command_line import refuse_unread

        with told_briefly():
            refuse_unread(is_train)
            try:
                return parse_options(root_path, is_train)
            except yaml.YAMLError as error:  # its parser is another one, in C, which takes a little less
                raise ValueError(f'the option file cannot be read as YAML: {" ".join(str(error).split())}') from error

    looked_through.looks_first = True
    return looked_through


def _checked_first(make_exp_dirs: Callable[[Options], None]) -> Callable[[Options], None]:
    if hasattr(make_exp_dirs, 'checks_first'):
        return make_exp_dirs

    @functools.wraps(make_exp_dirs)
    def checked(opt: Options) -> None:
        if not opt['is_train']:  # a training run was checked when its resume state was looked for
            with told_briefly():
                _check(opt)
        make_exp_dirs(opt)

    checked.checks_first = True
    return checked


def _check(opt: Options) -> None:
    from basicsr.utils.registry import MODEL_REGISTRY

    from mtkd.checks import lookup

    if 'plugin' in opt or 'teachers' in opt:
        lookup(MODEL_REGISTRY, opt.get('model_type'), 'model_type')
    if opt.get('model_type') in MODEL_REGISTRY:
        check = getattr(MODEL_REGISTRY.get(opt['model_type']), 'check_options', None)
        if check is not None:
            check(opt)


def copy_option_files_whole() -> None:
    """The copy of the option file in an experiment is written in place: a run killed meanwhile leaves a part of it.

    Evaluation and export read that copy. No upstream issue.
    """
    for module in callers_of('copy_opt_file'):
        module.copy_opt_file = copy_opt_file


def copy_opt_file(opt_file: str, experiments_root: str) -> None:
    """Stands in for BasicSR's function of this name: the option file behind the time and the command, by rank 0."""
    from basicsr.utils.dist_util import get_dist_info

    from mtkd_data.whole_files import write_atomically

    if get_dist_info()[0] == 0:
        header = f'# GENERATE TIME: {time.asctime()}\n# CMD:\n# {" ".join(sys.argv)}\n\n'
        write_atomically(Path(experiments_root) / Path(opt_file).name, header.encode() + Path(opt_file).read_bytes())
