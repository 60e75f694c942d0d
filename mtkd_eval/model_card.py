"""Model cards: what a file of weights is, how it came about and how good it is, as far as that is known."""

import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from mtkd.option_file import read_option
from mtkd_arch.named_network import named_network
from mtkd_data.teacher_cache.description import sha256_of_file
from mtkd_data.weights_path import weights_path
from mtkd_eval.cost import OUTPUT, count_macs, count_parameters
from mtkd_eval.experiments import option_in
from mtkd_eval.loaded import LoadedNetwork
from mtkd_eval.target import TargetNetwork, own_part

UNKNOWN = 'unknown'
PACKAGES = ('mtkd-basicsr', 'basicsr', 'torch', 'onnx', 'onnxruntime', 'safetensors')
METRICS = (('psnr_y', 'PSNR-Y (dB)', 2), ('ssim_y', 'SSIM-Y', 4), ('psnr_rgb', 'PSNR-RGB (dB)', 2))
Row = Sequence[str]


class Content(Protocol):
    """What a card says of a file; ``mtkd_eval.export.Exported``."""

    data: bytes
    form: str
    takes: str
    difference: float
    sizes: Sequence[tuple[int, int, int]]
    quality: Mapping[str, Mapping[str, float]]


def model_card(
    loaded: LoadedNetwork,
    files: Mapping[str, Content],
    training: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> str:
    """Markdown. ``files`` by name, ``training`` the option it was trained by, ``results`` its row of an evaluation."""
    sections = [
        f'# {loaded.name}',
        _what(loaded),
        _table(('', ''), _network_rows(loaded, licence)),
        '## Files',
        _table(('file', 'form', 'takes', 'bytes', 'SHA-256', 'largest difference from PyTorch'), _file_rows(files)),
        _compared(files),
        '## Input and output',
        _input_and_output(loaded),
        '## Training',
        _table(('', ''), training_rows(training, own_weights(loaded))) if training else _unknown('how it was trained'),
        '## Quality',
        _qualities(files, results),
        '## Made with',
        ', '.join(versions()),
    ]
    return '\n\n'.join(sections) + '\n'


def _what(loaded: LoadedNetwork) -> str:
    if not isinstance(loaded.network, TargetNetwork):
        return f'A network for x{loaded.scale} super-resolution.'
    order = ', '.join(loaded.network.ensemble.inputs)
    return (
        f'The aggregator that merges the outputs of x{loaded.scale} super-resolution networks, in this order: {order}.'
    )


def _input_and_output(loaded: LoadedNetwork) -> str:
    after = 'RGB around [0, 1] and not clamped: clamp it before it is shown or stored.'
    scale = loaded.scale
    if isinstance(loaded.network, TargetNetwork):
        count = len(loaded.network.ensemble.inputs)
        return (
            f'The outputs of {count} networks beside each other, float32 (B, {3 * count}, {scale} H, {scale} W), are '
            f'turned into one of (B, 3, {scale} H, {scale} W), {after}'
        )
    return (
        f'`image`, float32 (B, 3, H, W), RGB in [0, 1], is turned into `upscaled`, float32 (B, 3, {scale} H, '
        f'{scale} W), {after} Padding to the window ({loaded.window}) happens inside the ONNX, TorchScript and '
        'torch.export files.'
    )


def own_weights(loaded: LoadedNetwork) -> tuple[Path, ...]:
    """The files of the weights themselves: of a target, whose teachers come first, that of its aggregator alone."""
    return loaded.weights[-1:] if isinstance(loaded.network, TargetNetwork) else loaded.weights


def training_option(source: str, loaded: LoadedNetwork) -> dict[str, Any] | None:
    """The option file of a training: ``source`` itself, or that of the experiment the weights lie in; else None."""
    candidates = [Path(source)] if source.endswith(('.yml', '.yaml')) else []
    folders = [path.parent.parent for path in own_weights(loaded) if path.parent.name == 'models']
    for folder in folders:
        try:
            candidates.append(option_in(folder))
        except (FileNotFoundError, ValueError):  # none, or several: not known
            continue
    return next((opt for path in candidates if (opt := read_option(path)).get('train')), None)


def read_results(path: Path, loaded: LoadedNetwork) -> dict[str, Any] | None:
    """The row of ``scripts/evaluate.py``'s JSON that was measured with these weights; None where there is none.

    Raises FileNotFoundError, or ValueError for a file that is no such JSON.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        rows = [row for row in content['networks'] if row['scale'] == loaded.scale and isinstance(row['sets'], dict)]
        own = [sha256_of_file(weights) for weights in loaded.weights]
        found = [row for row in rows if [one['sha256'] for one in row['weights']] == own]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected the JSON of scripts/evaluate.py: {error!r}') from error
    if not found:
        return None
    return {**found[0], 'settings': content.get('settings', {}), 'circumstances': content.get('circumstances', {})}


def training_rows(opt: Mapping[str, Any], weights: Sequence[Path] = ()) -> list[Row]:
    """Facts of an option file by name, what it does not say as unknown; file names only, no folders."""
    train, data = opt.get('train') or {}, (opt.get('datasets') or {}).get('train') or {}
    optimizer = train.get('optim_g') or {}
    roots = [_file_name(data.get(key)) for key in ('dataroot_gt', 'dataroot_lq') if data.get(key)]
    batch, crop = data.get('batch_size_per_gpu', UNKNOWN), data.get('gt_size', UNKNOWN)
    return [
        ('experiment', str(opt.get('name', UNKNOWN))),
        ('model', str(opt.get('model_type', UNKNOWN))),
        ('teachers', _listed(_teachers(opt)) or 'none'),
        ('terms of the loss', _listed(_terms(train)) or UNKNOWN),
        ('data', ' '.join([str(data.get('name', UNKNOWN)), f'({", ".join(roots)})' if roots else '']).strip()),
        ('crops', f'{crop} x {crop} of the HR image, {batch} per process'),
        ('iterations planned', str(train.get('total_iter', UNKNOWN))),
        ('iterations of these weights', _iterations(weights)),
        ('optimizer', f'{optimizer.get("type", UNKNOWN)}, learning rate {optimizer.get("lr", UNKNOWN)}'),
        ('average of the weights', str(train.get('ema_decay', 'none'))),
        ('seed', str(opt.get('manual_seed', UNKNOWN))),
        ('started from', _file_name((opt.get('path') or {}).get('pretrain_network_g')) or 'random weights'),
    ]


def versions() -> list[str]:
    """``package version`` of what the files were made with; left out where it is not installed."""
    found = [f'Python {platform.python_version()}']
    for package in PACKAGES:
        try:
            found.append(f'{package} {metadata.version(package)}')
        except metadata.PackageNotFoundError:
            if package == 'mtkd-basicsr':  # used from a checkout
                from mtkd import __version__

                found.append(f'{package} {__version__}')
    return found


def _network_rows(loaded: LoadedNetwork, licence: str | None) -> Iterator[Row]:
    option = dict(loaded.option or {})
    arguments = ', '.join(f'{key}: {value}' for key, value in option.items() if key not in ('type', 'path'))
    yield 'network', str(option.get('type', type(loaded.network).__name__))
    yield 'arguments', f'`{arguments}`' if arguments else 'none given'
    yield 'scale', str(loaded.scale)
    yield 'parameters', f'{count_parameters(own_part(loaded.network) or loaded.network):,}'
    beside = ', teachers included' if isinstance(loaded.network, TargetNetwork) else ''
    yield f'multiply-accumulates at {OUTPUT[1]} x {OUTPUT[0]}{beside}', _macs(loaded)
    for path in loaded.weights:
        yield 'weights from', f'`{path.name}`, SHA-256 `{sha256_of_file(path)}`'
    yield 'licence of the weights', licence or 'unknown: whoever made them has named none'


def _macs(loaded: LoadedNetwork) -> str:
    try:
        return f'{count_macs(loaded) / 1e9:.1f} G'
    except ValueError:
        return UNKNOWN


def _file_rows(files: Mapping[str, Content]) -> Iterator[Row]:
    for name, one in files.items():
        digest = hashlib.sha256(one.data).hexdigest()
        yield f'`{name}`', one.form, one.takes, f'{len(one.data):,}', f'`{digest}`', f'{one.difference:.1e}'


def _compared(files: Mapping[str, Content]) -> str:
    sizes = dict.fromkeys(size for one in files.values() for size in one.sizes)
    shown = ' and '.join(f'{batch} x 3 x {height} x {width}' for batch, height, width in sizes)
    return f'Compared on synthetic images of {shown}, range [0, 1], on the CPU.'


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


def _iterations(weights: Sequence[Path]) -> str:
    numbers = [match[1] for path in weights if (match := re.fullmatch(r'net_g_(\d+)\.pth', path.name))]
    return numbers[0] if numbers else UNKNOWN


def _qualities(files: Mapping[str, Content], results: Mapping[str, Any] | None) -> str:
    parts = [_stored(name, one.quality) for name, one in files.items() if one.quality]
    parts += [_quality(results)] if results else []
    return '\n\n'.join(parts) or _unknown('no evaluation of these weights was given')


def _stored(name: str, quality: Mapping[str, Mapping[str, float]]) -> str:
    """Quality of a file's weights as they are stored."""
    rows = [
        (each, f'{found["psnr_y"]:.2f}', f'{found["ssim_y"]:.4f}', f'{found["lost"]:.4f}')
        for each, found in quality.items()
    ]
    table = _table(('test set', 'PSNR-Y (dB)', 'SSIM-Y', 'dB lost against the weights it was made from'), rows)
    return f'`{name}` as stored; mean over the images, output rounded to 8 bit, border of the scale cropped:\n\n{table}'


def _quality(results: Mapping[str, Any]) -> str:
    """Means over each set with the conditions they were measured under."""
    rows = [
        (name, *(_number((found.get('mean') or {}).get(key), digits) for key, _, digits in METRICS), str(border))
        for name, found in results['sets'].items()
        for border in [found.get('crop_border', UNKNOWN)]
    ]
    settings, place = results['settings'], results['circumstances']
    said = [f'{key} {settings[key]}' for key in ('precision', 'tile', 'self_ensemble') if key in settings]
    said += [f'{key} {place[key]}' for key in ('date', 'commit', 'torch', 'device') if place.get(key)]
    table = _table(('test set', *(title for _, title, _ in METRICS), 'border cropped'), rows)
    return f'{table}\n\nMean over the images, output rounded to 8 bit. {", ".join(said)}.'.replace(' .', '')


def _number(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f'{value:.{digits}f}'


def _unknown(what: str) -> str:
    return f'Unknown: {what}.' if what.startswith('no ') else f'It is unknown {what}.'


def _file_name(path: Any) -> str:
    return Path(str(path)).name if path else ''


def _listed(parts: Iterator[str]) -> str:
    return '; '.join(parts)


def _table(head: Row, rows: Iterator[Row] | Sequence[Row]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in line)} |' for line in lines)
