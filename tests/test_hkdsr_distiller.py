"""HKDSR: heads and their first stage, the similarity of frequencies, and the four losses."""

import copy
import dataclasses
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from conftest import REPO, build_arch, scratch, small_network
from distilling import built_step, ensemble, image_batch, reached, student_of
from torch import nn

from mtkd_arch.hierarchical_arch import HierarchicalSR, image_of, strip_heads, upsampled
from mtkd_arch.weights import read_weights
from mtkd_loss.frequency_similarity_loss import FrequencySimilarity, band_similarity
from mtkd_model.distiller_bank import DistillerBank, trainable
from mtkd_model.distillers.hkdsr_distiller import AdaptiveFusion, HKDSRDistiller
from mtkd_model.hierarchical_model import HierarchicalModel

DEEP = {
    'edsr': {'num_feat': 12, 'num_block': 4},
    'rcan': {'num_group': 3},
    'swinir': {'embed_dim': 16, 'depths': [1, 1, 1], 'num_heads': [2, 2, 2]},
}
BODILESS = {
    'type': 'ECBSR',
    'num_in_ch': 3,
    'num_out_ch': 3,
    'num_block': 1,
    'num_channel': 4,
    'with_idt': False,
    'act_type': 'relu',
    'scale': 4,
}
PARTS = ('heads', 'acf', 'fsm', 'fusion')


def hierarchical(name: str, **changes: Any) -> dict[str, Any]:
    return {'type': 'HierarchicalSR', 'upscale': 4, 'network': small_network(name, **{**DEEP[name], **changes})}


@pytest.fixture
def lq() -> torch.Tensor:
    return image_batch(2, 3, 8, 16)


def only(part: str, **others: Any) -> HKDSRDistiller:
    return HKDSRDistiller(**{f'{name}_weight': float(name == part) for name in PARTS}, **others)


# the network


@pytest.mark.parametrize('name', DEEP)
def test_the_output_is_that_of_the_network_without_heads(name: str) -> None:
    network = build_arch(hierarchical(name)).eval()
    lq = image_batch(2, 3, 16, 8)
    with torch.no_grad():
        assert torch.equal(network(lq), network.network(lq))
        output, images = network.forward_all(lq)
    assert torch.equal(output, network(lq))
    assert [tuple(image.shape) for image in images] == [(2, 3, 64, 32)] * 3
    network.train()
    assert isinstance(network(lq), torch.Tensor)


@pytest.mark.parametrize('name', DEEP)
@pytest.mark.parametrize('size', [(13, 9), (5, 21)])
def test_any_size_gives_images_of_four_times_the_size(name: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        output, images = build_arch(hierarchical(name)).forward_all(image_batch(1, 3, *size))
    assert {tuple(image.shape) for image in (output, *images)} == {(1, 3, 4 * size[0], 4 * size[1])}


def test_the_images_add_details_from_before_the_long_skip_to_the_upsampled_lq() -> None:
    network = build_arch(hierarchical('edsr'))
    lq = image_batch(1, 3, 8, 8)
    base = F.interpolate(lq, scale_factor=4, mode='bicubic')
    x = network.network.conv_first((lq - network.network.mean) * 255)
    expected = []
    for block, head in zip((0, 2, 3), network.heads, strict=True):  # 4 blocks: 4/3, 8/3, 12/3 rounded
        expected.append(base + F.pixel_shuffle(head[0](network.network.body[: block + 1](x)), 4) / 255)
    for image, own in zip(network.forward_all(lq)[1], expected, strict=True):
        torch.testing.assert_close(image, own)
    assert network.taps == ('body.0', 'body.2', 'body.3')


def test_the_images_of_a_padded_transformer_are_its_tokens_laid_out_by_rows() -> None:
    network = build_arch(hierarchical('swinir'))
    tokens = torch.rand(1, 16 * 24, 16)  # 13 x 20, padded to windows of 8
    laid_out = torch.stack([tokens[:, 24 * row : 24 * row + 24] for row in range(16)], dim=1).permute(0, 3, 1, 2)
    base = torch.rand(1, 3, 4 * 13, 4 * 20)
    expected = base + network.heads[0](laid_out)[..., : 4 * 13, : 4 * 20]
    images = network.intermediate(dict.fromkeys(network.tap_paths, tokens), base)
    torch.testing.assert_close(images[0], expected)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'taps': ['body.9']}, r"'body.9' does not exist: body has no '9': Available: 0, 1, 2, 3"),
        ({'taps': ['upsample']}, r'the map \(1, 12, 32, 32\) is not of the size of the input, 8 x 8'),
        ({'upscale': 2}, 'EDSR turns .* but scale is 2'),
        ({'network': {'type': 'EDSRR'}}, "network.type: unknown type 'EDSRR': did you mean 'EDSR'"),
        ({'network': BODILESS}, r'ECBSR has no default taps .* name the taps in the option'),
    ],
)
def test_a_network_that_cannot_have_these_heads_is_refused(change: dict[str, Any], message: str) -> None:
    option = {**hierarchical('edsr'), **change}
    with pytest.raises(ValueError, match=message):
        build_arch(option)


