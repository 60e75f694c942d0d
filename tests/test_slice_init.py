"""A student starts from whole features, heads and blocks of a teacher of its kind, and from no other."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, build_arch, small_network
from torch import Tensor

from mtkd_model.multi_teacher_model import MultiTeacherSRModel
from mtkd_model.slice_init import slice_weights

Options = dict[str, Any]
DEEP = {  # teachers twice as wide and deep as those of SMALL
    'edsr': {'num_feat': 16, 'num_block': 5},
    'rcan': {'num_feat': 16, 'num_group': 4, 'num_block': 2},
    'swinir': {'embed_dim': 24, 'num_heads': [4, 4, 4, 4], 'depths': [4, 4, 4, 4]},
}


def student(name: str, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(1)
    return build_arch(small_network(name, **changes)).eval()


def teacher(name: str, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(2)
    return build_arch(small_network(name, **{**DEEP[name], **changes})).eval()


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('scale', [2, 3, 4])
def test_a_teacher_sliced_to_its_own_size_is_itself(name: str, scale: int) -> None:
    whole, other = teacher(name, scale=scale), build_arch(small_network(name, **DEEP[name], scale=scale)).eval()
    state = slice_weights(other.state_dict(), whole.state_dict())
    assert state.keys() == whole.state_dict().keys()
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in state.items())
    other.load_state_dict(state)
    lq = torch.rand(1, 3, 16, 16)
    assert torch.equal(other(lq), whole(lq))


@pytest.mark.parametrize('name', SMALL)
def test_every_tensor_of_the_student_comes_from_the_teacher(name: str) -> None:
    whole, small = teacher(name), student(name)
    marked = {key: torch.full_like(value, 7) for key, value in whole.state_dict().items()}
    for key, value in slice_weights(small.state_dict(), marked).items():
        assert value.shape == small.state_dict()[key].shape
        assert key.endswith(('relative_position_index', 'attn_mask')) or (value == 7).all(), key


@pytest.mark.parametrize('name', SMALL)
def test_the_slice_keeps_the_first_channels_and_changes_nothing(name: str) -> None:
    whole, small = teacher(name).state_dict(), student(name).state_dict()
    before = {key: value.clone() for key, value in small.items()}
    state = slice_weights(small, whole)
    width = small['conv_first.weight'].shape[0]
    assert torch.equal(state['conv_after_body.weight'], whole['conv_after_body.weight'][:width, :width])
    state['conv_first.weight'].zero_()
    assert whole['conv_first.weight'].abs().sum() > 0
    assert all(torch.equal(value, small[key]) for key, value in before.items())


def without_the_rest(whole: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """A teacher of convolutions whose channels behind ``width`` (groups of them before a pixel-shuffle) are silent."""
    silent = {}
    for key, value in whole.items():
        keep = value.shape[0] * width // whole['conv_after_body.weight'].shape[0]
        silent[key] = value.clone()
        if not key.startswith('conv_last'):
            silent[key][keep:] = 0
    return silent


@pytest.mark.parametrize('scale', [2, 3, 4])
@pytest.mark.parametrize('name', ['edsr', 'rcan'])
def test_the_slice_computes_what_the_teacher_does_with_the_other_channels_silent(name: str, scale: int) -> None:
    whole = teacher(name, scale=scale)
    small = student(name, **{**DEEP[name], 'num_feat': 8, 'scale': scale})
    small.load_state_dict(slice_weights(small.state_dict(), whole.state_dict()))
    whole.load_state_dict(without_the_rest(whole.state_dict(), 8))
    lq = torch.rand(1, 3, 9, 7)
    torch.testing.assert_close(small(lq), whole(lq))


@pytest.mark.parametrize(
    ('name', 'tensor', 'blocks', 'of', 'expected'),
    [
        ('edsr', 'body.{}.conv1.weight', {'num_block': 2}, {'num_block': 5}, [0, 2]),
        ('edsr', 'body.{}.conv2.bias', {'num_block': 4}, {'num_block': 8}, [0, 2, 4, 6]),
        ('rcan', 'body.{}.conv.weight', {'num_group': 3}, {'num_group': 10}, [0, 3, 6]),
        ('rcan', 'body.0.residual_group.{}.rcab.0.weight', {'num_block': 2}, {'num_block': 3}, [0, 1]),
        ('swinir', 'layers.{}.conv.weight', {}, {}, [0, 2]),
        ('swinir', 'layers.0.residual_group.blocks.{}.attn.proj.bias', {'depths': [4, 4]}, {'depths': [6, 6]},
         [0, 1, 2, 3]),
        ('swinir', 'layers.1.residual_group.blocks.{}.norm1.bias', {'depths': [2, 4]}, {'depths': [8, 8]},
         [0, 1, 4, 5]),
        ('swinir', 'layers.1.residual_group.blocks.{}.norm1.bias', {'depths': [1, 3]}, {'depths': [3, 3]}, [0, 1, 2]),
    ],
)  # fmt: skip
def test_blocks_are_taken_evenly(name: str, tensor: str, blocks: Options, of: Options, expected: list[int]) -> None:
    if 'depths' in of:
        of = {**of, 'num_heads': [2] * len(of['depths'])}
    whole, small = teacher(name, **of).state_dict(), student(name, **blocks).state_dict()
    for key in whole:
        if number := re.fullmatch(re.escape(tensor).replace(r'\{\}', r'(\d+)'), key):
            whole[key] = torch.full_like(whole[key], int(number[1]))
    state = slice_weights(small, whole)
    assert [state[tensor.format(i)].unique().tolist() for i in range(len(expected))] == [[value] for value in expected]


def test_attention_keeps_whole_heads_and_the_first_channels_of_each() -> None:
    whole, small = teacher('swinir').state_dict(), student('swinir').state_dict()
    block = 'layers.0.residual_group.blocks.0.attn.'
    state = slice_weights(small, whole)
    # 4 heads of 6 channels become 2 heads of 6: heads 0 and 1 of q, k and v each
    rows = [24 * part + 6 * head + d for part in range(3) for head in range(2) for d in range(6)]
    assert torch.equal(state[block + 'qkv.weight'], whole[block + 'qkv.weight'][rows][:, :12])
    assert torch.equal(state[block + 'proj.weight'], whole[block + 'proj.weight'][:12, :12])
    table = block + 'relative_position_bias_table'
    assert torch.equal(state[table], whole[table][:, :2])
    narrow = slice_weights(student('swinir', num_heads=[4, 4]).state_dict(), whole)  # 4 heads of 3
    rows = [24 * part + 6 * head + d for part in range(3) for head in range(4) for d in range(3)]
    assert torch.equal(narrow[block + 'qkv.bias'], whole[block + 'qkv.bias'][rows])
    columns = [6 * head + d for head in range(4) for d in range(3)]
    assert torch.equal(narrow[block + 'proj.weight'], whole[block + 'proj.weight'][:12, columns])


@pytest.mark.parametrize(
    ('name', 'changes'), [('swinir', {'upsampler': 'pixelshuffle'}), ('edsr', {'scale': 2}), ('edsr', {'scale': 3})]
)
def test_a_tail_of_another_kind_stays_as_it_was(name: str, changes: Options) -> None:
    small = student(name).state_dict()
    state = slice_weights(small, teacher(name, **changes).state_dict())
    tail = [key for key in small if key.startswith(('upsample', 'conv_last'))]
    assert tail
    assert all(torch.equal(state[key], small[key]) for key in tail)


def test_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match='the student is of the family EDSR, the teacher of RCAN'):
        slice_weights(student('edsr').state_dict(), teacher('rcan').state_dict())
    with pytest.raises(ValueError, match='the teacher is none of EDSR, RCAN, SwinIR'):
        slice_weights(student('edsr').state_dict(), build_arch({'type': 'MambaLiteSR'}).state_dict())


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('edsr', {'num_feat': 20}, 'wider than the teacher'),
        ('edsr', {'num_block': 6}, 'deeper than the teacher: 6 blocks in the body, the teacher 5'),
        ('rcan', {'num_block': 3}, r'deeper than the teacher: 3 blocks below body\.0, the teacher 2'),
        ('swinir', {'num_heads': [6, 6]}, 'wider than the teacher'),
        ('swinir', {'window_size': 4}, 'sizes other than channels differ'),
        ('swinir', {'resi_connection': '3conv'}, "has no 'layers.0.conv.0.weight'"),
    ],
)
def test_a_student_that_is_no_part_of_the_teacher_is_refused(name: str, changes: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slice_weights(student(name, **changes).state_dict(), teacher(name).state_dict())


def made(options: Options) -> MultiTeacherSRModel:
    torch.manual_seed(0)
    return MultiTeacherSRModel({**options, 'is_train': True, 'dist': False})


def test_the_model_starts_student_and_average_from_the_teacher(options: Options) -> None:
    options['network_g'] = small_network('edsr', num_feat=4, num_block=1)
    options['train']['init_from_teacher'] = {'teacher': 'edsr'}
    model = made(options)
    whole = model.teachers.bare()['edsr']
    for net in (model.net_g, model.net_g_ema):
        assert torch.equal(net.conv_first.weight, whole.conv_first.weight[:4])
        assert torch.equal(net.upsample[0].weight, whole.upsample[0].weight[:16, :4])
    model.feed_data({'lq': torch.rand(1, 3, 8, 8), 'gt': torch.rand(1, 3, 32, 32)})
    before = whole.conv_first.weight.clone()
    model.optimize_parameters(1)
    assert torch.equal(whole.conv_first.weight, before)
    assert not torch.equal(model.net_g.conv_first.weight, before[:4])


def test_the_model_starts_from_a_file_without_any_teacher(options: Options, teacher_files: dict[str, Path]) -> None:
    del options['teachers'], options['aggregator'], options['train']['distill']
    options['train']['init_from_teacher'] = {'path': str(teacher_files['edsr']), 'param_key': 'params'}
    whole = torch.load(teacher_files['edsr'], weights_only=True)['params']
    assert torch.equal(made(options).net_g.body[1].conv2.weight, whole['body.1.conv2.weight'])


@pytest.mark.parametrize(
    ('opt', 'message'),
    [
        ({'teacher': 'edrs'}, "init_from_teacher: no teacher 'edrs': did you mean 'edsr'"),
        ({'teacher': 'rcan'}, 'init_from_teacher: the student is of the family EDSR, the teacher of RCAN'),
        ({'tacher': 'edsr'}, "unknown key 'tacher' in train.init_from_teacher: did you mean 'teacher'"),
        ({'teacher': 'edsr', 'path': 'x.pth'}, 'wants either teacher'),
        ({'teacher': 'edsr', 'param_key': 'params'}, 'wants either teacher'),
    ],
)
def test_mistakes_in_the_option_are_named(options: Options, opt: Options, message: str) -> None:
    options['train']['init_from_teacher'] = opt
    with pytest.raises(ValueError, match=message):
        made(options)


def test_a_missing_file_is_named(options: Options, tmp_path: Path) -> None:
    options['train']['init_from_teacher'] = {'path': str(tmp_path / 'none.pth')}
    with pytest.raises(FileNotFoundError, match=r'train.init_from_teacher: no such weights file: .*none\.pth'):
        made(options)


def test_a_pretrained_student_and_a_slice_exclude_each_other(options: Options, teacher_files: dict[str, Path]) -> None:
    options['train']['init_from_teacher'] = {'teacher': 'edsr'}
    options['path']['pretrain_network_g'] = str(teacher_files['edsr'])
    with pytest.raises(ValueError, match='leave one out'):
        made(options)


def test_other_constants_than_the_teachers_are_warned_of(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    options['network_g'] = small_network('edsr', res_scale=0.1)
    options['train']['init_from_teacher'] = {'teacher': 'edsr'}
    logger = type('Logger', (), {'info': lambda self, text: None, 'warning': lambda self, text: said.append(text)})()
    monkeypatch.setattr('mtkd_model.slice_init.get_root_logger', lambda: logger)
    made(options)
    assert len(said) == 1
    assert 'res_scale is [0.1] in the student, [1] in the teacher' in said[0]


@pytest.mark.slow
def test_a_resumed_run_keeps_what_it_learned(options: Options, train: Callable[..., Path]) -> None:
    options['train']['init_from_teacher'] = {'teacher': 'edsr'}
    options['train']['total_iter'] = 2
    folder = train(options)
    learned = torch.load(folder / 'models/net_g_2.pth', weights_only=True)['params']
    options['path'] = {  # as BasicSR's own check_resume leaves it
        'resume_state': str(folder / 'training_states/2.state'),
        'pretrain_network_g': str(folder / 'models/net_g_2.pth'),
    }
    state = made(options).net_g.state_dict()
    assert all(torch.equal(value, learned[key]) for key, value in state.items())
