"""DCTSwin against reference outputs of the released network, SciPy and plain loops."""

import copy
import os
from pathlib import Path

import mtkd  # noqa: F401  first: it mends BasicSR's imports

# isort: split
import numpy as np
import pytest
import scipy.fft
import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY

from mtkd_arch.dct import (
    dct_matrix,
    inverse_dct_matrix,
    merge_windows,
    partition_windows,
    released_shift_masks,
    spatial_shift_masks,
    transform_windows,
    window_kinds,
)
from mtkd_arch.dctswin_arch import DCTSwin, DctWindowAttention
from mtkd_arch.merged_upsampling import merged_upsampling
from mtkd_arch.padding import pad_to_multiple

SHARED = Path(os.environ.get('MTKD_SHARED', Path(__file__).parents[2] / 'shared'))
GOLDEN = SHARED / 'golden' / 'dctswin_released.npz'
CASES = {'grid_equals_img_size': 16, 'grid_differs': 64, 'needs_padding': 16}  # case: img_size
SWITCHES = [('orthonormal', 'none'), ('unnormalised', 'released'), ('none', 'spatial')]


def small(**arguments):
    """A narrow network whose last convolution is not zero, so that everything before it shows."""
    torch.manual_seed(0)
    options = {'upscale': 2, 'in_chans': 6, 'embed_dim': 12, 'depths': (2, 2), 'num_heads': (2, 3), 'window_size': 4}
    net = DCTSwin(**{**options, **arguments}).eval()
    last = net.conv_last if hasattr(net.conv_last, 'weight') else net.upsample[0]
    torch.nn.init.normal_(last.weight, std=0.05)
    return net


@pytest.fixture(scope='module')
def golden():
    if not GOLDEN.exists():
        pytest.skip(f'reference outputs are not at {GOLDEN} (set MTKD_SHARED)')
    with np.load(GOLDEN) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def released(golden, img_size, **arguments):
    net = DCTSwin(4, 9, img_size=img_size, embed_dim=24, depths=(2, 2), variant='released', **arguments).eval()
    net.load_state_dict({k.removeprefix('weights/'): v for k, v in golden.items() if k.startswith('weights/')})
    return net


