"""Files of weights that are hostile, damaged or of another content: refused by name, without running their code."""

import contextlib
import copy
import io
import os
import pickle
import subprocess
import tarfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPO, build_arch, small_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mtkd.compat import starting
from mtkd_arch.tensor_file import CHECKSUM, read_tensor_file
from mtkd_arch.weights import load_weights, read_metadata, read_weights
from mtkd_eval import evaluate, export, infer
from mtkd_eval.export_formats import safetensors_bytes
from mtkd_eval.load import load_network
from mtkd_model.checkpoint import save_whole
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

Options = dict[str, Any]
Door = Callable[[Path], object]
FUZZ = {'derandomize': True, 'deadline': None, 'database': None, 'suppress_health_check': list(HealthCheck)}
EDSR = {**small_network('edsr'), 'num_block': 1}
STATE = {'epoch': 0, 'iter': 4, 'optimizers': [{'state': {0: torch.arange(40.0)}}], 'schedulers': [{'last_epoch': 4}]}


@pytest.fixture(scope='module')
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return build_arch(EDSR).state_dict()


def refusal(door: Door, path: Path) -> str:
    """What ``door`` says of the file; empty where it lets it in. Another error than ours goes through."""
    try:
        door(path)
    except (ValueError, OSError) as error:
        return str(error)
    return ''


# hostile