@pytest.mark.parametrize('name', DEEP)
def test_images_begin_in_the_range_of_images_whatever_the_range_inside(name: str) -> None:
    network = build_arch(hierarchical(name))
    lq = image_batch(2, 3, 8, 8)
    for image in network.forward_all(lq)[1]:
        assert 0.2 < image.mean() < 0.7
        assert image.abs().max() < 5
        assert (image - upsampled(lq, 4)).abs().max() < 5
    head = network.heads[0]
    head[0].weight.data.zero_()
    head[0].bias.data.fill_(network.network.img_range)
    feature, grey = torch.zeros(1, head[0].in_channels, 8, 8), torch.full((1, 3, 32, 32), 0.25)
    torch.testing.assert_close(image_of(head, feature, grey, 1), torch.full((1, 3, 32, 32), 1.25))


def test_the_heads_of_a_frozen_network_learn_alone() -> None:
    network = build_arch({**hierarchical('swinir'), 'frozen': True})
    assert trainable(network) == list(network.heads.parameters())
    assert network.train() is network
    assert network.training
    assert network.heads.training
    assert not any(part.training for part in network.network.modules())  # no stochastic depth
    sum(image.mean() for image in network.forward_all(image_batch(1, 3, 8, 8))[1]).backward()
    assert reached(network) == {name for name, _ in network.named_parameters() if name.startswith('heads.')}
    assert list(network.state_dict()) == list(build_arch(hierarchical('swinir')).state_dict())


# heads come off


def test_stripped_weights_load_into_the_plain_network() -> None:
    network = build_arch(hierarchical('edsr')).eval()
    plain = build_arch(small_network('edsr', **DEEP['edsr'])).eval()
    plain.load_state_dict(strip_heads(network.state_dict()), strict=True)
    lq = image_batch(1, 3, 8, 8)
    assert torch.equal(plain(lq), network(lq))
    with pytest.raises(ValueError, match=r'no weights of a HierarchicalSR .*conv_first'):
        strip_heads(plain.state_dict())


def test_the_script_strips_a_checkpoint_of_both_sets_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = build_arch(hierarchical('edsr'))
    average = {name: value + 1 for name, value in network.state_dict().items()}
    torch.save({'params': network.state_dict(), 'params_ema': average}, tmp_path / 'net_g.pth')
    script = runpy.run_path(str(REPO / 'scripts/strip_heads.py'))
    assert script['main'](['--in', str(tmp_path / 'net_g.pth'), '--out', str(tmp_path / 'new/edsr.pth')]) == 0
    content = torch.load(tmp_path / 'new/edsr.pth', weights_only=True)
    assert set(content) == {'params', 'params_ema'}
    build_arch(small_network('edsr', **DEEP['edsr'])).load_state_dict(content['params_ema'], strict=True)
    assert torch.equal(content['params_ema']['conv_first.bias'], network.network.conv_first.bias + 1)
    assert script['main'](['--in', str(tmp_path / 'new/edsr.pth'), '--out', str(tmp_path / 'twice.pth')]) == 2
    assert 'no weights of a HierarchicalSR' in capsys.readouterr().err
    assert not (tmp_path / 'twice.pth').exists()


