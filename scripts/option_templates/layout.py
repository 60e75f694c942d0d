"""How an option file is laid out: its sections as templates, and whole files for training and testing."""

import textwrap
from collections.abc import Iterable
from string import Template

from option_templates.networks import TEACHER_FILES, TEACHER_NETWORKS, TEACHERS

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
    type: $dataset
    dataroot_gt: datasets/$data/GT.lmdb
    dataroot_lq: datasets/$data/LRbicx$scale.lmdb
$cache    io_backend:
      type: lmdb

    gt_size: $gt_size
    use_hflip: true
    use_rot: true

    num_worker_per_gpu: $workers
    batch_size_per_gpu: $batch
    dataset_enlarge_ratio: $enlarge
    prefetch_mode: ~
""")

PLAIN_SET = {'dataset': 'PairedImageDataset', 'cache': ''}  # no teacher cache

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

PRETRAINED = 'experiments/pretrained_models'
TEST_HEADER = '# Tests {what}, x{scale}: PSNR and SSIM on the Y channel, {scale} pixels cropped.'


def comment(paragraphs: Iterable[str], **words: object) -> str:
    """Paragraphs, with ``words`` filled in, as the comment at the head of a file."""
    texts = [textwrap.wrap(text.format(**words), 118, break_on_hyphens=False) for text in paragraphs]
    return '\n'.join(f'# {line}' for lines in texts for line in lines)


def indented(text: str, spaces: int) -> str:
    """Every line of ``text`` shifted right."""
    return '\n'.join(' ' * spaces + line if line else line for line in text.splitlines())


def network_section(options: str) -> str:
    """The ``network_g:`` section."""
    return f'network_g:\n{indented(options, 2)}\n'


def teachers_section(teachers: dict[str, tuple[str, str]], precision: str = '') -> str:
    """The ``teachers:`` section from name -> (network options, weights file)."""
    lines = ['teachers:']
    for name, (network, path) in teachers.items():
        lines += [f'  {name}:', '    network:', indented(network, 6), f'    path: {path}']
        lines += [f'    precision: {precision}'] if precision else []
    return '\n'.join(lines) + '\n'


def aggregator_section(network: str, path: str, inputs: tuple[str, ...], precision: str = '') -> str:
    """The ``aggregator:`` section of stage 2."""
    order = ', '.join(inputs)
    return (
        f'\naggregator:\n  network:\n{indented(network, 4)}\n'
        f'  inputs: [{order}]  # the order it was trained with, compared with its checkpoint\n'
        f'  path: {path}\n  param_key: params_ema\n' + (f'  precision: {precision}\n' if precision else '')
    )


def published_teachers(scale: int, names: tuple[str, ...] = TEACHERS, precision: str = '') -> str:
    """Teachers at published size, under the names of the files their authors give away."""
    teachers = {name: (TEACHER_NETWORKS[name](scale), teacher_file(name, scale)) for name in names}
    return teachers_section(teachers, precision)


def teacher_file(name: str, scale: int) -> str:
    """Where the weights of a published teacher are expected."""
    return f'{PRETRAINED}/{TEACHER_FILES[name](scale)}'


def trained(experiment: str) -> str:
    """The last weights that an experiment of ours leaves."""
    return f'experiments/{experiment}/models/net_g_latest.pth'


def gt_size(scale: int) -> int:
    """The paper's patch of 128, or the nearest size whose LR patch fits the windows of SwinIR at x3."""
    return {2: 128, 3: 144, 4: 128}[scale]


def gt_size_note(scale: int) -> str:
    """Says where the patch is not the paper's."""
    return 'patches of 144, since SwinIR wants LR patches in multiples of 8; ' if scale == 3 else ''


def training_file(
    header: str, name: str, model: str, scale: int, teachers: str, network: str, losses: str, **settings: object
) -> str:
    """A full-scale training option file."""
    train_set = {**PLAIN_SET, 'data': 'DIV2K_sub', 'scale': scale, 'gt_size': gt_size(scale), 'workers': 6, 'batch': 16}
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
    text = starting_from(text, f'{weights}\n  param_key_g: params_ema')
    return text.replace('  resume_state: ~\n', '')


def starting_from(text: str, weights: str) -> str:
    """An option file whose network starts from ``weights``."""
    return text.replace('\n  pretrain_network_g: ~\n', f'\n  pretrain_network_g: {weights}\n')
