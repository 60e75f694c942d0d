"""Every mistake is named, with its remedy, before anything is written."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest
import torch
from conftest import build_arch, small_network, stage_one

from mtkd_arch.weights import read_weights
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

pytestmark = pytest.mark.injects('bad input', 'option files that cannot be trained with')

Options = dict[str, Any]


@pytest.fixture
def refusal(train: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Run the trainer, expect it to refuse, check that it wrote nothing, give the message."""

    def run(options: Options, error: type[Exception] = ValueError, *flags: str) -> str:
        with pytest.raises(error) as caught:
            train(options, *flags)
        written = {path.name for path in tmp_path.iterdir()}
        assert written <= {'option.yml', 'given'}, f'something was written: {written}'
        return str(caught.value)

    return run


def test_a_missing_teacher_file_is_named(options: Options, refusal: Callable[..., str]) -> None:
    options['teachers']['rcan']['path'] = 'nowhere/rcan.pth'
    message = refusal(options, FileNotFoundError)
    assert 'teachers.rcan.path' in message
    assert 'nowhere/rcan.pth' in message


def test_everything_that_is_missing_is_named_at_once_with_its_line(
    options: Options, refusal: Callable[..., str], tmp_path: Path
) -> None:
    options['teachers']['edsr']['path'] = 'nowhere/edsr.pth'
    options['aggregator']['path'] = 'nowhere/merged.pth'
    options['datasets']['train'].update(dataroot_gt='nowhere/GT.lmdb', io_backend={'type': 'lmdb'})
    options['datasets']['val']['dataroot_lq'] = 'nowhere/LR'
    options['path']['pretrain_network_g'] = 'nowhere/start.pth'
    options['train']['distill']['csd'] = {'type': 'CSDDistiller', 'encoder': {'weights': 'nowhere/vgg.pth'}}
    message = refusal(options, FileNotFoundError)
    assert message.startswith('6 files or folders that ')
    named = [re.sub(r'^.*option\.yml:\d+: ', '', line) for line in message.splitlines()[1:]]
    assert named[:5] == [
        'datasets.train.dataroot_gt: no such LMDB (no meta_info.txt): nowhere/GT.lmdb',
        'datasets.val.dataroot_lq: no such folder: nowhere/LR',
        'teachers.edsr.path: no such weights file: nowhere/edsr.pth',
        'aggregator.path: no such weights file: nowhere/merged.pth',
        'path.pretrain_network_g: no such weights file: nowhere/start.pth',
    ]
    assert named[5].startswith('train.distill.csd.encoder.weights: no such file: nowhere/vgg.pth: fetch https://')
    lines = (tmp_path / 'option.yml').read_text().splitlines()
    numbers = [int(re.search(r'option\.yml:(\d+): ', line)[1]) for line in message.splitlines()[1:]]
    keys = ['dataroot_gt', 'dataroot_lq', 'path', 'path', 'pretrain_network_g', 'weights']
    assert [lines[number - 1].strip().partition(':')[0] for number in numbers] == keys


@pytest.mark.parametrize('key', ['network', 'path'])
def test_an_encoder_that_lacks_a_key_is_refused(options: Options, refusal: Callable[..., str], key: str) -> None:
    encoder = {'network': small_network('edsr'), 'path': 'nowhere/encoder.pth', 'taps': ['body.0']}
    del encoder[key]
    options['train']['distill']['csd'] = {'type': 'CSDDistiller', 'encoder': encoder}
    assert f"lacks the key '{key}'" in refusal(options)


def test_a_run_from_a_cache_may_miss_the_weights_of_its_teachers(options: Options, refusal: Callable[..., str]) -> None:
    options['teachers']['edsr']['path'] = 'nowhere/edsr.pth'
    options['datasets']['train'].update(type='CachedTeacherDataset', dataroot_cache='nowhere/cache')
    message = refusal(options, FileNotFoundError)
    assert 'datasets.train.dataroot_cache: nowhere/cache: expected a teacher cache, cache.json is missing' in message
    assert 'edsr.pth' not in message


def test_a_teacher_without_a_path_is_refused(options: Options, refusal: Callable[..., str]) -> None:
    options['teachers']['rcan']['path'] = None
    assert 'teachers.rcan.path is empty' in refusal(options)
    del options['teachers']['rcan']['path']
    assert "teachers.rcan lacks the key 'path'" in refusal(options)


def test_a_teacher_of_another_scale_is_named(options: Options, refusal: Callable[..., str]) -> None:
    options['teachers']['edsr']['network']['upscale'] = 2
    message = refusal(options)
    assert 'teachers.edsr.network.upscale is 2, but scale is 4' in message


