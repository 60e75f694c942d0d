"""The whole option file as one schema, put together from the tables and registries that the code itself uses."""

import functools
from typing import Any

import torch
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from mtkd.checks import OUR_TOP_LEVEL_KEYS, TRAIN_KEYS
from mtkd.schema import basicsr_keys
from mtkd.schema.containers import MapOf, OrDefault
from mtkd.schema.datasets import Datasets, dataset_section
from mtkd.schema.kinds import Context, Flag, Kind
from mtkd.schema.sections import Key, Section, keys_of
from mtkd.schema.signatures import arguments_of
from mtkd.schema.typed import ModelType, Typed, arguments_section, mentions, of_registry, optimizers, schedulers
from mtkd_arch.teacher_ensemble_arch import AGGREGATOR_KEYS, TEACHER_KEYS
from mtkd_model.distillers import DISTILLER_REGISTRY
from mtkd_model.encoders import ENCODER_KEYS
from mtkd_model.hierarchical_model import HEADS_KEYS
from mtkd_model.slice_init import INIT_KEYS
from mtkd_model.validation import DEVICE_METRICS
from mtkd_model.validation_options import METRIC_KEYS, VAL_KEYS

OPTIMIZERS = tuple(getattr(torch.optim, name) for name in ('Adam', 'AdamW', 'SGD', 'RMSprop'))


def _registry(registry: Any) -> Any:
    return functools.partial(of_registry, registry)


def _network(name: str, kind: Any) -> Section:
    if getattr(kind, 'reads_own_weights', False):  # what else it takes comes from the section that the network is in
        return Section({key: Key(one.kind, 'null') for key, one in arguments_of(kind).items()}, closed=True)
    return arguments_section(kind, kinds={'network': NETWORK})


def _term(name: str, kind: Any) -> Section:
    return arguments_section(kind, kinds={'loss': LOSS, 'encoder': ENCODER})


def _loss(name: str, kind: Any) -> Section:
    return arguments_section(kind)


def _optimizer(name: str, kind: Any) -> Section:
    keys = dict(arguments_of(kind, ('params',)))
    return Section({**keys, 'lr': Key(keys['lr'].kind, 'required')})  # BasicSR passes it on by its place


def _scheduler(name: str, kind: Any) -> Section:
    return arguments_section(kind, ('optimizer', 'last_epoch'))


def _metric(name: str, kind: Any) -> Section:
    better = keys_of({'better': METRIC_KEYS['better']})
    if name in DEVICE_METRICS:
        return Section({key: one for key, one in keys_of(METRIC_KEYS).items() if key != 'type'})
    return Section({**arguments_of(kind, ('img', 'img2')), **better}, closed=False)


NETWORK = Typed('network', _registry(ARCH_REGISTRY), _network)
LOSS = Typed('loss', _registry(LOSS_REGISTRY), _loss)
TERM = Typed('term', _registry(DISTILLER_REGISTRY), _term)
OPTIMIZER = Typed('optimizer', optimizers, _optimizer)
SCHEDULER = Typed('scheduler', schedulers, _scheduler)
METRIC = Typed('metric', _registry(METRIC_REGISTRY), _metric)
DATASET = Typed('dataset', _registry(DATASET_REGISTRY), dataset_section)
ENCODER = Section(keys_of(ENCODER_KEYS, {'network': NETWORK}))
TYPED = (NETWORK, LOSS, TERM, OPTIMIZER, SCHEDULER, METRIC, DATASET)


def _known_elsewhere(key: str, context: Context) -> bool:
    known = key in basicsr_keys.ELSEWHERE or key in basicsr_keys.SET_BY_BASICSR
    return known or (context.model is not None and mentions(context.model, key))


def _open(keys: dict[str, Key], **changes: Any) -> Section:
    return Section(keys, closed=False, elsewhere=_known_elsewhere, **changes)


def _train() -> Section:
    group = {name: key for kind in OPTIMIZERS for name, key in arguments_of(kind, ('params',)).items()}
    kinds: dict[str, Kind] = {
        'distill': MapOf(TERM, 'terms'),
        'init_from_teacher': Section(keys_of(INIT_KEYS)),
        'pixel_opt': LOSS,
        'perceptual_opt': LOSS,
        'optim_g': OPTIMIZER,
        'optim_distill': Section(group),
        'scheduler': SCHEDULER,
    }
    return _open(keys_of({**TRAIN_KEYS, **HEADS_KEYS, **basicsr_keys.TRAIN_KEYS}, kinds))


def option_schema() -> Section:
    """The schema of a whole option file."""
    logger = {'wandb': _open(keys_of(basicsr_keys.WANDB_KEYS))}
    kinds: dict[str, Kind] = {
        'model_type': ModelType(_registry(MODEL_REGISTRY)),
        'dist_params': _open(keys_of(basicsr_keys.DIST_KEYS)),
        'teachers': MapOf(Section(keys_of(TEACHER_KEYS, {'network': NETWORK})), 'networks'),
        'aggregator': Section(keys_of(AGGREGATOR_KEYS, {'network': NETWORK})),
        'network_g': NETWORK,
        'datasets': Datasets(DATASET),
        'train': _train(),
        'val': Section(
            keys_of(VAL_KEYS, {'metrics': MapOf(METRIC, 'metrics'), 'pbar': OrDefault(Flag())}),
            closed=False,
            cutoff=0.7,
        ),
        'path': _open(keys_of(basicsr_keys.PATH_KEYS)),
        'logger': _open(keys_of(basicsr_keys.LOGGER_KEYS, logger)),
    }
    return _open(keys_of({**basicsr_keys.TOP_LEVEL_KEYS, **OUR_TOP_LEVEL_KEYS}, kinds), called='the option file')


SCHEMA = option_schema()
