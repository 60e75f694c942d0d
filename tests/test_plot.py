"""The pictures as a whole: from the command line to the file, what stands in them, and that it can be read."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from conftest import REPO, build_arch, script_environment, small_network, write_option
from matplotlib.figure import Figure
from matplotlib.text import Text

from mtkd_eval.evaluate import main as evaluate
from mtkd_eval.plots import command
from mtkd_eval.plots.command import KINDS, main
from mtkd_eval.plots.style import save

LINE = '2026 INFO: [toy..][epoch:  0, iter:{:8,d}, lr:(5.000e-04,)] l_pix: {:.4e} \n'
VALIDATION = '2026 INFO: Validation val\n\t # psnr: {:.4f}\tBest: 28.4 @ 20 iter\n'
STUDY = {
    'gains': [
        {'student': student, 'method': method, 'mean': mean, 'low': mean - 0.05, 'high': mean + 0.06, 'n': 19}
        for student in ('EDSR', 'SwinIR')
        for method, mean in (('KD, mean of teachers', 0.03), ('MTKD', 0.12), ('AT', -0.07))
    ],
    'reference': 'scratch',
    'test_sets': 'Set5 and Set14',
    'interval': '95% interval',
}


@pytest.fixture(scope='module')
def material(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two networks, two logs, the results of an evaluation and a study; ``val`` holds the test set."""
    folder = tmp_path_factory.mktemp('plots')
    (folder / 'val').symlink_to(data / 'val')
    write_option(small_network('edsr'), folder / 'net.yml')
    for seed, name in enumerate(('one', 'a_second_network_with_a_long_name')):
        torch.manual_seed(seed)
        torch.save({'params': build_arch(small_network('edsr')).state_dict()}, folder / f'{name}.pth')
        lines = [LINE.format(at, 1 / at) + VALIDATION.format(20 + at / 500 + seed) for at in range(100, 2001, 100)]
        (folder / f'{name}.log').write_text(''.join(lines))
    nets = [str(folder / f'{name}.pth') for name in ('one', 'a_second_network_with_a_long_name')]
    out = ['--network', str(folder / 'net.yml'), '--set', str(folder / 'val'), '--out', str(folder / 'table.json')]
    assert evaluate(['bicubic', *nets, '--device', 'cpu', '--repeats', '1', *out]) == 0
    (folder / 'study.json').write_text(json.dumps(STUDY))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results go to ``tmp_path``; paths are relative to the material."""
    monkeypatch.chdir(material)
    return tmp_path


NETWORKS = ['one.pth', 'a_second_network_with_a_long_name.pth', '--network', 'net.yml', '--set', 'val', '--device']
NETWORKS += ['cpu']
COMMANDS = {
    'sheet': ['sheet', *NETWORKS, '--size', '32', '--count', '2', '--title', 'A title', '--font', '12'],
    'wrapped': ['sheet', *NETWORKS, '--columns', '2', '--psnr', 'both', '--region', 'chelsea:8,40,33'],
    'bands': ['bands', *NETWORKS, '--image', 'rocket'],
    'signed': ['bands', *NETWORKS, '--image', 'val/rocket:20,30,60', '--signed'],
    'curves': ['curves', 'one.log', 'other=a_second_network_with_a_long_name.log'],
    'scatter': ['scatter', 'table.json', '--x', 'macs'],
    'seconds': ['scatter', 'table.json', '--x', 'seconds', '--metric', 'ssim_y'],
    'gains': ['gains', 'study.json', '--title', 'A title'],
}
Drawn = Callable[[list[str]], Figure]


@pytest.fixture
def drawn(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The figure that a command saves."""

    def draw(arguments: list[str]) -> Figure:
        saved = []
        monkeypatch.setattr(command, 'save', lambda figure, out: saved.append(figure))
        assert main([*arguments, '--out', str(elsewhere / 'a.png')]) == 0
        return saved[0]

    return draw