@pytest.mark.parametrize('case', CASES)
@torch.no_grad()
def test_the_released_variant_reproduces_the_released_network(golden, case):
    net = released(golden, CASES[case])
    image = golden[f'{case}/input']
    expected = golden[f'{case}/output']
    torch.testing.assert_close(net.forward_raw(image), expected, rtol=0, atol=2e-6)
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(3, 1, 1)
    # float32 RGB near .45 keeps 3e-8, which the mapping back multiplies by 255
    torch.testing.assert_close((net(image) - mean) * 255, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('other', [{'attn_mask': 'none'}, {'attn_mask': 'spatial'}, {'dct': 'orthonormal'}])
@torch.no_grad()
def test_the_reference_outputs_tell_the_switches_apart(golden, other):
    net = released(golden, CASES['grid_differs'], **other)
    difference = net.forward_raw(golden['grid_differs/input']) - golden['grid_differs/output']
    assert difference.abs().max() > 1e-4


@pytest.mark.parametrize(('kind', 'norm'), [('orthonormal', 'ortho'), ('unnormalised', None)])
@pytest.mark.parametrize('size', [2, 5, 8, 16])
def test_the_dct_matrices_are_scipys(kind, norm, size):
    windows = torch.randn(3, size * size, 2, dtype=torch.float64)
    image = windows.view(3, size, size, 2)
    spectrum = transform_windows(windows, dct_matrix(size, kind))
    expected = scipy.fft.dctn(image.numpy(), axes=(1, 2), norm=norm)
    np.testing.assert_allclose(spectrum.view_as(image), expected, atol=1e-11)
    back = transform_windows(spectrum, inverse_dct_matrix(size, kind))
    np.testing.assert_allclose(back.view_as(image), scipy.fft.idctn(expected, axes=(1, 2), norm=norm), atol=1e-11)
    np.testing.assert_allclose(back, windows, atol=1e-11)


@pytest.mark.parametrize('size', [3, 8])
def test_the_orthonormal_matrix_is_inverted_by_its_transpose(size):
    matrix = dct_matrix(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-14)


def test_an_unknown_dct_is_refused():
    with pytest.raises(ValueError, match="dct kind 'fast' is unknown, expected 'orthonormal'"):
        dct_matrix(8, 'fast')


@pytest.mark.parametrize('kind', ['orthonormal', 'unnormalised', 'none'])
@torch.no_grad()
def test_attention_equals_the_hand_written_formula_on_scipys_dct(kind):
    torch.manual_seed(0)
    side, heads, dim = 4, 3, 12
    attention = DctWindowAttention(dim, side, heads, qkv_bias=True, dct=kind).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    windows = torch.randn(5, side * side, dim, dtype=torch.float64)
    mask = torch.where(torch.rand(2, side * side, side * side) < 0.2, -100.0, 0.0).double()
    kinds = torch.tensor([0, 1, 1, 0, 1])

    def transform(function, tokens):
        if kind == 'none':
            return tokens
        norm = 'ortho' if kind == 'orthonormal' else None
        image = tokens.view(-1, side, side, dim).numpy()
        return torch.from_numpy(function(image, axes=(1, 2), norm=norm)).view_as(tokens)

    bias = torch.empty(heads, side * side, side * side, dtype=torch.float64)
    for i in range(side * side):
        for j in range(side * side):
            row = (i // side - j // side + side - 1) * (2 * side - 1) + i % side - j % side + side - 1
            bias[:, i, j] = attention.relative_position_bias_table[row]
    query, key, value = attention.qkv(transform(scipy.fft.dctn, windows)).chunk(3, -1)
    joined = []
    for part in range(heads):
        columns = slice(part * dim // heads, (part + 1) * dim // heads)
        logits = query[..., columns] @ key[..., columns].mT / (dim // heads) ** 0.5 + bias[part] + mask[kinds]
        joined.append(logits.softmax(-1) @ value[..., columns])
    expected = transform(scipy.fft.idctn, attention.proj(torch.cat(joined, -1)))
    # the module keeps its DCT matrices in float32; unnormalised logits reach 1e2
    torch.testing.assert_close(attention(windows, mask, kinds), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('height', 'width'), [(4, 4), (4, 12), (8, 4), (12, 20)])
@pytest.mark.parametrize('shift', [1, 2])
def test_the_spatial_mask_separates_what_the_shift_joined(height, width, shift):
    side = 4
    masks = spatial_shift_masks(side, shift)[window_kinds(height, width, side, torch.device('cpu'))]

    def region(line, size):  # which contiguous piece of the unshifted image a shifted position belongs to
        return (line >= size - side) + (line >= size - shift)

    windows = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    assert len(windows) == len(masks)
    for (top, left), mask in zip(windows, masks, strict=True):
        pixels = [(top + y, left + x) for y in range(side) for x in range(side)]
        regions = [(region(y, height), region(x, width)) for y, x in pixels]
        expected = torch.tensor([[0.0 if a == b else -100.0 for b in regions] for a in regions])
        torch.testing.assert_close(mask, expected, rtol=0, atol=0)


@pytest.mark.parametrize(('height', 'width'), [(8, 8), (8, 24), (16, 24)])
@pytest.mark.parametrize('shift', [0, 4])
def test_the_released_mask_compares_dct_values_of_region_indices(height, width, shift):
    side = 8
    image = np.zeros((height, width))
    pieces = (slice(0, -side), slice(-side, -shift), slice(-shift, None))  # -0 is 0: without a shift the last is all
    for index, (rows, columns) in enumerate((rows, columns) for rows in pieces for columns in pieces):
        image[rows, columns] = index
    masks = released_shift_masks(side, shift)
    kinds = window_kinds(height, width, side, torch.device('cpu'))
    masks = masks[kinds] if shift else masks.expand(len(kinds), -1, -1)
    windows = [
        image[top : top + side, left : left + side] for top in range(0, height, side) for left in range(0, width, side)
    ]
    for window, mask in zip(windows, masks, strict=True):
        values = scipy.fft.dctn(window, norm=None).ravel().round(6)
        expected = np.where(values[:, None] == values[None], 0.0, -100.0)
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(('mask', 'masked'), [('none', []), ('spatial', [1]), ('released', [0, 1])])
def test_each_mask_reaches_its_blocks(mask, masked):
    net = small(attn_mask=mask, img_size=16)
    blocks = net.layers[0].residual_group.blocks
    assert [i for i, block in enumerate(blocks) if block.masks_for(1, (8, 12))[0] is not None] == masked
    stored = [1] if mask == 'released' else masked
    assert [i for i, block in enumerate(blocks) if block.masks_for(1, (16, 16))[0] is not None] == stored


def test_the_released_network_of_a_single_window_does_not_shift():
    shifts = [block.shift for block in small(variant='released', img_size=4).layers[0].residual_group.blocks]
    assert shifts == [0, 0]
    assert [block.shift for block in small(img_size=4).layers[0].residual_group.blocks] == [0, 2]


def test_windows_are_merged_as_they_were_cut():
    image = torch.randn(2, 8, 12, 5)
    windows = partition_windows(image, 4)
    assert windows.shape == (12, 16, 5)
    torch.testing.assert_close(windows[1].view(4, 4, 5), image[0, :4, 4:8])
    torch.testing.assert_close(merge_windows(windows, 4, 8, 12), image)


def test_the_published_size_has_1336_thousand_parameters():
    assert sum(parameter.numel() for parameter in DCTSwin(upscale=4, in_chans=9).parameters()) == 1_335_603


def test_the_registry_builds_it():
    net = ARCH_REGISTRY.get('DCTSwin')(upscale=4, in_chans=9, embed_dim=12, depths=[1], num_heads=[2])
    assert isinstance(net, DCTSwin)


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (7, 13), (33, 31), (60, 72), (64, 64)])
@pytest.mark.parametrize(('dct', 'mask'), SWITCHES)
@torch.no_grad()
def test_any_size_goes_in_and_comes_out(size, dct, mask):
    image = torch.rand(1, 6, *size)
    output = small(dct=dct, attn_mask=mask)(image)
    assert output.shape == (1, 3, *size)
    assert output.isfinite().all()


@pytest.mark.parametrize('upscale', [2, 3, 4, 8])
@pytest.mark.parametrize('upsampler', ['pixelshuffle', 'pixelshuffledirect'])
@torch.no_grad()
def test_every_scale_and_upsampler_keeps_the_size(upscale, upsampler):
    net = small(upscale=upscale, upsampler=upsampler, resi_connection='3conv')
    assert net(torch.rand(1, 6, 25, 18)).shape == (1, 3, 25, 18)


@pytest.mark.parametrize(('dct', 'mask'), SWITCHES)
@torch.no_grad()
def test_a_batch_equals_its_samples(dct, mask):
    net = small(dct=dct, attn_mask=mask)
    images = torch.rand(3, 6, 18, 26)
    alone = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(net(images), alone, rtol=0, atol=1e-6)  # rounding of differently blocked products


@pytest.mark.parametrize('teachers', [1, 2, 5])
@pytest.mark.parametrize('upsampler', ['pixelshuffle', 'pixelshuffledirect'])
@torch.no_grad()
def test_the_untrained_aggregator_is_the_mean_of_its_teachers(teachers, upsampler):
    net = DCTSwin(2, 3 * teachers, embed_dim=12, depths=(2,), num_heads=(2,), upsampler=upsampler).eval()
    images = [torch.rand(2, 3, 17, 20) for _ in range(teachers)]
    torch.testing.assert_close(net(torch.cat(images, 1)), sum(images) / teachers, rtol=0, atol=1e-6)


@pytest.mark.parametrize('scale', [2, 3])
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (2, 3), (7, 9)])
def test_merged_convolutions_equal_the_two_up_to_the_border_with_their_gradients(scale, size):
    torch.manual_seed(0)
    conv_up = torch.nn.Conv2d(4, 5 * scale**2, 3, padding=1).double()
    conv_last = torch.nn.Conv2d(5, 3, 3, padding=1).double()
    image = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, size[0] * scale, size[1] * scale, dtype=torch.float64)
    merged = merged_upsampling(image, conv_up, conv_last, scale)
    apart = conv_last(F.pixel_shuffle(conv_up(image), scale))
    torch.testing.assert_close(merged, apart, rtol=0, atol=1e-12)
    leaves = [image, *conv_up.parameters(), *conv_last.parameters()]
    gradients = (torch.autograd.grad((output * weights).sum(), leaves) for output in (merged, apart))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