class Payload:
    """Calls something when unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.parts = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


CALLS: dict[str, Callable[[str], Payload]] = {
    'os.system': lambda trace: Payload(os.system, f'touch {trace}'),
    'exec': lambda trace: Payload(exec, f'open({trace!r}, "w").close()'),
    'eval': lambda trace: Payload(eval, f'open({trace!r}, "w").close()'),
    'subprocess': lambda trace: Payload(subprocess.check_call, ['touch', trace]),
    'os.mkdir': lambda trace: Payload(os.mkdir, trace),
    'Path.touch': lambda trace: Payload(Path.touch, Path(trace)),
}
PLACES: dict[str, Callable[[Any, Payload], Any]] = {
    'among the weights': lambda weights, payload: {'params': {**weights, 'extra': payload}},
    'beside them': lambda weights, payload: {'params': weights, 'extra': payload},
    'in the metadata': lambda weights, payload: {'params': weights, 'mtkd': {'network': payload}},
    'in a state': lambda weights, payload: {**STATE, 'optimizers': payload},
    'alone': lambda weights, payload: payload,
}


def as_zip(content: Any, path: Path) -> None:
    torch.save(content, path)


def as_old(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def as_tar(content: Any, path: Path) -> None:
    """The layout of torch 0.1, whose parts torch before 2.6 unpickled in full."""
    with tarfile.open(path, 'w') as archive:
        for name in ('sys_info', 'storages', 'tensors', 'pickle'):
            data = pickle.dumps(content)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


FORMATS = {'zip': as_zip, 'old': as_old, 'pickle': as_pickle, 'tar': as_tar}


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('suffix', ['.pth', '.pt', '.safetensors'])
def test_no_code_in_a_checkpoint_runs_wherever_it_hides(
    form: str, suffix: str, weights: Mapping[str, Any], tmp_path: Path, tally: Callable[..., Any]
) -> None:
    trace, path = tmp_path / 'the_code_ran', tmp_path / f'net{suffix}'
    with tally('bad input', 'checkpoints that hold code') as count:
        for call, make in CALLS.items():
            for place, put in PLACES.items():
                FORMATS[form](put(weights, make(str(trace))), path)
                for door in (read_weights, read_metadata, load_network):
                    said = refusal(door, path)
                    count(f'{path} cannot be read' in said and not trace.exists(), f'{call} {place}, {form}: {said}')
    if suffix == '.pth':  # the last payload is a live one
        with contextlib.suppress(Exception):  # what it gives is no checkpoint
            torch.load(path, weights_only=False)
        assert trace.exists()


@pytest.fixture
def doors(
    options: Options,
    encoder: Options,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    photos: Path,
) -> dict[str, Door]:
    """Every way by which a file of weights comes in."""
    monkeypatch.syspath_prepend(str(REPO / 'scripts'))
    import strip_heads

    (tmp_path / 'net.yml').write_text(yaml.safe_dump(EDSR))

    def training(change: Callable[[Options, str], Any]) -> Door:
        def door(path: Path) -> None:
            opt = copy.deepcopy({**options, 'dist': False, 'is_train': True, 'rank': 0, 'world_size': 1})
            change(opt, str(path))
            MultiTeacherSRModel.check_options(opt)

        return door

    def command(main: Callable[[list[str]], int], *flags: str) -> Door:
        def door(path: Path) -> None:
            code = main([flag.format(path) for flag in flags])
            said = capsys.readouterr().err
            if code != 0:
                assert code == 2
                assert said.startswith('error: ')
                raise ValueError(said)

        return door

    def resumed(path: Path) -> None:
        starting.load_resume_state({'is_train': True, 'path': {'resume_state': str(path)}})

    def csd(opt: Options, path: str) -> None:
        opt['train']['distill'] = {'csd': {'type': 'CSDDistiller', 'encoder': {**encoder, 'path': path}}}

    from basicsr.archs import vgg_arch
    from basicsr.models import base_model

    named = ['--network', str(tmp_path / 'net.yml')]
    return {
        'teacher': training(lambda opt, path: opt['teachers']['edsr'].update(path=path)),
        'teacher by spandrel': training(
            lambda opt, path: opt['teachers'].update(edsr={'network': {'type': 'SpandrelTeacher'}, 'path': path})
        ),
        'teacher that names itself': training(lambda opt, path: opt['teachers'].update(edsr={'path': path})),
        'aggregator': training(lambda opt, path: opt['aggregator'].update(path=path)),
        'pretrain_network_g': training(lambda opt, path: opt['path'].update(pretrain_network_g=path)),
        'init_from_teacher': training(lambda opt, path: opt['train'].update(init_from_teacher={'path': path})),
        'encoder': training(csd),
        'resume_state': resumed,
        "BasicSR's models": base_model.torch.load,
        "BasicSR's perceptual loss": vgg_arch.torch.load,
        'evaluate': command(evaluate.main, '{}', *named, '--set', str(photos)),
        'infer': command(infer.main, '{}', *named, '--input', str(photos), '--out', str(tmp_path / 'out')),
        'export': command(export.main, '{}', *named, '--out', str(tmp_path / 'out')),
        'strip_heads': command(strip_heads.main, '--in', '{}', '--out', str(tmp_path / 'out/plain.pth')),
    }


@pytest.mark.parametrize('form', FORMATS)
def test_every_door_refuses_code_without_running_it(
    form: str, doors: dict[str, Door], weights: Mapping[str, Any], tmp_path: Path, tally: Callable[..., Any]
) -> None:
    trace, path = tmp_path / 'the_code_ran', tmp_path / 'evil.pth'
    content = {**STATE, 'params': {**weights, 'extra': CALLS['os.system'](str(trace))}}
    with tally('bad input', 'checkpoints that hold code') as count:
        for name, door in doors.items():
            FORMATS[form](content, path)
            said = refusal(door, path)
            count(str(path) in said and not trace.exists(), f'{name}, {form}: {said}')
    assert not (tmp_path / 'out').exists()


def test_auto_resume_runs_no_code(weights: Mapping[str, Any], tmp_path: Path, tally: Callable[..., Any]) -> None:
    trace = tmp_path / 'the_code_ran'
    opt = {'is_train': True, 'auto_resume': True, 'network_g': {}}
    opt['path'] = {'training_states': str(tmp_path), 'models': str(tmp_path)}
    with tally('bad input', 'checkpoints that hold code') as count:
        for form, save in FORMATS.items():
            for evil in ('4.state', 'net_g_4.pth'):
                save_whole(STATE, tmp_path / '4.state')
                save_whole({'params': weights}, tmp_path / 'net_g_4.pth')
                save({**STATE, 'params': CALLS['os.system'](str(trace))}, tmp_path / evil)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter('always')
                    said = refusal(lambda path: starting.load_resume_state(copy.deepcopy(opt)), tmp_path)
                named = str(tmp_path / evil) in ''.join(str(one.message) for one in caught)
                count('is whole' in said and named and not trace.exists(), f'{form} {evil}: {said}')


def test_a_torchscript_program_is_no_checkpoint(tmp_path: Path, tally: Callable[..., Any]) -> None:
    path = tmp_path / 'net.pth'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), path)
    with tally('bad input', 'checkpoints that hold code') as count:
        count('it is a TorchScript program' in refusal(read_weights, path))


# damaged


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A flipped bit, a block of zeros, an end or a piece cut off, something put in, bytes of two places exchanged."""
    kind = draw(st.sampled_from(['flip', 'flip', 'flip', 'zeros', 'cut', 'lose', 'insert', 'append', 'swap']))
    where, other, size = draw(st.floats(0, 1)), draw(st.floats(0, 1)), draw(st.integers(1, 512))
    bit, more = draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=16))

    def damage(raw: bytes) -> bytes:
        at, to = int(where * (len(raw) - 1)), int(other * (len(raw) - 1))
        changed = bytearray(raw)
        if kind == 'flip':
            changed[at] ^= 1 << bit
        elif kind == 'zeros':
            changed[at : at + size] = bytes(len(changed[at : at + size]))
        elif kind == 'cut':
            del changed[at:]
        elif kind == 'lose':
            del changed[at : at + size]
        elif kind == 'insert':
            changed[at:at] = more
        elif kind == 'append':
            changed += more
        else:
            changed[at], changed[to] = changed[to], changed[at]
        return bytes(changed)

    return damage


