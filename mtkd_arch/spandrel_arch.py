"""Any single-image network that spandrel knows as a teacher, by the path of its file alone."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from basicsr.utils.registry import ARCH_REGISTRY
from spandrel import MAIN_REGISTRY, ImageModelDescriptor, MaskedImageModelDescriptor, ModelLoader, UnsupportedModelError
from torch import Tensor, nn

from mtkd_arch.default_taps import BODIES
from mtkd_arch.feature_maps import window_in
from mtkd_arch.padding import pad_to_multiple
from mtkd_arch.weights import read_state_dict

Descriptor = ImageModelDescriptor[nn.Module]
UNFIT = {
    'AuraSR': 'draws noise: a teacher must give the same image each time',
    'IPT': 'takes one image, no batch',
    'SeemoRe': 'takes one image, no batch',
}
# families whose body is a list of ``layers``, as SwinIR's
LAYERED = ('ATD', 'CRAFT', 'DAT', 'DRCT', 'GRL', 'HAT', 'RGT', 'Swin2SR')
BODIES.update(dict.fromkeys(LAYERED, BODIES['SwinIR']))


@ARCH_REGISTRY.register()
class SpandrelTeacher(nn.Module):
    """A pretrained super-resolution network of a family that spandrel (https://github.com/chaiNNer-org/spandrel) knows.

    Family, sizes, scale, range and the multiple to which the input is padded follow from the weights:
    ``craft: {network: {type: SpandrelTeacher}, path: CRAFT_x4.pth}`` is a whole teacher. The file is read as tensors
    alone, by ``read_state_dict``; spandrel never opens it. Taps are the module paths of the network in it, ``wrapped``.

    Args:
        path: ``.pth``, ``.pt`` or ``.safetensors``.
        scale: what the network must upsample by; None takes any.
        param_key: which of several state dicts in the file; default ``params_ema``, then ``params``, and so on.

    Raises FileNotFoundError, or ValueError for a file that holds no super-resolution network of RGB images of this
    scale that spandrel knows, or one that cannot teach (``UNFIT``).
    """

    reads_own_weights: ClassVar[bool] = True  # TeacherEnsemble gives it path, scale and param_key

    def __init__(self, path: str | Path, scale: int | None = None, param_key: str | None = None) -> None:
        super().__init__()
        descriptor = describe(read_state_dict(path, param_key), path)
        check_use(descriptor, scale, path)
        self.family, self.upscale = descriptor.architecture.id, descriptor.scale
        self.wrapped = descriptor.model.eval()
        # not the descriptor's public call, which clamps to [0, 1]
        self.call = FORWARDS.get(self.family, descriptor._call_fn)
        required = descriptor.size_requirements
        # families that pad by themselves, such as SwinIR, ask for no multiple: their window still aligns tiles and taps
        self.window_size = math.lcm(required.multiple_of, window_in(self.wrapped))
        self.minimum = -(-required.minimum // self.window_size) * self.window_size

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, 3, H, W), RGB in [0, 1], to (B, 3, scale * H, scale * W), not clamped; ``x`` stays as it is."""
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self.window_size)
        if min(x.shape[-2:]) < self.minimum:
            x = pad_to_multiple(x, self.minimum)
        output = self.call(self.wrapped, x.clone())  # RCAN multiplies its input in place
        return output[..., : height * self.upscale, : width * self.upscale]


def _craft(network: nn.Module, x: Tensor) -> Tensor:
    """CRAFT without the padding it adds to whole windows too: 16 more pixels, nearly twice the cost at 48 x 48."""
    mean = network.mean.type_as(x)
    features = network.conv_first((x - mean) * network.img_range)
    features = network.conv_after_body(network.forward_features(features)) + features
    return network.upsample(features) / network.img_range + mean


FORWARDS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {'CRAFT': _craft}


def describe(weights: Mapping[str, Tensor], path: str | Path) -> Descriptor | MaskedImageModelDescriptor:
    """What spandrel makes of ``weights``: the network with its properties. Raises ValueError that names ``path``."""
    try:
        return ModelLoader('cpu').load_from_state_dict(dict(weights))
    except UnsupportedModelError as error:
        families = sorted(support.architecture.id for support in MAIN_REGISTRY)
        raise ValueError(
            f'{path} is of no family that spandrel knows ({", ".join(families)}); its weights begin with '
            f"{', '.join(list(weights)[:3])}: a network of BasicSR's is named by its own type, such as "
            'network: {type: EDSR, ...}'
        ) from error
    except Exception as error:  # a family was recognised, but weights are missing, unknown or of other shapes
        reason = ' '.join(str(error).split())
        reason = f'{type(error).__name__}: {reason[:300]}'
        raise ValueError(f'{path} looks like a network that spandrel knows, but does not fit it: {reason}') from error


def check_use(descriptor: Any, scale: int | None, path: str | Path) -> None:
    """Raise ValueError unless the network can teach: it upsamples RGB images by ``scale``, the same each time."""
    found = f'{path} holds a network of the family {descriptor.architecture.name}'
    if descriptor.purpose != 'SR':
        raise ValueError(f'{found}, whose purpose is {descriptor.purpose}: expected super-resolution (SR)')
    if descriptor.architecture.id in UNFIT:
        raise ValueError(f'{found}, which {UNFIT[descriptor.architecture.id]}')
    channels = descriptor.input_channels, descriptor.output_channels
    if channels != (3, 3):
        raise ValueError(f'{found} that turns {channels[0]} channels into {channels[1]}: expected RGB, 3 into 3')
    if scale not in (None, descriptor.scale):
        raise ValueError(f'{found} that upsamples by {descriptor.scale}, but scale is {scale}: take one of x{scale}')
