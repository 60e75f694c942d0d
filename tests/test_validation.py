"""Validation: BasicSR's numbers, log and files, by any number of processes, whole or in tiles."""

import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  before BasicSR, also in the processes that are spawned

# isort: split
import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.models.sr_model import SRModel
from basicsr.utils import tensor2img
from basicsr.utils.registry import METRIC_REGISTRY, MODEL_REGISTRY
from conftest import read_option, scratch, small_network, stage_one, write_option
from torch.utils.data import DataLoader

from mtkd.schema.problems import problems, refuse
from mtkd_model import validation
from mtkd_model.multi_teacher_model import MultiTeacherSRModel

Options = dict[str, Any]
METRICS = {
    'psnr': {'type': 'calculate_psnr', 'crop_border': 4, 'test_y_channel': True},
    'ssim': {'type': 'calculate_ssim', 'crop_border': 4, 'test_y_channel': False},
}
HIERARCHICAL = {'type': 'HierarchicalSR', 'upscale': 4, 'network': small_network('edsr', num_block=3)}


@METRIC_REGISTRY.register()
def largest_difference(img: np.ndarray, img2: np.ndarray, crop_border: int) -> float:
    """A metric that only a test knows."""
    assert img.dtype == img2.dtype == np.uint8
    difference = np.abs(img.astype(int) - img2)[crop_border:-crop_border, crop_border:-crop_border]
    return difference[..., 0].max()  # blue, in BasicSR's order


@pytest.fixture
def student(options: Options) -> Options:
    """A student that learns alone, and both metrics."""
    options = scratch(options)
    options['val']['metrics'] = copy.deepcopy(METRICS)
    return options


def made(options: Options, **changes: Any) -> MultiTeacherSRModel:
    """The model of an option outside the trainer."""
    options = copy.deepcopy(options)
    options.update({'dist': False, 'rank': 0, 'world_size': 1, 'is_train': True, **changes})
    options['val'].setdefault('pbar', False)
    torch.manual_seed(0)
    return MODEL_REGISTRY.get(options['model_type'])(options)


def loader(options: Options, images: int | None = None, **changes: Any) -> DataLoader:
    """The loader of the validation set, or of its first images."""
    dataset = PairedImageDataset({**copy.deepcopy(options['datasets']['val']), 'phase': 'val', 'scale': 4, **changes})
    dataset.paths = sorted(dataset.paths, key=lambda paths: paths['gt_path'])[:images]
    return DataLoader(dataset, batch_size=1)


@pytest.fixture
def log(fresh_logger: Callable[[], None]) -> Iterator[list[str]]:
    """What BasicSR's logger is given."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger('basicsr')
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.setLevel(level)
    logger.removeHandler(handler)


class Board:
    """Records what goes to the tensorboard."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag, step] = value


