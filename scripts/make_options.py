"""Writes the option files under options/ from the templates below: ``python scripts/make_options.py [--check]``.

Published settings stand once, here; a test fails when a file and its template differ. The quickstart's files are
written here as well, at the sizes a CPU trains in minutes.
"""

import argparse
import sys
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parents[1] / 'options'
SCALES = (2, 3, 4)
STUDENTS = ('edsr', 'rcan', 'swinir')
TEACHERS = ('edsr', 'rcan', 'swinir')

EDSR = 'type: EDSR\nnum_in_ch: 3\nnum_out_ch: 3\nnum_feat: {}\nnum_block: {}\nupscale: {}\nres_scale: {}\n' + (
    'img_range: 255.\nrgb_mean: [0.4488, 0.4371, 0.4040]'
)
RCAN = 'type: RCAN\nnum_in_ch: 3\nnum_out_ch: 3\nnum_feat: {}\nnum_group: {}\nnum_block: {}\nsqueeze_factor: {}\n' + (
    'upscale: {}\nres_scale: 1\nimg_range: 255.\nrgb_mean: [0.4488, 0.4371, 0.4040]'
)
SWINIR = 'type: SwinIR\nupscale: {}\nin_chans: 3\nimg_size: {}\nwindow_size: 8\nimg_range: 1.\ndepths: {}\n' + (
    "embed_dim: {}\nnum_heads: {}\nmlp_ratio: 2\nupsampler: {}\nresi_connection: '1conv'"
)
DCTSWIN = 'type: DCTSwin\nupscale: {}\nin_chans: 9\nembed_dim: {}\ndepths: {}\nnum_heads: {}\nwindow_size: 8\n' + (
    'mlp_ratio: 2\nupsampler: pixelshuffle'
)

STUDENT_NETWORKS = {  # the students of the paper: 1.5 M, 5.2 M and 0.9 M parameters
    'edsr': lambda s: EDSR.format(64, 16, s, 1),
    'rcan': lambda s: RCAN.format(64, 10, 6, 16, s),
    'swinir': lambda s: SWINIR.format(s, 64, '[6, 6, 6, 6]', 60, '[6, 6, 6, 6]', 'pixelshuffledirect'),
}
TEACHER_NETWORKS = {  # 43.1 M, 15.6 M and 11.9 M
    'edsr': lambda s: EDSR.format(256, 32, s, 0.1),
    'rcan': lambda s: RCAN.format(64, 10, 20, 16, s),
    'swinir': lambda s: SWINIR.format(s, 64, '[6, 6, 6, 6, 6, 6]', 180, '[6, 6, 6, 6, 6, 6]', 'pixelshuffle'),
}
EDSR_FILES = {2: 'be38e77d', 3: '3660f70d', 4: '76ee1c8f'}
TEACHER_FILES = {
    'edsr': lambda s: f'EDSR_Lx{s}_f256b32_DIV2K_official-{EDSR_FILES[s]}.pth',
    'rcan': lambda s: f'RCAN_BIX{s}.pt',
    'swinir': lambda s: f'001_classicalSR_DF2K_s64w8_SwinIR-M_x{s}.pth',
}

FILE = Template("""\
$header
name: $name
model_type: $model
plugin: !!python/name:mtkd.__version__  # registers the networks, losses and models of this file
scale: $scale
num_gpu: auto  # 0 for the CPU
manual_seed: $seed

datasets:
$datasets
$teachers
$network
path:
  pretrain_network_g: ~
  strict_load_g: true
  resume_state: ~
$rest""")

TRAIN_SET = Template("""\
  train:
    name: $data
    type: PairedImageDataset
    dataroot_gt: datasets/$data/GT.lmdb
    dataroot_lq: datasets/$data/LRbicx$scale.lmdb
    io_backend:
      type: lmdb

    gt_size: $gt_size
    use_hflip: true
    use_rot: true

    num_worker_per_gpu: $workers
    batch_size_per_gpu: $batch
    dataset_enlarge_ratio: $enlarge
    prefetch_mode: ~
""")

BENCHMARK_SET = Template("""\
  $phase:
    name: $data
    type: PairedImageDataset
    dataroot_gt: datasets/$data/HR
    dataroot_lq: datasets/$data/LRbicx$scale
    filename_tmpl: '{}x$scale'
    io_backend:
      type: disk
""")

QUICKSTART_VAL = """\
  val:
    name: photos
    type: PairedImageDataset
    dataroot_gt: datasets/quickstart/val/GT
    dataroot_lq: datasets/quickstart/val/LRbicx4
    io_backend:
      type: disk
"""

