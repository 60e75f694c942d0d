"""Each method's terms as an option file has them, with its published setting and every departure in the header.

All weights are for images in [0, 1]; a paper's weight beside losses of images in [0, 255] is divided by 255.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """What the option files of one method say beyond data, networks and schedule.

    ``header`` (paragraphs), ``terms`` (pieces of the ``distill:`` section) and ``below`` (what follows it) may hold
    ``{student}``, the title of the student, ``{scale}``, and ``{teacher}``, the teacher's name.
    """

    title: str
    header: tuple[str, ...]
    terms: tuple[str, ...]
    pixel_weight: float = 1.0
    below: str = ''
    teacher_has_heads: bool = False


KD_TERM = """\
kd:  # student against the teacher's output
  type: OutputDistiller
  teacher: {teacher}
  loss:
    type: L1Loss
  loss_weight: {weight}
"""
KD = KD_TERM.replace('{weight}', '1.0')

METHODS = {
    'kd': Method(
        'KD',
        (
            'KD: {student} student x{scale}: L1 to the ground truth + L1 to the teacher, 1:1.',
        ),
        (KD,),
    ),
    'at': Method(
        'AT',
        (
            'AT, attention transfer (Zagoruyko and Komodakis, ICLR 2017): {student} student x{scale}: L1 to the '
            'ground truth + distance of the attention maps after 1/3, 2/3 and 3/3 of the bodies.',
            'Paper: weight 1000 for classification.',
            'Departures: 1000 / 255 = 3.92 beside an L1 of images in [0, 1]; the taps are ours.',
        ),
        (
            """\
at:  # taps: null takes 1/3, 2/3, 3/3 of both bodies
  type: ATDistiller
  teachers: {teacher}
  taps: ~
  p: 2
  norm: l2
  loss_weight: 3.92
""",
        ),
    ),
    'fakd': Method(
        'FAKD',
        (
            'FAKD (He et al., ICIP 2020): {student} student x{scale}: 0.5 L1 to the ground truth + 0.5 L1 to '
            'the teacher + L1 of the feature affinities after 1/3, 2/3 and 3/3 of the bodies.',
            'Paper: weight 10 for images in [0, 255], here 10 / 255 = 0.0392.',
            'Departure: its last tap of RCAN includes the long skip.',
        ),
        (
            KD_TERM.replace('{weight}', '0.5'),
            """\
fakd:  # taps: null takes 1/3, 2/3, 3/3 of both bodies
  type: FAKDDistiller
  teachers: {teacher}
  taps: ~
  loss_weight: 0.0392
""",
        ),
        pixel_weight=0.5,
    ),
    'dukd': Method(
        'DUKD',
        (
            'DUKD (Zhang et al., 2023, arXiv 2309.14162; AugKD at ICLR 2025): {student} student x{scale}: L1 to '
            'the ground truth + L1 to the teacher + zoom-in and zoom-out terms, all of weight 1.',
            'Departure: inverse augmentations are undone in reverse order, which the released code does not.',
        ),
        (
            KD,
            """\
dukd:
  type: DUKDDistiller
  teachers: {teacher}
  zoom_in_weight: 1.0
  zoom_out_weight: 1.0
  augmentations: [invert, hflip, vflip, transpose]
  loss_weight: 1.0
""",
        ),
    ),
    'crosskd': Method(
        'CrossKD',
        (
            'CrossKD (Dual Cross Knowledge Distillation for image super-resolution): {student} student '
            "x{scale}: L1 to the ground truth + L1 between the teacher's output and what the rest of the "
            "teacher makes of the student's features.",
            'Departures: known to us by its abstract; formula, taps and weight 1 are ours.',
        ),
        (
            """\
crosskd:  # taps: null takes 1/3, 2/3, 3/3 of both bodies
  type: CrossKDDistiller
  teachers: {teacher}
  taps: ~
  loss_weight: 1.0
""",
        ),
    ),
    'mkd': Method(
        'MKD',
        (
            'MKD (Zhu, Liu, Chen 2022, arXiv 2207.08356): {student} student x{scale}: L1 to the ground truth + '
            'distance of features that meta-learned networks represent.',
            'Departures: known to us by its abstract; the networks, the loss and every number below are ours. '
            '`order: exact` takes second derivatives: `first` or `every: 10` cost less.',
        ),
        (
            """\
mkd:  # taps: null takes 1/3, 2/3, 3/3 of both bodies
  type: MKDDistiller
  teachers: {teacher}
  taps: ~
  kernels: 4
  kernel_size: 3
  width: 32
  inner_lr: 0.001
  lr: 0.0001
  every: 1
  order: exact
  loss_weight: 0.01
""",
        ),
    ),
    'hkdsr': Method(
        'HKDSR',
        (
            'HKDSR (Neurocomputing 554:126592, 2023), second stage: {student} student x{scale}: L1 to the '
            "ground truth + intermediate images against the teacher's, in the image and in their frequencies. "
            "Train the teacher's heads first: train_{teacher}_x{scale}_hkdsr_teacher.yml.",
            'Departures: known to us by its abstract; formulas, places of the heads and all weights are ours.',
        ),
        (
            """\
hkdsr:  # student_taps: null takes 1/3, 2/3, 3/3 of the body
  type: HKDSRDistiller
  teachers: {teacher}
  student_taps: ~
  acf_weight: 1.0
  fsm_weight: 0.01  # at 1 it outweighs the others
  heads_weight: 1.0
  fusion_weight: 0  # T and G in equal parts; trained on G alone the fusion soon forgets T (docs/methods.md)
  loss_weight: 1.0
""",
        ),
        teacher_has_heads=True,
    ),
    'csd': Method(
        'CSD',
        (
            'CSD (Wang et al., IJCAI 2021): {student} student x{scale}: L1 to the ground truth + contrastive '
            "loss in VGG19's features.",
            'Paper: weight 200 for images in [0, 255], here 200 / 255 = 0.784; 10 negatives.',
            'Departures: the student is no slice of its teacher (see init_from_teacher below); a sample is '
            'never its own negative, where the released code lets it be.',
        ),
        (
            """\
csd:
  type: CSDDistiller
  teachers: {teacher}
  encoder:
    weights: experiments/pretrained_models/vgg19-dcbb9e9d.pth
  negatives: 10
  loss_weight: 0.784
""",
        ),
        below="""\

# The paper's student starts as a slice of its teacher's weights, from which much of the gain comes:
# init_from_teacher:
#   teacher: {teacher}
""",
    ),
    'mipkd': Method(
        'MiPKD',
        (
            'MiPKD (ICLR 2025): {student} student x{scale}: L1 to the ground truth + L1 to the teacher + mixed '
            'features (weight 1) and mixed blocks (weight 0.1).',
            'Departures: known to us by a summary; what goes beyond these weights is ours (see '
            'mipkd_distiller.py).',
        ),
        (
            KD,
            """\
mipkd:  # taps: null takes 1/3, 2/3, 3/3 of both bodies
  type: MiPKDDistiller
  teachers: {teacher}
  taps: ~
  width: 64
  mask_ratio: 0.5
  route_ratio: 0.5
  feature_weight: 1.0
  block_weight: 0.1
  loss_weight: 1.0
""",
        ),
    ),
}  # fmt: skip
