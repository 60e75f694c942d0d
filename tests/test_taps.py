"""Taps give what a module computed, by path, and leave no trace in the network."""

import pytest
import torch
from conftest import build_arch, small_network
from torch import Tensor, nn

from mtkd_arch.feature_maps import as_map, lq_map, unpadded_map
from mtkd_arch.taps import find_module, record_taps


@pytest.fixture
def edsr() -> nn.Module:
    torch.manual_seed(0)
    return build_arch(small_network('edsr', num_block=3))


@pytest.fixture
def lq() -> Tensor:
    return torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


# paths


def test_a_path_leads_to_the_module_that_attributes_lead_to(edsr: nn.Module) -> None:
    assert find_module(edsr, 'conv_first') is edsr.conv_first
    assert find_module(edsr, 'body') is edsr.body
    assert find_module(edsr, 'body.1') is edsr.body[1]
    assert find_module(edsr, 'body.1.conv2') is edsr.body[1].conv2


def test_negative_numbers_count_from_the_end_at_every_depth(edsr: nn.Module) -> None:
    assert find_module(edsr, 'body.-1') is edsr.body[2]
    assert find_module(edsr, 'body.-3') is edsr.body[0]
    assert find_module(edsr, 'body.-2.conv1') is edsr.body[1].conv1
    assert find_module(edsr, '-1') is edsr.conv_last
    assert find_module(edsr, 'upsample.-1') is edsr.upsample[3]
    swinir = build_arch(small_network('swinir'))
    assert find_module(swinir, 'layers.-1.residual_group.blocks.-1.attn') is (
        swinir.layers[1].residual_group.blocks[0].attn
    )


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('bdy.0', r"'bdy.0' does not exist: EDSR has no 'bdy': did you mean 'body'\? Available: conv_first, body"),
        ('body.3', r"'body.3' does not exist: body has no '3': Available: 0, 1, 2$"),
        ('body.-4', r"body has no '-4': Available: 0, 1, 2$"),
        ('body.-0', r"body has no '-0'"),
        ('body.1.conv3', r"body.1 has no 'conv3': did you mean 'conv[12]'\? Available: conv1, conv2, relu"),
        ('conv_first.weight', r"conv_first has no 'weight': Available: nothing"),
        ('', r"'' does not exist: EDSR has no ''"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(edsr: nn.Module, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=f'^train.distill.hint: student tap: .*{message}'):
        find_module(edsr, path, 'train.distill.hint: student tap')


def test_a_long_list_of_modules_is_shortened() -> None:
    network = build_arch(small_network('edsr', num_block=32))
    with pytest.raises(ValueError, match=r'Available: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, \.\.\. 31$'):
        find_module(network, 'body.32')


# recording


def test_a_tap_is_what_the_module_gave(edsr: nn.Module, lq: Tensor) -> None:
    with record_taps(edsr, ['body.0', 'body.-1', 'conv_after_body']) as taps:
        edsr(lq)
    first = edsr.conv_first((lq - edsr.mean) * 255)
    assert list(taps) == ['body.0', 'body.-1', 'conv_after_body']
    # the same float32 operations, at values up to some hundreds
    torch.testing.assert_close(taps['body.0'], edsr.body[0](first), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(taps['body.-1'], edsr.body(first), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('name', ['edsr', 'rcan'])
def test_a_tap_survives_the_in_place_residual_add(name: str, lq: Tensor) -> None:
    torch.manual_seed(0)
    network = build_arch(small_network(name)).requires_grad_(False)
    uncloned = {}
    handle = network.conv_after_body.register_forward_hook(lambda *call: uncloned.update(value=call[2]))
    with record_taps(network, ['conv_after_body']) as taps:
        network(lq)
    handle.remove()
    first = network.conv_first((lq - network.mean) * 255)
    expected = network.conv_after_body(network.body(first))
    torch.testing.assert_close(taps['conv_after_body'], expected, rtol=1e-5, atol=1e-4)
    # the network did add its long skip right into what a tap without clone would hold
    torch.testing.assert_close(uncloned['value'], expected + first, rtol=1e-5, atol=1e-4)
    assert (uncloned['value'] - expected).abs().max() > 1


def test_recording_changes_neither_the_output_nor_the_gradients(edsr: nn.Module, lq: Tensor) -> None:
    expected = edsr(lq)
    gradients = torch.autograd.grad(expected.square().mean(), list(edsr.parameters()))
    with record_taps(edsr, ['body.0', 'conv_after_body']):
        output = edsr(lq)
    assert torch.equal(output, expected)
    tapped = torch.autograd.grad(output.square().mean(), list(edsr.parameters()))
    for one, other in zip(tapped, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # sums of float32 in the same order or nearly so


def test_the_hooks_are_gone_afterwards(edsr: nn.Module, lq: Tensor) -> None:
    with record_taps(edsr, ['body.0', 'body.1']) as taps:
        assert hooks(edsr) == 2
        edsr(lq)
    assert hooks(edsr) == 0
    before = dict(taps)
    edsr(lq + 1)
    assert all(taps[path] is before[path] for path in before)


def test_the_hooks_are_gone_after_an_exception_too(edsr: nn.Module) -> None:
    with pytest.raises(RuntimeError), record_taps(edsr, ['body.0', 'conv_last']):
        edsr(torch.rand(1, 5, 8, 8))
    assert hooks(edsr) == 0


def test_a_path_that_does_not_exist_leaves_no_hook_of_those_before_it(edsr: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"body has no '9'"), record_taps(edsr, ['body.0', 'body.9']):
        pytest.fail('entered')
    assert hooks(edsr) == 0


def test_without_paths_nothing_is_recorded(edsr: nn.Module, lq: Tensor) -> None:
    with record_taps(edsr, []) as taps:
        assert hooks(edsr) == 0
        edsr(lq)
    assert taps == {}


def test_of_several_forward_passes_the_last_counts(edsr: nn.Module, lq: Tensor) -> None:
    with record_taps(edsr, ['body.0']) as taps:
        edsr(lq + 1)
        edsr(lq)
    with record_taps(edsr, ['body.0']) as once:
        edsr(lq)
    assert torch.equal(taps['body.0'], once['body.0'])


def test_a_module_that_gives_no_tensor_is_refused_and_the_hook_goes(lq: Tensor) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Twice()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[0]

    network = Network()
    with (
        pytest.raises(ValueError, match="tap 'inner' gives a tuple, not a tensor: tap a module inside it"),
        record_taps(network, ['inner']),
    ):
        network(lq)
    assert hooks(network) == 0


def test_the_gradient_flows_through_a_tap_to_what_lies_before_it_and_nothing_else(edsr: nn.Module, lq: Tensor) -> None:
    with record_taps(edsr, ['body.1']) as taps:
        edsr(lq)
    taps['body.1'].square().mean().backward()
    reached = {name for name, parameter in edsr.named_parameters() if parameter.grad is not None}
    before = [edsr.conv_first, edsr.body[0], edsr.body[1]]
    assert reached == {
        name
        for name, parameter in edsr.named_parameters()
        for m in before
        if any(parameter is p for p in m.parameters())
    }
    assert all(parameter.grad.abs().sum() > 0 for module in before for parameter in module.parameters())


# tokens


def test_tokens_become_the_map_they_came_from() -> None:
    expected = torch.rand(2, 5, 3, 4)
    tokens = torch.empty(2, 12, 5)
    for row in range(3):
        for column in range(4):
            tokens[:, row * 4 + column] = expected[:, :, row, column]
    assert torch.equal(as_map(tokens, 3, 4), expected)


def test_the_tokens_of_swinir_become_the_map_it_makes_of_them_itself() -> None:
    torch.manual_seed(0)
    network = build_arch(small_network('swinir')).eval()
    with record_taps(network, ['norm', 'patch_unembed']) as taps, torch.no_grad():
        network(torch.rand(2, 3, 8, 16))
    assert taps['norm'].shape == (2, 128, 12)
    assert torch.equal(as_map(taps['norm'], 8, 16), taps['patch_unembed'])


@pytest.mark.parametrize(('size', 'padded'), [((13, 9), (16, 16)), ((5, 20), (8, 24))])
def test_padding_to_the_window_is_cut_off_tokens_and_maps(size: tuple[int, int], padded: tuple[int, int]) -> None:
    feature = torch.rand(2, 5, *padded)
    expected = feature[..., : size[0], : size[1]]
    tokens = feature.flatten(2).transpose(1, 2)
    for given in (feature, tokens):
        assert torch.equal(lq_map(given, *size, 8), expected)
    assert torch.equal(lq_map(tokens, *size), expected)  # for a window that is not the network's


def test_padding_to_a_known_window_is_told_from_upsampling() -> None:
    feature = torch.rand(1, 2, 8, 8)
    assert torch.equal(unpadded_map(feature, 4, 3, 8), feature[..., :4, :3])
    assert unpadded_map(feature, 4, 4) is feature
    with pytest.raises(ValueError, match=r'the map \(1, 2, 8, 8\) is not of the size of the input, 4 x 4'):
        lq_map(feature, 4, 4)


def test_a_map_stays_as_it_is() -> None:
    feature = torch.rand(2, 5, 3, 4)
    assert as_map(feature, 7, 7) is feature


@pytest.mark.parametrize('shape', [(2, 13, 5), (12, 5), (2, 1, 12, 5, 1)])
def test_tokens_of_another_number_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match='do not make a map of 3 x 4'):
        as_map(torch.rand(shape), 3, 4)
