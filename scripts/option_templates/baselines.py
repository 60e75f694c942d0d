"""The option files of single methods: every method with every student, and what comes before some of them."""

from option_templates.layout import (
    TO_GROUND_TRUTH,
    comment,
    indented,
    published_teachers,
    starting_from,
    teacher_file,
    teachers_section,
    trained,
    training_file,
)
from option_templates.methods import KD_TERM, METHODS, Method
from option_templates.networks import STUDENT_NETWORKS, STUDENTS, TEACHER_NETWORKS, TEACHERS, TITLES

COMPARABLE = 'Data, schedule and student are those of the MTKD option, so that they compare{}.'
ONE_TEACHER = "; one teacher, of the student's own family"
SCRATCH = ('No teacher: {student} student x{scale}: L1 to the ground truth.', COMPARABLE.format(''))
HKDSR_TEACHER = (
    'HKDSR (Neurocomputing 554:126592, 2023), first stage: {student} teacher x{scale} with heads that turn the '
    'features after 1/3, 2/3 and 3/3 of its body into images: L1 of output and heads to the ground truth.',
    'Departures: known to us by its abstract; form and places of the heads are ours. The network starts from published '
    'weights and trains on with its new heads, so this teacher differs a little from that of the other methods; '
    '`frozen: true` in network_g would leave it as published and train the heads alone, in far fewer steps.',
)
MAMBALITE = (
    'MambaLiteSR (Aalishah et al., 2025, arXiv 2502.14090): its student x{scale} with its loss, which is KD of convex '
    'weights: 0.2 L1 to the teacher + 0.8 L1 to the ground truth.',
    'Departures: the teacher is SwinIR, where the paper has a larger network of the same kind; the network is ours '
    'after a second-hand summary (see mtkd_arch/mambalite_arch.py); data and schedule are those of the MTKD option.',
)


def baselines(scale: int) -> dict[str, str]:
    """File name -> text of every baseline at one scale."""
    files = {}
    for student in STUDENTS:
        network = STUDENT_NETWORKS[student](scale)
        files[f'baselines/scratch/train_{student}_x{scale}_scratch.yml'] = training_file(
            comment(SCRATCH, student=TITLES[student], scale=scale), f'scratch_{student}_x{scale}',
            'MultiTeacherSRModel', scale, '', network, TO_GROUND_TRUTH.substitute(weight=1.0),
        )  # fmt: skip
        for name, method in METHODS.items():
            files[f'baselines/{name}/train_{student}_x{scale}_{name}.yml'] = _method_file(method, student, scale)
    for teacher in TEACHERS:
        files[f'baselines/hkdsr/train_{teacher}_x{scale}_hkdsr_teacher.yml'] = _hkdsr_teacher(teacher, scale)
    files[f'baselines/kd/train_mambalite_x{scale}_kd.yml'] = _mambalite(scale)
    return files


def _method_file(method: Method, student: str, scale: int) -> str:
    words = {'student': TITLES[student], 'scale': scale, 'teacher': student}
    header = comment((*method.header, COMPARABLE.format(ONE_TEACHER)), **words)
    teachers = _with_heads(student, scale) if method.teacher_has_heads else published_teachers(scale, (student,))
    terms = [term.format(**words) for term in method.terms]
    return training_file(
        header, f'{method.title}_{student}_x{scale}', 'MultiTeacherSRModel', scale, teachers,
        STUDENT_NETWORKS[student](scale), _losses(method.pixel_weight, *terms, below=method.below.format(**words)),
    )  # fmt: skip


def _losses(pixel_weight: float, *terms: str, below: str = '') -> str:
    """The losses of ``train:``, and what else a method has to say there."""
    section = '\n'.join(indented(term, 4) for term in terms)
    text = f'{TO_GROUND_TRUTH.substitute(weight=pixel_weight)}\n  distill:\n{section}\n'
    return text + (f'{indented(below, 2)}\n' if below else '')


def _heads(teacher: str, scale: int) -> str:
    network = indented(TEACHER_NETWORKS[teacher](scale), 2)
    return f'type: HierarchicalSR\nupscale: {scale}\nnetwork:\n{network}'


def _with_heads(teacher: str, scale: int) -> str:
    section = teachers_section({teacher: (_heads(teacher, scale), trained(f'HKDSR_teacher_{teacher}_x{scale}'))})
    return section + '    param_key: params_ema\n'


def _hkdsr_teacher(teacher: str, scale: int) -> str:
    text = training_file(
        comment(HKDSR_TEACHER, student=TITLES[teacher], scale=scale), f'HKDSR_teacher_{teacher}_x{scale}',
        'HierarchicalModel', scale, '', _heads(teacher, scale),
        TO_GROUND_TRUTH.substitute(weight=1.0) + '  heads_weight: 1.0  # of the L1 of all heads\n',
    )  # fmt: skip
    return starting_from(text, teacher_file(teacher, scale))


def _mambalite(scale: int) -> str:
    return training_file(
        comment(MAMBALITE, scale=scale), f'KD_mambalite_x{scale}', 'MultiTeacherSRModel', scale,
        published_teachers(scale, ('swinir',)), STUDENT_NETWORKS['mambalite'](scale),
        _losses(0.8, KD_TERM.format(teacher='swinir', weight=0.2)),
    )  # fmt: skip
