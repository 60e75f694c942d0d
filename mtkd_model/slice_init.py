"""Starts a student from slices of a trained teacher, so that inherited weights can be told from distillation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basicsr.utils import get_root_logger
from torch import Tensor, nn

from mtkd.checks import nearest, require_known_keys
from mtkd_arch.weights import DERIVED, StateDict, read_weights


@dataclass(frozen=True)
class Family:
    """How the tensors of a family of networks are named: ``mark`` is in no other family's names.

    ``levels`` name what precedes the number of a block, outermost first; blocks of the innermost level come in rounds
    of ``period`` (SwinIR's are plain and shifted in turn), which stay together.
    """

    mark: str
    levels: tuple[str, ...]
    period: int = 1


FAMILIES = {
    'EDSR': Family(r'body\.\d+\.conv1\.', ('body.',)),
    'RCAN': Family(r'body\.\d+\.residual_group\.\d+\.rcab\.', ('body.', 'residual_group.')),
    'SwinIR': Family(r'layers\.\d+\.residual_group\.blocks\.\d+\.attn\.', ('layers.', 'residual_group.blocks.'), 2),
}
# key: (type, default, meaning); docs/options.md is written from this table
INIT_KEYS = {
    'teacher': ('text', 'required without path', 'name of one of the teachers, whose weights are sliced'),
    'path': ('path', 'required without teacher', 'a checkpoint instead, of a network of the same family'),
    'param_key': ('text', 'the first that is there', 'state dict in that file'),
}
TAIL = ('conv_before_upsample.', 'upsample.', 'conv_up1.', 'conv_up2.', 'conv_hr.', 'conv_last.')


def slice_weights(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> StateDict:
    """A state for the student: of a teacher of the same family the first channels, and every n-th block.

    The slice that much of CSD's gain rests on (Wang et al., IJCAI 2021, https://arxiv.org/abs/2105.11683), where the
    student is part of the teacher; that blocks are taken evenly (0, 2, 4, ... of twice as many) is ours, as is:

    - a convolution before a pixel-shuffle by r keeps whole groups of r * r channels, so whole features;
    - attention keeps the first heads and the first channels of each, alike for q, k, v and the projection behind;
    - SwinIR's blocks go in pairs, a plain and a shifted one;
    - a tail of another kind (such as SwinIR's ``pixelshuffledirect`` from ``pixelshuffle``, or another scale) cannot
      be sliced: it keeps the student's own values, as do buffers that follow from the sizes.

    Neither argument is changed; the result shares no memory with them. ``res_scale`` and ``img_range`` are no weights:
    the student should have the teacher's.

    Raises ValueError for another or an unknown family, and for a student that is wider or deeper than the teacher.
    """
    family = FAMILIES[_common_family(student, teacher)]
    counts = _block_counts(student, family), _block_counts(teacher, family)
    own_tail = not _same_tail(student, teacher)
    state = {}
    for name, value in student.items():
        if name.endswith(DERIVED) or (own_tail and name.startswith(TAIL)):
            state[name] = value.detach().clone()
            continue
        source = _corresponding(name, family, *counts)
        if source not in teacher:
            raise ValueError(f"the teacher has no '{source}' to start the student's '{name}' from")
        state[name] = _sliced(name, value, teacher[source], *_heads(name, source, student, teacher)).detach().clone()
    return state


def _common_family(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> str:
    found = []
    for state, whose in ((student, 'student'), (teacher, 'teacher')):
        names = [name for name, family in FAMILIES.items() if any(re.match(family.mark, key) for key in state)]
        if len(names) != 1:
            raise ValueError(f'the {whose} is none of {", ".join(FAMILIES)}: only these can be sliced')
        found += names
    if found[0] != found[1]:
        raise ValueError(f'the student is of the family {found[0]}, the teacher of {found[1]}: they must be alike')
    return found[0]


def _path(name: str, family: Family) -> tuple[list[int], str]:
    """The block numbers that ``name`` begins with, and what follows them."""
    numbers = []
    for level in family.levels:
        match = re.match(re.escape(level) + r'(\d+)\.', name)
        if match is None:
            break
        numbers.append(int(match[1]))
        name = name[match.end() :]
    return numbers, name


def _block_counts(state: Mapping[str, Tensor], family: Family) -> dict[tuple[int, ...], int]:
    """The number of blocks below each block: ``()`` is the body itself."""
    counts: dict[tuple[int, ...], int] = {}
    for name in state:
        numbers, _ = _path(name, family)
        for depth, number in enumerate(numbers):
            parent = tuple(numbers[:depth])
            counts[parent] = max(counts.get(parent, 0), number + 1)
    return counts


def _corresponding(
    name: str, family: Family, student: dict[tuple[int, ...], int], teacher: dict[tuple[int, ...], int]
) -> str:
    """The teacher's name for the tensor that starts the student's ``name``."""
    numbers, rest = _path(name, family)
    source: list[int] = []
    for depth, number in enumerate(numbers):
        have, wanted = teacher.get(tuple(source), 0), student[tuple(numbers[:depth])]
        if wanted > have:
            where = f'below {family.levels[0]}{numbers[0]}' if depth else 'in the body'
            raise ValueError(f'the student is deeper than the teacher: {wanted} blocks {where}, the teacher {have}')
        period = family.period if depth == len(family.levels) - 1 else 1
        rounds = -(-have // period), -(-wanted // period)
        source.append(number // period * rounds[0] // rounds[1] * period + number % period)
    return ''.join(f'{level}{number}.' for level, number in zip(family.levels, source, strict=False)) + rest


def _same_tail(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> bool:
    """Whether the same layers upsample by the same factors."""
    tails = [
        {name: value.shape for name, value in state.items() if name.startswith(TAIL)} for state in (student, teacher)
    ]
    if tails[0].keys() != tails[1].keys():
        return False
    weights = [name for name in tails[0] if name.startswith('upsample.') and name.endswith('weight')]
    if not any(name.startswith('conv_last.') for name in tails[0]):  # straight to the image: (3 * r * r, C)
        return all(tails[0][name][0] == tails[1][name][0] for name in weights)
    return all(tails[0][name][0] * tails[1][name][1] == tails[1][name][0] * tails[0][name][1] for name in weights)


def _heads(name: str, source: str, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> tuple[int, int]:
    """The numbers of attention heads behind a tensor of an attention layer, (0, 0) for all others."""
    if '.attn.qkv.' not in name and '.attn.proj.weight' not in name:
        return 0, 0
    table = 'attn.relative_position_bias_table'
    tables = (student[re.sub(r'attn\..*', table, name)], teacher[re.sub(r'attn\..*', table, source)])
    return tables[0].shape[1], tables[1].shape[1]


def _sliced(name: str, own: Tensor, whole: Tensor, own_heads: int, heads: int) -> Tensor:
    if own_heads and '.qkv.' in name:  # (3 * heads * d, ...)
        parts, whole_parts = own.unflatten(0, (3, own_heads, -1)), whole.unflatten(0, (3, heads, -1))
        return _leading(name, parts.shape, whole_parts).flatten(0, 2)
    if own_heads:  # the projection behind: (C, heads * d)
        parts, whole_parts = own.unflatten(1, (own_heads, -1)), whole.unflatten(1, (heads, -1))
        return _leading(name, parts.shape, whole_parts).flatten(1, 2)
    fixed = own.shape[:-1] if name.endswith(('position_bias_table', 'pos_embed')) else own.shape[2:]
    if fixed != (whole.shape[:-1] if fixed == own.shape[:-1] else whole.shape[2:]):
        raise ValueError(f'{name}: sizes other than channels differ: {tuple(own.shape)}, teacher {tuple(whole.shape)}')
    return _leading(name, own.shape, whole)


def _leading(name: str, shape: tuple[int, ...], whole: Tensor) -> Tensor:
    if len(shape) != whole.dim() or any(size > of for size, of in zip(shape, whole.shape, strict=False)):
        raise ValueError(f'the student is wider than the teacher: {name} {tuple(shape)}, teacher {tuple(whole.shape)}')
    return whole[tuple(slice(size) for size in shape)]


def start_from_teacher(student: nn.Module, opt: Mapping[str, Any], teachers: Mapping[str, nn.Module]) -> None:
    """Load slices of a teacher into ``student``, as the option ``train.init_from_teacher`` says.

    Args:
        student: the bare network; its device stays.
        opt: either ``teacher``, the name of one of ``teachers``, or ``path`` (and, optionally, ``param_key``) of a
            checkpoint.
        teachers: the bare teachers by name.

    Raises ValueError (FileNotFoundError for a missing file) that names the option.
    """
    where = 'train.init_from_teacher'
    require_known_keys(opt, INIT_KEYS, where)
    if ('teacher' in opt) == ('path' in opt) or set(opt) == {'teacher', 'param_key'}:
        raise ValueError(f'{where} wants either teacher: <name> or path: <checkpoint> (with param_key): {dict(opt)}')
    try:
        weights = _weights(opt, teachers)
        student.load_state_dict(slice_weights(student.state_dict(), weights))
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'{where}: {error}') from error
    kept = '' if _same_tail(student.state_dict(), weights) else '; its tail, of another kind, stays as it was'
    get_root_logger().info(f'The student starts from slices of {opt.get("teacher", opt.get("path"))}{kept}.')
    if 'teacher' in opt:
        _warn_of_other_settings(student, teachers[opt['teacher']])


def _weights(opt: Mapping[str, Any], teachers: Mapping[str, nn.Module]) -> Mapping[str, Tensor]:
    if 'path' in opt:
        return read_weights(Path(opt['path']), opt.get('param_key'))
    if opt['teacher'] not in teachers:
        raise ValueError(
            f"no teacher '{opt['teacher']}': {nearest(opt['teacher'], teachers)}"
            f'Teachers: {", ".join(teachers) or "none; give a path"}'
        )
    return teachers[opt['teacher']].state_dict()


def _warn_of_other_settings(student: nn.Module, teacher: nn.Module) -> None:
    for name in ('img_range', 'res_scale'):
        values = [sorted({getattr(m, name) for m in net.modules() if hasattr(m, name)}) for net in (student, teacher)]
        if values[0] != values[1]:
            get_root_logger().warning(
                f'train.init_from_teacher: {name} is {values[0]} in the student, {values[1]} in the teacher: '
                'the sliced weights were trained with the latter'
            )