def disturb(model: MultiTeacherSRModel, seed: int) -> None:
    """Other weights, so that another validation gives other numbers."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.net_g_ema.parameters():
            parameter += 0.003 * torch.randn(parameter.shape, generator=generator)


def close(found: dict[str, float], expected: dict[str, float]) -> bool:
    """Within what a published table shows."""
    tolerances = {'psnr': 1e-3, 'ssim': 1e-4, 'rgb': 1e-3}
    assert found.keys() == expected.keys()
    return all(abs(found[key] - expected[key]) <= tolerances[key] for key in expected)


@pytest.mark.parametrize('kind', ['student', 'aggregator', 'hierarchical', 'swinir'])
def test_every_model_validates_as_in_basicsr(options: Options, log: list[str], kind: str) -> None:
    options = stage_one(options) if kind == 'aggregator' else scratch(options)
    if kind == 'hierarchical':
        options.update(model_type='HierarchicalModel', network_g=copy.deepcopy(HIERARCHICAL))
    if kind == 'swinir':  # LR of 48 x 36, windows of 8: padded
        options['network_g'] = small_network('swinir')
    options['val']['metrics'] = copy.deepcopy(METRICS)
    ours, upstream, boards = made(options), made(options), (Board(), Board())
    del log[:]
    ours.validation(loader(options), 7, boards[0])
    SRModel.nondist_validation(upstream, loader(options), 7, boards[1], False)
    assert close(ours.metric_results, upstream.metric_results)
    mine, theirs = log
    assert [line.split(':')[0] for line in mine.split('\t')] == [line.split(':')[0] for line in theirs.split('\t')]
    assert mine.startswith('Validation val\n\t # psnr: ')
    assert '@ 7 iter' in mine
    assert boards[0].scalars.keys() == boards[1].scalars.keys() == {('metrics/val/psnr', 7), ('metrics/val/ssim', 7)}


def test_the_best_so_far_is_that_of_basicsr(student: Options, log: list[str]) -> None:
    student['val']['metrics'] |= {'rgb': {'type': 'calculate_psnr', 'crop_border': 0, 'better': 'lower'}}
    ours, upstream = made(student), made(student)
    for iteration in range(1, 5):
        ours.validation(loader(student), iteration, None)
        SRModel.nondist_validation(upstream, loader(student), iteration, None, False)
        for model in (ours, upstream):
            disturb(model, iteration)
    best, expected = ours.best_metric_results['val'], upstream.best_metric_results['val']
    assert {key: record['iter'] for key, record in best.items()} == {k: r['iter'] for k, r in expected.items()}
    assert best['psnr']['iter'] != best['rgb']['iter']
    assert close({k: r['val'] for k, r in best.items()}, {k: r['val'] for k, r in expected.items()})


def test_several_sets_keep_their_results_apart(student: Options, log: list[str]) -> None:
    model, alone = made(student), made(student)
    model.validation(loader(student, 2, name='few'), 1, None)
    model.validation(loader(student, name='all'), 1, None)
    alone.validation(loader(student, 2, name='few'), 1, None)
    assert model.best_metric_results.keys() == {'few', 'all'}
    assert model.best_metric_results['few'] == alone.best_metric_results['few']
    assert model.best_metric_results['few'] != model.best_metric_results['all']
    assert [line.splitlines()[0] for line in log[-3:]] == ['Validation few', 'Validation all', 'Validation few']


@pytest.mark.parametrize(('training', 'suffix'), [(True, None), (False, None), (False, 'best')])
def test_images_are_saved_where_basicsr_saves_them(
    student: Options, log: list[str], tmp_path: Path, training: bool, suffix: str | None
) -> None:
    student['val']['suffix'] = suffix
    files = []
    for name, validate in (('ours', MultiTeacherSRModel.validation), ('upstream', SRModel.nondist_validation)):
        student['path']['visualization'] = str(tmp_path / name)
        validate(made(student, is_train=training), loader(student, 2), 5, None, True)
        files.append({p.relative_to(tmp_path / name): cv2.imread(str(p)) for p in (tmp_path / name).rglob('*.png')})
    assert files[0].keys() == files[1].keys()
    assert len(files[0]) == 2
    for path, image in files[
        0
    ].items():  # convolutions in another memory layout round otherwise: a level, here and there
        difference = np.abs(image.astype(int) - files[1][path])
        assert difference.max() <= 1
        assert difference.mean() < 1e-3


def test_images_are_saved_without_any_metric(student: Options, log: list[str], tmp_path: Path) -> None:
    del student['val']['metrics']
    student['path']['visualization'] = str(tmp_path)
    model = made(student)
    del log[:]
    model.validation(loader(student, 1), 5, None, True)
    assert [path.name for path in tmp_path.rglob('*.png')] == ['astronaut_5.png']
    assert log == []


def test_another_metric_gets_the_image_that_basicsr_would_give(student: Options, log: list[str]) -> None:
    student['val']['metrics']['largest'] = {'type': 'largest_difference', 'crop_border': 3}
    ours, upstream = made(student), made(student)
    ours.validation(loader(student), 1, None)
    SRModel.nondist_validation(upstream, loader(student), 1, None, False)
    found, expected = ours.metric_results.pop('largest'), upstream.metric_results.pop('largest')
    assert found == pytest.approx(expected, abs=1)  # rounding of one pixel
    assert found > 20
    assert close(ours.metric_results, upstream.metric_results)


def test_the_host_image_is_that_of_basicsr(student: Options) -> None:
    image = torch.rand(1, 3, 20, 28) * 1.4 - 0.2
    np.testing.assert_array_equal(validation.to_host(validation.to_8_bit(image)), tensor2img([image]))


def test_tiles_give_what_the_whole_image_gives(student: Options, log: list[str]) -> None:
    whole, tiled, without_overlap = made(student), made(student), made(student)
    tiled.opt['val'] |= {'tile': 16, 'tile_overlap': 12}  # two blocks of EDSR see 8 LR pixels around
    without_overlap.opt['val'] |= {'tile': 16, 'tile_overlap': 0}
    for model in (whole, tiled, without_overlap):
        model.validation(loader(student, 2), 1, None)
    assert close(tiled.metric_results, whole.metric_results)
    assert not close(without_overlap.metric_results, whole.metric_results)


def test_tiles_begin_on_the_windows_of_every_network(options: Options) -> None:
    assert validation.alignment(made(scratch(copy.deepcopy(options)))) == 1
    options['teachers']['edsr']['window'] = 12
    assert validation.alignment(made(stage_one(options))) == 24  # and 8 of SwinIR


def test_the_device_is_asked_for_numbers_once(
    student: Options, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    tolist = torch.Tensor.tolist
    model, images = made(student), loader(student)
    monkeypatch.setattr(torch.Tensor, 'tolist', lambda self: asked.append('tolist') or tolist(self))
    for name in ('item', 'cpu', 'numpy', '__float__', '__bool__'):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *_, name=name: asked.append(name))
    model.validation(images, 1, None)
    assert asked == ['tolist']


@pytest.mark.parametrize(('keep', 'room', 'reads'), [(True, 2**30, 4), (False, 2**30, 8), (True, 200_000, 7)])
def test_images_are_decoded_once_as_far_as_there_is_room(
    student: Options, log: list[str], monkeypatch: pytest.MonkeyPatch, keep: bool, room: int, reads: int
) -> None:
    # an image takes 144 * 192 * 3 bytes of GT and 36 * 48 * 3 floats of LQ: 103,680, so 200,000 hold one
    count = []
    read = PairedImageDataset.__getitem__
    monkeypatch.setattr(PairedImageDataset, '__getitem__', lambda self, i: count.append(i) or read(self, i))
    monkeypatch.setattr(validation, 'KEPT_BYTES', room)
    student['val']['keep_images'] = keep
    model, images = made(student), loader(student)
    model.validation(images, 1, None)
    first = model.metric_results
    model.validation(images, 2, None)
    assert model.metric_results == first
    assert len(count) == reads


def test_a_progress_bar_is_shown_on_demand_and_never_in_a_file(
    student: Options, log: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for shown, expected in ((True, True), (False, False), (None, False)):
        model = made(student)
        model.opt['val']['pbar'] = shown
        model.validation(loader(student, 2), 1, None)
        assert ('Test chelsea: 100%' in capsys.readouterr().err) is expected


def test_a_metric_without_ground_truth_names_the_image(student: Options) -> None:
    class OnlyInputs(PairedImageDataset):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {key: value for key, value in super().__getitem__(index).items() if not key.startswith('gt')}

    images = loader(student)
    images.dataset.__class__ = OnlyInputs
    with pytest.raises(ValueError, match=r'calculate_psnr needs the ground truth, .* lacks for '):
        made(student).validation(images, 1, None)


def test_a_ground_truth_of_another_size_names_the_image(student: Options, data: Path) -> None:
    images = loader(student, dataroot_lq=str(data / 'val/LRbicx3'))
    with pytest.raises(ValueError, match=r'calculate_psnr of output and ground truth of astronaut: images differ'):
        made(student).validation(images, 1, None)


def _in_two_processes(rank: int, folder: str, port: int) -> None:
    """One of two processes: all images, then one image, then a broken one, which is the second process's."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    options = read_option(Path(folder, 'option.yml'))
    model = made(options, dist=True, rank=rank, world_size=2)
    lines: list[str] = []
    model._log_validation_metric_values = lambda iteration, name, board: lines.append(name)
    results = {}
    for name, images in (('all', None), ('three', 3), ('one', 1)):
        model.validation(loader(options, images, name=name), 3, None, True)
        results[name] = model.metric_results
    broken = loader(options, 2)
    broken.dataset.paths[1]['lq_path'] = 'nowhere.png'
    try:
        model.validation(broken, 4, None)
    except Exception as error:
        results['error'] = f'{type(error).__name__}: {error}'
    torch.save((results, model.best_metric_results, lines), Path(folder, f'{rank}.pth'))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(
    student: Options, log: list[str], tmp_path: Path, free_port: int
) -> None:
    student['path']['visualization'] = str(tmp_path / 'images')
    student['val']['metrics']['largest'] = {'type': 'largest_difference', 'crop_border': 3}
    write_option(student, tmp_path / 'option.yml')
    mp.spawn(_in_two_processes, (str(tmp_path), free_port), nprocs=2)
    (first, best, lines), (second, best_too, no_lines) = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    one = made(student)
    for name, images in (('all', None), ('three', 3), ('one', 1)):
        one.validation(loader(student, images, name=name), 3, None)
        # sums in the order of the images, so no rounding differs
        assert first[name] == second[name] == one.metric_results
    assert best == best_too == one.best_metric_results
    assert lines == ['all', 'three', 'one']
    assert no_lines == []
    assert len(list((tmp_path / 'images').rglob('*.png'))) == 4
    assert first['error'].startswith('RuntimeError: validation failed in process 1: FileNotFoundError')
    assert 'nowhere.png' in first['error']
    assert second['error'].startswith('FileNotFoundError')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'tile': -1}, 'val.tile should be a whole number, at least 0; it is -1'),
        ({'tile': '64'}, "val.tile should be a whole number, at least 0; it is '64'"),
        ({'tile': True}, 'val.tile should be a whole number, at least 0; it is True'),
        ({'tile_overlap': 8.5}, 'val.tile_overlap should be a whole number, at least 0; it is 8.5'),
        ({'tiles': 64}, "unknown key 'tiles' in val: did you mean 'tile'?"),
        ({'tile_overlaps': 64}, "unknown key 'tile_overlaps' in val: did you mean 'tile_overlap'?"),
        ({'overlap': 64}, "unknown key 'overlap' in val: did you mean 'tile_overlap'?"),
        ({'keep_image': False}, "unknown key 'keep_image' in val: did you mean 'keep_images'?"),
        ({'keep_images': 'no'}, "val.keep_images should be true or false; it is 'no'"),
        ({'pbar': 1}, 'val.pbar should be true or false; it is 1'),
        ({'val_freq': 0}, 'val.val_freq should be a whole number, at least 1; it is 0'),
        ({'metric': {}}, "unknown key 'metric' in val: did you mean 'metrics'?"),
        ({'metrics': ['psnr']}, "val.metrics should be a mapping of named metrics; it is ['psnr']"),
        ({'metrics': {'psnr': {'crop_border': 4}}}, "val.metrics.psnr should be a mapping with the key 'type'"),
        ({'metrics': {'psnr': {'type': 'calculate_pnsr'}}}, "did you mean 'calculate_psnr'?"),
        ({'metrics': {'p': {'type': 'calculate_psnr_pt'}}}, 'calculate_psnr runs on the device already'),
        ({'metrics': {'p': {'type': 'calculate_psnr'}}}, "val.metrics.p lacks the key 'crop_border'"),
        ({'metrics': {'p': {'type': 'calculate_psnr', 'crop_border': -4}}}, 'at least 0; it is -4'),
        (
            {'metrics': {'p': {'type': 'calculate_psnr', 'crop_border': 4, 'test_y': True}}},
            "did you mean 'test_y_channel'?",
        ),
        ({'metrics': {'p': {'type': 'calculate_ssim', 'crop_border': 4, 'better': 'more'}}}, 'higher or lower'),
        (
            {'metrics': {'p': {'type': 'calculate_ssim', 'crop_border': 4, 'test_y_channel': 'Y'}}},
            'should be true or false',
        ),
        ({'metrics': {'p': {'type': 'calculate_ssim', 'crop_border': 4, 'input_order': 'CHW'}}}, 'should be HWC'),
    ],
)
def test_a_mistake_in_the_section_is_named(student: Options, changes: Options, message: str) -> None:
    student['val'] |= changes
    with pytest.raises(ValueError) as caught:
        refuse(problems({**student, 'is_train': True}))
    assert message in str(caught.value)


