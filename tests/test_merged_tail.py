"""Networks whose tail runs as one convolution give what they gave, to whoever looks, copies or listens."""

import copy

import pytest
import torch
from conftest import build_arch, small_network
from torch import nn

from mtkd_arch.merged_upsampling import merge_tails
from mtkd_arch.taps import record_taps

NETWORKS = {
    'edsr': small_network('edsr'),
    'edsr_x3': small_network('edsr', scale=3),
    'edsr_x2': small_network('edsr', scale=2),
    'rcan': small_network('rcan'),
    'swinir': small_network('swinir', upsampler='pixelshuffle'),
}


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """A network in float64 as it is, and merged."""
    torch.manual_seed(0)
    network = build_arch(NETWORKS[name]).double().eval()
    merged = copy.deepcopy(network)
    merge_tails(merged)
    return network, merged


@pytest.mark.parametrize('name', NETWORKS)
def test_output_gradients_and_names_stay(name: str) -> None:
    network, merged = pair(name)
    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    outputs = [one(x) for one in (network, merged)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-9)  # rounding in float64, times range 255
    for output in outputs:
        (output * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)).sum().backward()
    gradients = [{key: p.grad for key, p in one.named_parameters()} for one in (network, merged)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-8)
    assert list(network.state_dict()) == list(merged.state_dict())
    assert [name for name, _ in network.named_modules()] == [name for name, _ in merged.named_modules()]


@pytest.mark.parametrize('path', ['upsample', 'upsample.0', 'upsample.-2', 'upsample.-1', 'conv_last'])
def test_a_tap_at_the_tail_hears_what_the_network_computes_there(path: str) -> None:
    network, merged = pair('edsr')
    x, heard = torch.rand(1, 3, 12, 8, dtype=torch.float64), []
    for one in (network, merged):
        with record_taps(one, [path]) as features:
            output = one(x)
        heard.append((features[path], output))
    torch.testing.assert_close(heard[1], heard[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(merged(x), network(x), rtol=0, atol=1e-9)


def test_a_copy_computes_with_its_own_weights() -> None:
    _, merged = pair('edsr')
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    copied, before = copy.deepcopy(merged), merged(x)
    with torch.no_grad():
        merged.upsample[-2].weight.zero_()
        merged.conv_last.weight.zero_()
    torch.testing.assert_close(copied(x), before, rtol=0, atol=0)
    assert not torch.allclose(merged(x), before)


def test_functional_calls_replace_the_weights_of_the_merged_tail() -> None:
    network, merged = pair('edsr')
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    other = {key: torch.rand_like(value) for key, value in network.named_parameters()}
    outputs = [torch.func.functional_call(one, other, (x,)) for one in (network, merged)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=0)


def test_a_network_inside_another_is_merged_and_a_direct_end_is_left_alone() -> None:
    inner, direct = build_arch(NETWORKS['edsr']), build_arch(small_network('swinir'))
    outer = nn.Sequential(inner, direct)
    merge_tails(outer)
    merge_tails(outer)  # once is enough
    assert type(inner.conv_last) is not nn.Conv2d
    assert type(direct.upsample[0]) is nn.Conv2d