def test_weights_of_another_scale_show_what_does_not_fit(
    options: Options, refusal: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / 'given').mkdir()
    path = tmp_path / 'given/edsr_x2.pth'
    torch.save({'params': build_arch(small_network('edsr', 2)).state_dict()}, path)
    options['teachers']['edsr']['path'] = str(path)
    message = refusal(options)
    assert str(path) in message
    assert 'upsample.2.weight' in message


def test_a_state_dict_that_does_not_fit_shows_the_first_keys(
    options: Options, refusal: Callable[..., str], teacher_files: dict[str, Path]
) -> None:
    options['teachers']['edsr']['path'] = str(teacher_files['rcan'])
    message = refusal(options)
    assert 'do not fit EDSR' in message
    assert 'body.0.conv1.weight' in message
    assert 'body.0.residual_group' in message


@pytest.mark.parametrize(
    ('place', 'wrong', 'right'),
    [
        (('teachers', 'edsr', 'network'), 'EDRS', 'EDSR'),
        (('aggregator', 'network'), 'DCTSwim', 'DCTSwin'),
        (('network_g',), 'SwinIRR', 'SwinIR'),
        (('train', 'distill', 'wavelet'), 'OutputDistiler', 'OutputDistiller'),
        (('train', 'distill', 'wavelet', 'loss'), 'WaveletLos', 'WaveletLoss'),
        (('train', 'pixel_opt'), 'L1Los', 'L1Loss'),
    ],
)
def test_an_unknown_type_names_the_nearest(
    options: Options, refusal: Callable[..., str], place: tuple[str, ...], wrong: str, right: str
) -> None:
    section = options = copy.deepcopy(options)
    for key in place:
        section = section[key]
    section['type'] = wrong
    message = refusal(options)
    assert f"unknown type '{wrong}'" in message
    assert f"did you mean '{right}'?" in message


def test_an_unknown_model_names_the_nearest(options: Options, refusal: Callable[..., str]) -> None:
    options['model_type'] = 'MultiTeacherModel'
    assert "did you mean 'MultiTeacherSRModel'?" in refusal(options)


@pytest.mark.parametrize(
    ('place', 'wrong', 'right'),
    [
        (('teachers', 'swinir'), 'param_keys', 'param_key'),
        (('teachers', 'swinir', 'network'), 'embed_dims', 'embed_dim'),
        (('teachers', 'edsr', 'network'), 'num_feats', 'num_feat'),
        (('aggregator',), 'input', 'inputs'),
        (('aggregator', 'network'), 'depth', 'depths'),
        (('train', 'distill', 'wavelet'), 'loss_wieght', 'loss_weight'),
        (('train', 'distill', 'wavelet', 'loss'), 'levels', 'level'),
        (('network_g',), 'num_blocks', 'num_block'),
        ((), 'teacher', 'teachers'),
        ((), 'agregator', 'aggregator'),
        (('train',), 'distil', 'distill'),
    ],
)
def test_a_mistyped_key_names_the_nearest(
    options: Options, refusal: Callable[..., str], place: tuple[str, ...], wrong: str, right: str
) -> None:
    section = options = copy.deepcopy(options)
    for key in place:
        section = section[key]
    section[wrong] = section.get(right, 1)
    message = refusal(options)
    assert f"unknown key '{wrong}'" in message
    assert f"did you mean '{right}'?" in message


def test_inputs_in_another_order_than_the_aggregator_was_trained_with_are_refused(
    options: Options, refusal: Callable[..., str]
) -> None:
    options['aggregator']['inputs'] = ['swinir', 'edsr', 'rcan']
    message = refusal(options)
    assert "['swinir', 'edsr', 'rcan']" in message
    assert "trained with ['edsr', 'rcan', 'swinir']" in message


def test_an_input_that_is_no_teacher_names_the_nearest(options: Options, refusal: Callable[..., str]) -> None:
    options['aggregator']['inputs'] = ['edsr', 'rcan', 'swin']
    assert "no teacher 'swin': did you mean 'swinir'?" in refusal(options)


def test_an_aggregator_with_too_few_channels_is_refused(options: Options, refusal: Callable[..., str]) -> None:
    options['aggregator']['inputs'] = ['edsr', 'rcan']
    assert 'in_chans is 9; 2 inputs of RGB make 6' in refusal(options)


def test_an_unknown_teacher_in_a_term_is_refused(options: Options, refusal: Callable[..., str]) -> None:
    options['train']['distill']['wavelet']['teacher'] = 'rcam'
    message = refusal(options)
    assert "train.distill.wavelet: teacher 'rcam' is unknown: did you mean 'rcan'?" in message


