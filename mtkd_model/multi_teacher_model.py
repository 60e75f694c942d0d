"""The training model of every student: BasicSR's SRModel with teachers and distillation terms."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from basicsr.utils import get_root_logger
from basicsr.utils.registry import MODEL_REGISTRY
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtkd.checks import left_of_start
from mtkd_arch.frozen_network import forward_padded
from mtkd_arch.merged_upsampling import merge_tails
from mtkd_arch.taps import record_taps
from mtkd_arch.teacher_ensemble_arch import TeacherEnsemble, window_of
from mtkd_arch.weights import load_weights, read_weights
from mtkd_data.resident import gather, origin_of
from mtkd_data.teacher_cache.cache import TeacherCache
from mtkd_model import preflight
from mtkd_model.acceleration import (
    MixedPrecision,
    compile_mode,
    emulated_bf16,
    fused_where_possible,
    moving_average,
    uncompiled,
)
from mtkd_model.distiller_bank import DistillerBank, needs_networks, self_trained, trainable
from mtkd_model.guarded_step import alone, mean_of, part_of
from mtkd_model.resumable import ResumableModel
from mtkd_model.slice_init import start_from_teacher
from mtkd_model.step import Step
from mtkd_model.step_guard import StepGuard, guard_options

PROBE_SIZE = 16


@MODEL_REGISTRY.register()
class MultiTeacherSRModel(ResumableModel):
    """Trains ``network_g`` with BasicSR's losses and the terms under ``train.distill``, taught by ``teachers``.

    Options beyond SRModel's: ``teachers`` and ``aggregator`` (see TeacherEnsemble), ``train.distill`` (see
    DistillerBank), ``train.optim_distill`` (``lr`` and the like for the distillers' own parameters),
    ``train.init_from_teacher`` (see slice_init) and, for speed, ``train.amp`` (see MixedPrecision), ``train.compile``
    (see compile_mode) and ``train.channels_last`` (default true). ``train.max_nonfinite``, ``divergence_factor``,
    ``clip_grad_norm`` and ``accumulate`` are those of GuardOptions. Without teachers and terms it trains from scratch.
    Validation pads to the student's window, as training does.

    With ``datasets.train.dataroot_cache`` (see CachedTeacherDataset) cached outputs stand for those of the teachers,
    and networks that no term needs are not built.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        self.scale = opt['scale']
        self.window = window_of(opt['network_g'])
        self.cached_stores = cached_stores(opt)
        self.teachers = build_teachers(opt, self.networks_needed(opt), 'target' in self.cached_stores)
        self.distillers: nn.Module | None = None
        self.losses: dict[str, Tensor] = {}
        self.cached: dict[str, Tensor] = {}
        self.outputs_asked: set[str] = set()  # teachers that have to run to their ends
        self.origin: dict[str, Any] = {}
        self.skipped: Tensor | None = None
        super().__init__(opt)
        if self.device.type == 'cpu':  # on a GPU it is not known to be faster for training
            merge_tails(self.get_bare_model(self.net_g))
        if hasattr(self, 'net_g_ema'):
            merge_tails(self.net_g_ema)
            self._lay_out(self.net_g_ema)

    def networks_needed(self, opt: Mapping[str, Any]) -> bool:
        """Whether the teachers' networks must be built: there is no cache, or outputs are not enough."""
        train_opt = opt.get('train') or {}
        uncached = not self.cached_stores
        return uncached or bool(train_opt.get('init_from_teacher')) or needs_networks(train_opt.get('distill') or {})

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> None:
        """Raise for whatever is wrong, before any folder is made; see :mod:`mtkd_model.preflight`."""
        preflight.check(cls, opt)

    def check_output(self) -> None:
        """Raise ValueError unless the student upsamples by ``scale``."""
        lq = self._random_image(1, PROBE_SIZE)
        output, expected = self.infer(lq), (1, 3, PROBE_SIZE * self.scale, PROBE_SIZE * self.scale)
        if output.shape != expected:
            raise ValueError(f'network_g turns {tuple(lq.shape)} into {tuple(output.shape)}, scale is {self.scale}')

    def _random_image(self, batch: int, side: int) -> Tensor:
        return torch.rand(batch, 3, side, side, device=self.device)

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        self.guard_options = guard_options(train_opt, self.opt['datasets']['train'].get('batch_size_per_gpu', 0))
        self.precision = MixedPrecision(train_opt.get('amp'), self.device)
        if train_opt.get('init_from_teacher'):
            self._init_from_teacher(train_opt['init_from_teacher'])
        if train_opt.get('distill'):
            self.distillers = self._build_distillers(train_opt['distill'])
        without_ground_truth = not (train_opt.get('pixel_opt') or train_opt.get('perceptual_opt'))
        if without_ground_truth and self.distillers is None:
            raise ValueError('train: nothing to learn from: give pixel_opt, perceptual_opt or distill')
        if without_ground_truth:  # SRModel insists on one of the two
            train_opt['pixel_opt'] = {'type': 'L1Loss'}
        super().init_training_settings()
        for warning in filter(None, (left_of_start(self.opt), emulated_bf16(train_opt.get('amp'), self.device))):
            get_root_logger().warning(warning)
        if without_ground_truth:
            self.cri_pix = None
        self._compile(compile_mode(train_opt.get('compile')))

    def _compile(self, mode: str | None) -> None:
        if mode is None:
            return
        if self.distillers is not None and needs_networks(self.opt['train']['distill']):
            raise ValueError(
                'train.compile: a term of train.distill reaches into the networks, which a compiled student does not '
                'allow: leave train.compile out, or take terms that compare outputs'
            )
        self.get_bare_model(self.net_g).compile(mode=mode)

    def _init_from_teacher(self, opt: Mapping[str, Any]) -> None:
        paths = self.opt['path']
        if paths.get('resume_state'):
            return
        if paths.get('pretrain_network_g'):
            raise ValueError(
                'train.init_from_teacher and path.pretrain_network_g both start the student: leave one out'
            )
        start_from_teacher(self.get_bare_model(self.net_g), opt, self.teachers.bare() if self.teachers else {})
        if self.cached_stores and not needs_networks(self.opt['train'].get('distill') or {}):
            self.teachers = None  # they were only needed for this

    def _build_distillers(self, opt: Mapping[str, Mapping[str, Any]]) -> nn.Module:
        student = self.get_bare_model(self.net_g)
        train_set = self.opt['datasets']['train']
        self.distillers = bank = DistillerBank(opt).to(self.device)
        part = train_set['batch_size_per_gpu'] // self.guard_options.accumulate
        bank.check_setting(bool(self.opt.get('teachers')), part)
        teachers = {}
        if self.teachers is not None:
            teachers = self.teachers.to(self.device).bare()
        bank.choose_taps(student, teachers)
        bank.check_taps(student, teachers)
        self._refuse_compiled_taps(bank)
        self.check_output()  # a student of another scale would show as a misfit of some term
        self.patch = train_set.get('gt_size', 0) // self.scale
        with torch.no_grad(), _eval_mode(student):
            side = probe_size(self.patch)
            self.lq, self.gt = self._random_image(2, side), self._random_image(2, side * self.scale)
            self.cached = {name: self._random_image(2, side * self.scale) for name in self.cached_stores}
            bank.build(self.make_step(student, iteration=0))
            del self.lq, self.gt
            self.cached = {}
        self._refuse_parts(bank)
        return self._synchronised(bank)

    def _refuse_parts(self, bank: DistillerBank) -> None:
        looking_ahead = [key for key, term in bank.terms.items() if term.own_optimizers()]
        if looking_ahead and self.guard_options.accumulate > 1:
            raise ValueError(
                f'train.accumulate: train.distill.{looking_ahead[0]} takes steps of its own with the whole batch, '
                'which cannot come in parts: leave accumulate out, or this term'
            )

    def _refuse_compiled_taps(self, bank: DistillerBank) -> None:
        for name in self.teachers.networks if self.teachers is not None else ():
            if bank.taps_of(name) and self.opt['teachers'][name].get('compile'):
                raise ValueError(
                    f'teachers.{name}.compile: a term of train.distill taps this teacher, and a compiled network '
                    'passes by its taps: leave compile out'
                )

    def _synchronised(self, bank: DistillerBank) -> nn.Module:
        """The bank, wrapped for several processes when it has parameters that learn with the student."""
        if not trainable(bank):
            return bank
        others = {id(parameter) for parameter in self_trained(bank)}
        ignored = [name for name, parameter in bank.named_parameters() if id(parameter) in others]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(bank, ignored)
        return self.model_to_device(bank)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        return super().model_to_device(self._lay_out(net))

    def _lay_out(self, net: nn.Module) -> nn.Module:
        wanted = (self.opt.get('train') or {}).get('channels_last', True)
        return net.to(memory_format=torch.channels_last) if wanted else net

    def setup_optimizers(self) -> None:
        optim_opt = fused_where_possible(self.opt['train']['optim_g'], self.device)
        groups = [{'params': trainable(self.net_g)}]
        if trainable(self.distillers):
            groups.append({'params': trainable(self.distillers), **self.opt['train'].get('optim_distill', {})})
        self.optimizer_g = self.get_optimizer(optim_opt.pop('type'), groups, **optim_opt)
        self.optimizers.append(self.optimizer_g)
        if self.distillers is not None:
            self.optimizers.extend(self.get_bare_model(self.distillers).own_optimizers())

    def predict(self, net: nn.Module, lq: Tensor) -> Tensor:
        """What ``net`` makes of ``lq`` (B, 3, H, W) of any size: (B, 3, scale * H, scale * W)."""
        try:
            return forward_padded(net, lq, self.scale, self.window)
        except ValueError as error:
            raise ValueError(f'network_g: {error}') from error

    def predict_in_training(self, net: nn.Module, lq: Tensor) -> Tensor:
        """``predict`` in the precision of the training, float32 again."""
        with self.precision.autocast():
            return self.predict(net, lq).float()

    def make_step(self, net: nn.Module, iteration: int) -> Step:
        """Run the student and the teachers on the batch at hand and gather what the terms may ask for."""
        bank = self.get_bare_model(self.distillers)
        with record_taps(self.get_bare_model(net), bank.student_taps) as student_taps:
            output = self.predict_in_training(net, self.lq)
        return Step(
            lq=self.lq,
            gt=self.gt,
            student=output,
            student_taps={path: tap.float() for path, tap in student_taps.items()},
            iteration=iteration,
            scale=self.scale,
            patch=self.patch,
            run_student=lambda lq: self.predict_in_training(net, lq),
            student_network=self.get_bare_model(net),
            **self._teachers_part(bank, probing=iteration == 0),
        )

    def _teachers_part(self, bank: DistillerBank, probing: bool) -> dict[str, Any]:
        """What the teachers, or the cache of their outputs, contribute to a Step."""
        if self.teachers is None:
            cached = dict(self.cached)
            return {'aggregated': cached.pop('target', None), 'teachers': cached}
        networks = self.teachers.bare()
        # what a tapped teacher makes of the crop itself: methods that compare the two would see the rim in a cached one
        known = {name: image for name, image in self.cached.items() if not bank.taps_of(name)}
        outputs = self.teachers.outputs(self.lq, known, self.outputs_asked)
        run = outputs.probe if probing else outputs.features
        taps = {
            f'{name}/{path}': feature.float()
            for name in networks
            for path, feature in run(name, bank.taps_of(name)).items()
        }
        return {
            'aggregated': self.cached.get('target', functools.partial(self.teachers.target, outputs)),
            'teachers': outputs,
            'teacher_taps': taps,
            'run_teacher': self.teachers.run_teacher,
            'teacher_networks': networks,
        }

    def compute_losses(self, iteration: int) -> dict[str, Tensor]:
        """Every loss of this batch by the name it has in the log; sets ``self.output``."""
        if self.distillers is None:
            self.output = self.predict_in_training(self.net_g, self.lq)
            return self._losses_to_ground_truth()
        step = self.make_step(self.net_g, iteration)
        self.output = step.student
        return {**self._losses_to_ground_truth(), **self.distillers(step)}

    def _losses_to_ground_truth(self) -> dict[str, Tensor]:
        losses = {}
        if self.cri_pix:
            losses['l_pix'] = self.cri_pix(self.output, self.gt)
        if self.cri_perceptual:
            percep, style = self.cri_perceptual(self.output, self.gt)
            losses |= {name: loss for name, loss in (('l_percep', percep), ('l_style', style)) if loss is not None}
        return losses

    def optimize_parameters(self, current_iter: int) -> None:
        self.optimizer_g.zero_grad()
        self.guard.begin()
        self.losses = self._add_gradients(current_iter)
        self.skipped = self.guard.step(self.precision, self.losses, current_iter, self.origin)
        if self.ema_decay > 0:
            self.model_ema(decay=self.ema_decay)

    def _add_gradients(self, iteration: int) -> dict[str, Tensor]:
        """The losses of the batch and their gradients, computed in ``train.accumulate`` parts."""
        batch, count, found = (self.lq, self.gt, self.cached), self.guard_options.accumulate, []
        for number in range(count):
            self.lq, self.gt, self.cached = part_of(batch, number, count)
            with alone((self.net_g, self.distillers), number + 1 < count):
                found.append(self.compute_losses(iteration))
                self.precision.backward(sum(found[-1].values()) / count)
            found[-1] = mean_of(found[-1:])  # lets go of the graph
        self.lq, self.gt, self.cached = batch
        return mean_of(found)

    @functools.cached_property
    def guard(self) -> StepGuard:
        """Made at the first step, when all that learns is there."""
        networks = {'': self.get_bare_model(self.net_g)}
        if self.distillers is not None:
            networks['distill.'] = self.get_bare_model(self.distillers)
        return StepGuard(self.guard_options, self.optimizers, networks, self.device)

    def model_ema(self, decay: float = 0.999) -> None:
        moving_average(self.net_g_ema, self.get_bare_model(self.net_g), decay, self.skipped)

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Take a batch, or where one lies in resident data, to the device."""
        self.origin = origin_of(data)
        batch = gather(data, self.device)
        self.lq = batch['lq']
        if 'gt' in batch:
            self.gt = batch['gt']
        self.cached = {name: batch[f'cached_{name}'] for name in self.cached_stores if f'cached_{name}' in batch}

    def get_current_log(self) -> dict[str, float]:
        """The losses of the last step, averaged over processes, and the guard's entries; read from the device here."""
        self.log_dict = {**self.reduce_loss_dict(self.losses), **self.guard.log()}
        return self.log_dict

    def infer(self, lq: Tensor) -> Tensor:
        """The output of the averaged network if there is one, else of the network, without gradient."""
        net = getattr(self, 'net_g_ema', None) or self.get_bare_model(self.net_g)
        with torch.no_grad(), _eval_mode(net), uncompiled(net):  # images of every size would compile anew
            return self.predict(net, lq)

    def test(self) -> None:
        self.output = self.infer(self.lq)

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = 'params'
    ) -> None:
        """As BasicSR's, for every format ``read_weights`` knows and with errors that say what does not fit."""
        try:
            weights = read_weights(load_path, param_key)
        except ValueError:
            if param_key not in ('params', 'params_ema'):  # as upstream, the usual keys stand for each other
                raise
            weights = read_weights(load_path)
        get_root_logger().info(f'Loading {type(self.get_bare_model(net)).__name__} from {load_path}.')
        load_weights(self.get_bare_model(net), weights, strict, str(load_path))


