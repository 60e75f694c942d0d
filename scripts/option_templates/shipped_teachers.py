"""The option files of the teachers under mtkd/pretrained, of a size that a CPU trains in under an hour."""

from option_templates.layout import TO_GROUND_TRUTH, comment, training_file
from option_templates.networks import EDSR, RCAN, SWINIR, TITLES

ABOUT = (
    'The {title} teacher x{scale} that ships as mtkd/pretrained/{name}_x{scale}.safetensors, trained from scratch on '
    'the 399 photographs of BSDS500 train + test (302003 left out, the source of Set5 woman) and 90 of T91 (one is too '
    'small).',
)
COMMANDS = """
#   python scripts/prepare_data.py --hr BSDS400 T91 --out datasets/BSDS400_T91 --scale 2 3 4 --min-side 96 \\
#       --sub-image 0 --compression-level 0
#   python basicsr/train.py -opt options/pretrained/train_{name}_x{scale}.yml
#   python scripts/export.py {name}_x{scale}=options/pretrained/train_{name}_x{scale}.yml --format safetensors \\
#       --half --set datasets/Set5 datasets/Set14 --license Apache-2.0 --out mtkd/pretrained"""
NETWORKS = {
    'edsr': EDSR.format(64, 12, 4, 1),
    'rcan': RCAN.format(48, 4, 5, 8, 4),
    'swinir': SWINIR.format(4, 24, '[4, 4, 4]', 64, '[4, 4, 4]', 'pixelshuffledirect'),
}
ITERATIONS = {'edsr': 9000, 'rcan': 8000, 'swinir': 6000}
HALVED = '    type: MultiStepLR\n    milestones: ~\n    gamma: 0.5\n'
COSINE = '    type: CosineAnnealingRestartLR\n    periods: [{}]\n    restart_weights: [1]\n    eta_min: 0.000001\n'


def shipped_teachers() -> dict[str, str]:
    """File name -> text of the three teachers' option files."""
    files = {}
    for name, network in NETWORKS.items():
        iterations = ITERATIONS[name]
        header = comment(ABOUT, title=TITLES[name], name=name, scale=4) + COMMANDS.format(name=name, scale=4)
        text = training_file(
            header, f'pretrained_{name}_x4', 'MultiTeacherSRModel', 4, '', network,
            TO_GROUND_TRUTH.substitute(weight=1.0), data='BSDS400_T91', dataset='PairedCropDataset',
            cache='    resident: host  # decoded once\n', gt_size=96, workers=0, enlarge=50, lr=0.001,
            iterations=iterations, milestones='~', val_freq=1000, save_freq=1000, tensorboard='false',
        )  # fmt: skip
        text = text.replace(HALVED, COSINE.format(iterations)).replace('warmup_iter: -1  # none', 'warmup_iter: 200')
        files[f'pretrained/train_{name}_x4.yml'] = text.replace(
            'train:\n  ema_decay', 'train:\n  amp: bf16  # weights, gradients and losses stay float32\n  ema_decay'
        )
    return files
