"""What only a CUDA device can show: the trainer runs there, and gives what the CPU gives."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import stage_one

from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_arch.weights import read_weights

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
