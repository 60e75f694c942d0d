"""The whole evaluation, from the command line to the files, against figures computed another way."""

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from basicsr.metrics import calculate_psnr, calculate_ssim
from basicsr.utils import img2tensor, tensor2img
from conftest import REPO, build_arch, script_environment, small_network, write_option
from torch import Tensor

from mtkd_arch.frozen_network import best_dtype
from mtkd_eval import comparison, measure
from mtkd_eval.bicubic import BicubicUpsampling
from mtkd_eval.evaluate import main
from mtkd_eval.record import cpu_name
from mtkd_eval.tables import MISSING

Edsr = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def network(elsewhere: Path) -> Edsr:
    """A small EDSR, and ``net.pth`` and ``net.yml`` that hold it: near enough to an image to have a PSNR of its own."""
    torch.manual_seed(5)
    network = build_arch(small_network('edsr')).eval().requires_grad_(False)
    torch.save({'params': network.state_dict()}, elsewhere / 'net.pth')
    write_option(small_network('edsr'), elsewhere / 'net.yml')
    return network


@pytest.fixture
def val(data: Path) -> str:
    return str(data / 'val')


def evaluate(*arguments: str, out: str = 'out.json') -> dict[str, Any]:
    assert main([*arguments, '--out', out]) == 0
    return json.loads(Path(out).read_text())


def images_of(results: dict[str, Any], index: int = 0) -> dict[str, dict[str, float]]:
    (found,) = results['networks'][index]['sets'].values()
    return found['images']


def without_time(results: dict[str, Any]) -> str:
    """The figures that must be the same in every run."""

    def kept(value: Any) -> Any:
        if not isinstance(value, dict):
            return [kept(each) for each in value] if isinstance(value, list) else value
        return {key: kept(each) for key, each in value.items() if key not in ('seconds', 'peak_bytes', 'date')}

    return json.dumps(kept(results))


def expected_scores(network: Edsr, val: str, border: int = 4) -> dict[str, list[float]]:
    """BasicSR's own reading, network run, rounding and metrics."""
    scores = {}
    for path in sorted((Path(val) / 'GT').iterdir()):
        lq = cv2.imread(str(Path(val) / 'LRbicx4' / path.name)).astype(np.float32) / 255
        image, gt = tensor2img([network(img2tensor(lq)[None])]), cv2.imread(str(path))
        metrics = [
            metric(image, gt, border, test_y_channel=y)
            for y in (True, False)
            for metric in (calculate_psnr, calculate_ssim)
        ]
        scores[path.stem] = metrics
    return scores


QUALITY = ('psnr_y', 'ssim_y', 'psnr_rgb', 'ssim_rgb')


@pytest.mark.parametrize('border', [None, 7])
def test_the_figures_are_those_of_basicsr(network: Edsr, val: str, border: int | None) -> None:
    flags = [] if border is None else ['--crop-border', str(border)]
    images = images_of(evaluate('net.pth', '--network', 'net.yml', '--set', val, *flags))
    expected = expected_scores(network, val, 4 if border is None else border)
    assert images.keys() == expected.keys()
    for name, values in expected.items():
        # the merged tail rounds otherwise, which may move a pixel by a level; SSIM itself is exact to 1e-4
        assert [images[name][key] for key in QUALITY] == pytest.approx(values, abs=1e-3)


def test_psnr_on_published_pairs_agrees_with_numpy(shared: Path, elsewhere: Path) -> None:
    sets = [str(shared / 'data' / name) for name in ('Set5', 'Set14')]
    results = evaluate('bicubic', '--scale', '4', '--set', *sets, '--save-images', 'images')
    for name, found in results['networks'][0]['sets'].items():
        for image, row in found['images'].items():
            saved = cv2.imread(str(elsewhere / f'images/bicubic_x4/{name}/{image}.png')).astype(np.float64)
            hr = cv2.imread(str(shared / f'data/{name}/HR/{image}.png')).astype(np.float64)
            difference = (saved - hr[: saved.shape[0], : saved.shape[1]])[4:-4, 4:-4, ::-1]
            luma = difference @ np.array([65.481, 128.553, 24.966]) / 255
            assert row['psnr_y'] == pytest.approx(10 * np.log10(255**2 / np.mean(luma**2)), abs=1e-4)
            assert row['psnr_rgb'] == pytest.approx(10 * np.log10(255**2 / np.mean(difference**2)), abs=1e-4)
        mean = np.mean([row['psnr_y'] for row in found['images'].values()])
        assert found['mean']['psnr_y'] == pytest.approx(mean, abs=1e-9)
    grey = cv2.imread(str(elsewhere / 'images/bicubic_x4/Set14/bridge.png'))
    assert (grey == grey[..., :1]).all(), 'a grey image becomes coloured'


