"""What a network costs, counted: parameters, and multiplications for an image of 1280 x 720."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.merged_upsampling import tails_apart
from mtkd_eval.loaded import LoadedNetwork

OUTPUT = (720, 1280)  # height and width
COUNTED = (
    'multiply-accumulates of convolutions, linear layers and matrix products (attention included), bias, activations, '
    'normalisation, resizing and scans not; the network as published, padded to its window; LR size = 1280 x 720 / '
    'scale, rounded up'
)


def count_parameters(network: nn.Module) -> int:
    """Number of learned values, each once."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(loaded: LoadedNetwork, output: tuple[int, int] = OUTPUT) -> int:
    """Multiply-accumulates for an image of ``output`` (height, width), see ``COUNTED``.

    Nothing is computed: the network runs on tensors that have a shape and no content. Raises ValueError for a network
    that cannot do so, such as one that looks at values.
    """
    height, width = (-(-side // loaded.scale) for side in output)
    counter = FlopCounterMode(display=False)
    try:
        with (
            tails_apart(loaded.network),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),  # as matrix products, which are counted on every device
            FakeTensorMode(allow_non_fake_inputs=True),  # what is made within it has no content
            counter,
        ):
            forward_padded(loaded.network, torch.zeros(1, 3, height, width), loaded.scale, loaded.window)
    except Exception as error:  # from wherever the network looks at a value
        reason = str(error).split('\n')[0]
        raise ValueError(f'{loaded.name}: its multiplications cannot be counted: {reason}') from error
    return counter.get_total_flops() // 2  # a multiplication and an addition