def probe_size(patch: int) -> int:
    """A small LR side that leaves the same rest by every window as the ``patch`` trained on, so pads alike."""
    return patch if 0 < patch < PROBE_SIZE else PROBE_SIZE + patch % PROBE_SIZE


def cached_stores(opt: Mapping[str, Any]) -> tuple[str, ...]:
    """What the training set holds of the teachers: ``target``, names of teachers, or nothing without a cache."""
    train_set = (opt.get('datasets') or {}).get('train') or {}
    if not train_set.get('dataroot_cache'):
        return ()
    return TeacherCache(Path(train_set['dataroot_cache'])).chosen(train_set.get('cached'))


def build_teachers(opt: Mapping[str, Any], networks_needed: bool, target_is_cached: bool) -> TeacherEnsemble | None:
    """The ensemble of an option file; None when it names no teachers, or no term needs their networks."""
    if not opt.get('teachers') or not networks_needed:
        return None
    aggregator = opt.get('aggregator')
    if aggregator and target_is_cached:
        aggregator = {'inputs': aggregator['inputs']} if 'inputs' in aggregator else None
    with torch.random.fork_rng(devices=[]):  # the student starts the same with and without them
        return TeacherEnsemble(opt['teachers'], opt['scale'], aggregator)


@contextlib.contextmanager
def _eval_mode(net: nn.Module) -> Iterator[None]:
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)
