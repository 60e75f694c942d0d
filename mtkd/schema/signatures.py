"""Arguments of a registered class as the keys of a section: kinds from its type hints, else from its defaults."""

import functools
import inspect
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mtkd.schema.containers import AnyOf, ListOf, MapOf, OrDefault
from mtkd.schema.kinds import Anything, Choice, Flag, Kind, Null, Number, Text
from mtkd.schema.sections import Key
from mtkd.schema.words import PATH, kind_of_words

PLAIN: dict[Any, Kind] = {
    int: Number(whole=True),
    float: Number(),
    str: Text(),
    bool: Flag(),
    Path: PATH,
    type(None): Null(),
    Any: Anything(),
}
# what neither a hint nor a default says, of arguments that mean the same in all classes of PACKAGES
RANGES = {
    **dict.fromkeys(
        ('num_feat', 'num_block', 'num_group', 'num_conv', 'num_in_ch', 'num_out_ch'), 'whole number, at least 1'
    ),
    **dict.fromkeys(('in_chans', 'embed_dim', 'squeeze_factor', 'every', 'parts'), 'whole number, at least 1'),
    **dict.fromkeys(('depths', 'num_heads', 'periods'), 'list of whole numbers, at least 1'),
    **dict.fromkeys(('mlp_ratio', 'img_range'), 'number, above 0'),
    **dict.fromkeys(('lr', 'weight_decay', 'eps', 'gamma', 'eta_min'), 'number, at least 0'),
    **dict.fromkeys(('decay', 'drop_path_rate'), 'number, at least 0 and below 1'),
    **dict.fromkeys(('loss_weight', 'res_scale'), 'number'),
    'upscale': 'whole number, 1 to 8',
    'rgb_mean': 'list of numbers',
    'milestones': 'list of whole numbers, at least 0',
    'betas': 'list of 2 numbers, at least 0 and below 1',
    'reduction': 'none, mean or sum',
}
OURS = ('mtkd_arch.', 'mtkd_data.', 'mtkd_loss.', 'mtkd_model.')
PACKAGES = (*OURS, 'basicsr.', 'torch.')


def kind_of_hint(annotation: Any) -> Kind:
    """The kind of value that a type hint asks for. Raises ValueError for a type that no option can have."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return Choice(arguments)
    if origin in (Union, types.UnionType):
        return AnyOf(tuple(kind_of_hint(argument) for argument in arguments))
    if annotation is Mapping or origin is Mapping:
        return MapOf(kind_of_hint(arguments[1]) if arguments else Anything())
    if origin is Sequence:
        return ListOf(kind_of_hint(arguments[0]))
    if annotation in PLAIN:
        return PLAIN[annotation]
    raise ValueError(f'no words for the type {annotation!r}: add them to PLAIN')


def kind_of_default(default: Any) -> Kind:
    """What an argument without a hint takes, as far as its default tells: classes of others promise no more."""
    if isinstance(default, bool):
        return OrDefault(Flag())
    if isinstance(default, int | float):  # 1 may mean 1.0, and 64 stand for both sides
        return OrDefault(AnyOf((Number(), ListOf(Number()))))
    if isinstance(default, str):
        return OrDefault(Text())
    if isinstance(default, list | tuple):
        return OrDefault(ListOf(Anything()))
    return Anything()


@functools.cache
def arguments_of(constructor: Any, without: tuple[str, ...] = ()) -> dict[str, Key]:
    """The arguments that an option may give to ``constructor``, in its order, save those of ``without``."""
    hints = hints_of(constructor)
    keys = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name in without:
            continue
        default = 'required' if parameter.default is parameter.empty else repr(parameter.default)
        keys[name] = Key(_kind(constructor, name, hints, parameter.default), default)
    return keys


def _kind(constructor: Any, name: str, hints: Mapping[str, Any], default: Any) -> Kind:
    module = constructor.__module__
    if not module.startswith(OURS):
        plain = kind_of_default(default)
        if name in RANGES and module.startswith(PACKAGES):
            return kind_of_words(RANGES[name])
        return plain
    return ranged(name, kind_of_hint(hints[name])) if name in hints else kind_of_default(default)


def ranged(name: str, kind: Kind) -> Kind:
    """``kind``, narrowed to the range that an argument of this name has; only numbers and lists of them have one."""
    if name in RANGES and kind in (Number(), Number(whole=True), ListOf(Number()), ListOf(Number(whole=True))):
        return kind_of_words(RANGES[name])
    return kind


def hints_of(constructor: Any) -> dict[str, Any]:
    """Annotations of a function, or of a class of ours; those its constructor leaves out are its bases'."""
    if not constructor.__module__.startswith(OURS):
        return {}
    if not isinstance(constructor, type):
        return get_type_hints(constructor)
    hints: dict[str, Any] = {}
    for base in reversed(constructor.__mro__):
        if '__init__' in vars(base) and base.__module__.startswith(OURS):
            hints |= get_type_hints(base.__init__)
    return hints


def takes_others(constructor: Any) -> bool:
    """Whether ``constructor`` has ``**kwargs``."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(constructor).parameters.values())
