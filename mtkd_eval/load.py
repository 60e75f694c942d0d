"""Networks from whatever holds them: option files, experiments, bare checkpoints, teachers, the bicubic reference."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtkd.checks import nearest
from mtkd.option_file import read_option
from mtkd_arch.named_network import named_network, with_named_network
from mtkd_arch.teacher_ensemble_arch import RUN_KEYS, TeacherEnsemble
from mtkd_data.weights_path import weights_path
from mtkd_eval.bicubic import BicubicUpsampling
from mtkd_eval.experiments import OPTION_SUFFIXES, option_in, trained_weights
from mtkd_eval.loaded import LoadedNetwork, built, frozen, measured_scale
from mtkd_eval.target import TargetNetwork

__all__ = ['LoadedNetwork', 'load_network', 'read_option']

WEIGHT_SUFFIXES = ('.pth', '.pt', '.safetensors')


def load_network(
    source: str | Path,
    network: str | Path | Mapping[str, Any] | None = None,
    scale: int | None = None,
    param_key: str | None = None,
    name: str | None = None,
) -> LoadedNetwork:
    """The network that ``source`` names, with its weights.

    Args:
        source: one of

            - an option file: its ``network_g`` with ``path.pretrain_network_g``, or where it has a ``train`` section
              with the newest weights of its experiment; of stage 1 the target, that is the aggregator on its teachers,
            - ``option.yml:teachers.edsr`` or ``option.yml:target``: a teacher, or what the teachers agree on,
            - an experiment folder: the option file in it and the newest weights in ``models``,
            - a checkpoint: with ``network``, as part of an experiment, one that names its network itself (exported
              safetensors do), or of a family that spandrel knows,
            - ``bicubic``: MATLAB's bicubic, which needs ``scale``.
        network: option of a checkpoint's network, or a YAML file that holds one or has it as ``network_g``.
        scale: what the network must upsample by; None takes any.
        param_key: which state dict of a checkpoint; default that of the option file, else ``params_ema`` before
            ``params``.
        name: what to call it; default the experiment's or the file's name.

    Raises FileNotFoundError or ValueError for everything that does not fit, naming the file.
    """
    loaded = _load(str(source), network, scale, param_key)
    found = measured_scale(loaded, str(source))
    if found != (scale or loaded.scale or found):
        raise ValueError(f'{source}: the network upsamples by {found}, but scale is {scale or loaded.scale}')
    return replace(loaded, scale=found, name=name or loaded.name)


def _load(source: str, network: Any, scale: int | None, param_key: str | None) -> LoadedNetwork:
    if source == 'bicubic':
        if scale is None:
            raise ValueError('bicubic: give the scale it should upsample by')
        return frozen('bicubic', BicubicUpsampling(scale), scale, 1, 'computed, no weights')
    path = Path(source)
    option_file, _, part = source.rpartition(':')
    if option_file.endswith(OPTION_SUFFIXES):
        return _load_part(Path(option_file), part)
    if path.is_dir():
        return _from_option(option_in(path), param_key, path)
    if path.suffix in OPTION_SUFFIXES:
        return _from_option(path, param_key)
    if path.suffix not in WEIGHT_SUFFIXES:
        kinds = f'an option file ({", ".join(OPTION_SUFFIXES)}), a checkpoint ({", ".join(WEIGHT_SUFFIXES)})'
        found = 'a file of another kind' if path.exists() else 'nothing by that name'
        others = "an experiment folder or 'bicubic'; scripts/infer.py takes exported .onnx, .torchscript and .pt2 too"
        raise FileNotFoundError(f'{source}: {found}; expected {kinds}, {others}')
    return _from_checkpoint(path, network, param_key)


def _from_option(
    path: Path, param_key: str | None, experiment: Path | None = None, checkpoint: Path | None = None
) -> LoadedNetwork:
    opt = read_option(path)
    if not isinstance(opt.get('network_g'), Mapping):
        raise ValueError(f"{path} lacks the section 'network_g'; its keys: {', '.join(map(str, opt))}")
    paths = opt.get('path') or {}
    name, strict = str(opt.get('name', path.stem)), True
    if checkpoint is not None:
        weights, name = checkpoint, f'{name}/{checkpoint.stem}'
    elif experiment is None and not opt.get('train') and paths.get('pretrain_network_g'):
        weights, param_key = weights_path(paths['pretrain_network_g']), param_key or paths.get('param_key_g')
        strict = bool(paths.get('strict_load_g', True))
    else:
        weights = trained_weights(opt, path, experiment)
    if opt.get('model_type') == 'AggregationModel':
        own = {'network': opt['network_g'], 'path': str(weights), 'param_key': param_key}
        inputs = (opt.get('aggregator') or {}).get('inputs') or list(opt.get('teachers') or ())
        return _target(opt, path, {**own, 'inputs': inputs}, name)
    where = f'{path}: network_g'
    return built(opt['network_g'], weights, param_key, strict, opt.get('scale'), name, where)


def _from_checkpoint(path: Path, network: Any, param_key: str | None) -> LoadedNetwork:
    path = weights_path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no such weights file: {path}')
    experiment = path.absolute().parent.parent
    if network is None and path.absolute().parent.name == 'models' and any(experiment.glob('*.yml')):
        return _from_option(option_in(experiment), param_key, experiment, path)
    if network is None and (named := named_network(path)):
        return built(named, path, param_key, True, None, path.stem, str(path))
    if network is None:
        return built({'type': 'SpandrelTeacher'}, path, param_key, True, None, path.stem, str(path))
    if isinstance(network, Mapping):
        return built(network, path, param_key, True, None, path.stem, 'network')
    opt = read_option(Path(network))
    scale = opt.get('scale') if 'network_g' in opt else None
    return built(opt.get('network_g', opt), path, param_key, True, scale, path.stem, str(network))


def _load_part(path: Path, part: str) -> LoadedNetwork:
    opt = read_option(path)
    teachers = opt.get('teachers')
    if not isinstance(teachers, Mapping) or not teachers:
        raise ValueError(f'{path} names no teachers, so there is no {part!r} in it')
    name = f'{opt.get("name", path.stem)}:{part.removeprefix("teachers.")}'
    if part == 'target':
        return _target(opt, path, opt.get('aggregator'), name)
    parts = [f'teachers.{teacher}' for teacher in teachers]
    if part not in parts:
        raise ValueError(f"{path}: no '{part}': {nearest(part, parts)}There are: {', '.join((*parts, 'target'))}")
    teacher = teachers[part.removeprefix('teachers.')]
    where = f'{path}: {part}'
    if not isinstance(teacher, Mapping) or not teacher.get('path'):
        raise ValueError(f"{where} should be a mapping with the keys 'network' and 'path'; it is {teacher!r}")
    teacher = with_named_network(teacher, where)
    weights, strict = weights_path(teacher['path']), teacher.get('strict', True)
    loaded = built(
        teacher.get('network'), weights, teacher.get('param_key'), strict, opt.get('scale'), name, f'{where}.network'
    )
    window = teacher.get('window', loaded.window)
    return replace(loaded, window=window, align=window)


def _target(opt: Mapping[str, Any], path: Path, aggregator: Any, name: str) -> LoadedNetwork:
    plain = {key: _without_run_keys(teacher) for key, teacher in (opt.get('teachers') or {}).items()}
    aggregator = _without_run_keys(aggregator) if aggregator else None
    if not isinstance(opt.get('scale'), int):
        raise ValueError(f"{path} lacks the key 'scale'")
    try:
        ensemble = TeacherEnsemble(plain, opt['scale'], aggregator)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'{path}: {error}') from error
    network = TargetNetwork(ensemble)
    merged = [section for section in (*plain.values(), aggregator) if section and section.get('path')]
    weights = tuple(weights_path(section['path']) for section in merged)
    source = f'target of {path}: {", ".join(map(str, weights))}'
    option = (with_named_network(aggregator, 'aggregator') if aggregator else {}).get('network')
    return frozen(name, network, opt['scale'], 1, source, network.align, weights, option)


def _without_run_keys(section: Any) -> Any:
    """How fast a teacher runs is the caller's choice here; what it computes is not."""
    if not isinstance(section, Mapping):
        return section
    return {key: value for key, value in section.items() if key not in RUN_KEYS}