def same(one: Any, other: Any) -> bool:
    """Whether two contents are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        alike = isinstance(other, Mapping) and one.keys() == other.keys()
        return alike and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def written(name: str, weights: Mapping[str, Any], path: Path) -> Callable[[Path], Any]:
    """Write a file of this kind as the project does; gives what reads it."""
    if name == 'state':
        save_whole(STATE, path)
        return lambda path: starting.load_resume_state({'is_train': True, 'path': {'resume_state': str(path)}})
    if name == 'safetensors':
        path.write_bytes(safetensors_bytes(weights, False, {'name': 'net', 'network': EDSR}))
    else:
        save_whole({'params': weights, 'params_ema': dict(weights), 'mtkd': {'inputs': ['a', 'b']}}, path)
    return read_tensor_file


@pytest.mark.parametrize('name', ['pth', 'safetensors', 'state'])
def test_a_damaged_file_is_refused_by_name_or_loses_nothing(
    name: str, weights: Mapping[str, Any], tmp_path: Path, tally: Callable[..., Any]
) -> None:
    path = tmp_path / f'4.{name}'
    read = written(name, weights, path)
    raw, whole = path.read_bytes(), read(path)
    title = 'training states' if name == 'state' else 'weights files'
    with tally('fault', f'{title} with damaged bytes') as count:

        @settings(max_examples=400, **FUZZ)
        @given(damages())
        def try_one(damage: Callable[[bytes], bytes]) -> None:
            path.write_bytes(damage(raw))
            try:
                found = read(path)
            except ValueError as error:
                count(str(path) in str(error), error)
            else:
                count(same(found, whole), 'taken, but it holds something else')

        try_one()


def test_a_flipped_bit_that_torch_passes_over_is_found(weights: Mapping[str, Any], tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    save_whole({'params': weights}, path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(weights['conv_last.weight'].numpy().tobytes()) + 3] ^= 1
    path.write_bytes(raw)
    silently = torch.load(path, weights_only=True)['params']['conv_last.weight']
    assert not torch.equal(silently, weights['conv_last.weight'])
    with pytest.raises(ValueError, match=r'net\.pth cannot be read .*: the checksum of its part .* is another'):
        read_weights(path)


def test_a_file_saved_without_checksums_is_read(weights: Mapping[str, Any], tmp_path: Path) -> None:
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('this torch always writes checksums')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(weights), tmp_path / 'net.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_weights(tmp_path / 'net.pth'), dict(weights))


def test_safetensors_of_others_have_no_checksum_and_are_read(weights: Mapping[str, Any], tmp_path: Path) -> None:
    save_file(dict(weights), tmp_path / 'net.safetensors')
    assert same(read_weights(tmp_path / 'net.safetensors'), dict(weights))
    assert CHECKSUM not in read_metadata(tmp_path / 'net.safetensors')


@pytest.mark.parametrize('name', ['empty', 'text', 'folder', 'missing'])
def test_what_is_no_checkpoint_at_all_is_named_at_every_door(
    name: str, doors: dict[str, Door], tmp_path: Path, tally: Callable[..., Any]
) -> None:
    path = tmp_path / 'net.pth'
    make = {'empty': path.touch, 'folder': path.mkdir, 'missing': lambda: None}
    make.get(name, partial(path.write_text, 'version https://git-lfs.github.com/spec/v1'))()
    with tally('bad input', 'checkpoints of other content') as count:
        for door, enter in doors.items():
            said = refusal(enter, path)
            count(str(path) in said, f'{door}: {said}')


# of another content


def changes(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Contents that no network of this option can be loaded from."""

    def each(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
        return {'params': {name: change(value) for name, value in weights.items()}}

    first = next(iter(weights))
    return {
        'a list': [1, 2],
        'a tensor': torch.ones(2),
        'nothing': None,
        'text': 'hello',
        'no keys': {},
        'weights within weights': {'params': {'params': dict(weights)}},
        'a list under the key': {'params': [torch.ones(1)]},
        'numbers for names': {'params': {0: torch.ones(1)}},
        'one value that is no tensor': {'params': {**weights, first: 3}},
        'another network': {'params': build_arch(small_network('rcan')).state_dict()},
        'a weight missing': {'params': {name: value for name, value in weights.items() if name != first}},
        'a weight more': {'params': {**weights, 'more': torch.ones(1)}},
        'more dimensions': each(lambda value: value[None]),
        'complex': each(lambda value: value.to(torch.complex64)),
        'whole numbers': each(lambda value: value.to(torch.int8)),
        'truth values': each(lambda value: value > 0),
        'NaN': {'params': {**weights, first: weights[first] * torch.nan}},
        'infinite': {'params': {**weights, first: weights[first] / 0}},
        'no values': each(lambda value: value.to('meta')),
        'sparse': {'params': {**weights, first: weights[first].to_sparse()}},
        'a value repeated beyond memory': {'params': {**weights, first: torch.zeros(1).expand(2**42)}},
    }


def test_other_contents_are_refused_at_the_doors(
    weights: Mapping[str, Any], doors: dict[str, Door], tmp_path: Path, tally: Callable[..., Any]
) -> None:
    path = tmp_path / 'net.pth'
    with tally('bad input', 'checkpoints of other content') as count:
        for what, content in changes(weights).items():
            torch.save(content, path)
            for name in ('teacher', 'pretrain_network_g', 'resume_state', 'evaluate', 'infer', 'strip_heads'):
                said = refusal(doors[name], path)
                count(str(path) in said, f'{what}, {name}: {said}')


def test_other_floating_point_numbers_are_taken(weights: Mapping[str, Any], tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        torch.save({'params_ema': {name: value.to(dtype) for name, value in weights.items()}}, tmp_path / 'net.pth')
        network = build_arch(EDSR)
        load_weights(network, read_weights(tmp_path / 'net.pth'), True, 'net.pth')
        assert torch.equal(network.conv_first.weight, weights['conv_first.weight'].to(dtype).float())


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers())
NETWORKS = st.dictionaries(st.sampled_from([*EDSR, 'type', 'path', 'scale']) | st.text(max_size=4), VALUES, max_size=8)


def test_a_file_that_names_a_wrong_network_is_refused(
    weights: Mapping[str, Any], tmp_path: Path, tally: Callable[..., Any]
) -> None:
    path = tmp_path / 'net.pth'
    sizes = ('num_feat', 'num_block', 'num_in_ch', 'num_out_ch', 'upscale')  # a size may be right by chance
    with tally('bad input', 'checkpoints of other content') as count:

        @settings(max_examples=100, **FUZZ)
        @given(NETWORKS, st.booleans())
        def try_one(network: Options, changed: bool) -> None:
            small = {key: value for key, value in network.items() if key not in sizes or not isinstance(value, int)}
            named = {**EDSR, **small} if changed else small
            torch.save({'params': dict(weights), 'mtkd': {'network': named}}, path)
            try:
                load_network(str(path))
            except ValueError as error:
                count(bool(str(error)), named)
            else:
                count(named['type'] == 'EDSR', named)

        try_one()
