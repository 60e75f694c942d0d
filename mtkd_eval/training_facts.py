"""How weights came about: told by the option file and log of their experiment, or by the header of their own file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtkd.option_file import read_option
from mtkd_arch.named_network import named_network
from mtkd_arch.weights import read_metadata
from mtkd_data.weights_path import weights_path
from mtkd_eval.experiments import CHECKPOINT, option_in
from mtkd_eval.loaded import LoadedNetwork
from mtkd_eval.target import TargetNetwork

UNKNOWN = 'unknown'
LATEST, SAVES_LATEST = 'net_g_latest.pth', 'Save the latest model'
TOTAL_ITER = re.compile(r'^ *total_iter: (\d+)$', re.MULTILINE)
AUGMENTATIONS = {'use_hflip': 'horizontal flips', 'use_rot': 'vertical flips and quarter turns'}
Facts = dict[str, str]


def training_facts(source: str, loaded: LoadedNetwork, about_data: str | None = None) -> Facts:
    """Facts by name: of the option file ``source``, of that of the experiment the weights lie in, or of their header.

    ``about_data`` says what none of them does: where the images come from and what they may be used for. Empty where
    nothing is known.
    """
    weights = own_weights(loaded)
    option_file = _option_file(source, weights)
    if option_file is not None:
        facts = facts_of(read_option(option_file), weights, option_file)
    else:
        facts = {name: str(text) for name, text in kept_facts(loaded).get('training', {}).items()}
    return facts | ({'source of the images': about_data} if about_data else {})


def kept_facts(loaded: LoadedNetwork) -> dict[str, Any]:
    """``training``, ``licence`` and ``psnr_y`` that an exported file keeps beside the weights; {} of other files."""
    weights = own_weights(loaded)
    if len(weights) != 1 or weights[0].suffix != '.safetensors':
        return {}
    kinds = {'training': dict, 'licence': str, 'psnr_y': dict}
    return {key: fact for key, fact in read_metadata(weights[0]).items() if isinstance(fact, kinds.get(key, ()))}


def own_weights(loaded: LoadedNetwork) -> tuple[Path, ...]:
    """The files of the weights themselves: of a target, whose teachers come first, that of its aggregator alone."""
    return loaded.weights[-1:] if isinstance(loaded.network, TargetNetwork) else loaded.weights


def facts_of(opt: Mapping[str, Any], weights: Sequence[Path] = (), option_file: Path | None = None) -> Facts:
    """Facts of an option file by name, what it does not say as unknown; no folders of the machine."""
    train, data = opt.get('train') or {}, (opt.get('datasets') or {}).get('train') or {}
    optimizer = train.get('optim_g') or {}
    batch, crop = data.get('batch_size_per_gpu', UNKNOWN), data.get('gt_size', UNKNOWN)
    return {
        'experiment': str(opt.get('name', UNKNOWN)),
        'option file': f'`{_shown(option_file)}`' if option_file else UNKNOWN,
        'model': str(opt.get('model_type', UNKNOWN)),
        'teachers': _listed(_teachers(opt)) or 'none',
        'terms of the loss': _listed(_terms(train)) or UNKNOWN,
        'data': _data(data),
        'crops': f'{crop} x {crop} of the HR image, {batch} per process',
        'augmentation': ', '.join(text for key, text in AUGMENTATIONS.items() if data.get(key)) or 'none',
        'iterations planned': str(train.get('total_iter', UNKNOWN)),
        'iterations of these weights': iterations_of(weights, train.get('total_iter')),
        'optimizer': f'{optimizer.get("type", UNKNOWN)}, learning rate {optimizer.get("lr", UNKNOWN)}',
        'average of the weights': str(train.get('ema_decay', 'none')),
        'seed': str(opt.get('manual_seed', UNKNOWN)),
        'started from': _file_name((opt.get('path') or {}).get('pretrain_network_g')) or 'random weights',
    }


def iterations_of(weights: Sequence[Path], planned: int | None = None) -> str:
    """The number in the name of a checkpoint; of ``net_g_latest.pth``, which BasicSR writes at the end alone, the end.

    How many that is stands in the log that tells of the writing: ``--force_yml`` changes it, and a training that was
    resumed has a log each time. Without such a log it is ``planned``, the number of the option file.
    """
    numbers = [match[1] for path in weights if (match := CHECKPOINT.fullmatch(path.name))]
    if numbers:
        return numbers[0]
    latest = next((path for path in weights if path.name == LATEST and path.parent.name == 'models'), None)
    logged = latest and _logged_end(latest.parent.parent)
    if logged:
        return f'{logged} (the end of the training)'
    return f'{planned} (the end of the training, by its option file)' if latest and planned else UNKNOWN


def _logged_end(experiment: Path) -> int | None:
    """``total_iter`` of the newest log that tells of ``net_g_latest.pth``."""
    for log in sorted(experiment.glob('train_*.log'), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        text = log.read_text(encoding='utf-8', errors='replace')
        found = TOTAL_ITER.search(text)
        if found and SAVES_LATEST in text:
            return int(found[1])
    return None


def _option_file(source: str, weights: Sequence[Path]) -> Path | None:
    """The option file of a training: ``source`` itself, or that of the experiment the weights lie in; else None."""
    candidates = [Path(source)] if source.endswith(('.yml', '.yaml')) else []
    for folder in [path.parent.parent for path in weights if path.parent.name == 'models']:
        try:
            candidates.append(option_in(folder))
        except (FileNotFoundError, ValueError):  # none, or several: not known
            continue
    return next((path for path in candidates if read_option(path).get('train')), None)


def _data(data: Mapping[str, Any]) -> str:
    """Name, files, and the number of images where an LMDB that is at hand lists them."""
    roots = [_file_name(data.get(key)) for key in ('dataroot_gt', 'dataroot_lq') if data.get(key)]
    parts = [str(data.get('name', UNKNOWN)), f'({", ".join(roots)})' if roots else '']
    listing = Path(str(data.get('dataroot_gt') or '')).expanduser() / 'meta_info.txt'
    counted = f', {len(listing.read_text().splitlines()):,} images' if listing.is_file() else ''
    return ' '.join(filter(None, parts)) + counted


def _teachers(opt: Mapping[str, Any]) -> Iterator[str]:
    for name, teacher in (opt.get('teachers') or {}).items():
        network = teacher.get('network') or _named(teacher.get('path')) or {}
        yield f'{name}: {network.get("type", UNKNOWN)} (`{_file_name(teacher.get("path")) or UNKNOWN}`)'
    aggregator = opt.get('aggregator') or {}
    if aggregator.get('network'):
        path = _file_name(aggregator.get('path')) or UNKNOWN
        yield f'merged by {aggregator["network"].get("type", UNKNOWN)} (`{path}`)'


def _named(path: Any) -> dict[str, Any] | None:
    return named_network(path) if path and weights_path(path).is_file() else None


def _terms(train: Mapping[str, Any]) -> Iterator[str]:
    sections = {key: train[key] for key in ('pixel_opt', 'perceptual_opt') if train.get(key)}
    for name, term in {**sections, **(train.get('distill') or {})}.items():
        loss = (term.get('loss') or {}).get('type')
        kind = f'{term.get("type", UNKNOWN)} with {loss}' if loss else str(term.get('type', UNKNOWN))
        yield f'{name}: {kind}, weight {term.get("loss_weight", 1)}'


def _shown(path: Path) -> str:
    """A path within the working directory as it is, of any other its name."""
    return path.name if path.is_absolute() or path.parts[:1] in (('..',), ('~',)) else path.as_posix()


def _file_name(path: Any) -> str:
    return Path(str(path)).name if path else ''


def _listed(parts: Iterator[str]) -> str:
    return '; '.join(parts)