@torch.no_grad()
def test_without_residual_a_silent_network_gives_the_mean_colour():
    net = DCTSwin(2, 6, embed_dim=12, depths=(2,), num_heads=(2,), residual=False)
    assert net.conv_last.weight.abs().max() > 0
    torch.nn.init.zeros_(net.conv_last.weight)
    torch.nn.init.zeros_(net.conv_last.bias)
    expected = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    torch.testing.assert_close(net(torch.rand(1, 6, 16, 16)), expected)


@torch.no_grad()
def test_only_the_default_variant_centres_several_teachers():
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    for arguments, silent in [({}, True), ({'variant': 'released'}, False)]:
        net = small(**arguments)
        for name, parameter in net.named_parameters():
            if name.endswith('bias'):
                torch.nn.init.zeros_(parameter)
        assert (net.forward_raw(mean.repeat(1, 2, 1, 1)).abs().max() < 1e-6) == silent
    assert small(variant='released', in_chans=3).input_mean.flatten().tolist() == pytest.approx(
        [0.4488, 0.4371, 0.4040]
    )


@pytest.mark.parametrize(('dct', 'mask'), SWITCHES)
def test_gradients_reach_every_parameter(dct, mask):
    net = small(dct=dct, attn_mask=mask).train()
    net(torch.rand(2, 6, 16, 16)).square().mean().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_the_zero_start_leaves_zero_after_one_step():
    net = DCTSwin(2, 6, embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, drop_path_rate=0.0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    images, target = torch.rand(2, 6, 16, 16), torch.rand(2, 3, 16, 16)
    for _ in range(2):
        optimizer.zero_grad()
        F.l1_loss(net(images), target).backward()
        optimizer.step()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@torch.no_grad()
def test_stochastic_depth_acts_in_training_only():
    net = small(drop_path_rate=0.9)
    images = torch.rand(4, 6, 16, 16)
    torch.testing.assert_close(net(images), net(images), rtol=0, atol=0)
    assert not torch.equal(net.train()(images), net(images))


@pytest.mark.parametrize(('dct', 'mask'), SWITCHES)
@torch.no_grad()
def test_bf16_autocast_is_finite_and_close(dct, mask):
    net = small(dct=dct, attn_mask=mask)
    images = torch.rand(2, 6, 16, 16)
    with torch.autocast('cpu', torch.bfloat16):
        output = net(images)
    assert output.isfinite().all()
    torch.testing.assert_close(output.float(), net(images), rtol=0, atol=0.05)  # 8 bits of mantissa in every layer


def test_the_input_is_left_as_it_was():
    images = torch.rand(1, 6, 16, 16)
    before = images.clone()
    small()(images)
    assert torch.equal(images, before)


def test_a_published_checkpoint_with_derived_buffers_loads_strictly():
    net = small(variant='released')
    state = net.state_dict()
    assert not [key for key in state if 'index' in key or 'mask' in key or 'dct' in key or 'mean' in key]
    for i in range(2):
        state[f'layers.{i}.residual_group.blocks.0.attn.relative_position_index'] = torch.zeros(16, 16)
        state[f'layers.{i}.residual_group.blocks.1.attn_mask'] = torch.zeros(4, 16, 16)
    given = len(state)
    net.load_state_dict(state, strict=True)
    assert len(state) == given
    torch.nn.ModuleDict({'aggregator': net}).load_state_dict({f'aggregator.{k}': v for k, v in state.items()})
    with pytest.raises(RuntimeError, match='Unexpected key'):
        net.load_state_dict({**state, 'conv_extra.weight': torch.zeros(1)})


@torch.no_grad()
def test_weights_survive_copy_and_file(tmp_path):
    net = small()
    images = torch.rand(1, 6, 16, 20)
    torch.testing.assert_close(copy.deepcopy(net)(images), net(images), rtol=0, atol=0)
    torch.save({'params_ema': net.state_dict()}, tmp_path / 'net.pth')
    fresh = DCTSwin(2, 6, embed_dim=12, depths=(2, 2), num_heads=(2, 3), window_size=4).eval()
    fresh.load_state_dict(torch.load(tmp_path / 'net.pth', weights_only=True)['params_ema'])
    torch.testing.assert_close(fresh(images), net(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'variant': 'paper'}, "variant is 'paper', expected one of 'default', 'released'"),
        ({'dct': 'fft'}, "dct is 'fft', expected one of 'orthonormal', 'unnormalised', 'none'"),
        ({'attn_mask': 'swin'}, "attn_mask is 'swin', expected one of"),
        ({'resi_connection': '2conv'}, "resi_connection is '2conv', expected one of '1conv', '3conv'"),
        ({'upsampler': 'nearest+conv'}, "upsampler is 'nearest\\+conv', expected one of"),
        ({'upscale': 5}, 'upscale is 5, expected 2, 3, 4 or 8'),
        ({'in_chans': 7}, 'in_chans is 7, expected one image a teacher: a multiple of num_out_ch, 3'),
        ({'in_chans': 0}, 'in_chans is 0'),
        ({'embed_dim': 13}, r'embed_dim is 13, expected a multiple of every entry of num_heads \[2, 3\]'),
        ({'depths': (2,)}, r'depths \[2\] and num_heads \[2, 3\] differ in length'),
        ({'window_size': 1}, 'window_size is 1, expected at least 2'),
        (
            {'variant': 'released', 'img_size': 3},
            r'img_size is \(3, 3\), expected two sides of at least window_size, 4',
        ),
        ({'rgb_mean': (0.5,)}, 'rgb_mean has 1 values, expected num_out_ch of them, 3'),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_a_mistyped_argument_is_refused():
    with pytest.raises(TypeError, match='embed_dims'):
        small(embed_dims=12)


@pytest.mark.parametrize('shape', [(1, 9, 16, 16), (6, 16, 16)])
def test_an_input_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r'expected the teachers joined along the channels, \(B, 6, H, W\), got \('):
        small()(torch.rand(shape))