# the first stage


@pytest.fixture
def first_stage(options: dict[str, Any]) -> dict[str, Any]:
    scratch(options).update(model_type='HierarchicalModel', network_g=hierarchical('edsr'), is_train=True)
    options['train'].update(heads_weight=0.5)
    options['train']['pixel_opt']['loss_weight'] = 1.0
    return options


def made(options: dict[str, Any]) -> HierarchicalModel:
    return HierarchicalModel({**copy.deepcopy(options), 'dist': False, 'rank': 0, 'world_size': 1})


def test_the_first_stage_trains_network_and_heads_by_the_formula(first_stage: dict[str, Any]) -> None:
    model = made(first_stage)
    lq, gt = image_batch(2, 3, 9, 7), image_batch(2, 3, 36, 28, seed=4)
    with torch.no_grad():
        output, images = model.net_g.forward_all(lq)
    before = copy.deepcopy(model.net_g.state_dict())
    model.feed_data({'lq': lq, 'gt': gt})
    model.optimize_parameters(1)
    log = model.get_current_log()
    assert set(log) == {'l_pix', 'l_heads'}
    assert log['l_pix'] == pytest.approx((output - gt).abs().mean().item(), rel=1e-5)
    expected = 0.5 * sum((image - gt).abs().mean().item() for image in images)
    assert log['l_heads'] == pytest.approx(expected, rel=1e-5)
    assert all(not torch.equal(before[name], value) for name, value in model.net_g.named_parameters())


def test_a_published_teacher_needs_its_heads_trained_only(first_stage: dict[str, Any], tmp_path: Path) -> None:
    plain = build_arch(small_network('edsr', **DEEP['edsr']))
    torch.save({'params': plain.state_dict()}, tmp_path / 'edsr.pth')
    first_stage['path']['pretrain_network_g'] = str(tmp_path / 'edsr.pth')
    model = made(first_stage)
    assert torch.equal(model.net_g.network.conv_first.weight, plain.conv_first.weight)
    assert torch.equal(model.net_g_ema.network.conv_first.weight, plain.conv_first.weight)
    torch.save({'params': model.net_g.state_dict()}, tmp_path / 'edsr.pth')
    assert torch.equal(made(first_stage).net_g.heads[0][0].weight, model.net_g.heads[0][0].weight)


