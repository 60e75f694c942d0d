"""The command ``check``: all problems of an option file, or what it would do. Nothing is written."""

from collections.abc import Sequence
from pathlib import Path

from basicsr.utils.registry import MODEL_REGISTRY

from mtkd.schema import plan
from mtkd.schema.as_parsed import as_parsed
from mtkd.schema.force import force, forced_keys
from mtkd.schema.places import with_places
from mtkd.schema.problems import problems, refuse
from mtkd.schema.reader import read
from mtkd_model import preflight


def check(path: Path, forced: Sequence[str] = (), timed: bool = False) -> str:
    """The resolved plan of the option file ``path``, with the entries of ``--force_yml`` in ``forced``.

    It is read by a safe loader and looked through, then built on the CPU, as training would. ``timed`` measures a few
    steps. Raises ValueError with all problems, FileNotFoundError for files that it names.
    """
    file = read(path)
    options = force(file.options, forced) if isinstance(file.options, dict) else file.options
    refuse(with_places(problems(options), file, forced_keys(forced)), str(path))
    opt = as_parsed(options, Path.cwd())
    kind = MODEL_REGISTRY.get(opt['model_type'])
    run = 'training' if opt['is_train'] else 'testing'
    head = f'{path}: {opt["name"]}, {opt["model_type"]}, x{opt["scale"]}, {run}'
    if not hasattr(kind, 'check_options'):
        with preflight.placed('the data sets'):
            sections = plan.of_options(opt)
        return f'{head}\n{plan.text_of({"networks": [("not built: this model is none of the plugin",)], **sections})}'
    built = preflight.check(kind, opt, look=lambda model: plan.of_model(opt, model, timed))
    first = {name: built[name] for name in ('networks', 'terms') if name in built}
    return f'{head}\n{plan.text_of({**first, **plan.of_options(opt), **built})}'