def test_the_same_command_gives_the_same_figures(network: Edsr, val: str) -> None:
    command = ('bicubic', 'net.pth', '--network', 'net.yml', '--set', val, '--scale', '4')
    assert without_time(evaluate(*command)) == without_time(evaluate(*command))


def test_the_json_says_what_was_measured_and_on_what(network: Edsr, val: str, elsewhere: Path) -> None:
    results = evaluate('mine=net.pth', '--network', 'net.yml', '--set', val, '--device', 'cpu')
    made, (row,) = results['circumstances'], results['networks']
    assert {'date', 'commit', 'torch', 'basicsr', 'mtkd', 'python', 'device', 'threads'} == made.keys()
    assert made['device'] == cpu_name()
    assert made['device'].endswith(' with bf16') is (best_dtype(torch.device('cpu')) is not None)
    digest = hashlib.sha256((elsewhere / 'net.pth').read_bytes()).hexdigest()
    assert row['weights'] == [{'path': 'net.pth', 'sha256': digest}]
    assert row['name'] == 'mine'
    assert row['parameters'] == sum(parameter.numel() for parameter in network.parameters())
    assert results['settings']['precision'] == 'fp32'
    found = row['sets']['val']
    assert found['crop_border'] == 4
    assert found['seconds'] == pytest.approx(np.median([image['seconds'] for image in found['images'].values()]))


