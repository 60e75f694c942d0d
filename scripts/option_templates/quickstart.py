"""The quickstart's option files, at the sizes a CPU trains in minutes."""

from option_templates.layout import (
    FILE,
    METRICS,
    PLAIN_SET,
    TO_GROUND_TRUTH,
    TRAIN,
    TRAIN_SET,
    aggregator_section,
    network_section,
    teachers_section,
)
from option_templates.networks import DCTSWIN, EDSR, RCAN, SWINIR
from option_templates.two_stages import MTKD_TERM

QUICK_HEADER = '# Quickstart, x4: {what}. Sizes and lengths are those of a demonstration on two CPU cores.'

QUICKSTART_VAL = """\
  val:
    name: photos
    type: PairedImageDataset
    dataroot_gt: datasets/quickstart/val/GT
    dataroot_lq: datasets/quickstart/val/LRbicx4
    io_backend:
      type: disk
"""

QUICK_TEACHERS = {
    'edsr': EDSR.format(32, 6, 4, 1),
    'rcan': RCAN.format(24, 3, 3, 8, 4),
    'swinir': SWINIR.format(4, 16, '[2, 2, 2]', 36, '[4, 4, 4]', 'pixelshuffledirect'),
}
QUICK_AGGREGATOR = DCTSWIN.format(4, 24, '[2, 2]', '[4, 4]')
QUICK_STUDENT = EDSR.format(16, 4, 4, 1)
QUICK_ITERATIONS = {'edsr': 1200, 'rcan': 1100, 'swinir': 750, 'aggregator': 300, 'student': 900}


def quick_file(what: str, name: str, model: str, teachers: str, network: str, losses: str, iterations: int) -> str:
    """A quickstart option file."""
    train_set = {'data': 'quickstart/train', 'scale': 4, 'gt_size': 96, 'workers': 1, 'batch': 8, 'enlarge': 100}
    halved = [round(iterations * part) for part in (0.5, 0.75, 0.9)]
    schedule = {
        'ema': 0.99, 'lr': 0.001, 'milestones': halved, 'iterations': iterations, 'val_freq': max(iterations // 5, 1),
        'print_freq': max(iterations // 50, 1), 'save_freq': iterations, 'tensorboard': 'false',
    }  # fmt: skip
    rest = TRAIN.substitute({**schedule, 'losses': losses, 'metrics': METRICS.substitute(scale=4)})
    return FILE.substitute(
        header=QUICK_HEADER.format(what=what), name=f'quickstart_{name}', model=model, scale=4, seed=0,
        datasets=TRAIN_SET.substitute(PLAIN_SET, **train_set) + '\n' + QUICKSTART_VAL, teachers=teachers,
        network=network_section(network), rest=rest,
    )  # fmt: skip


def quickstart() -> dict[str, str]:
    """File name -> text of the quickstart's option files, in the order in which they run."""
    weights = 'experiments/quickstart_{}/models/net_g_latest.pth'
    plain = TO_GROUND_TRUTH.substitute(weight=1.0)
    files = {}
    for name, network in QUICK_TEACHERS.items():
        files[f'quickstart/train_teacher_{name}.yml'] = quick_file(
            f'the {name} teacher', f'teacher_{name}', 'MultiTeacherSRModel', '', network, plain, QUICK_ITERATIONS[name]
        )
    teachers = teachers_section({n: (net, weights.format(f'teacher_{n}')) for n, net in QUICK_TEACHERS.items()})
    order = f'\naggregator:\n  inputs: [{", ".join(QUICK_TEACHERS)}]\n'
    files['quickstart/train_aggregator.yml'] = quick_file(
        'stage 1, the aggregator', 'aggregator', 'AggregationModel', teachers + order, QUICK_AGGREGATOR, plain,
        QUICK_ITERATIONS['aggregator'],
    )  # fmt: skip
    aggregator = aggregator_section(QUICK_AGGREGATOR, weights.format('aggregator'), tuple(QUICK_TEACHERS))
    files['quickstart/train_mtkd.yml'] = quick_file(
        'stage 2, the student', 'mtkd', 'MultiTeacherSRModel', teachers + aggregator, QUICK_STUDENT,
        TO_GROUND_TRUTH.substitute(weight=0.1) + MTKD_TERM, QUICK_ITERATIONS['student'],
    )  # fmt: skip
    files['quickstart/train_scratch.yml'] = quick_file(
        'the control: the same student and steps without teachers', 'scratch', 'MultiTeacherSRModel', '', QUICK_STUDENT,
        plain, QUICK_ITERATIONS['student'],
    )  # fmt: skip
    return files
