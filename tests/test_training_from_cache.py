"""Training from a teacher cache: the step is that of the teachers at hand, and only what it needs is built."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from basicsr.data import build_dataset
from conftest import WAVELET_TERM, cached, scratch, small_network, stage_one, write_option
from PIL import Image
from test_multi_teacher_model import batch, made, stepped

from mtkd_arch.weights import read_weights
from mtkd_data.teacher_cache.command import main as cache_teachers
from mtkd_model.distillers import DISTILLER_REGISTRY

Options = dict[str, Any]
Train = Callable[..., Path]
HINT = {'type': 'FitNetDistiller', 'taps': {'body.-1': 'edsr/body.-1'}}


def logged(experiment: Path, loss: str) -> list[float]:
    """A loss, step by step, from the log file."""
    log = next(experiment.glob('*.log')).read_text()
    return [float(value) for value in re.findall(rf' {loss}: ([\d.e+-]+)', log)]


def weights(experiment: Path) -> dict[str, torch.Tensor]:
    return read_weights(experiment / 'models/net_g_latest.pth', 'params')


def test_a_run_from_the_cache_builds_no_teacher_and_nearly_repeats_the_run_with_teachers(
    options: Options, tmp_path: Path, train: Train
) -> None:
    options['train']['total_iter'] = 8
    online = train({**options, 'name': 'online'})
    from_cache = cached(options, tmp_path)
    for teacher in from_cache['teachers'].values():
        teacher['path'] = teacher['path'].replace('.pth', '_moved_away.pth')
    with pytest.warns(UserWarning, match=r'teachers\.\w+\.path: no file .*_moved_away\.pth to compare'):
        offline = train({**from_cache, 'name': 'offline'})
    # the crops are the same, the targets nearly: a teacher saw the whole image, of which the crop's rim knows nothing
    assert logged(offline, 'l_pix')[0] == pytest.approx(logged(online, 'l_pix')[0], rel=1e-4)
    assert logged(offline, 'l_wavelet') == pytest.approx(logged(online, 'l_wavelet'), rel=0.25)
    assert made(from_cache).teachers is None


def test_away_from_the_rim_a_cached_crop_is_what_the_teacher_makes_of_that_crop(
    options: Options, tmp_path: Path
) -> None:
    options['teachers'] = {'edsr': options['teachers']['edsr']}
    del options['aggregator']
    rim = 9  # LR pixels: 7 convolutions, the last two on larger images
    settings = {'gt_size': 128, 'use_hflip': False, 'use_rot': False, 'scale': 4, 'phase': 'train'}
    from_cache = cached(options, tmp_path)
    samples = build_dataset(from_cache['datasets']['train'] | settings)
    ensemble = made(options).teachers
    for sample in (samples[index] for index in range(len(samples))):
        expected = ensemble(sample['lq'].unsqueeze(0))['target'][0, :, 4 * rim : -4 * rim, 4 * rim : -4 * rim]
        found = sample['cached_target'][:, 4 * rim : -4 * rim, 4 * rim : -4 * rim]
        torch.testing.assert_close(found, expected, rtol=0, atol=2**-15)  # 16 bits over a range of 2, and rounding


def test_a_step_from_the_cache_is_the_step_with_that_target(options: Options, tmp_path: Path) -> None:
    online, offline = made(options), made(cached(options, tmp_path))
    data = batch()
    with torch.no_grad():
        target = online.teachers(data['lq'])['target']
    stepped(online, data)
    stepped(offline, {**data, 'cached_target': target})
    assert online.get_current_log() == offline.get_current_log()
    assert all(torch.equal(a, b) for a, b in zip(online.net_g.parameters(), offline.net_g.parameters(), strict=True))


def test_a_term_that_taps_one_teacher_makes_that_one_run_and_no_other(options: Options, tmp_path: Path) -> None:
    options['train']['distill']['hint'] = HINT
    model = made(cached(options, tmp_path))
    ran: list[str] = []
    for name, network in model.teachers.networks.items():
        network.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    stepped(model, {**batch(), 'cached_target': torch.rand(2, 3, 64, 64)})
    assert ran == ['edsr']
    assert model.teachers.aggregator is None
    assert set(model.get_current_log()) == {'l_pix', 'l_wavelet', 'l_hint'}


def test_kd_from_one_teacher_reads_that_teachers_images(options: Options, tmp_path: Path) -> None:
    options['train']['distill'] = {'kd': {'type': 'OutputDistiller', 'teacher': 'rcan', 'loss': {'type': 'L1Loss'}}}
    model = made(cached(options, tmp_path, '--stores', 'rcan', 'target'))
    data = batch()
    images = {'cached_rcan': torch.rand(2, 3, 64, 64), 'cached_target': torch.rand(2, 3, 64, 64)}
    stepped(model, {**data, **images})
    assert model.teachers is None
    torch.testing.assert_close(model.losses['l_kd'], (model.output.detach() - images['cached_rcan']).abs().mean())


def test_a_term_whose_teacher_is_not_in_the_cache_is_told_what_is(
    options: Options, tmp_path: Path, train: Train
) -> None:
    options['train']['distill'] = {'kd': {'type': 'OutputDistiller', 'teacher': 'rcan', 'loss': {'type': 'L1Loss'}}}
    with pytest.raises(ValueError, match=r"train\.distill\.kd: teacher 'rcan' is unknown: Available: target"):
        train(cached(options, tmp_path, '--stores', 'target'))
    assert not (tmp_path / 'experiments').exists()


@pytest.mark.parametrize('name', ['OutputDistiller', 'CSDDistiller', 'DCKDDistiller', 'SelfDistiller'])
def test_methods_that_compare_outputs_need_no_networks(
    options: Options, tmp_path: Path, name: str, encoder: dict[str, Any]
) -> None:
    term = {
        'OutputDistiller': WAVELET_TERM,
        'CSDDistiller': {'encoder': encoder},
        'DCKDDistiller': {'encoder': encoder},
        'SelfDistiller': {},
    }[name]
    options['train']['distill'] = {'term': {'type': name, **term}}
    model = made(cached(options, tmp_path))
    stepped(model, {**batch(), 'cached_target': torch.rand(2, 3, 64, 64)})
    assert model.teachers is None
    assert model.losses['l_term'] >= 0


def test_every_other_method_gets_its_networks(options: Options) -> None:
    needy = {name for name, method in DISTILLER_REGISTRY if method.needs_networks}
    assert needy == {
        f'{name}Distiller' for name in ('AT', 'FAKD', 'FitNet', 'RKD', 'DUKD', 'CrossKD', 'HKDSR', 'MKD', 'MiPKD')
    }


def test_stage_one_reads_each_teachers_images_and_runs_them_for_validation_alone(
    options: Options, tmp_path: Path
) -> None:
    stage_one(options)
    model = made(cached(options, tmp_path))
    ran: list[str] = []
    for name, network in model.teachers.networks.items():
        network.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    data = batch()
    images = {name: torch.rand(2, 3, 64, 64) for name in ('edsr', 'rcan', 'swinir')}
    stepped(model, {**data, **{f'cached_{name}': image for name, image in images.items()}})
    assert not ran
    expected = model.get_bare_model(model.net_g).eval()  # else paths are dropped at random
    model.feed_data({**data, **{f'cached_{name}': image for name, image in images.items()}})
    with torch.no_grad():
        found, wanted = model.predict(expected, model.lq), expected(torch.cat(list(images.values()), dim=1))
    assert torch.equal(found, wanted)
    model.feed_data(data)  # a validation image
    model.test()
    assert ran == ['edsr', 'rcan', 'swinir']


def test_both_stages_train_from_caches_through_basicsr_alone(options: Options, tmp_path: Path, train: Train) -> None:
    (tmp_path / 'first').mkdir()
    first = cached(stage_one(copy.deepcopy(options)), tmp_path / 'first')
    options['aggregator']['path'] = str(train({**first, 'name': 'stage_one'}) / 'models/net_g_latest.pth')
    experiment = train(cached(options, tmp_path))
    assert len(logged(experiment, 'l_wavelet')) == 4


@pytest.mark.parametrize('place', ['host', 'device'])
def test_resident_data_gives_the_same_run_bit_for_bit(
    options: Options, tmp_path: Path, train: Train, place: str
) -> None:
    from_cache = cached(options, tmp_path)
    plain = weights(train({**from_cache, 'name': 'plain'}))
    from_cache['datasets']['train']['resident'] = place
    resident = weights(train({**from_cache, 'name': 'resident'}))
    assert all(torch.equal(value, resident[name]) for name, value in plain.items())


def test_a_run_from_the_cache_goes_on_where_it_stopped(options: Options, tmp_path: Path, train: Train) -> None:
    from_cache = cached(options, tmp_path)
    train(from_cache)
    from_cache['train']['total_iter'] = 6
    assert (train(from_cache, '--auto_resume') / 'models/net_g_6.pth').is_file()


@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_a_cache_of_other_weights_is_refused_before_anything_is_written(
    options: Options, tmp_path: Path, train: Train
) -> None:
    from_cache = cached(options, tmp_path)
    other = tmp_path / 'other.pth'
    torch.manual_seed(5)
    state = torch.load(options['teachers']['edsr']['path'], weights_only=True)['params']
    torch.save({'params': {name: torch.rand_like(value) for name, value in state.items()}}, other)
    made_from = json.loads((tmp_path / 'cache/cache.json').read_text())['teachers']['edsr']['weights']
    from_cache['teachers']['edsr']['path'] = str(other)
    with pytest.raises(ValueError, match=rf'(?s)edsr.*{made_from[:12]}'):
        train(from_cache)
    assert not (tmp_path / 'experiments').exists()


@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_a_store_that_another_cache_made_is_refused(options: Options, tmp_path: Path, train: Train) -> None:
    (tmp_path / 'other').mkdir()
    cached(options, tmp_path / 'other', '--self-ensemble')
    from_cache = cached(options, tmp_path)
    shutil.rmtree(tmp_path / 'cache/target.lmdb')
    shutil.copytree(tmp_path / 'other/cache/target.lmdb', tmp_path / 'cache/target.lmdb')
    with pytest.raises(ValueError, match=r'is not the store that cache\.json describes: .* had SHA-256 \w+ when'):
        train(from_cache)


def test_one_cache_of_everything_serves_both_stages(options: Options, tmp_path: Path, train: Train) -> None:
    from_cache = cached(options, tmp_path, '--stores', 'all')
    train({**from_cache, 'name': 'second'})
    first = stage_one(from_cache)
    first['datasets']['train']['cached'] = ['edsr', 'rcan', 'swinir']
    assert (train({**first, 'name': 'first'}) / 'models/net_g_latest.pth').is_file()


@pytest.mark.parametrize(
    ('stores', 'message'),
    [
        (['targt'], r"cached: .* has no store 'targt': did you mean 'target'\? Stores: target, edsr"),
        ('target', r"cached should be a list of stores; it is 'target'"),
        (['edsr'], r"train\.distill\.wavelet: teacher 'target' is unknown: Available: edsr"),
    ],
)
def test_a_mistake_in_what_to_read_of_the_cache_is_named(
    options: Options, tmp_path: Path, train: Train, stores: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(cached(options, tmp_path, '--stores', 'target', 'edsr', cached=stores))
    assert not (tmp_path / 'experiments').exists()


@pytest.mark.parametrize('name', ['CSDDistiller', 'DCKDDistiller'])
def test_a_method_that_wants_the_target_is_not_given_something_else(
    options: Options, tmp_path: Path, name: str, encoder: dict[str, Any]
) -> None:
    options['train']['distill'] = {'term': {'type': name, 'encoder': encoder}}
    with pytest.raises(ValueError, match=r"train\.distill\.term: teacher 'target' is unknown: Available: edsr"):
        made(cached(options, tmp_path, '--stores', 'edsr'))


def test_stage_one_does_not_silently_run_teachers_that_the_cache_lacks(
    options: Options, tmp_path: Path, train: Train
) -> None:
    stage_one(options)
    with pytest.raises(ValueError, match=r'holds edsr, AggregationModel reads the teachers, and rcan, swinir are not'):
        train(cached(options, tmp_path, '--stores', 'edsr'))


@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_an_lmdb_that_two_kinds_of_dataset_would_open_is_refused_before_the_first_validation(
    options: Options, tmp_path: Path, train: Train
) -> None:
    from_cache = cached(options, tmp_path)
    roots = {key: from_cache['datasets']['train'][key] for key in ('dataroot_gt', 'dataroot_lq', 'io_backend')}
    from_cache['datasets']['val'] |= roots
    with pytest.raises(ValueError, match=r'datasets that cannot share an LMDB: take PairedCropDataset instead'):
        train(from_cache)
    from_cache['datasets']['val']['type'] = 'PairedCropDataset'
    from_cache['val']['val_freq'] = 2
    log = next(train(from_cache).glob('*.log')).read_text()
    assert log.count('# psnr') == 3  # after 2 and 4 iterations, and at the end


def test_an_image_that_basicsr_would_turn_is_not_cached(
    options: Options, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {'dataroot_gt': tmp_path / 'GT', 'dataroot_lq': tmp_path / 'LQ'}
    for number, folder in enumerate(folders.values()):
        folder.mkdir()
        image = Image.open(photos / 'astronaut.png')
        image = image.resize([side // 4**number for side in image.size])
        exif = Image.Exif()
        exif[0x0112] = 3  # orientation: upside down
        image.save(folder / 'astronaut.jpg', exif=exif)
    options['datasets']['train'] |= {key: str(folder) for key, folder in folders.items()}
    options['datasets']['train']['io_backend'] = {'type': 'disk'}
    option_file = write_option(options, tmp_path / 'cache.yml')
    assert cache_teachers(['-opt', str(option_file), '--out', str(tmp_path / 'cache'), '--device', 'cpu']) == 2
    assert 'astronaut.jpg: has an EXIF orientation: turn its pixels and drop the tag' in capsys.readouterr().err


def test_teachers_that_only_started_the_student_are_let_go(options: Options, tmp_path: Path) -> None:
    options['train']['init_from_teacher'] = {'teacher': 'edsr'}
    assert made(options).teachers is not None
    assert made(cached(options, tmp_path)).teachers is None


@pytest.mark.injects('bad input', 'teacher caches of other teachers, weights or data')
def test_a_cache_is_refused_by_a_dataset_that_would_not_read_it(options: Options, tmp_path: Path, train: Train) -> None:
    from_cache = cached(options, tmp_path, type='PairedImageDataset')
    with pytest.raises(ValueError, match='dataroot_cache is read by CachedTeacherDataset alone; type is Paired'):
        train(from_cache)


def test_a_student_starts_alike_with_teachers_with_a_cache_and_from_scratch(options: Options, tmp_path: Path) -> None:
    models = [made(options), made(cached(options, tmp_path)), made(scratch(options))]
    first, *others = (model.net_g.conv_first.weight for model in models)
    assert all(torch.equal(first, other) for other in others)


def test_without_teachers_or_cache_nothing_changes(options: Options) -> None:
    options['network_g'] = small_network('rcan')
    model = made(options)
    assert model.cached_stores == ()
    assert model.teachers is not None