TRAIN = Template("""
train:
  ema_decay: $ema
  optim_g:
    type: Adam
    lr: $lr
    weight_decay: 0
    betas: [0.9, 0.999]

  scheduler:
    type: MultiStepLR
    milestones: $milestones
    gamma: 0.5

  total_iter: $iterations
  warmup_iter: -1  # none

$losses
val:
  val_freq: $val_freq
  save_img: false

$metrics
logger:
  print_freq: $print_freq
  save_checkpoint_freq: $save_freq
  use_tb_logger: $tensorboard
  wandb:
    project: ~
    resume_id: ~

dist_params:
  backend: nccl
  port: 29500
""")

METRICS = Template("""\
  metrics:
    psnr:
      type: calculate_psnr
      crop_border: $scale
      test_y_channel: true
    ssim:
      type: calculate_ssim
      crop_border: $scale
      test_y_channel: true
""")

TO_GROUND_TRUTH = Template("""\
  pixel_opt:  # student against ground truth
    type: L1Loss
    loss_weight: $weight
    reduction: mean
""")

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

KD_TERM = """
  distill:
    kd:  # student against the teacher's output
      type: OutputDistiller
      teacher: {}
      loss:
        type: L1Loss
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
KD_HEADER = """\
# KD: {student} student x{scale} from one teacher: L1 to the ground truth + L1 to the teacher, 1:1. Data, schedule and
# student as in the MTKD option, so that they compare."""
SCRATCH_HEADER = """\
# No teacher: {student} student x{scale} with L1 to the ground truth. Data, schedule and student as in the MTKD option,
# so that they compare."""
TEST_HEADER = '# Tests {what}, x{scale}: PSNR and SSIM on the Y channel, {scale} pixels cropped.'
QUICK_HEADER = '# Quickstart, x4: {what}. Sizes and lengths are those of a demonstration on two CPU cores.'


def indented(text: str, spaces: int) -> str:
    """Every line of ``text`` shifted right."""
    return '\n'.join(' ' * spaces + line if line else line for line in text.splitlines())


def network_section(options: str) -> str:
    """The ``network_g:`` section."""
    return f'network_g:\n{indented(options, 2)}\n'


def teachers_section(teachers: dict[str, tuple[str, str]]) -> str:
    """The ``teachers:`` section from name -> (network options, weights file)."""
    lines = ['teachers:']
    for name, (network, path) in teachers.items():
        lines += [f'  {name}:', '    network:', indented(network, 6), f'    path: {path}']
    return '\n'.join(lines) + '\n'


def aggregator_section(network: str, path: str, inputs: tuple[str, ...]) -> str:
    """The ``aggregator:`` section of stage 2."""
    order = ', '.join(inputs)
    return (
        f'\naggregator:\n  network:\n{indented(network, 4)}\n'
        f'  inputs: [{order}]  # the order it was trained with, compared with its checkpoint\n'
        f'  path: {path}\n  param_key: params_ema\n'
    )


def published_teachers(scale: int, names: tuple[str, ...] = TEACHERS) -> str:
    """Teachers at published size, under the names of the files their authors give away."""
    folder = 'experiments/pretrained_models'
    return teachers_section({n: (TEACHER_NETWORKS[n](scale), f'{folder}/{TEACHER_FILES[n](scale)}') for n in names})


def published_aggregator(scale: int) -> str:
    """Aggregator options at published size."""
    return DCTSWIN.format(scale, 96, '[4, 4]', '[6, 6]')


def gt_size(scale: int) -> int:
    """The paper's patch of 128, or the nearest size whose LR patch fits the windows of SwinIR at x3."""
    return {2: 128, 3: 144, 4: 128}[scale]


def training_file(
    header: str, name: str, model: str, scale: int, teachers: str, network: str, losses: str, **settings: object
) -> str:
    """A full-scale training option file."""
    train_set = {'data': 'DIV2K_sub', 'scale': scale, 'gt_size': gt_size(scale), 'workers': 6, 'batch': 16}
    schedule = {
        'ema': 0.999, 'lr': 0.0001, 'milestones': '[250000, 400000, 450000, 475000]', 'iterations': 500000,
        'val_freq': 5000, 'print_freq': 100, 'save_freq': 5000, 'tensorboard': 'true',
    }  # fmt: skip
    datasets = TRAIN_SET.substitute({**train_set, 'enlarge': 1, **settings}) + '\n'
    datasets += BENCHMARK_SET.substitute(phase='val', data='Set5', scale=scale)
    train = TRAIN.substitute({**schedule, 'losses': losses, 'metrics': METRICS.substitute(scale=scale), **settings})
    return FILE.substitute(
        header=header, name=name, model=model, scale=scale, seed=0, datasets=datasets, teachers=teachers,
        network=network_section(network), rest=train,
    )  # fmt: skip


