"""The option files of the teachers under mtkd/pretrained, of a size that a CPU trains in under an hour."""

from option_templates.layout import TO_GROUND_TRUTH, comment, teachers_section, training_file
from option_templates.networks import DCTSWIN, EDSR, RCAN, SWINIR, TITLES

ABOUT = (
    'The {title} teacher x{scale} that ships as mtkd/pretrained/{name}_x{scale}.safetensors, trained from scratch on '
    'the 399 photographs of BSDS500 train + test (302003 left out, the source of Set5 woman) and 90 of T91 (one is too '
    'small).',
)
IMAGES = '399 photographs of BSDS500 (train and test, without 302003) and 90 of T91, for research use'
COMMANDS = """
#   python scripts/prepare_data.py --hr BSDS400 T91 --out datasets/BSDS400_T91 --scale 2 3 4 --min-side 96 \\
#       --sub-image 0 --compression-level 0
#   python basicsr/train.py -opt options/pretrained/train_{name}_x{scale}.yml
#   python scripts/export.py {name}_x{scale}=options/pretrained/train_{name}_x{scale}.yml --format safetensors \\
#       --half --set datasets/Set5 datasets/Set14 --license Apache-2.0 --out mtkd/pretrained \\
#       --about-data '{images}'"""
NETWORKS = {
    'edsr': EDSR.format(64, 12, 4, 1),
    'rcan': RCAN.format(48, 4, 5, 8, 4),
    'swinir': SWINIR.format(4, 24, '[4, 4, 4]', 64, '[4, 4, 4]', 'pixelshuffledirect'),
}
ITERATIONS = {'edsr': 9000, 'rcan': 8000, 'swinir': 6000}
HALVED = '    type: MultiStepLR\n    milestones: ~\n    gamma: 0.5\n'
COSINE = '    type: CosineAnnealingRestartLR\n    periods: [{}]\n    restart_weights: [1]\n    eta_min: 0.000001\n'


ABOUT_AGGREGATOR = (
    'The aggregator x{scale} of the teachers under mtkd/pretrained that ships beside them as '
    'aggregator_x{scale}.safetensors, trained on the same photographs from a cache of what the teachers make of them. '
    'One of the published size has three times its parameters.',
)
AGGREGATOR_COMMANDS = """
#   python scripts/cache_teachers.py -opt options/pretrained/train_aggregator_x{scale}.yml
#   python basicsr/train.py -opt options/pretrained/train_aggregator_x{scale}.yml
#   python scripts/export.py aggregator_x{scale}=options/pretrained/train_aggregator_x{scale}.yml \\
#       --format safetensors --half --set datasets/Set5 datasets/Set14 --license Apache-2.0 --out mtkd/pretrained \\
#       --about-data '{images}'"""
AGGREGATOR = DCTSWIN.format(4, 48, '[2, 2]', '[4, 4]')
AGGREGATOR_ITERATIONS = 3000
WEIGHTS = 'mtkd/pretrained/{}_x4.safetensors'
RESIDENT = '    resident: host  # decoded once\n'
CACHE = '    dataroot_cache: datasets/BSDS400_T91/LRbicx4_cache_{}\n'


def shipped_teachers() -> dict[str, str]:
    """File name -> text of the option files of the three teachers and their aggregator."""
    files = {}
    for name, network in NETWORKS.items():
        commands = COMMANDS.format(name=name, scale=4, images=IMAGES)
        header = comment(ABOUT, title=TITLES[name], name=name, scale=4) + commands
        files[f'pretrained/train_{name}_x4.yml'] = _file(
            header, name, 'MultiTeacherSRModel', '', network, ITERATIONS[name], lr=0.001, dataset='PairedCropDataset',
            cache=RESIDENT,
        )  # fmt: skip
    teachers = teachers_section({name: (network, WEIGHTS.format(name)) for name, network in NETWORKS.items()}, 'auto')
    order = f'\naggregator:\n  inputs: [{", ".join(NETWORKS)}]\n'
    commands = AGGREGATOR_COMMANDS.format(scale=4, images=IMAGES)
    files['pretrained/train_aggregator_x4.yml'] = _file(
        comment(ABOUT_AGGREGATOR, scale=4) + commands, 'aggregator', 'AggregationModel',
        teachers + order, AGGREGATOR, AGGREGATOR_ITERATIONS, lr=0.0005, dataset='CachedTeacherDataset',
        cache=CACHE.format('_'.join(NETWORKS)) + RESIDENT,
    )  # fmt: skip
    return files


def _file(header: str, name: str, model: str, teachers: str, network: str, iterations: int, **settings: object) -> str:
    text = training_file(
        header, f'pretrained_{name}_x4', model, 4, teachers, network, TO_GROUND_TRUTH.substitute(weight=1.0),
        data='BSDS400_T91', gt_size=96, workers=0, enlarge=50, iterations=iterations, milestones='~', val_freq=1000,
        save_freq=1000, tensorboard='false', **settings,
    )  # fmt: skip
    text = text.replace(HALVED, COSINE.format(iterations)).replace('warmup_iter: -1  # none', 'warmup_iter: 200')
    return text.replace(
        'train:\n  ema_decay',
        'train:\n  amp: auto  # bf16 where the hardware has it; weights and losses stay float32\n  ema_decay',
    )