@pytest.mark.parametrize(
    ('student', 'teacher', 'expected'),
    [
        ('bodi.-1', 'edsr/body.-1', "EDSR has no 'bodi': did you mean 'body'?"),
        ('body.7', 'edsr/body.-1', "body has no '7': Available: 0, 1"),
        ('body.-1', 'edsr/body.-3', "body has no '-3': Available: 0, 1"),
        ('body.-1', 'edrs/body.-1', "did you mean 'edsr'?"),
        ('body.-1', 'body.-1', 'should be <teacher>/<module path>'),
    ],
)
def test_a_tap_that_does_not_exist_shows_what_does(
    options: Options, refusal: Callable[..., str], student: str, teacher: str, expected: str
) -> None:
    options['train']['distill']['hint'] = {'type': 'FitNetDistiller', 'taps': {student: teacher}}
    message = refusal(options)
    assert 'train.distill.hint' in message
    assert expected in message


def test_a_number_that_yaml_read_as_a_string_is_shown_right(options: Options, refusal: Callable[..., str]) -> None:
    options['train']['optim_g']['lr'] = '1e-4'
    message = refusal(options)
    assert "train.optim_g.lr is the string '1e-4'" in message
    assert '0.0001 or !!float 1e-4' in message


def test_lmdbs_of_different_keys_are_refused(options: Options, refusal: Callable[..., str], tmp_path: Path) -> None:
    root = tmp_path / 'given/LR.lmdb'
    root.mkdir(parents=True)
    lmdb.open(str(root), map_size=2**20).close()
    lines = Path(options['datasets']['train']['dataroot_lq'], 'meta_info.txt').read_text().replace('coffee', 'tea')
    (root / 'meta_info.txt').write_text(lines)
    options['datasets']['train']['dataroot_lq'] = str(root)
    message = refusal(options)
    assert "only in GT: ['coffee']; only in LQ: ['tea']" in message


def test_an_empty_dataset_is_refused(options: Options, refusal: Callable[..., str], tmp_path: Path) -> None:
    for name in ('GT.lmdb', 'LR.lmdb'):
        (tmp_path / 'given' / name).mkdir(parents=True)
        (tmp_path / 'given' / name / 'meta_info.txt').write_text('')
    options['datasets']['train'].update(
        dataroot_gt=str(tmp_path / 'given/GT.lmdb'), dataroot_lq=str(tmp_path / 'given/LR.lmdb')
    )
    assert 'datasets.train.dataroot_gt: the dataset is empty' in refusal(options)


def test_a_missing_data_root_is_named(options: Options, refusal: Callable[..., str]) -> None:
    options['datasets']['val']['dataroot_lq'] = 'nowhere/LR'
    assert 'datasets.val.dataroot_lq: no such folder: nowhere/LR' in refusal(options, FileNotFoundError)


def test_a_dataset_smaller_than_a_batch_is_refused(options: Options, refusal: Callable[..., str]) -> None:
    options['datasets']['train'].update(batch_size_per_gpu=16, dataset_enlarge_ratio=1)
    assert '4 samples, fewer than one batch of 16' in refusal(options)


def test_images_smaller_than_the_patch_are_named(options: Options, refusal: Callable[..., str]) -> None:
    options['datasets']['train']['gt_size'] = 160
    message = refusal(options)
    assert '4 of 4 images are smaller than gt_size 160' in message
    assert 'astronaut (144 x 192)' in message


def test_a_patch_that_the_scale_does_not_divide_is_refused(options: Options, refusal: Callable[..., str]) -> None:
    options['datasets']['train']['gt_size'] = 66
    assert 'gt_size 66 is not a multiple of the scale 4' in refusal(options)


def test_a_term_without_teachers_is_refused(options: Options, refusal: Callable[..., str]) -> None:
    del options['teachers'], options['aggregator']
    assert 'train.distill.wavelet: OutputDistiller needs teachers' in refusal(options)


def test_nothing_to_learn_from_is_refused(options: Options, refusal: Callable[..., str]) -> None:
    del options['train']['distill'], options['train']['pixel_opt']
    assert 'nothing to learn from' in refusal(options)


def test_a_student_of_another_scale_is_refused(options: Options, refusal: Callable[..., str]) -> None:
    options['network_g']['upscale'] = 2
    assert 'scale is 4' in refusal(options)


def test_a_damaged_teacher_file_is_named(options: Options, refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / 'given').mkdir()
    path = tmp_path / 'given/edsr.pth'
    path.write_bytes(Path(options['teachers']['edsr']['path']).read_bytes()[:1000])
    options['teachers']['edsr']['path'] = str(path)
    assert f'{path} cannot be read' in refusal(options)


def test_stage_one_without_teachers_is_refused(options: Options, refusal: Callable[..., str]) -> None:
    stage_one(options)
    del options['teachers']
    assert 'needs a teachers section' in refusal(options)


def test_stage_one_knows_no_distillation_terms(options: Options, refusal: Callable[..., str]) -> None:
    term = options['train']['distill']
    stage_one(options)['train']['distill'] = term
    assert 'knows no train.distill' in refusal(options)


