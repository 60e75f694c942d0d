"""What makes a BasicSR model survive: files that are whole, exact resuming, leaving when asked to."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtkd.checks import nearest
from mtkd_arch.weights import load_weights, read_weights
from mtkd_data.placed_sampler import current_sampler, validation_loaders
from mtkd_model.acceleration import MixedPrecision, match_parameters
from mtkd_model.checkpoint import remove_all_but_last, remove_leftovers, save_whole
from mtkd_model.leaving import LEFT, asked_to_leave, listen_for_signals, stop_listening
from mtkd_model.training_state import (
    of_all_processes,
    place_in_data,
    random_state,
    set_place_in_data,
    set_random_state,
)
from mtkd_model.validation import validate

BEST = 'best'


class ResumableModel(SRModel):
    """SRModel whose runs can be killed at any moment and go on as if they had not been.

    The state of BasicSR is saved with what it leaves out: the generators of random numbers of every process, the place
    in the data, the scaler of mixed precision, the terms' parameters, the best results. ``logger.keep_last`` (number,
    null: all) is how many checkpoints stay, ``logger.keep_best`` (a metric of ``val.metrics``, null: none) keeps the
    weights that were best on the first validation set as ``net_g_best.pth``.
    """

    distillers: nn.Module | None
    precision: MixedPrecision
    listening = False

    def init_training_settings(self) -> None:
        check_keeping(self.opt)
        super().init_training_settings()

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """As upstream's. The trainer calls it first in every iteration: signals are seen and batches counted here."""
        if not self.listening:
            listen_for_signals(self)
            self.listening = True
        if asked_to_leave(current_iter, self.opt['dist'], self.device):
            self._leave(current_iter - 1)
        super().update_learning_rate(current_iter, warmup_iter)
        sampler = current_sampler()
        if sampler is not None:
            sampler.batches += 1

    def _leave(self, iteration: int) -> None:
        sampler, logger = current_sampler(), get_root_logger()
        if iteration > 0 and sampler is not None:
            self.save(sampler.epoch, iteration, validated=True)
            logger.info(f'Asked to leave: iteration {iteration} is saved, --auto_resume goes on. Exit code {LEFT}.')
        stop_listening()
        raise SystemExit(LEFT)

    def save(self, epoch: int, current_iter: int, validated: bool = False) -> None:
        """Networks first, the training state last: a state on the disk has all that belongs to it.

        The trainer saves before it validates: a state says whether a validation of its iteration was still to come.
        """
        self._save_networks(current_iter)
        if self._has_distiller_parameters():
            self.save_network(self.distillers, 'distill', current_iter)
        if current_iter == -1:  # the end
            stop_listening()
            return
        batch = self.opt['datasets']['train']['batch_size_per_gpu']
        own = {'random': random_state(self.device), 'data': place_in_data(current_sampler(), batch)}
        self.processes = of_all_processes(own)
        self.validation_due = (
            not validated and current_iter % (self.opt.get('val') or {}).get('val_freq', math.inf) == 0
        )
        self.save_training_state(epoch, current_iter)
        self._remove_old()

    def _save_networks(self, current_iter: int | str) -> None:
        networks = {'params': self.net_g, 'params_ema': getattr(self, 'net_g_ema', None)}
        networks = {key: net for key, net in networks.items() if net is not None}
        self.save_network(list(networks.values()), 'net_g', current_iter, param_key=list(networks))

    def _has_distiller_parameters(self) -> bool:
        return self.distillers is not None and any(True for _ in self.distillers.parameters())

    def metadata(self) -> dict[str, Any]:
        """What is stored beside the weights of ``net_g`` under the key ``mtkd``."""
        return {}

    @master_only
    def save_network(
        self,
        net: nn.Module | list[nn.Module],
        net_label: str,
        current_iter: int | str,
        param_key: str | list[str] = 'params',
    ) -> None:
        nets = net if isinstance(net, list) else [net]
        keys = param_key if isinstance(param_key, list) else [param_key]
        content = {key: _on_cpu(self.get_bare_model(net)) for key, net in zip(keys, nets, strict=True)}
        if net_label == 'net_g' and self.metadata():
            content['mtkd'] = self.metadata()
        name = 'latest' if current_iter == -1 else current_iter
        save_whole(content, Path(self.opt['path']['models']) / f'{net_label}_{name}.pth')

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        state = {
            'epoch': epoch,
            'iter': current_iter,
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'scaler': self.precision.scaler.state_dict(),
            'best_metric_results': getattr(self, 'best_metric_results', {}),
            'processes': self.processes,
            'validation_due': self.validation_due,
        }
        save_whole(state, Path(self.opt['path']['training_states']) / f'{current_iter}.state')

    @master_only
    def _remove_old(self) -> None:
        keep = (self.opt.get('logger') or {}).get('keep_last')
        models, states = Path(self.opt['path']['models']), Path(self.opt['path']['training_states'])
        for folder in (models, states):
            remove_leftovers(folder)
        if keep is not None:
            remove_all_but_last(keep, models, states)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        get_root_logger().info(f'Going on from {self.opt["path"].get("resume_state")}.')
        groups = [[group.get('fused') for group in optimizer.param_groups] for optimizer in self.optimizers]
        super().resume_training(resume_state)
        for optimizer, fused in zip(self.optimizers, groups, strict=True):
            match_parameters(optimizer, fused)
        if resume_state.get('scaler'):
            self.precision.scaler.load_state_dict(resume_state['scaler'])
        if self._has_distiller_parameters():
            path = Path(self.opt['path']['models']) / f'distill_{resume_state["iter"]}.pth'
            load_weights(self.get_bare_model(self.distillers), read_weights(path, 'params'), True, str(path))
        if resume_state.get('best_metric_results'):
            self.best_metric_results = resume_state['best_metric_results']
        self._resume_place(resume_state.get('processes'))
        if resume_state.get('validation_due'):
            self._validate_again(resume_state['iter'])

    def _validate_again(self, iteration: int) -> None:
        """The validation that a killed run may not have come to: its best results belong to those of the whole run."""
        for loader in validation_loaders(validation_names(self.opt)):
            self.validation(loader, iteration, None, self.opt['val'].get('save_img', False))

    def _resume_place(self, processes: list[Mapping[str, Any]] | None) -> None:
        """Go on in the data and with the random numbers where the run of the state was, as far as it says."""
        logger, rank, world, sampler = get_root_logger(), self.opt['rank'], self.opt['world_size'], current_sampler()
        if processes is None:
            logger.warning('The state is of an older version: the epoch begins again, with other random numbers.')
            return
        if sampler is not None and processes[0]['data'] is not None:
            set_place_in_data(sampler, processes[min(rank, len(processes) - 1)]['data'])
        if len(processes) == world:
            set_random_state(processes[rank]['random'], self.device)
        else:
            logger.warning(
                f'The state is of {len(processes)} processes, now there are {world}: the images go on where they were, '
                'the random numbers of the terms do not.'
            )

    def nondist_validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool
    ) -> None:
        validate(self, dataloader, current_iter, tb_logger, save_img)
        self._keep_best(dataloader.dataset.opt['name'], current_iter)

    def dist_validation(self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        self.nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def _keep_best(self, set_name: str, current_iter: int | str) -> None:
        metric = (self.opt.get('logger') or {}).get('keep_best')
        if metric is None or not self.opt['is_train']:
            return
        first = validation_names(self.opt)[0]
        if set_name == first and self.best_metric_results[first][metric]['iter'] == current_iter:
            self._save_networks(BEST)


def check_keeping(opt: Mapping[str, Any]) -> None:
    """Raise ValueError for a ``logger.keep_best`` that is not measured."""
    measured, best = list((opt.get('val') or {}).get('metrics') or {}), (opt.get('logger') or {}).get('keep_best')
    if best is not None and best not in measured:
        known = ', '.join(measured) or 'none'
        raise ValueError(
            f'logger.keep_best: {best!r} is no metric of val.metrics: {nearest(best, measured)}There: {known}'
        )
    if best is not None and not validation_names(opt):
        raise ValueError('logger.keep_best: there is no validation set under datasets')


def validation_names(opt: Mapping[str, Any]) -> list[str]:
    """Names of the validation sets of an option, in its order."""
    return [each['name'] for phase, each in opt['datasets'].items() if phase.split('_')[0] == 'val']


def _on_cpu(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