@pytest.mark.parametrize(('height', 'width'), [(9, 15), (16, 8), (31, 17), (8, 5)])
def test_padding_is_torchs_reflection_where_that_exists(height, width):
    image = torch.rand(2, 3, height, width)
    expected = F.pad(image, (0, -width % 8, 0, -height % 8), mode='reflect')
    assert torch.equal(pad_to_multiple(image, 8), expected)


@pytest.mark.parametrize(('height', 'width'), [(1, 1), (1, 20), (2, 3), (3, 30), (5, 1)])
def test_padding_mirrors_small_images_as_often_as_needed(height, width):
    image = torch.rand(1, 2, height, width)
    padded = pad_to_multiple(image, 16)
    expected = np.pad(image, ((0, 0), (0, 0), (0, -height % 16), (0, -width % 16)), mode='reflect')
    np.testing.assert_array_equal(padded, expected)


def test_padding_refuses_what_it_cannot_pad():
    image = torch.rand(1, 3, 8, 8)
    assert pad_to_multiple(image, 8) is image
    with pytest.raises(ValueError, match='multiple is 0'):
        pad_to_multiple(image, 0)
    with pytest.raises(ValueError, match=r'got \(1, 3, 0, 8\)'):
        pad_to_multiple(torch.rand(1, 3, 0, 8), 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize(('dct', 'mask'), SWITCHES)
@torch.no_grad()
def test_the_gpu_agrees_with_the_cpu(dct, mask):
    net = small(dct=dct, attn_mask=mask)
    images = torch.rand(2, 6, 30, 26)
    expected = net(images)
    torch.testing.assert_close(net.cuda()(images.cuda()).cpu(), expected, rtol=0, atol=1e-3)  # TF32 convolutions