def testing_file(what: str, name: str, model: str, scale: int, teachers: str, network: str, weights: str) -> str:
    """A test option file for Set5, Set14, B100 and Urban100."""
    sets = (('test_1', 'Set5'), ('test_2', 'Set14'), ('test_3', 'B100'), ('test_4', 'Urban100'))
    datasets = '\n'.join(BENCHMARK_SET.substitute(phase=phase, data=data, scale=scale) for phase, data in sets)
    rest = '\nval:\n  save_img: true\n  suffix: ~\n\n' + METRICS.substitute(scale=scale)
    text = FILE.substitute(
        header=TEST_HEADER.format(what=what, scale=scale), name=name, model=model, scale=scale, seed=0,
        datasets=datasets, teachers=teachers, network=network_section(network), rest=rest,
    )  # fmt: skip
    text = text.replace('pretrain_network_g: ~', f'pretrain_network_g: {weights}\n  param_key_g: params_ema')
    return text.replace('  resume_state: ~\n', '')


def full_scale(scale: int) -> dict[str, str]:
    """File name -> text of every full-scale option of one scale."""
    files = {}
    weights = 'experiments/{}/models/net_g_latest.pth'
    aggregator_name = f'MTKD_aggregator_x{scale}'
    order = f'\naggregator:\n  inputs: [{", ".join(TEACHERS)}]  # the channels; stored in the checkpoint\n'
    files[f'train_mtkd_aggregator_x{scale}.yml'] = training_file(
        STAGE_1.format(scale=scale), aggregator_name, 'AggregationModel', scale, published_teachers(scale) + order,
        published_aggregator(scale), TO_GROUND_TRUTH.substitute(weight=1.0), lr=0.0002, gt_size=gt_size(scale) * 2,
    )  # fmt: skip
    aggregator = aggregator_section(published_aggregator(scale), weights.format(aggregator_name), TEACHERS)
    note = 'patches of 144, since SwinIR wants LR patches in multiples of 8; ' if scale == 3 else ''
    for student in STUDENTS:
        network = STUDENT_NETWORKS[student](scale)
        words = {'student': student.upper().replace('SWINIR', 'SwinIR'), 'scale': scale, 'gt_size_note': note}
        infix = '' if student == 'edsr' else f'{student}_'
        files[f'train_mtkd_{infix}x{scale}.yml'] = training_file(
            STAGE_2.format(**words), f'MTKD_{student}_x{scale}', 'MultiTeacherSRModel', scale,
            published_teachers(scale) + aggregator, network, TO_GROUND_TRUTH.substitute(weight=0.1) + MTKD_TERM,
        )  # fmt: skip
        files[f'baselines/train_kd_{student}_x{scale}.yml'] = training_file(
            KD_HEADER.format(**words), f'KD_{student}_x{scale}', 'MultiTeacherSRModel', scale,
            published_teachers(scale, (student,)), network,
            TO_GROUND_TRUTH.substitute(weight=1.0) + KD_TERM.format(student),
        )  # fmt: skip
        files[f'baselines/train_scratch_{student}_x{scale}.yml'] = training_file(
            SCRATCH_HEADER.format(**words), f'scratch_{student}_x{scale}', 'MultiTeacherSRModel', scale, '', network,
            TO_GROUND_TRUTH.substitute(weight=1.0),
        )  # fmt: skip
        files[f'test/test_mtkd_{infix}x{scale}.yml'] = testing_file(
            f'the {words["student"]} student of MTKD', f'test_MTKD_{student}_x{scale}', 'MultiTeacherSRModel', scale,
            '', network, weights.format(f'MTKD_{student}_x{scale}'),
        )  # fmt: skip
    files[f'test/test_mtkd_aggregator_x{scale}.yml'] = testing_file(
        'the aggregated target, the teacher of stage 2', f'test_{aggregator_name}', 'AggregationModel', scale,
        published_teachers(scale) + order, published_aggregator(scale), weights.format(aggregator_name),
    )  # fmt: skip
    return files


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
        datasets=TRAIN_SET.substitute(train_set) + '\n' + QUICKSTART_VAL, teachers=teachers,
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


def all_files() -> dict[str, str]:
    """Every option file of the project: name below options/ -> text."""
    files = quickstart()
    for scale in SCALES:
        files |= full_scale(scale)
    return files


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; exit 1 when a file differs')
    args = parser.parse_args(argv)
    files = all_files()
    strays = {str(path.relative_to(ROOT)) for path in ROOT.rglob('*.yml')} - files.keys()
    stale = [name for name, text in files.items() if not (ROOT / name).is_file() or (ROOT / name).read_text() != text]
    if args.check:
        for name in [*stale, *strays]:
            print(f'differs from its template: options/{name}', file=sys.stderr)
        return 1 if stale or strays else 0
    for name in stale:
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(files[name])
    for name in strays:
        print(f'no template makes options/{name}; delete it?', file=sys.stderr)
    print(f'{len(files)} option files, {len(stale)} written')
    return 0


if __name__ == '__main__':
    sys.exit(main())