def test_a_key_that_would_be_missed_hours_later_is_missed_at_once(student: Options) -> None:
    del student['val']['save_img']
    with pytest.raises(ValueError, match="val lacks the key 'save_img'"):
        refuse(problems({**student, 'is_train': True}))
    with pytest.raises(ValueError, match="val lacks the key 'val_freq'"):
        refuse(problems({**student, 'val': {'save_img': False}, 'is_train': True}))
    refuse(problems({**student, 'val': {'save_img': False}, 'is_train': False}))
    refuse(problems({**student, 'val': None, 'is_train': True}))


def test_a_mistake_is_found_before_anything_is_written(
    student: Options, train: Callable[..., Path], tmp_path: Path
) -> None:
    student['val']['tile'] = -16
    with pytest.raises(ValueError, match=r'val\.tile should be a whole number'):
        train(student)
    assert {path.name for path in tmp_path.iterdir()} == {'option.yml'}


def test_the_trainer_validates_in_tiles(student: Options, train: Callable[..., Path]) -> None:
    student['val'].update(tile=16, tile_overlap=8, pbar=True)
    text = ''.join(path.read_text() for path in train(student).glob('*.log'))
    assert '# psnr: ' in text
    assert '# ssim: ' in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_a_gpu_gives_the_results_that_basicsr_gives_there(student: Options, log: list[str]) -> None:
    ours, upstream = made(student, num_gpu=1), made(student, num_gpu=1)
    for _ in range(2):  # the second time from what is kept on the device
        ours.validation(loader(student), 1, None)
    SRModel.nondist_validation(upstream, loader(student), 1, None, False)
    assert close(ours.metric_results, upstream.metric_results)