def texts_of(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]


def shown(figure: Figure) -> list[str]:
    return [text.get_text() for text in texts_of(figure)]


def pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


@pytest.mark.parametrize('kind', list(COMMANDS))
def test_every_text_is_large_enough_inside_and_free_of_others(kind: str, drawn: Drawn) -> None:
    figure = drawn(COMMANDS[kind])
    texts, renderer = texts_of(figure), figure.canvas.get_renderer()
    on_axis = {
        id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()
    }
    assert min(text.get_fontsize() for text in texts) >= 8
    boxes = [text.get_window_extent(renderer) for text in texts if id(text) not in on_axis]
    width, height = figure.get_size_inches() * figure.dpi
    for index, box in enumerate(boxes):
        assert box.x0 >= -1, texts[index]
        assert box.y0 >= -1, texts[index]
        assert box.x1 <= width + 1, texts[index]
        assert box.y1 <= height + 1, texts[index]
        # a pixel less on each side: lines of one block may touch
        assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in boxes[:index]), texts[index]


@pytest.mark.parametrize(('ending', 'begins'), [('.png', b'\x89PNG'), ('.pdf', b'%PDF'), ('.svg', b'<?xml')])
def test_the_same_picture_is_the_same_file_in_every_format(ending: str, begins: bytes, elsewhere: Path) -> None:
    files = [elsewhere / f'{name}{ending}' for name in ('a', 'b')]
    files[1].write_text('an older one')
    for file in files:
        assert main([*COMMANDS['gains'], '--out', str(file)]) == 0
    one, two = (file.read_bytes() for file in files)
    assert one.startswith(begins)
    assert one == two
    assert not any(word in one for word in (b'CreationDate', b'<dc:date>'))
    assert sorted(path.name for path in elsewhere.iterdir()) == [f'a{ending}', f'b{ending}']  # nothing half-written


