"""What a checked option file would do, in words: networks, terms, data, training, memory, time."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from mtkd.checks import image_keys, left_of_start
from mtkd.schema import memory
from mtkd_eval.scale_model import Run, run_seconds

Rows = list[tuple[str, ...]]
TIMED_STEPS = 3
LONGEST = 60
AUTO = 'auto: bf16 where the device computes in it, else fp32'


def text_of(sections: Mapping[str, Rows]) -> str:
    """The sections of a plan, columns aligned within each."""
    return '\n'.join(line for name, rows in sections.items() if rows for line in (name, *_aligned(rows)))


def _aligned(rows: Rows) -> list[str]:
    count = max(map(len, rows))
    widths = [max((len(row[column]) for row in rows if column < len(row) - 1), default=0) for column in range(count)]
    return ['  ' + '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]


def of_options(opt: Mapping[str, Any]) -> dict[str, Rows]:
    """What the options alone tell: data and training."""
    return {'data': _data(opt), 'training': _training(opt) if opt['is_train'] else []}


def of_model(opt: Mapping[str, Any], model: Any, timed: bool) -> dict[str, Rows]:
    """What ``model``, built from ``opt`` on the CPU, tells: networks, terms, memory, time if ``timed``."""
    sections = {'networks': _networks(opt, model)}
    if not opt['is_train']:
        return sections
    train_set = opt['datasets']['train']
    batch, gt_size = train_set['batch_size_per_gpu'], train_set['gt_size']
    part = batch // (opt['train'].get('accumulate') or 1)
    sections['terms'] = _terms(opt, model)
    sections['memory'] = _memory(memory.estimate(model, part, gt_size, on_gpu=opt['num_gpu'] > 0))
    if timed:
        sections['time'] = _time(model, batch, gt_size // model.scale, int(opt['train']['total_iter']))
    return sections


def count(number: int) -> str:
    """A number of parameters: 40 k, 1.52 M."""
    if number >= 10**6:
        return f'{number / 10**6:.3g} M'
    return f'{number / 1000:.3g} k' if number >= 1000 else str(number)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _networks(opt: Mapping[str, Any], model: Any) -> Rows:
    student = model.get_bare_model(model.net_g)
    role = 'trained' if opt['is_train'] else 'tested'
    rows = [('network_g', type(student).__name__, count(_parameters(student)), role, _start(opt))]
    teachers = model.teachers
    for name, section in (opt.get('teachers') or {}).items():
        if teachers is None:
            kind = (section.get('network') or {}).get('type', '')
            rows.append((f'teachers.{name}', kind, '', 'not built', 'its outputs come from the cache'))
        else:
            network = teachers.networks[name].network
            rows.append(
                (f'teachers.{name}', type(network).__name__, count(_parameters(network)), 'frozen', section['path'])
            )
    if teachers is not None and teachers.aggregator is not None:
        network = teachers.aggregator.network
        path = opt['aggregator']['path']
        rows.append(('aggregator', type(network).__name__, count(_parameters(network)), 'frozen', path))
    if getattr(model, 'distillers', None) is not None and _parameters(model.distillers):
        rows.append(('train.distill', 'adapters', count(_parameters(model.distillers)), 'trained', 'random weights'))
    return rows


def _start(opt: Mapping[str, Any]) -> str:
    paths, init = opt['path'], (opt.get('train') or {}).get('init_from_teacher')
    if paths.get('resume_state'):
        return f'resumed from {paths["resume_state"]}'
    if paths.get('pretrain_network_g'):
        return str(paths['pretrain_network_g'])
    return f'slices of {init.get("teacher") or init.get("path")}' if init else 'random weights'


def _terms(opt: Mapping[str, Any], model: Any) -> Rows:
    rows = []
    for name in ('pixel_opt', 'perceptual_opt'):
        loss = opt['train'].get(name)
        if loss:
            rows.append((name, loss['type'], f'weight {loss.get("loss_weight", 1.0):g}', 'to the ground truth'))
    if model.distillers is not None:
        for name, term in model.get_bare_model(model.distillers).terms.items():
            rows.append((f'distill.{name}', type(term).__name__, f'weight {term.loss_weight:g}', _taught_by(term)))
    return rows


def _taught_by(term: Any) -> str:
    if term.student_taps or term.teacher_taps:
        return f'taps {_short(term.student_taps)} <- {_short(term.teacher_taps)}'
    teachers = getattr(term, 'teacher', None) or getattr(term, 'teachers', None)
    return f'from {_short(teachers)}' if teachers else ''


def _short(names: Any) -> str:
    text = names if isinstance(names, str) else ', '.join(map(str, names))
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'


def _data(opt: Mapping[str, Any]) -> Rows:
    rows = []
    for phase, dataset in opt['datasets'].items():
        images = count_images(dataset, f'datasets.{phase}')
        known = '' if images is None else f'{images} images'
        if phase == 'train' and images is not None:
            known += _epochs(dataset, images, int(opt['train']['total_iter']))
        rows.append((phase, dataset['name'], dataset['type'], known))
    return rows


def count_images(dataset: Mapping[str, Any], where: str) -> int | None:
    """The number of images, or pairs, of a data set; None where its options do not say where they are."""
    if dataset.get('meta_info_file'):
        return len([line for line in Path(dataset['meta_info_file']).read_text().splitlines() if line.strip()])
    root = dataset.get('dataroot_gt') or dataset.get('dataroot_lq')
    lmdb = (dataset.get('io_backend') or {}).get('type') == 'lmdb'
    return len(image_keys(Path(root), lmdb, where)) if root else None


def _epochs(dataset: Mapping[str, Any], images: int, total: int) -> str:
    """As BasicSR counts, in one process."""
    ratio, batch = dataset.get('dataset_enlarge_ratio', 1), dataset['batch_size_per_gpu']
    crops = math.ceil(images * ratio)
    steps = math.ceil(images * ratio / batch)
    return f' x {ratio:g} = {crops} crops an epoch, {steps} batches of {batch}; {math.ceil(total / steps)} epochs'


def _training(opt: Mapping[str, Any]) -> Rows:
    train = opt['train']
    decay, precision = train.get('ema_decay') or 0, train.get('amp') or 'fp32'
    return [
        ('iterations', str(int(train['total_iter']))),
        ('optimizer', _said(train['optim_g'])),
        ('schedule', _said(train['scheduler'])),
        ('precision', AUTO if precision == 'auto' else precision),
        ('average', f'decay {decay:g}' if decay else 'none', left_of_start(opt)),
    ]


def _said(section: Mapping[str, Any]) -> str:
    return ' '.join([section['type'], *(f'{key} {value}' for key, value in section.items() if key != 'type')])


def _memory(found: memory.Memory) -> Rows:
    parts: Sequence[tuple[str, int, str]] = (
        ('weights', found.weights, 'with those of frozen networks'),
        ('gradients', found.gradients, ''),
        ('optimizer', found.optimizer, ''),
        ('averaged weights', found.average, ''),
        ('activations', found.activations, f'measured with {found.measured}, continued to the pixels of a batch'),
        ('passing', found.passing, 'the batch, results without gradient, gradients of activations; measured alike'),
        ('together', found.total, 'without what libraries take and the allocator holds back'),
    )
    return [(name, f'{size / 2**20:,.1f} MiB', *([note] if note else [])) for name, size, note in parts if size]


def _time(model: Any, batch: int, side: int, total: int) -> Rows:
    seconds = []
    for iteration in range(1, TIMED_STEPS + 2):  # the first warms up
        memory.feed(model, batch, side)
        start = time.perf_counter()
        model.optimize_parameters(iteration)
        seconds.append(time.perf_counter() - start)
    step = median(seconds[1:])
    note = f'median of {TIMED_STEPS} on this CPU, without reading data'
    hours = run_seconds(Run(total), step) / 3600
    return [('a step', f'{step:.3g} s', note), ('the run', f'{hours:.3g} h', f'{total} steps')]