@pytest.mark.parametrize('repeats', [0, 1, 3])
def test_each_image_is_timed_as_often_as_asked(repeats: int, val: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    upsample = BicubicUpsampling.forward
    monkeypatch.setattr(BicubicUpsampling, 'forward', lambda self, lq: calls.append(lq.shape) or upsample(self, lq))
    results = evaluate('bicubic', '--scale', '4', '--set', val, '--repeats', str(repeats))
    images = images_of(results)
    # probed once, counted once, the very first run, then for each image one for its memory and the timed ones
    assert len(calls) == 3 + len(images) * (1 + repeats)
    assert all((row['seconds'] is None) == (repeats == 0) for row in images.values())


def test_every_format_is_written_by_its_ending(network: Edsr, val: str, elsewhere: Path) -> None:
    outs = [f'tables/{name}' for name in ('t.md', 't.csv', 't.json', 't.tex')]
    command = ['net.pth', '--network', 'net.yml', '--set', val, '--out', *outs]
    assert main(command) == 0
    first = {name: (elsewhere / name).read_text() for name in outs}
    assert [text.split()[0] for text in first.values()] == ['|', 'network,scale,parameters,macs,set,crop_border,'
        'image,psnr_y,ssim_y,psnr_rgb,ssim_rgb,lpips,seconds,peak_bytes', '{', '%']  # fmt: skip
    assert sorted(path.name for path in (elsewhere / 'tables').iterdir()) == ['t.csv', 't.json', 't.md', 't.tex']


def test_nothing_is_counted_of_the_bicubic_and_no_format_says_zero(val: str, elsewhere: Path) -> None:
    assert main(['bicubic', '--scale', '4', '--set', val, '--out', 't.md', 't.csv', 't.json']) == 0
    (row,) = json.loads(Path('t.json').read_text())['networks']
    assert row['parameters'] is row['macs'] is None
    lines = csv.DictReader(Path('t.csv').read_text().splitlines())
    assert {(line['parameters'], line['macs']) for line in lines} == {('', '')}
    assert f'| bicubic | {MISSING} | {MISSING} |' in Path('t.md').read_text()


def test_without_a_file_the_table_goes_to_stdout(val: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['bicubic', '--scale', '2', '--set', val, '--format', 'csv']) == 0
    assert capsys.readouterr().out.startswith('network,scale')
    assert main(['bicubic', '--set', val]) == 0
    page = capsys.readouterr().out
    assert [f'| x{scale} |' in page for scale in (2, 3, 4)] == [True] * 3  # all there are


def test_tiles_that_overlap_enough_change_nothing_and_the_self_ensemble_does(network: Edsr, val: str) -> None:
    command = ('net.pth', '--network', 'net.yml', '--set', val)
    plain, tiled = evaluate(*command), evaluate(*command, '--tile', '24', '--overlap', '9')
    ensemble = evaluate(*command, '--self-ensemble')
    for name, row in images_of(plain).items():
        assert images_of(tiled)[name]['psnr_y'] == pytest.approx(row['psnr_y'], abs=1e-3)
        assert abs(images_of(ensemble)[name]['psnr_y'] - row['psnr_y']) > 1e-3
    assert ensemble['networks'][0]['macs'] == 8 * plain['networks'][0]['macs']


def test_half_precision_is_half_precision_in_the_target_too(options: dict[str, Any], val: str, elsewhere: Path) -> None:
    write_option(options, elsewhere / 'option.yml')
    full, half = (
        evaluate('option.yml:target', '--set', val, '--precision', precision, '--save-images', precision)
        for precision in ('fp32', 'bf16')
    )
    assert half['settings']['precision'] == 'bf16'
    pairs = [(images_of(full)[name]['psnr_rgb'], row['psnr_rgb']) for name, row in images_of(half).items()]
    assert any(one != other for one, other in pairs), 'the networks ran in float32'
    # bf16 has 8 bits; its rounding is a small part of the difference from the ground truth
    assert all(one == pytest.approx(other, abs=0.1) for one, other in pairs)


def test_sets_of_an_option_file_and_with_a_template(
    network: Edsr, data: Path, options: dict[str, Any], elsewhere: Path
) -> None:
    renamed = elsewhere / 'lr'
    renamed.mkdir()
    for path in (data / 'val/LRbicx4').iterdir():
        (renamed / f'{path.stem}_small.png').write_bytes(path.read_bytes())
    write_option(options, elsewhere / 'option.yml')
    given = [f'mine={data}/val/GT,{renamed},{{}}_small', 'option.yml', str(data)]
    (row,) = evaluate('net.pth', '--network', 'net.yml', '--set', given[0])['networks']
    (other,) = evaluate('net.pth', '--network', 'net.yml', '--set', given[1])['networks']
    (third,) = evaluate('net.pth', '--network', 'net.yml', '--set', given[2])['networks']
    assert (*row['sets'], *other['sets'], *third['sets']) == ('mine', 'val', 'val')
    assert row['sets']['mine']['mean'] == other['sets']['val']['mean'] == third['sets']['val']['mean']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['net.pth', '--network', 'net.yml', '--set', 'nowhere'], '--set nowhere: no such folder or option file'),
        (['net.pth', '--network', 'net.yml', '--set', '.'], 'expected a folder with HR and LRbicx4'),
        (['net.pth', '--network', 'net.yml', '--set', 'a=b'], '--set a=b: expected NAME=HR,LR'),
        (['net.pth', '--network', 'net.yml', '--set', 'VAL', 'VAL'], 'two test sets are called val (x4)'),
        (['net.pth', '--network', 'net.yml', '--set', 'VAL', '--scale', '2'], 'upsamples by 4, but --scale is 2'),
        (['net.pth', '--network', 'net.yml', '--set', 'v=VAL/GT,VAL/LRbicx2'], 'no test set x4 in v='),
        (['net.pth', 'net.pth', '--network', 'net.yml', '--set', 'VAL'], "two networks are called 'net'"),
        (['=net.pth', '--set', 'VAL'], '=net.pth: expected SOURCE or LABEL=SOURCE'),
        (['bicubic', '--set', 'v=VAL/GT,VAL/LRbicx4,{}x4'], 'astronautx4.png for astronaut.png: give the template'),
        (['bicubic', '--set', 'v=VAL/LRbicx4,VAL/GT'], 'expected the HR image to be a whole number of times larger'),
        (['bicubic', '--set', 'lmdb.yml'], 'datasets.val: expected folders of images as dataroot_gt and dataroot_lq'),
        (['bicubic', '--set', 'train.yml'], 'train.yml: has no data sets to test on'),
        (['bicubic', '--set', 'm=hr,lr'], 'm: images of several scales, [2, 4], in lr'),
        (['bicubic', 'net.pth', '--network', 'net.yml', '--set', 'VAL', '--scale', '2', '4', '--scale', '2'], 'is 2'),
        (['bicubic', '--set', 'VAL', '--scale', '5'], 'no test set x5'),
        (['bicubic', '--set', 'VAL', '--out', 'table.txt'], 'expected a name that ends in .md, .csv, .json, .tex'),
        (['bicubic', '--set', 'VAL', '--out', '.', '--format', 'md'], '--out .: is a folder'),
        (['bicubic', '--set', 'VAL', '--tile', '-1'], 'expected tile >= 0'),
        (['bicubic', '--set', 'VAL', '--repeats', '-1'], '--repeats must be at least 0'),
        (['bicubic', '--set', 'VAL', '--crop-border', '-1'], '--crop-border must be at least 0, got -1'),
        (['bicubic', '--set', 'VAL', '--crop-border', '90'], 'crop_border 90 leaves nothing of an image'),
        (['bicubic', '--set', 'VAL', '--device', 'gpu'], '--device gpu: unknown device'),
    ],
)
@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_what_cannot_be_done_is_refused_and_nothing_is_written(
    arguments: list[str], message: str, network: Edsr, val: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_option({'datasets': {'val': {'dataroot_gt': 'GT.lmdb', 'dataroot_lq': 'LQ.lmdb'}}}, elsewhere / 'lmdb.yml')
    write_option({'datasets': {'train': {'dataroot_gt': 'GT'}}}, elsewhere / 'train.yml')
    for folder, size in (('hr', (16, 16)), ('lr', (8, 4))):
        (elsewhere / folder).mkdir()
        for name, side in zip('ab', size, strict=True):
            cv2.imwrite(f'{folder}/{name}.png', np.zeros((side, side, 3), np.uint8))
    before = sorted(elsewhere.iterdir())
    out = [] if '--out' in arguments else ['--out', 'table.md']
    assert main([argument.replace('VAL', val) for argument in arguments] + out) == 2
    assert 'error: ' in (error := capsys.readouterr().err)
    assert message in error
    assert sorted(elsewhere.iterdir()) == before


def test_an_image_that_does_not_fit_in_memory_is_named_with_the_remedy(
    network: Edsr, val: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(self: Any, lq: Tensor, scale: int) -> Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(measure.FrozenNetwork, 'forward', no_room)
    assert main(['net.pth', '--network', 'net.yml', '--set', val, '--out', 'table.md']) == 2
    assert 'astronaut.png (36x48) does not fit in memory: take tiles, such as --tile 128' in capsys.readouterr().err


def test_a_network_that_does_not_fit_in_memory_leaves_the_others_their_figures(
    network: Edsr, val: str, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    forward, sizes = measure.FrozenNetwork.forward, []

    def no_room(self: Any, lq: Tensor, scale: int) -> Tensor:
        sizes.append(lq.shape)
        if type(self.network).__name__ == 'EDSR' and len(sizes) > 20:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return forward(self, lq, scale)

    monkeypatch.setattr(measure.FrozenNetwork, 'forward', no_room)
    command = ['bicubic', 'one=net.pth', 'two=net.pth', '--network', 'net.yml', '--scale', '4', '--set', val]
    outs = [f'out.{ending}' for ending in ('json', 'md', 'csv', 'tex')]
    assert main([*command, '--out', *outs]) == 0
    bicubic, one, two = json.loads(Path('out.json').read_text())['networks']
    assert bicubic['sets']['val']['mean']['psnr_y'] > 20
    assert len(one['sets']['val']['images']) == 4
    assert two['sets']['val']['images'] == {}
    assert set(two['sets']['val']['mean'].values()) == {None}
    (note,) = two['notes']
    assert note.endswith('(36x48) does not fit in memory: take tiles, such as --tile 128')
    assert f'- two: {note}.' in Path('out.md').read_text()


@pytest.mark.parametrize(
    ('networks', 'sets', 'message'),
    [
        (['a b=net.pth', 'a_b=net.pth'], ['one=VAL'], "two networks are called 'a_b' or 'a b', one as a file name"),
        (['net.pth'], ['a b=VAL', 'a_b=VAL'], "two test sets x4 are called 'a b' and 'a_b', one as a file name"),
    ],
)
@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_names_that_would_share_a_folder_of_images_are_refused(
    networks: list[str], sets: list[str], message: str, network: Edsr, val: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [text.replace('VAL', f'{val}/GT,{val}/LRbicx4') for text in sets]
    assert main([*networks, '--network', 'net.yml', '--set', *sets, '--save-images', 'images']) == 2
    assert message in capsys.readouterr().err
    assert not Path('images').exists()


def test_an_interrupted_run_says_so(val: str, monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, 'measure_set', interrupt)
    assert main(['bicubic', '--set', val, '--out', 'table.md']) == 130
    assert not (elsewhere / 'table.md').exists()


def test_without_the_package_the_table_says_why_there_is_no_lpips(
    val: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'lpips', None)
    assert main(['bicubic', '--scale', '4', '--set', val]) == 0
    assert '- No LPIPS: the package lpips is not installed' in capsys.readouterr().out


def test_with_the_package_it_is_given_cropped_rgb_in_its_range(
    val: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Net(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()
            assert net == 'alex'

        def forward(self, one: Tensor, two: Tensor) -> Tensor:
            seen.append(two)
            return (one - two).abs().mean().view(1, 1, 1, 1)

    monkeypatch.setitem(sys.modules, 'lpips', SimpleNamespace(LPIPS=Net))
    results = evaluate('bicubic', '--scale', '4', '--set', val)
    hr = cv2.imread(str(data / 'val/GT/astronaut.png'))[4:-4, 4:-4, ::-1].transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(seen[0][0].numpy(), hr, rtol=0, atol=1e-6)
    assert results['notes']['lpips'] is None
    assert results['networks'][0]['sets']['val']['mean']['lpips'] > 0


def test_networks_of_several_scales_meet_the_sets_of_theirs(network: Edsr, val: str, elsewhere: Path) -> None:
    torch.save(build_arch(small_network('edsr', 2)).state_dict(), elsewhere / 'double.pth')
    write_option({'scale': 2, 'network_g': small_network('edsr', 2), 'name': 'double', 'path':
        {'pretrain_network_g': 'double.pth'}}, elsewhere / 'double.yml')  # fmt: skip
    rows = evaluate('bicubic', 'double.yml', 'net.pth', '--network', 'net.yml', '--set', val)['networks']
    assert [(row['name'], row['scale']) for row in rows] == [('bicubic', 2), ('bicubic', 4), ('double', 2), ('net', 4)]
    assert [row['sets']['val']['crop_border'] for row in rows] == [2, 4, 2, 4]


@pytest.mark.injects('bad input', 'arguments of evaluate.py, export.py and infer.py that cannot be')
def test_a_network_without_a_set_of_its_scale_is_refused(
    network: Edsr, val: str, capsys: pytest.CaptureFixture[str], elsewhere: Path
) -> None:
    torch.save(build_arch(small_network('edsr', 2)).state_dict(), elsewhere / 'double.pth')
    write_option({'scale': 2, 'network_g': small_network('edsr', 2), 'name': 'double', 'path':
        {'pretrain_network_g': 'double.pth'}}, elsewhere / 'double.yml')  # fmt: skip
    sets = f'v={val}/GT,{val}/LRbicx4'
    assert main(['double.yml', 'net.pth', '--network', 'net.yml', '--set', sets]) == 2
    assert 'double upsamples by 2, but there is no test set for it: v (x4)' in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_a_gpu_gives_the_figures_of_the_cpu_and_its_own_memory(network: Edsr, val: str) -> None:
    command = ('net.pth', '--network', 'net.yml', '--set', val, '--device')
    cpu, gpu = images_of(evaluate(*command, 'cpu')), images_of(evaluate(*command, 'cuda'))
    for name, row in gpu.items():
        # full float32 on both; sums in another order move a pixel by a level now and then
        assert row['psnr_y'] == pytest.approx(cpu[name]['psnr_y'], abs=1e-3)
        # at least the result itself, (1, 3, 144, 192) in float32
        assert 3 * 144 * 192 * 4 <= row['peak_bytes'] < 2**30


def test_equal_images_and_tiny_ones_have_no_figure_rather_than_a_wrong_one() -> None:
    image = torch.full((1, 3, 12, 12), 7.0)
    assert measure.score(image, image, 0)['psnr_y'] is None
    assert measure.score(image, image, 0)['ssim_y'] == 1
    assert measure.score(image, image + 1, 1)['ssim_y'] is None


@pytest.mark.slow
def test_the_script_runs_from_anywhere(val: str, elsewhere: Path) -> None:
    command = [sys.executable, str(REPO / 'scripts/evaluate.py'), 'bicubic', '--scale', '4', '--set', val]
    environment = {**script_environment(), 'PYTHONPATH': ''}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert '| bicubic | – | – |' in done.stdout  # noqa: RUF001
