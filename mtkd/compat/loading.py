"""Loading images: seeds, crops, damage, and the end of loader workers."""

import functools
import multiprocessing.connection
import multiprocessing.util
import random
import signal
import threading
from collections.abc import Callable, MutableMapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mtkd.compat.callers import callers_of

Options = MutableMapping[str, Any]


def seed_workers_anew_each_epoch() -> None:
    """Loader workers get one seed for all epochs, so every image is cropped alike in every epoch. No upstream issue."""
    import basicsr.data

    if basicsr.data.worker_init_fn is not worker_init_fn:
        basicsr.data.worker_init_fn = worker_init_fn
        multiprocessing.util.Finalize(None, _end_workers, exitpriority=100)


def worker_init_fn(worker_id: int, num_workers: int, rank: int, seed: int) -> None:
    """Seed NumPy and Python in a loader worker from torch's seed, which the loader draws anew for every epoch.

    Signals that a whole job gets are left to the process of the training, which may still want batches to come.
    """
    from mtkd_model.leaving import SIGNALS

    for number in SIGNALS if torch.utils.data.get_worker_info() is not None else ():
        signal.signal(number, signal.SIG_IGN)
    worker_seed = (torch.initial_seed() + num_workers * rank + seed) % 2**32
    np.random.seed(worker_seed)  # noqa: NPY002  BasicSR's augmentation uses the global generators
    random.seed(worker_seed)


def _end_workers() -> None:
    """As Python does when it exits; but it waits for ever where SIGTERM is ignored, as our loader workers do."""
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if workers and hasattr(signal, 'SIGCHLD') and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that is killed
    for process in workers:
        process.terminate()
    multiprocessing.connection.wait([process.sentinel for process in workers], timeout=1)
    for process in workers:
        process.kill()


def draw_crops_by_their_place() -> None:
    """A resumed run starts its epoch again and draws other crops: neither the place in the epoch nor the states of the
    generators are kept. No upstream issue. See :mod:`mtkd_data.placed_sampler`; models save the place, ours do.
    """
    from mtkd_data.placed_sampler import PlacedSampler

    for module in callers_of('EnlargedSampler'):
        module.EnlargedSampler = PlacedSampler
    for module in callers_of('build_dataloader'):
        module.build_dataloader = _with_places(module.build_dataloader)


def _with_places(upstream: Callable[..., DataLoader]) -> Callable[..., DataLoader]:
    from mtkd_data.placed_sampler import PlacedSampler, SeededDataset, note_validation
    from mtkd_data.skipping import SkippingDataset

    if hasattr(upstream, 'knows_places'):
        return upstream

    @functools.wraps(upstream)
    def build_dataloader(
        dataset: Any,
        dataset_opt: Options,
        num_gpu: int = 1,
        dist: bool = False,
        sampler: Any = None,
        seed: int | None = None,
    ) -> DataLoader:
        if isinstance(sampler, PlacedSampler):
            sampler.seed = seed or 0
            dataset = dataset if getattr(dataset, 'draws_by_place', False) else SeededDataset(dataset)
            if dataset_opt.get('skip_damaged'):
                dataset = SkippingDataset(dataset, dataset_opt['skip_damaged'])
        loader = upstream(dataset, dataset_opt, num_gpu, dist, sampler, seed)
        loader.generator = torch.Generator()  # its own: a loader that starts takes nothing from the training's draws
        loader.generator.manual_seed(seed or 0)
        if dataset_opt['phase'] != 'train':
            note_validation(loader)
        return loader

    build_dataloader.knows_places = True
    return build_dataloader


def name_damaged_images() -> None:
    """Damaged images are decoded to wrong pixels in silence, a damaged LMDB kills the process, nothing is named.

    What BasicSR's FileClient reads is looked at once, see :mod:`mtkd_data.checked_client`. A GT that does not fit its
    LQ is named, too. No upstream issue.
    """
    from basicsr.data import paired_image_dataset, realesrgan_paired_dataset
    from basicsr.utils import FileClient

    from mtkd_data.checked_client import gets_soundly, opens_soundly

    if not hasattr(FileClient.get, '__wrapped__'):
        FileClient.__init__ = opens_soundly(FileClient.__init__)
        FileClient.get = gets_soundly(FileClient.get)
    for module in (paired_image_dataset, realesrgan_paired_dataset):
        if not hasattr(module.paired_random_crop, '__wrapped__'):
            module.paired_random_crop = _naming_the_gt(module.paired_random_crop)


def _naming_the_gt(upstream: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(upstream)
    def paired_random_crop(gts: Any, lqs: Any, gt_patch_size: int, scale: int, gt_path: Any = None) -> Any:
        try:
            return upstream(gts, lqs, gt_patch_size, scale, gt_path)
        except ValueError as error:
            what = ''.join(map(str, error.args))
            raise ValueError(f'{gt_path}: GT and LQ do not belong together: {what}') from error

    return paired_random_crop


def pass_on_errors_of_prefetching() -> None:
    """With ``prefetch_mode: cpu`` an error in a loader ends the thread that fetches, and the run waits for ever.

    No upstream issue.
    """
    from basicsr.data.prefetch_dataloader import PrefetchGenerator

    if not hasattr(PrefetchGenerator.__next__, '__wrapped__'):
        PrefetchGenerator.run = _run_to_the_error
        PrefetchGenerator.__next__ = _raising(PrefetchGenerator.__next__)


def _run_to_the_error(self: Any) -> None:
    self.error = None
    try:
        for item in self.generator:
            self.queue.put(item)
    except Exception as error:  # whatever it is, the thread of the training shall see it
        self.error = error
    self.queue.put(None)


def _raising(upstream: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(upstream)
    def __next__(self: Any) -> Any:
        try:
            return upstream(self)
        except StopIteration:
            if self.error is not None:
                raise self.error from None
            raise

    return __next__
