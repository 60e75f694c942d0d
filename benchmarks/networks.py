"""Models of the shipped option files, at published size, with random weights and a random batch."""

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import mtkd  # noqa: F401  registers the networks

# isort: split
import numpy as np
import torch
import yaml
from basicsr.models.sr_model import SRModel
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from mtkd.checks import build
from mtkd.option_file import read_option
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble
from mtkd_data.flat_png import encode_flat_png
from mtkd_data.lmdb_store import LmdbWriter, MetaEntry
from mtkd_model.multi_teacher_model import MultiTeacherSRModel
from mtkd_model.step import Step

ROOT = Path(__file__).resolve().parents[1]
STUDENTS = {
    'edsr': 'options/train_mtkd_x4.yml',
    'rcan': 'options/train_mtkd_rcan_x4.yml',
    'swinir': 'options/train_mtkd_swinir_x4.yml',
}
KD = {'type': 'OutputDistiller', 'teacher': 'edsr', 'loss': {'type': 'L1Loss'}}
Options = dict[str, Any]


def published(student: str) -> Options:
    """The stage-2 option of a student, as BasicSR would hand it to the model."""
    opt = read_option(ROOT / STUDENTS[student])
    return {**opt, 'is_train': True, 'dist': False, 'rank': 0, 'world_size': 1}


def log_of_training(opt: Options, folder: Path) -> str:
    """The log of a run of BasicSR's trainer on ``opt`` below ``folder``, in a process of its own."""
    option_file = folder / f'{opt["name"]}.yml'
    option_file.write_text(yaml.safe_dump(opt, sort_keys=False))
    script = 'import sys, mtkd; from basicsr.train import train_pipeline; train_pipeline(sys.argv.pop())'
    command = [sys.executable, '-c', script, '-opt', str(option_file), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f'{opt["name"]} failed:\n{done.stderr[-3000:]}')
    return next((folder / 'experiments' / opt['name']).glob('*.log')).read_text()


def build_network(opt: Options) -> nn.Module:
    """A network of random weights."""
    return build(ARCH_REGISTRY, opt, 'network')


def describe_cache(root: Path, images: int, fingerprint: str) -> None:
    """The cache.json of a cache of targets, x4, that no teachers made."""
    described = {
        'version': 1, 'scale': 4, 'format': 'lmdb', 'compression_level': 0, 'range': [-0.5, 1.5],
        'stores': ['target'], 'inputs': [], 'teachers': {}, 'aggregator': None,
        'lq': {'images': images, 'fingerprint': fingerprint},
    }  # fmt: skip
    (root / 'cache.json').write_text(json.dumps(described))


def tiny_cache(root: Path) -> Path:
    """A cache of one image, for models that are fed by hand."""
    if not root.exists():
        root.mkdir()
        writer = LmdbWriter(root / 'target.lmdb')
        writer.add({'image': encode_flat_png(np.zeros((16, 16, 3), np.uint16))})
        writer.finish([MetaEntry('image', 16, 16, 3, 0)])
        describe_cache(root, 1, '')
    return root


def random_weights(folder: Path, opt: Options) -> None:
    """Point every teacher and the aggregator of ``opt`` to files of random weights, written when first wanted."""
    for name, part in [*opt['teachers'].items(), ('aggregator', opt.get('aggregator'))]:
        if part is None:
            continue
        path = folder / f'{name}.pth'
        if not path.is_file():
            torch.manual_seed(0)
            state = build_network(part['network']).state_dict()
            torch.save({'params': state, 'mtkd': {'inputs': part.get('inputs')}}, path)
        part.update(path=str(path), param_key='params')


class GraphModel(MultiTeacherSRModel):
    """MTKD as first released: teachers and aggregator inside the autograd graph, in the layout they are built in."""

    def init_training_settings(self) -> None:
        super().init_training_settings()
        self.teachers.requires_grad_(True)

    def make_step(self, net: nn.Module, iteration: int) -> Step:
        output = net(self.lq)
        if iteration == 0:  # while the terms are built
            return super().make_step(net, iteration)
        outputs = {name: frozen.network(self.lq) for name, frozen in self.teachers.networks.items()}
        target = self.teachers.aggregator.network(self.teachers.stack(outputs))
        return Step(lq=self.lq, gt=self.gt, student=output, aggregated=target, teachers=outputs, iteration=iteration)


def step_model(variant: str, student: str, folder: Path, device: str, train: Mapping[str, Any] | None = None) -> Any:
    """The model of one variant: basicsr, scratch, kd, online_fp32, online, cached or graph."""
    opt = published(student)
    opt['num_gpu'] = 1 if device == 'cuda' else 0
    opt['train'] |= train or {}
    random_weights(folder, opt)
    precision = 'auto' if variant == 'online' else 'fp32'
    for part in (*opt['teachers'].values(), opt['aggregator']):
        part.update(precision=precision, channels_last=variant != 'graph')
    if variant in ('basicsr', 'scratch'):
        del opt['teachers'], opt['aggregator'], opt['train']['distill']
        opt['train']['pixel_opt']['loss_weight'] = 1.0
    if variant == 'kd':
        opt['teachers'] = {'edsr': opt['teachers']['edsr']}
        del opt['aggregator']
        opt['train']['distill'] = {'kd': deepcopy(KD)}
    if variant == 'cached':
        opt['datasets']['train'] |= {'dataroot_cache': str(tiny_cache(folder / 'cache'))}
    if variant == 'graph':
        opt['train']['channels_last'] = False
    torch.manual_seed(0)
    kind = {'basicsr': SRModel, 'graph': GraphModel}.get(variant, MultiTeacherSRModel)
    return kind(opt)


def random_batch(batch: int, lq: int, device: str, scale: int = 4) -> dict[str, Tensor]:
    """Random images, the cached target among them."""
    torch.manual_seed(1)
    sides = {'lq': lq, 'gt': scale * lq, 'cached_target': scale * lq}
    return {name: torch.rand(batch, 3, side, side).to(device) for name, side in sides.items()}


def ensemble_of(count: int, folder: Path, device: str) -> TeacherEnsemble:
    """``count`` published teachers (from the fourth on again from the first) and an aggregator for so many."""
    opt = published('edsr')
    random_weights(folder, opt)
    names = list(opt['teachers'])
    teachers = {f'{names[i % 3]}_{i}': {**opt['teachers'][names[i % 3]], 'precision': 'auto'} for i in range(count)}
    network = {**opt['aggregator']['network'], 'in_chans': 3 * count}
    aggregator = {'network': network, 'inputs': list(teachers), 'path': None, 'precision': 'auto'}
    for teacher in teachers.values():
        teacher['path'] = None
    torch.manual_seed(0)
    return TeacherEnsemble(teachers, 4, aggregator, random_weights=True).to(device)


@contextmanager
def tf32(allowed: bool) -> Any:
    """Whether matrix products and convolutions of float32 may round to TF32 on a GPU."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