def test_the_first_stage_leaves_a_frozen_network_as_it_was(first_stage: dict[str, Any]) -> None:
    first_stage['network_g']['frozen'] = True
    model = made(first_stage)
    before = copy.deepcopy(model.net_g.state_dict())
    model.feed_data({'lq': image_batch(2, 3, 9, 7), 'gt': image_batch(2, 3, 36, 28, seed=4)})
    model.optimize_parameters(1)
    after = model.net_g.state_dict()
    assert {name for name in after if not torch.equal(before[name], after[name])} == {
        name for name in after if name.startswith('heads.')
    }


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'heads_weight': 0}, 'train.heads_weight should be a number above zero; it is 0'),
        ({'heads_weight': '1'}, "train.heads_weight should be a number above zero; it is '1'"),
        ({'head_weight': 1.0}, "unknown key 'head_weight' in train: did you mean 'heads_weight'"),
        ({'distill': {'kd': {'type': 'OutputDistiller'}}}, 'HierarchicalModel knows no train.distill'),
    ],
)
def test_the_first_stage_refuses_options_that_cannot_be_meant(
    first_stage: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    first_stage['train'].update(change)
    with pytest.raises(ValueError, match=message):
        made(first_stage)


def test_the_first_stage_refuses_a_network_without_heads(first_stage: dict[str, Any]) -> None:
    first_stage['network_g'] = small_network('edsr')
    with pytest.raises(ValueError, match='network_g of type HierarchicalSR; it is EDSR'):
        made(first_stage)


def test_the_second_stage_takes_what_the_first_wrote(
    first_stage: dict[str, Any], train: Callable[..., Path], options: dict[str, Any]
) -> None:
    first_stage['train']['total_iter'] = 2
    del first_stage['is_train']
    path = train(first_stage) / 'models/net_g_latest.pth'
    assert any(name.startswith('heads.') for name in read_weights(path, 'params_ema'))
    second = copy.deepcopy(first_stage)
    second.update(name='second', model_type='MultiTeacherSRModel', network_g=small_network('edsr'))
    second['teachers'] = {'edsr': {'network': hierarchical('edsr'), 'path': str(path)}}
    second['train'].pop('heads_weight')
    second['train']['distill'] = {'hkdsr': {'type': 'HKDSRDistiller'}}
    models = train(second) / 'models'
    build_arch(small_network('edsr')).load_state_dict(read_weights(models / 'net_g_latest.pth', 'params'), strict=True)
    names = set(read_weights(models / 'distill_2.pth', 'params'))
    assert {'terms.hkdsr.heads.2.0.weight', 'terms.hkdsr.fusions.edsr.2.weigh.bias'} <= names


# similarity of frequencies


def bands(image: np.ndarray) -> np.ndarray:
    """The 12 Haar bands of an image (3, H, W), by PyWavelets."""
    rows = []
    for colour in image:
        low, details = pywt.dwt2(colour, 'haar', mode='symmetric')
        rows += [low.ravel(), *(detail.ravel() for detail in details)]
    return np.stack(rows)


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in bands(other)] for a in bands(one)])


@pytest.mark.parametrize('size', [(8, 8), (7, 10), (9, 5)])
def test_the_similarity_is_that_of_pywavelets_and_numpy(size: tuple[int, int]) -> None:
    student, teacher, gt = (image_batch(2, 3, *size, seed=seed) for seed in (1, 2, 3))
    expected = np.mean(
        [
            np.abs(similarity(s, g) - similarity(t, g)).mean()
            for s, t, g in zip(*(image.double().numpy() for image in (student, teacher, gt)), strict=True)
        ]
    )
    assert FrequencySimilarity()(student, teacher, gt).item() == pytest.approx(expected, rel=1e-4)  # float32


def test_the_similarity_of_two_bands_is_their_cosine() -> None:
    one = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    other = torch.tensor([[[0.0, 2.0], [5.0, 0.0]]])
    torch.testing.assert_close(band_similarity(one, other), torch.tensor([[[0.8, 0.6], [0.0, 1.0]]]))


def test_equal_images_are_equally_similar_and_brightness_does_not_count() -> None:
    image, gt = image_batch(1, 3, 8, 8), image_batch(1, 3, 8, 8, seed=2)
    assert FrequencySimilarity()(image, image, gt).item() == 0
    assert FrequencySimilarity()(image, 0.5 * image, gt).item() < 1e-6  # a cosine does not see length; float32


def test_the_gradient_of_the_similarity_is_right_and_finite_on_flat_images() -> None:
    loss = FrequencySimilarity().double()
    images = [image_batch(1, 3, 4, 5, seed=seed).double() for seed in (1, 2, 3)]
    assert torch.autograd.gradcheck(lambda image: loss(image, *images[1:]), images[0].requires_grad_())
    flat = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    FrequencySimilarity()(flat, image_batch(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)).backward()
    assert torch.isfinite(flat.grad).all()