def test_a_crop_is_shown_pixel_by_pixel(drawn: Drawn) -> None:
    picture = pixels(drawn(COMMANDS['wrapped']))
    hr = cv2.imread('val/GT/chelsea.png')[8:41, 40:73, ::-1]
    lr = np.kron(cv2.imread('val/LRbicx4/chelsea.png'), np.ones((4, 4, 1), np.uint8))[8:41, 40:73, ::-1]
    side = -(-210 // 33) * 33  # the first multiple of 33 above 1.4 inches of 150 pixels
    for crop in (hr, lr):
        large = np.kron(crop, np.ones((side // 33, side // 33, 1), np.uint8))
        found = cv2.matchTemplate(picture, np.ascontiguousarray(large), cv2.TM_SQDIFF)
        row, column = divmod(int(found.argmin()), found.shape[1])
        np.testing.assert_array_equal(picture[row : row + side, column : column + side], large)


def test_the_figures_of_a_sheet_are_those_of_the_evaluation_and_the_best_is_bold(drawn: Drawn) -> None:
    figure = drawn(COMMANDS['wrapped'])
    rows = json.loads(Path('table.json').read_text())['networks']
    expected = [row['sets']['val']['images']['chelsea']['psnr_y'] for row in rows]
    images = [text for text in texts_of(figure) if text.get_text().endswith('(image)')]
    assert [text.get_text() for text in images] == [f'{value:.2f} dB (image)' for value in expected]
    bold = [text.get_text() for text in texts_of(figure) if text.get_weight() == 'bold']
    assert f'{max(expected):.2f} dB (image)' in bold
    assert len(bold) == 2  # and the best crop
    crop = slice(8, 41), slice(40, 73)
    small = cv2.imread('val/LRbicx4/chelsea.png').astype(np.float32) / 255
    network = build_arch(small_network('edsr')).eval()
    network.load_state_dict(torch.load('one.pth')['params'])
    with torch.no_grad():
        made = network(torch.from_numpy(small[..., ::-1].transpose(2, 0, 1).copy())[None])
    image = (made[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    difference = (image - cv2.imread('val/GT/chelsea.png')[..., ::-1].astype(np.float64))[crop]
    mse = np.mean((difference @ np.array([65.481, 128.553, 24.966]) / 255) ** 2)
    # two digits are shown
    values = [float(text.split()[0]) for text in shown(figure) if text.endswith('(crop)')]
    assert values[1] == pytest.approx(10 * np.log10(255**2 / mse), abs=0.006)


def test_columns_can_be_hidden(drawn: Drawn) -> None:
    words = shown(drawn([*COMMANDS['sheet'], '--hide', 'lr', 'bicubic', '--images', 'coffee']))
    assert not {'LR', 'bicubic'} & set(words)
    assert {'one', 'HR', 'coffee', 'A title'} <= set(words)
    assert 'rocket' not in words


def test_the_maps_share_a_scale_and_say_their_means(drawn: Drawn) -> None:
    figure = drawn(COMMANDS['bands'])
    images = [image for axes in figure.axes for image in axes.get_images() if image.get_array().ndim == 2]
    assert len(images) == 2 * 4
    assert len({image.get_clim() for image in images}) == 1
    assert {image.get_cmap().name for image in images} == {'cividis'}
    titles = [title.splitlines()[-1] for title in shown(figure) if 'mean |.|' in title]
    assert titles == [f'mean |.| {image.get_array().mean():.4f}' for image in images]
    clim = drawn(COMMANDS['signed']).axes[1].get_images()[0].get_clim()
    assert clim[0] == -clim[1]


def test_a_curve_has_its_raw_line_behind_and_a_bend_at_the_start_does_not_hide_the_end(drawn: Drawn) -> None:
    psnr, loss = drawn(COMMANDS['curves']).axes
    assert (psnr.get_title(loc='left'), loss.get_title(loc='left')) == ('PSNR (dB), val', 'l_pix')
    assert [len(line.get_xdata()) for line in psnr.lines] == [20, 20]
    assert len(drawn([*COMMANDS['curves'], '--smooth', '5']).axes[1].lines) == 4
    assert psnr.get_ylim()[0] > 20.2  # the first point; 20 + 600 / 500 is the first that counts
    lowest = min(line.get_ydata().min() for line in psnr.lines)
    assert [text.get_text() for text in psnr.texts] == [f'cut off below; the lowest point is {lowest:.4g}']
    assert not loss.texts  # all of it is shown


def test_losses_are_said_to_be_weighted_and_validation_figures_are_not(drawn: Drawn) -> None:
    psnr, loss = drawn(COMMANDS['curves']).axes
    assert (psnr.get_ylabel(), loss.get_ylabel()) == ('', 'as weighted in training')


def test_points_lie_where_the_results_say(drawn: Drawn) -> None:
    (axes,) = drawn(COMMANDS['scatter']).axes
    _, *rows = json.loads(Path('table.json').read_text())['networks']
    points = [tuple(map(float, line.get_xydata()[0])) for line in axes.lines if line.get_marker() != 'None']
    assert points == [(row['macs'], row['sets']['val']['mean']['psnr_y']) for row in rows]
    assert any(text.get_text().startswith('bicubic ') for text in axes.texts)


def test_panels_of_many_students_stand_below_each_other_with_whole_titles(elsewhere: Path, drawn: Drawn) -> None:
    rows = [row for row in STUDY['gains'] if row['student'] == 'EDSR']
    students = [f'{name}, a small one with many groups of blocks' for name in ('EDSR', 'RCAN', 'SwinIR')]
    many = [{**row, 'student': student} for student in students for row in rows[: 1 + students.index(student)]]
    (elsewhere / 'many.json').write_text(json.dumps({**STUDY, 'gains': many}))
    figure = drawn(['gains', str(elsewhere / 'many.json')])
    figure.draw_without_rendering()
    places = [panel.get_position() for panel in figure.axes]
    assert len({round(place.x0, 3) for place in places}) == 1
    assert places[0].y0 > places[1].y1 > places[1].y0 > places[2].y1
    for panel in figure.axes:
        box = panel.title.get_window_extent()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_gains_are_drawn_from_the_best_down_with_the_zero_line(drawn: Drawn) -> None:
    axes = drawn(COMMANDS['gains']).axes
    assert [panel.get_title() for panel in axes] == ['EDSR (n = 19)', 'SwinIR (n = 19)']
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ['MTKD', 'KD, mean of teachers', 'AT']
    assert axes[0].texts[0].get_text() == '+0.12 [+0.07, +0.18]'
    assert axes[0].texts[2].get_text() == '\N{MINUS SIGN}0.07 [\N{MINUS SIGN}0.12, \N{MINUS SIGN}0.01]'
    assert list(axes[0].lines[0].get_xdata()) == [0, 0]
    markers = [line.get_marker() for line in axes[0].lines if line.get_marker() != 'None']
    assert markers == ['o', 'o', 'X']  # above, around, below zero; the second is hollow
    assert axes[0].lines[4].get_markerfacecolor() == 'white'


def test_a_gain_without_an_interval_is_a_point_that_says_n(drawn: Drawn, elsewhere: Path) -> None:
    rows = [{**row, 'low': None, 'high': None, 'n': 1} for row in STUDY['gains'] if row['student'] == 'EDSR']
    for name, some in (('alone', rows), ('mixed', [rows[0], *STUDY['gains'][1:3]])):
        (elsewhere / f'{name}.json').write_text(json.dumps({**STUDY, 'gains': some}))
    (panel,) = drawn(['gains', str(elsewhere / 'alone.json')]).axes
    assert panel.get_title() == 'EDSR (n = 1)'
    assert [text.get_text() for text in panel.texts] == ['+0.12', '+0.03', '\N{MINUS SIGN}0.07']
    assert [line.get_marker() for line in panel.lines if line.get_marker() != 'None'] == ['D', 'D', 'D']
    (panel,) = drawn(['gains', str(elsewhere / 'mixed.json')]).axes
    assert panel.texts[1].get_text() == '+0.03, n = 1'


def test_what_the_user_has_set_is_neither_used_nor_changed(elsewhere: Path) -> None:
    with matplotlib.rc_context({'font.size': 3, 'axes.facecolor': 'black'}):
        assert main([*COMMANDS['gains'], '--out', str(elsewhere / 'a.png')]) == 0
        assert matplotlib.rcParams['font.size'] == 3
    assert main([*COMMANDS['gains'], '--out', str(elsewhere / 'b.png')]) == 0
    assert (elsewhere / 'a.png').read_bytes() == (elsewhere / 'b.png').read_bytes()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['sheet', *NETWORKS, '--region', 'baby:1,2,3'],
            'no image baby in the test sets; there are astronaut, chelsea',
        ),
        (['sheet', *NETWORKS, '--region', 'coffee:140,2,30'], 'coffee:140,2,30 leaves the image, which has 144x192'),
        (['sheet', *NETWORKS, '--region', 'coffee'], '--region coffee: expected IMAGE:TOP,LEFT,SIZE'),
        (['sheet', *NETWORKS, '--size', '137'], 'no image holds a region of 137x137 pixels 4 away from its border'),
        (
            ['sheet', 'one.pth', *NETWORKS[2:], '--hide', 'bicubic'],
            'one is alone, so there is nowhere that the networks',
        ),
        (['sheet', *NETWORKS, '--count', '0'], '--count must be at least 1, got 0'),
        (['sheet', *NETWORKS, '--font', '7'], '--font must be at least 8 points, got 7.0'),
        (['sheet', *NETWORKS, '--crop-border', '-1'], '--crop-border must be at least 0, got -1'),
        (['sheet', *NETWORKS, '--tile', '-1'], 'expected tile >= 0'),
        (['sheet', *NETWORKS, '--scale', '2'], 'upsamples by 4, but --scale is 2'),
        (['sheet', 'bicubic', '--set', 'val'], 'expected networks of one scale, got bicubic alone: give --scale'),
        (['sheet', 'none.pth', '--set', 'val'], 'no such weights file: none.pth'),
        (['bands', *NETWORKS, '--image', 'none'], 'no image none in the test sets'),
        (['bands', *NETWORKS, '--image', 'coffee:0,0,500'], 'coffee:0,0,500 leaves the image'),
        (['curves', 'nowhere'], 'nowhere: no such log or experiment folder'),
        (['curves', 'val'], 'val: holds no train_*.log'),
        (['curves', 'net.yml'], 'net.yml: no losses and no validation in net.yml'),
        (['curves', 'one.log', 'one.log'], "two experiments are called 'one': label them"),
        (['curves', 'one.log', '--show', 'l_at'], 'no curve l_at in the logs; there are psnr/val, lr, l_pix'),
        (['curves', 'one.log', '--smooth', '0'], '--smooth must be at least 1, got 0'),
        (['scatter', 'study.json'], 'study.json: expected the JSON of scripts/evaluate.py'),
        (['scatter', 'none.json'], 'no such file: none.json'),
        (['scatter', 'table.json', '--sets', 'Set5'], 'no results on Set5'),
        (
            ['gains', 'table.json'],
            "table.json: expected the study.json of a study, or a list of rows under the key 'gains'",
        ),
        (['gains', 'study.json', '--dpi', '0'], '--dpi must be at least 1, got 0'),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_an_older_picture_stays(
    arguments: list[str], message: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = elsewhere / 'a.png'
    out.write_text('an older one')
    assert main([*arguments, '--out', str(out)]) == 2
    assert 'error: ' in (error := capsys.readouterr().err)
    assert message in error
    assert out.read_text() == 'an older one'


@pytest.mark.parametrize(('out', 'message'), [('a.jpg', 'expected a name that ends in .png, .pdf, .svg'), ('', 'ends')])
def test_a_name_that_says_no_format_is_refused_before_anything_runs(
    out: str, message: str, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, 'gains', lambda given: pytest.fail('it ran'))
    assert main(['gains', 'study.json', '--out', str(elsewhere / out)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_is_no_picture_and_missing_ones_are_made(elsewhere: Path, drawn: Drawn) -> None:
    figure = drawn(COMMANDS['gains'])
    (elsewhere / 'a.png').mkdir()
    with pytest.raises(ValueError, match='is a folder'):
        save(figure, elsewhere / 'a.png')
    save(figure, elsewhere / 'new/folder/a.png')
    assert cv2.imread(str(elsewhere / 'new/folder/a.png')) is not None


def test_what_is_left_out_is_said(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results: dict[str, Any] = json.loads(Path('table.json').read_text())
    results['networks'][1]['macs'] = None
    (elsewhere / 'table.json').write_text(json.dumps(results))
    assert main(['scatter', str(elsewhere / 'table.json'), '--x', 'macs', '--out', str(elsewhere / 'a.png')]) == 0
    assert 'left out: one: no macs on val' in capsys.readouterr().err


def test_an_interrupted_run_says_so(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(KINDS, 'gains', interrupt)
    assert main([*COMMANDS['gains'], '--out', str(elsewhere / 'a.png')]) == 130
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
def test_the_script_runs_from_anywhere(elsewhere: Path) -> None:
    command = [sys.executable, str(REPO / 'scripts/plot.py'), *COMMANDS['gains'], '--out', str(elsewhere / 'a.svg')]
    environment = {**script_environment(), 'PYTHONPATH': ''}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f'written: {elsewhere / "a.svg"}\n'
