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


def two_stages(scale: int) -> dict[str, str]:
    """File name -> text of the aggregator, the students and their tests at one scale."""
    aggregator = f'MTKD_aggregator_x{scale}'
    order = f'\naggregator:\n  inputs: [{", ".join(TEACHERS)}]  # the channels; stored in the checkpoint\n'
    merged = published_teachers(scale) + order
    files = {
        f'train_mtkd_aggregator_x{scale}.yml': training_file(
            STAGE_1.format(scale=scale), aggregator, 'AggregationModel', scale, merged, published_aggregator(scale),
            TO_GROUND_TRUTH.substitute(weight=1.0), lr=0.0002, gt_size=gt_size(scale) * 2,
        ),
        f'test/test_mtkd_aggregator_x{scale}.yml': testing_file(
            'the aggregated target, the teacher of stage 2', f'test_{aggregator}', 'AggregationModel', scale, merged,
            published_aggregator(scale), trained(aggregator),
        ),
    }  # fmt: skip
    section = aggregator_section(published_aggregator(scale), trained(aggregator), TEACHERS)
    for student in STUDENTS:
        files |= _student(student, scale, published_teachers(scale) + section)
    return files


def _student(student: str, scale: int, teachers: str) -> dict[str, str]:
    name, network = f'MTKD_{student}_x{scale}', STUDENT_NETWORKS[student](scale)
    infix = '' if student == 'edsr' else f'{student}_'
    header = STAGE_2.format(student=TITLES[student], scale=scale, gt_size_note=gt_size_note(scale))
    return {
        f'train_mtkd_{infix}x{scale}.yml': training_file(
            header, name, 'MultiTeacherSRModel', scale, teachers, network,
            TO_GROUND_TRUTH.substitute(weight=0.1) + MTKD_TERM,
        ),
        f'test/test_mtkd_{infix}x{scale}.yml': testing_file(
            f'the {TITLES[student]} student of MTKD', f'test_{name}', 'MultiTeacherSRModel', scale, '', network,
            trained(name),
        ),
    }  # fmt: skip