def test_the_similarity_of_images_of_different_size_is_refused() -> None:
    image = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r'differ in size: student \(1, 3, 8, 8\), teacher \(1, 3, 8, 9\), gt'):
        FrequencySimilarity()(image, torch.zeros(1, 3, 8, 9), image)


# the term


def test_the_fusion_begins_as_the_mean_and_weighs_by_a_sigmoid() -> None:
    fusion = AdaptiveFusion()
    teacher, gt = torch.full((1, 3, 1, 1), 0.2), torch.full((1, 3, 1, 1), 0.6)
    torch.testing.assert_close(fusion(teacher, gt), torch.full((1, 3, 1, 1), 0.4))
    nn.init.constant_(fusion.weigh.bias, float(np.log(3)))  # sigmoid: 3/4
    torch.testing.assert_close(fusion(teacher, gt), torch.full((1, 3, 1, 1), 0.3))


def test_the_losses_are_those_of_the_formulas(lq: torch.Tensor) -> None:
    student, teachers = student_of('edsr'), ensemble(one=hierarchical('edsr'), two=hierarchical('rcan'))
    term = HKDSRDistiller({'one': 0.25, 'two': 0.5}, None, 2.0, 3.0, 5.0, 7.0, loss_weight=0.1)
    step = built_step(term, student, teachers, lq)
    pairs = zip(term.heads, term.student_taps, strict=True)
    images = [upsampled(lq, 4) + head(step.student_taps[path]) for head, path in pairs]
    images = [image.detach().double().numpy() for image in images]
    gt = step.gt.double().numpy()
    expected = {'heads': 5 * sum(np.abs(image - gt).mean() for image in images), 'acf': 0, 'fsm': 0, 'fusion': 0}
    for name, weight in (('one', 0.25), ('two', 0.5)):
        with torch.no_grad():
            targets = teachers.networks[name].network.forward_all(lq)[1]
        for image, target in zip(images, (target.double().numpy() for target in targets), strict=True):
            fused = (target + gt) / 2  # the fusion at its start
            relations = [similarity(image[b], gt[b]) - similarity(target[b], gt[b]) for b in range(2)]
            expected['acf'] += weight * 2 * np.abs(image - fused).mean()
            expected['fsm'] += weight * 3 * np.abs(relations).mean()
            expected['fusion'] += weight * 7 * np.abs(fused - gt).mean()
    losses = term(step)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(0.1 * value, rel=1e-4)  # float32 against float64


@pytest.mark.parametrize('part', PARTS)
def test_each_loss_moves_what_it_should(lq: torch.Tensor, part: str) -> None:
    student, teachers = student_of('edsr', num_block=3), ensemble(edsr=hierarchical('edsr'))
    term = only(part)
    step = built_step(term, student, teachers, lq)
    term(step)[part].backward()
    inside = {name for name, _ in student.named_parameters() if name.startswith(('conv_first', 'body'))}
    fusion = {name for name, _ in term.named_parameters() if name.startswith('fusions')}
    heads = {name for name, _ in term.named_parameters() if name.startswith('heads')}
    assert reached(student) == (set() if part == 'fusion' else inside)
    assert reached(term) == (fusion if part == 'fusion' else heads)
    assert reached(teachers) == set()


def test_the_student_never_pulls_the_fusion_towards_itself(lq: torch.Tensor) -> None:
    term = only('acf')
    step = built_step(term, student_of('edsr'), ensemble(edsr=hierarchical('edsr')), lq)
    sum(term(step).values()).backward()
    assert not any('fusions' in name for name in reached(term))


