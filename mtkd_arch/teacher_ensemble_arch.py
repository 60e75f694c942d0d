"""The teachers of multi-teacher distillation and the target they agree on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from mtkd.checks import build, nearest, require_keys, require_known_keys
from mtkd_arch.feature_maps import window_in
from mtkd_arch.frozen_network import FrozenNetwork
from mtkd_arch.named_network import named_network, with_named_network
from mtkd_arch.teacher_outputs import TeacherOutputs
from mtkd_arch.weights import load_weights, read_metadata, read_weights

# key: (type, default, meaning); docs/options.md is written from these tables
RUN_KEYS = {
    'precision': ('fp32, bf16, fp16 or auto', 'fp32', 'of its passes; auto is bf16 where the device computes in it'),
    'channels_last': ('true or false', 'true', 'memory layout; speed alone'),
    'compile': ('true or false', 'false', 'torch.compile; not for a network that a term taps'),
}
_FILE_KEYS = {
    'param_key': ('text', 'the first that is there', 'state dict in the file: params_ema, then params, and so on'),
    'strict': ('true or false', 'true', 'every key must fit; not for a class that reads its own weights'),
}
TEACHER_KEYS = {
    'network': ('mapping', 'the one that the file names', '`type` of a network and its arguments, as in network_g'),
    'path': ('path', 'required', 'trained weights: .pth, .pt or .safetensors, read as tensors alone'),
    **_FILE_KEYS,
    'window': ('whole number', 'window_size of the network, else 1', 'images are mirrored up to its multiple'),
    **RUN_KEYS,
}
AGGREGATOR_KEYS = {
    'network': ('mapping', 'the one that the file names', 'such as `{type: DCTSwin, ...}`; it pads by itself'),
    'inputs': ('list of teachers', 'required with path, else all as listed', 'the order of its input channels'),
    'path': ('path', 'required with network', 'what stage 1 trained; the order stored in it must be that of inputs'),
    **_FILE_KEYS,
    **RUN_KEYS,
}


@ARCH_REGISTRY.register()
class TeacherEnsemble(nn.Module):
    """Named frozen teachers and, optionally, the aggregator that merges their outputs into one target.

    Multi-teacher knowledge distillation (Jiang et al., ECCV 2024, https://arxiv.org/abs/2404.09571), stage 2: the
    aggregator D(T_1(x), ..., T_N(x)) teaches the student. Without one the target is the mean of the teachers.

    Args:
        teachers: per name a mapping with ``path``, ``network`` (a BasicSR network option; may be left out where the
            file names its network, as those of ``scripts/export.py`` do) and, optionally, ``param_key``, ``strict``
            (default true), ``window`` (pad to its multiple; default the network's ``window_size``), ``precision``
            (fp32, bf16, fp16, auto), ``channels_last`` and ``compile``. A class with the attribute
            ``reads_own_weights``, such as SpandrelTeacher, is given ``path``, ``scale`` and ``param_key`` and loads its
            weights itself; its window is the largest ``window_size`` in it.
        scale: upsampling factor of every teacher.
        aggregator: like a teacher, plus ``inputs``, the names of the teachers in the order of its input channels,
            which is compared with the order stored in its checkpoint.
        random_weights: allow ``path: null``; for benchmarks and tests.

    Raises ValueError or FileNotFoundError, naming the option, for anything that does not fit.
    """

    def __init__(
        self,
        teachers: Mapping[str, Mapping[str, Any]],
        scale: int,
        aggregator: Mapping[str, Any] | None = None,
        random_weights: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(teachers, Mapping) or not teachers:
            raise ValueError(f'teachers should be a mapping of at least one named teacher; it is {teachers!r}')
        self.scale = scale
        self.networks = nn.ModuleDict()
        for name, opt in teachers.items():
            _check_name(name)
            self.networks[name] = _build_teacher(opt, scale, f'teachers.{name}', random_weights)
        aggregator = aggregator or {}
        require_known_keys(aggregator, AGGREGATOR_KEYS, 'aggregator')
        aggregator = with_named_network(aggregator, 'aggregator')
        self.inputs = _inputs(aggregator.get('inputs'), list(teachers))
        self.aggregator = None
        if set(aggregator) - {'inputs'}:  # inputs alone order the stack of stage 1
            self.aggregator = _build_aggregator(aggregator, self.inputs, random_weights)

    def bare(self) -> dict[str, nn.Module]:
        """The teachers' networks themselves by name, without padding and precision."""
        return {name: frozen.network for name, frozen in self.networks.items()}

    def run_teacher(self, name: str, lq: Tensor) -> Tensor:
        """Output of one teacher for ``lq`` (B, 3, H, W): (B, 3, scale * H, scale * W)."""
        try:
            output = self.networks[name](lq, self.scale)
        except ValueError as error:
            raise ValueError(f"teacher '{name}': {error}") from error
        if output.shape[:2] != lq.shape[:2]:
            raise ValueError(f"teacher '{name}' turns {tuple(lq.shape)} into {tuple(output.shape)}")
        return output

    def stack(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The aggregator's input: teachers in the order of ``inputs``, (B, 3 * N, scale * H, scale * W)."""
        return torch.cat([outputs[name] for name in self.inputs], dim=1)

    def outputs(
        self, lq: Tensor, known: Mapping[str, Tensor] | None = None, asked: set[str] | None = None
    ) -> TeacherOutputs:
        """Each teacher's output for ``lq``, computed when it is first asked for unless it is ``known``."""
        return TeacherOutputs(self, lq, known, asked)

    @torch.no_grad()
    def target(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """What the aggregator, or the mean, makes of the teachers' ``outputs``: (B, 3, sH, sW), unclamped."""
        if self.aggregator is not None:
            return self.aggregator(self.stack(outputs))
        return torch.stack([outputs[name] for name in self.inputs]).mean(dim=0)

    def forward(self, lq: Tensor) -> dict[str, Tensor]:
        """``lq`` (B, 3, H, W), RGB in [0, 1], to each teacher's output and ``target``: (B, 3, sH, sW), unclamped."""
        outputs = dict(self.outputs(lq))
        return {**outputs, 'target': self.target(outputs)}


def _check_name(name: Any) -> None:
    # an attribute of ModuleDict, such as `items`, cannot be the name of a module in it
    if not isinstance(name, str) or not name.isidentifier() or name == 'target' or hasattr(nn.ModuleDict, name):
        raise ValueError(f"teachers: the name {name!r} will not do: letters, digits and '_' please, and not 'target'")


def window_of(network: Mapping[str, Any]) -> int:
    """The multiple to which a network of this option wants its input padded: its ``window_size``, else 1."""
    return int(network.get('window_size', 1))


def _build_teacher(opt: Mapping[str, Any], scale: int, where: str, random_weights: bool) -> FrozenNetwork:
    require_known_keys(opt, TEACHER_KEYS, where)
    opt = with_named_network(opt, where)
    require_keys(opt, ('network', 'path'), where)
    upscale = opt['network'].get('upscale', scale) if isinstance(opt['network'], Mapping) else scale
    if upscale != scale:
        raise ValueError(f'{where}.network.upscale is {upscale}, but scale is {scale}: a teacher of another scale')
    if _reads_own_weights(opt['network']):
        network = _build_from_path(opt, scale, where)
        return _frozen(network, opt, opt.get('window', window_in(network)))
    window = opt.get('window', window_of(opt['network']))
    return _frozen(_build_loaded(opt, where, random_weights), opt, window)


def _reads_own_weights(network: Any) -> bool:
    kind = network.get('type') if isinstance(network, Mapping) else None
    return kind in ARCH_REGISTRY and getattr(ARCH_REGISTRY.get(kind), 'reads_own_weights', False)


def _build_from_path(opt: Mapping[str, Any], scale: int, where: str) -> nn.Module:
    kind = opt['network']['type']
    if 'strict' in opt:
        raise ValueError(f'{where}.strict means nothing to {kind}, which builds what the file holds: leave it out')
    if not opt['path']:
        raise ValueError(f'{where}.path is empty: {kind} is built from a file of trained weights')
    given = {'path': opt['path'], 'scale': scale, 'param_key': opt.get('param_key')}
    for key in given:
        if key in opt['network']:
            raise ValueError(f'{where}.network.{key}: {kind} takes it from {"scale" if key == "scale" else where}')
    try:
        return build(ARCH_REGISTRY, {**opt['network'], **given}, f'{where}.network')
    except (ValueError, FileNotFoundError) as error:
        message = str(error) if f'{where}.network' in str(error) else f'{where}.path: {error}'
        raise type(error)(message) from error


def _build_aggregator(opt: Mapping[str, Any], inputs: Sequence[str], random_weights: bool) -> FrozenNetwork:
    require_keys(opt, ('network', 'inputs', 'path'), 'aggregator')
    check_input_channels(opt['network'], inputs, 'aggregator.network')
    network = _build_loaded(opt, 'aggregator', random_weights)
    if opt['path'] is not None:
        _check_order(opt['path'], inputs)
    return _frozen(network, opt, window=1)  # the aggregator pads by itself


def check_input_channels(network: Mapping[str, Any], inputs: Sequence[str], where: str) -> None:
    """Raise ValueError unless ``in_chans`` is three per input."""
    channels = network.get('in_chans', 3 * len(inputs))
    if channels != 3 * len(inputs):
        raise ValueError(f'{where}.in_chans is {channels}; {len(inputs)} inputs of RGB make {3 * len(inputs)}')


def _build_loaded(opt: Mapping[str, Any], where: str, random_weights: bool) -> nn.Module:
    network = build(ARCH_REGISTRY, opt['network'], f'{where}.network')
    if opt['path'] is None:
        if not random_weights:
            raise ValueError(f'{where}.path is empty: it should name a file of trained weights')
        return network
    try:
        weights = read_weights(opt['path'], opt.get('param_key'))
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f'{where}.path: {error}') from error
    try:
        load_weights(network, weights, opt.get('strict', True), f'{where}.path {opt["path"]}')
    except ValueError as error:
        named = named_network(opt['path'])
        if named in (None, dict(opt['network'])):
            raise
        raise ValueError(
            f'{error}; the file names its own network, {named}: leave {where}.network out to take it'
        ) from error
    return network


def _frozen(network: nn.Module, opt: Mapping[str, Any], window: int) -> FrozenNetwork:
    return FrozenNetwork(network, window, **{key: opt[key] for key in RUN_KEYS if key in opt})


def _inputs(inputs: Sequence[str] | None, teachers: list[str]) -> tuple[str, ...]:
    inputs = tuple(inputs or teachers)
    for name in inputs:
        if name not in teachers:
            raise ValueError(
                f"aggregator.inputs: no teacher '{name}': {nearest(name, teachers)}Teachers: {', '.join(teachers)}"
            )
    if len(set(inputs)) != len(inputs):
        raise ValueError(f'aggregator.inputs names a teacher twice: {list(inputs)}')
    return inputs


def _check_order(path: str, inputs: Sequence[str]) -> None:
    stored = read_metadata(path).get('inputs')
    if stored is None:
        get_root_logger().warning(f'{path} does not say in which order its teachers were; taking {list(inputs)}.')
    elif list(stored) != list(inputs):
        raise ValueError(
            f'aggregator.inputs is {list(inputs)}, but {path} was trained with {list(stored)}: give them in this order'
        )
