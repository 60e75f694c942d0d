"""The quickstart's option files: a student taught by the networks that ship, and the same student without them."""

from option_templates.layout import (
    FILE,
    METRICS,
    PLAIN_SET,
    TO_GROUND_TRUTH,
    TRAIN,
    TRAIN_SET,
    network_section,
)
from option_templates.networks import EDSR
from option_templates.shipped_teachers import NETWORKS, WEIGHTS
from option_templates.two_stages import MTKD_TERM

QUICK_HEADER = '# Quickstart, x4: {what}. Sizes and lengths are those of a demonstration on two CPU cores.'
QUICK_CACHE = """
#
# From a cache of what the teachers make of the photographs, so that a step costs what one from scratch does:
#   python scripts/cache_teachers.py -opt options/quickstart/train_mtkd.yml"""

QUICKSTART_VAL = """\
  val:
    name: photos
    type: PairedImageDataset
    dataroot_gt: datasets/quickstart/val/GT
    dataroot_lq: datasets/quickstart/val/LRbicx4
    io_backend:
      type: disk
"""

TEACHERS = """\
teachers:  # networks that ship; each file names its network
  {}

aggregator:
  path: {}
  inputs: [{}]  # the order it was trained with
"""
RESIDENT = '    resident: host  # decoded once\n'
CACHED = '    dataroot_cache: datasets/quickstart/train/LRbicx4_cache_{}\n'
QUICK_STUDENT = EDSR.format(16, 4, 4, 1)
QUICK_ITERATIONS = 3000


def quickstart() -> dict[str, str]:
    """File name -> text of the quickstart's option files, in the order in which they run."""
    plain = TO_GROUND_TRUTH.substitute(weight=1.0)
    listed = '\n  '.join(f'{name}: {{path: {WEIGHTS.format(name)}}}' for name in NETWORKS)
    teachers = TEACHERS.format(listed, WEIGHTS.format('aggregator'), ', '.join(NETWORKS))
    return {
        'quickstart/train_mtkd.yml': _file(
            'a student taught by three networks that ship', 'mtkd', teachers,
            TO_GROUND_TRUTH.substitute(weight=0.1) + MTKD_TERM, f'target_of_{"_".join(NETWORKS)}',
        ),
        'quickstart/train_scratch.yml': _file('the control: the same student and steps alone', 'scratch', '', plain),
    }  # fmt: skip


def _file(what: str, name: str, teachers: str, losses: str, cache: str = '') -> str:
    """A quickstart option file; ``cache`` is what the teacher cache it trains from holds."""
    train_set = {
        **PLAIN_SET, 'dataset': 'CachedTeacherDataset' if cache else 'PairedCropDataset',
        'cache': (CACHED.format(cache) if cache else '') + RESIDENT,
        'data': 'quickstart/train', 'scale': 4, 'gt_size': 96, 'workers': 0, 'batch': 8, 'enlarge': 400,
    }  # fmt: skip
    schedule = {
        'ema': 0.99, 'lr': 0.001, 'milestones': [round(QUICK_ITERATIONS * part) for part in (0.5, 0.75, 0.9)],
        'iterations': QUICK_ITERATIONS, 'val_freq': QUICK_ITERATIONS // 5, 'print_freq': QUICK_ITERATIONS // 50,
        'save_freq': QUICK_ITERATIONS, 'tensorboard': 'false',
    }  # fmt: skip
    return FILE.substitute(
        header=QUICK_HEADER.format(what=what) + (QUICK_CACHE if cache else ''), name=f'quickstart_{name}',
        model='MultiTeacherSRModel', scale=4, seed=0, datasets=TRAIN_SET.substitute(train_set) + '\n' + QUICKSTART_VAL,
        teachers=teachers, network=network_section(QUICK_STUDENT),
        rest=TRAIN.substitute({**schedule, 'losses': losses, 'metrics': METRICS.substitute(scale=4)}),
    )  # fmt: skip
