"""The option files of MTKD itself: the aggregator, its students and their tests."""

from option_templates.layout import (
    TO_GROUND_TRUTH,
    aggregator_section,
    gt_size,
    gt_size_note,
    published_teachers,
    testing_file,
    trained,
    training_file,
)
from option_templates.networks import STUDENT_NETWORKS, STUDENTS, TEACHERS, TITLES, published_aggregator

MTKD_TERM = """
  distill:
    wavelet:  # student against the aggregated target
      type: OutputDistiller
      teacher: target
      loss:
        type: WaveletLoss
        wave: haar
        level: 1
      loss_weight: 1.0
"""

PRECISION = 'auto  # bf16 where the hardware has it, see docs/performance.md'

STAGE_1 = """\
# MTKD (Jiang et al., ECCV 2024), stage 1: the aggregator learns to merge three frozen teachers, x{scale}.
# Paper: L1 to the ground truth, Adam 2e-4, patches of 256, batch 16, 500k iterations, halved at 250/400/450/475k,
# EMA 0.999. Departures: the residual, the orthonormal DCT and no shift mask (see mtkd_arch/dctswin_arch.py;
# `variant: released` brings the authors' network back)."""
STAGE_2 = """\
# MTKD (Jiang et al., ECCV 2024), stage 2: {student} student x{scale} from three teachers and their aggregator.
# Paper: 0.1 L1 to the ground truth + Haar wavelet loss (1 level) to the target, patches of 128, batch 16, 500k.
# Departures: {gt_size_note}the student starts from scratch at 1e-4, where the released option fine-tunes a trained
# student at 2e-5 (then set path.pretrain_network_g and lr: 0.00002)."""

FROM_CACHE = """
#
# From a cache of what the teachers make of the training set, so that a step costs what one from scratch does:
#   python scripts/prepare_data.py --hr DIV2K_train_HR --out datasets/DIV2K --scale 2 3 4 --sub-image 0 \\
#       --compression-level 0
#   python scripts/cache_teachers.py -opt options/cached/{file}
# The target takes 13 GB for DIV2K, each teacher as much. {after}"""
CACHE_KEYS = """\
    dataroot_cache: datasets/DIV2K/{folder}
    resident: ~  # `device` decodes everything once into the GPU's memory, `host` into the computer's
"""


def two_stages(scale: int) -> dict[str, str]:
    """File name -> text of the aggregator, the students and their tests at one scale."""
    aggregator = f'MTKD_aggregator_x{scale}'
    order = f'\naggregator:\n  inputs: [{", ".join(TEACHERS)}]  # the channels; stored in the checkpoint\n'
    merged = published_teachers(scale, precision=PRECISION) + order

    def stage_1(header: str, name: str, **settings: object) -> str:
        return training_file(
            header, name, 'AggregationModel', scale, merged, published_aggregator(scale),
            TO_GROUND_TRUTH.substitute(weight=1.0), lr=0.0002, gt_size=gt_size(scale) * 2, **settings,
        )  # fmt: skip

    file, header = f'train_mtkd_aggregator_x{scale}.yml', STAGE_1.format(scale=scale)
    from_cache = header + FROM_CACHE.format(file=file, after='Stage 2 finds this aggregator under the same name.')
    files = {
        file: stage_1(header, aggregator),
        f'cached/{file}': stage_1(from_cache, aggregator, **cache_of(scale, TEACHERS)),
        f'test/test_mtkd_aggregator_x{scale}.yml': testing_file(
            'the aggregated target, the teacher of stage 2', f'test_{aggregator}', 'AggregationModel', scale, merged,
            published_aggregator(scale), trained(aggregator),
        ),
    }  # fmt: skip
    section = aggregator_section(published_aggregator(scale), trained(aggregator), TEACHERS, PRECISION)
    for student in STUDENTS:
        files |= _student(student, scale, published_teachers(scale, precision=PRECISION) + section)
    return files


def cache_of(scale: int, stores: tuple[str, ...]) -> dict[str, object]:
    """Settings of a training set with a teacher cache, under the name cache_teachers.py gives it."""
    of = ['of', *TEACHERS] if 'target' in stores else []
    folder = '_'.join([f'LRbicx{scale}', 'cache', *stores, *of])
    return {
        'dataset': 'CachedTeacherDataset', 'cache': CACHE_KEYS.format(folder=folder), 'data': 'DIV2K',
        'enlarge': 100, 'workers': 1,
    }  # fmt: skip


def _student(student: str, scale: int, teachers: str) -> dict[str, str]:
    name, network = f'MTKD_{student}_x{scale}', STUDENT_NETWORKS[student](scale)
    infix = '' if student == 'edsr' else f'{student}_'
    header = STAGE_2.format(student=TITLES[student], scale=scale, gt_size_note=gt_size_note(scale))
    losses = TO_GROUND_TRUTH.substitute(weight=0.1) + MTKD_TERM

    def stage_2(header: str, name: str, **settings: object) -> str:
        return training_file(header, name, 'MultiTeacherSRModel', scale, teachers, network, losses, **settings)

    file = f'train_mtkd_{infix}x{scale}.yml'
    from_cache = header + FROM_CACHE.format(file=file, after='It wants the aggregator of stage 1, however trained.')
    return {
        file: stage_2(header, name),
        f'cached/{file}': stage_2(from_cache, name, **cache_of(scale, ('target',))),
        f'test/test_mtkd_{infix}x{scale}.yml': testing_file(
            f'the {TITLES[student]} student of MTKD', f'test_{name}', 'MultiTeacherSRModel', scale, '', network,
            trained(name),
        ),
    }  # fmt: skip
