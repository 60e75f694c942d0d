"""The quickstart's option files: a student taught by the networks that ship, and the same student without them."""

from typing import Literal

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
    trained,
)
from option_templates.networks import DCTSWIN, EDSR
from option_templates.shipped_teachers import NETWORKS
from option_templates.two_stages import MTKD_TERM, PRECISION

# what merges the teachers: the network that ships, one that the quickstart trains first, or their mean
AGGREGATOR: Literal['shipped', 'trained', 'mean'] = 'trained'

QUICK_HEADER = '# Quickstart, x4: {what}. Sizes and lengths are those of a demonstration on two CPU cores.'
QUICK_CACHE = """
#
# From a cache of what the teachers make of the photographs, so that a step costs what one from scratch does:
#   python scripts/cache_teachers.py -opt options/quickstart/train_{name}.yml"""

QUICKSTART_VAL = """\
  val:
    name: photos
    type: PairedImageDataset
    dataroot_gt: datasets/quickstart/val/GT
    dataroot_lq: datasets/quickstart/val/LRbicx4
    io_backend:
      type: disk
"""

SHIPPED = 'mtkd/pretrained/{}_x4.safetensors'
RESIDENT = '    resident: host  # decoded once\n'
CACHED = '    dataroot_cache: datasets/quickstart/train/LRbicx4_cache_{}\n'
QUICK_AGGREGATOR = DCTSWIN.format(4, 24, '[2, 2]', '[4, 4]')
QUICK_STUDENT = EDSR.format(16, 4, 4, 1)
QUICK_ITERATIONS = {'aggregator': 250, 'student': 3000}


def quick_file(
    what: str, name: str, model: str, teachers: str, network: str, losses: str, iterations: int, cache: str = ''
) -> str:
    """A quickstart option file; ``cache`` is what the teacher cache it trains from holds."""
    header = QUICK_HEADER.format(what=what) + (QUICK_CACHE.format(name=name) if cache else '')
    kind = 'CachedTeacherDataset' if cache else 'PairedCropDataset'
    train_set = {
        **PLAIN_SET, 'dataset': kind, 'cache': (CACHED.format(cache) if cache else '') + RESIDENT,
        'data': 'quickstart/train', 'scale': 4, 'gt_size': 96, 'workers': 0, 'batch': 8, 'enlarge': 400,
    }  # fmt: skip
    halved = [round(iterations * part) for part in (0.5, 0.75, 0.9)]
    schedule = {
        'ema': 0.99, 'lr': 0.001, 'milestones': halved, 'iterations': iterations, 'val_freq': max(iterations // 5, 1),
        'print_freq': max(iterations // 50, 1), 'save_freq': iterations, 'tensorboard': 'false',
    }  # fmt: skip
    rest = TRAIN.substitute({**schedule, 'losses': losses, 'metrics': METRICS.substitute(scale=4)})
    return FILE.substitute(
        header=header, name=f'quickstart_{name}', model=model, scale=4, seed=0,
        datasets=TRAIN_SET.substitute(train_set) + '\n' + QUICKSTART_VAL, teachers=teachers,
        network=network_section(network), rest=rest,
    )  # fmt: skip


def quickstart() -> dict[str, str]:
    """File name -> text of the quickstart's option files, in the order in which they run."""
    plain, names = TO_GROUND_TRUTH.substitute(weight=1.0), '_'.join(NETWORKS)
    teachers = teachers_section({name: (net, SHIPPED.format(name)) for name, net in NETWORKS.items()}, PRECISION)
    files = {}
    if AGGREGATOR == 'trained':
        order = f'\naggregator:\n  inputs: [{", ".join(NETWORKS)}]\n'
        files['quickstart/train_aggregator.yml'] = quick_file(
            'stage 1, the aggregator', 'aggregator', 'AggregationModel', teachers + order, QUICK_AGGREGATOR, plain,
            QUICK_ITERATIONS['aggregator'], names,
        )  # fmt: skip
    files['quickstart/train_mtkd.yml'] = quick_file(
        'stage 2, the student', 'mtkd', 'MultiTeacherSRModel', teachers + _aggregator(), QUICK_STUDENT,
        TO_GROUND_TRUTH.substitute(weight=0.1) + MTKD_TERM, QUICK_ITERATIONS['student'], f'target_of_{names}',
    )  # fmt: skip
    files['quickstart/train_scratch.yml'] = quick_file(
        'the control: the same student and steps without teachers', 'scratch', 'MultiTeacherSRModel', '', QUICK_STUDENT,
        plain, QUICK_ITERATIONS['student'],
    )  # fmt: skip
    return files


def _aggregator() -> str:
    """The ``aggregator:`` section of stage 2."""
    if AGGREGATOR == 'mean':
        return ''
    path = SHIPPED.format('aggregator') if AGGREGATOR == 'shipped' else trained('quickstart_aggregator')
    section = aggregator_section(QUICK_AGGREGATOR, path, tuple(NETWORKS), PRECISION)
    return section.replace('  param_key: params_ema\n', '') if AGGREGATOR == 'shipped' else section