def test_a_student_that_is_its_teacher_loses_nothing_to_it(lq: torch.Tensor) -> None:
    teachers = ensemble(edsr=hierarchical('edsr'))
    teacher = teachers.networks['edsr'].network
    term = HKDSRDistiller(student_taps=teacher.taps)
    step = built_step(term, copy.deepcopy(teacher.network), teachers, lq)
    term.heads.load_state_dict(teacher.heads.state_dict())
    assert term(step)['fsm'].item() == 0
    last = teacher.forward_all(lq)[1][2].detach()  # were it the truth as well, the last tap would lose nothing at all
    alone = HKDSRDistiller(student_taps=teacher.taps[2:])
    alone.teachers, alone.window = {'edsr': 1.0}, 1
    alone.heads, alone.fusions = term.heads[2:], nn.ModuleDict()
    single = copy.deepcopy(teacher)
    single.taps, single.heads = single.taps[2:], single.heads[2:]
    alone.fusions['edsr'] = term.fusions['edsr'][2:]
    losses = alone(dataclasses.replace(step, gt=last, teacher_networks={'edsr': single}))
    assert all(loss.item() < 1e-6 for loss in losses.values())  # float32


@pytest.mark.parametrize('teacher', DEEP)
@pytest.mark.parametrize('student', DEEP)
@pytest.mark.parametrize('size', [(2, 8, 16), (1, 13, 9)])
def test_any_student_learns_from_any_teacher_with_heads(student: str, teacher: str, size: tuple[int, ...]) -> None:
    batch, height, width = size
    network, lq = student_of(student), image_batch(batch, 3, height, width)
    term = HKDSRDistiller()
    step = built_step(term, network, ensemble(teacher=hierarchical(teacher)), lq)
    losses = term(step)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    assert 'conv_first.weight' in reached(network)


def test_bf16_autocast_gives_finite_losses_and_gradients(lq: torch.Tensor) -> None:
    student, term = student_of('edsr'), HKDSRDistiller()
    teachers = ensemble(edsr=hierarchical('edsr'))
    with torch.autocast('cpu', torch.bfloat16):
        losses = term(built_step(term, student, teachers, lq))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


def test_heads_and_fusions_learn_with_the_student_and_are_saved(lq: torch.Tensor) -> None:
    bank = DistillerBank({'hkdsr': {'type': 'HKDSRDistiller'}})
    built_step(bank, student_of('edsr'), ensemble(edsr=hierarchical('edsr')), lq)
    assert len(trainable(bank)) == 2 * 3 + 2 * 3
    assert {'terms.hkdsr.heads.0.0.weight', 'terms.hkdsr.fusions.edsr.2.weigh.weight'} <= set(bank.state_dict())


@pytest.mark.parametrize(
    ('arguments', 'teachers', 'message'),
    [
        ({}, {'edsr': small_network('edsr')}, "teacher 'edsr' .EDSR. has no heads.*model_type: HierarchicalModel"),
        ({'teachers': 'edr'}, {'edsr': hierarchical('edsr')}, "teacher 'edr' is unknown: did you mean 'edsr'"),
        ({'student_taps': ['body.0']}, {'edsr': hierarchical('edsr')}, '1 student taps .* for 3 heads'),
        (
            {},
            {'edsr': hierarchical('edsr'), 'rcan': {**hierarchical('rcan'), 'taps': ['body.0']}},
            "teachers differ in their numbers of heads: {'edsr': 3, 'rcan': 1}",
        ),
        (
            {'student_taps': ['body.0', 'body.1', 'upsample']},
            {'edsr': hierarchical('edsr')},
            r'student tap upsample: the map \(2, 8, 32, 64\) is not of the size of the input, 8 x 16',
        ),
    ],
)
def test_misfits_are_refused_with_a_remedy(
    lq: torch.Tensor, arguments: dict[str, Any], teachers: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        built_step(HKDSRDistiller(**arguments), student_of('edsr'), ensemble(**teachers), lq)


def test_a_network_with_heads_is_a_teacher_like_any_other(lq: torch.Tensor) -> None:
    network = ensemble(edsr=hierarchical('swinir')).bare()['edsr']
    assert isinstance(network, HierarchicalSR)
    assert not network.training
    with torch.no_grad():
        assert torch.equal(network(lq), network(lq))
