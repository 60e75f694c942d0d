"""Several processes: on a CPU, and what the launcher of SLURM runs."""

import functools
import os
import re
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel


def distribute_on_cpu() -> None:
    """``--launcher pytorch`` needs NCCL and a GPU; without CUDA, gloo serves. No upstream issue."""
    import basicsr.utils.dist_util
    import basicsr.utils.options
    from basicsr.models.base_model import BaseModel

    if not hasattr(BaseModel.model_to_device, 'serves_cpu'):
        BaseModel.model_to_device = _model_to_any_device(BaseModel.model_to_device)
        init_dist = _init_dist_anywhere(basicsr.utils.dist_util.init_dist)
        basicsr.utils.dist_util.init_dist = basicsr.utils.options.init_dist = init_dist


def _init_dist_anywhere(upstream: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(upstream)
    def init_dist(launcher: str, backend: str = 'nccl', **kwargs: Any) -> None:
        if torch.cuda.is_available() or launcher != 'pytorch':
            upstream(launcher, backend, **kwargs)
        else:
            torch.distributed.init_process_group('gloo')

    return init_dist


def _model_to_any_device(upstream: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    @functools.wraps(upstream)
    def model_to_device(self: Any, net: torch.nn.Module) -> torch.nn.Module:
        if not self.opt['dist'] or self.device.type != 'cpu':
            return upstream(self, net)
        unused = self.opt.get('find_unused_parameters', False)
        return DistributedDataParallel(net.to(self.device), find_unused_parameters=unused)

    model_to_device.serves_cpu = True
    return model_to_device


def keep_node_lists_from_the_shell() -> None:
    """``--launcher slurm`` puts the value of SLURM_NODELIST into a shell command: CVE-2024-27763, no released mend.

    https://github.com/XPixelGroup/BasicSR/issues/729
    """
    import basicsr.utils.dist_util

    upstream = basicsr.utils.dist_util._init_dist_slurm
    if not hasattr(upstream, 'checks_nodes'):
        basicsr.utils.dist_util._init_dist_slurm = _with_checked_nodes(upstream)


def _with_checked_nodes(upstream: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(upstream)
    def init_dist_slurm(backend: str, port: int | None = None) -> None:
        nodes = os.environ.get('SLURM_NODELIST', '')
        if not re.fullmatch(r'[\w.,\[\]-]+', nodes, re.ASCII):
            raise ValueError(
                f'SLURM_NODELIST is {nodes!r}: expected host names as in node[1-4],node7; --launcher slurm runs inside '
                'srun, which sets it'
            )
        upstream(backend, port)

    init_dist_slurm.checks_nodes = True
    return init_dist_slurm