def test_a_resume_state_that_does_not_exist_is_named(options: Options, refusal: Callable[..., str]) -> None:
    options['path']['resume_state'] = 'nowhere/100.state'
    assert 'path.resume_state: no such file: nowhere/100.state' in refusal(options, FileNotFoundError)


def test_pretrained_weights_that_do_not_exist_are_named(options: Options, refusal: Callable[..., str]) -> None:
    options['path']['pretrain_network_g'] = 'nowhere/student.pth'
    assert 'nowhere/student.pth' in refusal(options, FileNotFoundError)


def test_several_gpus_without_a_launcher_are_refused(options: Options) -> None:
    options.update(num_gpu=8, dist=False, is_train=True)
    with pytest.raises(ValueError, match=r'num_gpu is 8 without a launcher.*torchrun --nproc_per_node=8'):
        MultiTeacherSRModel.check_options(options)


def test_tokens_of_a_padded_patch_are_cropped_and_train(options: Options, train: Callable[..., Path]) -> None:
    options['network_g'] = small_network('swinir')
    options['datasets']['train']['gt_size'] = 80  # LR of 20: SwinIR pads it to 24
    options['train']['distill']['hint'] = {'type': 'FitNetDistiller', 'taps': {'norm': 'edsr/body.-1'}}
    experiment = train(options)
    assert 'terms.hint.regressors.0.weight' in read_weights(experiment / 'models/distill_4.pth', 'params')
    assert 'l_hint: ' in next(experiment.glob('train_toy_*.log')).read_text()


def test_auto_resume_refuses_to_start_anew_when_every_state_is_broken(
    options: Options, train: Callable[..., Path]
) -> None:
    experiment = train(options)
    for state in (experiment / 'training_states').iterdir():
        state.write_bytes(state.read_bytes()[:100])
    before = sorted(experiment.rglob('*'))
    with (
        pytest.warns(UserWarning, match='auto_resume skips'),
        pytest.raises(ValueError, match=r'no state in .* is whole'),
    ):
        train(options, '--auto_resume')
    assert sorted(experiment.rglob('*')) == before


def test_a_mistyped_param_key_of_the_student_is_refused(
    options: Options, refusal: Callable[..., str], teacher_files: dict[str, Path]
) -> None:
    options['path'].update(pretrain_network_g=str(teacher_files['edsr']), param_key_g='params_emma')
    assert "no param_key 'params_emma'; its top-level keys: params" in refusal(options)


@pytest.mark.parametrize('method', ['CSDDistiller', 'MKDDistiller'])
def test_a_method_that_compares_images_refuses_a_batch_of_one(
    options: Options, refusal: Callable[..., str], method: str
) -> None:
    options['datasets']['train']['batch_size_per_gpu'] = 1
    term = {'type': method}
    if method == 'CSDDistiller':
        network, path = options['teachers']['edsr']['network'], options['teachers']['edsr']['path']
        term['encoder'] = {'network': network, 'path': path, 'taps': ['body.0', 'body.-1']}
    options['train']['distill'] = {'term': term}
    message = refusal(options)
    assert f'train.distill.term: {method} needs several images in a batch' in message
    assert 'datasets.train.batch_size_per_gpu, now 1, to at least 2' in message


def test_absent_vgg_weights_say_which_file_to_fetch(options: Options, refusal: Callable[..., str]) -> None:
    options['train']['distill'] = {'csd': {'type': 'CSDDistiller', 'encoder': {'weights': 'nowhere/vgg19.pth'}}}
    message = refusal(options, FileNotFoundError)
    assert 'nowhere/vgg19.pth' in message
    assert 'vgg19-dcbb9e9d.pth' in message


def test_patches_too_small_to_zoom_out_are_refused(options: Options, refusal: Callable[..., str]) -> None:
    options['train']['distill'] = {'dukd': {'type': 'DUKDDistiller'}}  # LR patches of 16, windows of 8 in SwinIR
    assert 'set gt_size to at least 128, or zoom_out_weight to 0' in refusal(options)


def test_a_teacher_without_known_features_asks_for_taps(options: Options, refusal: Callable[..., str]) -> None:
    options['train']['distill'] = {'at': {'type': 'ATDistiller', 'teachers': 'compact'}}
    network = {'type': 'SRVGGNetCompact', 'num_in_ch': 3, 'num_out_ch': 3, 'num_feat': 8, 'num_conv': 2, 'upscale': 4}
    path = Path(options['teachers']['edsr']['path']).with_name('compact.pth')
    torch.save({'params': build_arch(network).state_dict()}, path)
    options['teachers']['compact'] = {'network': network, 'path': str(path)}
    options['aggregator'] = None
    message = refusal(options)
    assert 'train.distill.at' in message
    assert 'SRVGGNetCompact' in message
    assert 'taps' in message
