"""The schema of an option file as JSON Schema (draft 2020-12), for editors that complete and check YAML."""

from collections.abc import Mapping
from typing import Any

import mtkd
from mtkd.schema.basicsr_keys import LOGGER_KEYS
from mtkd.schema.option_schema import SCHEMA, TYPED
from mtkd.schema.sections import Key, keys_of
from mtkd_data.dataset_keys import LOADER_KEYS
from mtkd_model.validation_options import VAL_KEYS


def json_schema() -> dict[str, Any]:
    """The whole schema. Nearly right names are not in it, and numbers follow YAML 1.2, where 1e-4 is one."""
    root = SCHEMA.json()
    training = {
        'if': {'anyOf': [{'required': ['train']}, {'properties': {'datasets': {'required': ['train']}}}]},
        'then': {
            'required': _in_training(SCHEMA.keys),
            'properties': {
                'val': {'if': {'type': 'object'}, 'then': {'required': _in_training(keys_of(VAL_KEYS))}},
                'logger': {'required': _in_training(keys_of(LOGGER_KEYS))},
                'datasets': {
                    'required': ['train'],
                    'properties': {'train': {'required': _in_training(keys_of(LOADER_KEYS))}},
                },
            },
        },
    }
    return {
        '$schema': 'https://json-schema.org/draft/2020-12/schema',
        'title': f'Option file of MTKD for BasicSR {mtkd.__version__}',
        **root,
        'allOf': [*root.get('allOf', []), training],
        '$defs': {kind.name: kind.definition() for kind in TYPED},
    }


def _in_training(keys: Mapping[str, Key]) -> list[str]:
    return [name for name, key in keys.items() if key.default == 'required in training']
