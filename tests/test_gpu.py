"""What only a CUDA device can show: the trainer runs there, and gives what the CPU gives."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import cached, scratch, small_network, stage_one
from test_exact_resume import cut_back

from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_arch.weights import read_weights
from mtkd_data.teacher_cache.cache import TeacherCache, decode_cached

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device'),
]
Options = dict[str, Any]
HINT = {'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1'}}


def test_both_stages_train_validate_and_resume_on_the_gpu(options: Options, train: Callable[..., Path]) -> None:
    options['num_gpu'] = 1
    first = copy.deepcopy(options)
    stage_one(first)['name'] = 'stage_one'
    options['aggregator']['path'] = str(train(first) / 'models/net_g_latest.pth')
    options['train']['distill']['hint'] = HINT
    train(options)
    options['train']['total_iter'] = 6
    experiment = train(options, '--auto_resume')
    assert (experiment / 'models/net_g_6.pth').is_file()


@pytest.mark.parametrize('precision', [None, 'fp16'])
def test_a_run_resumed_on_the_gpu_ends_where_the_uninterrupted_one_does(
    options: Options, train: Callable[..., Path], precision: str | None
) -> None:
    options['num_gpu'] = 1
    options['train'] |= {'total_iter': 7, 'amp': precision}
    options['logger'] |= {'save_checkpoint_freq': 1}
    experiment = train(options)
    whole = read_weights(experiment / 'models/net_g_7.pth', 'params')
    cut_back(experiment, 3)
    train(options, '--auto_resume')
    resumed = read_weights(experiment / 'models/net_g_7.pth', 'params')
    for key, value in whole.items():  # another order of sums in its kernels, over four Adam steps of 1e-3
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=4e-4)


def test_the_gpu_gives_the_student_that_the_cpu_gives(options: Options, train: Callable[..., Path]) -> None:
    students = {}
    for name, gpus in (('cpu', 0), ('gpu', 1)):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        run = {**copy.deepcopy(options), 'name': name, 'num_gpu': gpus}
        students[name] = read_weights(train(run) / 'models/net_g_latest.pth', 'params')
    for key, value in students['cpu'].items():  # four Adam steps of 1e-3; rounding differs between the devices
        torch.testing.assert_close(students['gpu'][key], value, rtol=0, atol=4e-4)


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
def test_the_target_survives_the_precision_of_the_gpu(
    options: Options, aggregator: dict[str, Any], precision: str
) -> None:
    x = torch.rand(2, 3, 20, 28)
    expected = TeacherEnsemble(copy.deepcopy(options['teachers']), 4, aggregator)(x)['target']
    for section in (*options['teachers'].values(), aggregator):
        section['precision'] = precision
    found = TeacherEnsemble(options['teachers'], 4, aggregator).cuda()(x.cuda())['target'].cpu()
    # ten units in the last place, a few dozen layers deep; TF32 keeps 10 bits as fp16 does
    tolerance = {'fp32': 10 / 2**11, 'bf16': 10 / 2**8, 'fp16': 10 / 2**11}[precision]
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize('precision', [None, 'bf16', 'fp16'])
@pytest.mark.parametrize('resident', [None, 'host', 'device'])
def test_a_gpu_trains_from_a_cache_in_any_precision_wherever_the_data_lies(
    options: Options, train: Callable[..., Path], tmp_path: Path, resident: str | None, precision: str | None
) -> None:
    options['num_gpu'] = 1
    options['train']['amp'] = precision
    log = next(train(cached(options, tmp_path, resident=resident)).glob('*.log')).read_text()
    assert log.count('l_wavelet: ') == 4
    assert 'nan' not in log


def test_a_gpu_runs_the_student_as_a_captured_graph(
    options: Options, train: Callable[..., Path], tmp_path: Path
) -> None:
    options['num_gpu'] = 1
    from_cache = cached(options, tmp_path, resident='device')
    plain = read_weights(train({**from_cache, 'name': 'plain'}) / 'models/net_g_latest.pth', 'params')
    from_cache['train']['compile'] = 'reduce-overhead'
    captured = read_weights(train({**from_cache, 'name': 'captured'}) / 'models/net_g_latest.pth', 'params')
    for key, value in plain.items():  # four Adam steps of 1e-3; kernels round differently
        torch.testing.assert_close(captured[key], value, rtol=0, atol=4e-4)


def test_a_gpu_makes_the_cache_that_the_cpu_makes(options: Options, tmp_path: Path) -> None:
    images = {}
    for device in ('cpu', 'cuda'):
        (tmp_path / device).mkdir()
        root = Path(cached(options, tmp_path / device, device=device)['datasets']['train']['dataroot_cache'])
        store = TeacherCache(root).open_store('target')
        images[device] = {key: decode_cached(store[key], key).astype(int) for key in store}
    for key, image in images['cpu'].items():
        assert abs(images['cuda'][key] - image).max() <= 4  # of 65535: float32 sums in another order


@pytest.mark.parametrize('student', ['edsr', 'rcan'])
def test_a_gpu_goes_on_with_a_state_of_another_layout(
    options: Options, train: Callable[..., Path], student: str
) -> None:
    scratch(options).update(num_gpu=1, network_g=small_network(student))
    options['train']['channels_last'] = False
    train(options)  # fused Adam wants moments laid out as the weights are
    options['train'] |= {'channels_last': True, 'total_iter': 6}
    assert (train(options, '--auto_resume') / 'models/net_g_6.pth').is_file()
