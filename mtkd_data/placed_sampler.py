"""Random crops that depend on a sample's place in the run alone, and so come back when the run is resumed there.

The sampler hands out indices that carry a seed, made of the run's seed, the epoch and the place in the epoch. Whoever
reads the sample draws from that seed: which worker does it, how many there are and what was read before do not matter.
"""

import hashlib
import random
import struct
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import DataLoader, Dataset, get_worker_info


class Place(int):
    """An index into a dataset with the ``seed`` of what is drawn for this sample."""

    seed: int

    def __new__(cls, index: int, seed: int) -> 'Place':
        place = super().__new__(cls, index)
        place.seed = seed
        return place

    def __reduce__(self) -> tuple[Any, ...]:
        return Place, (int(self), self.seed)

    def generator(self) -> random.Random:
        """Draws what Python's global generator would after ``random.seed(seed)``."""
        return random.Random(self.seed)


def seed_of(run: int, epoch: int, place: int) -> int:
    """64 well-mixed bits of the run's seed, the epoch and the place in it."""
    packed = struct.pack('<qqq', run, epoch, place)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), 'little')


class PlacedSampler(EnlargedSampler):
    """BasicSR's EnlargedSampler, of the same order, that hands out ``Place``s and can begin inside an epoch.

    Args: as EnlargedSampler's. ``seed`` is that of the run, set by whoever knows it.
    """

    def __init__(self, dataset: Any, num_replicas: int, rank: int, ratio: int = 1) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        self.seed = 0
        self.batches = 0  # of this process, trained on in this epoch
        self._start = (0, 0)  # epoch, samples of this process to leave out in it
        _current.append(weakref.ref(self))
        del _current[:-1]

    def __iter__(self) -> Iterator[Place]:
        epoch, skipped = self._start
        first = skipped if epoch == self.epoch else 0
        for number, index in enumerate(super().__iter__()):
            if number >= first:
                yield Place(index, seed_of(self.seed, self.epoch, number * self.num_replicas + self.rank))

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.batches = 0

    def start_at(self, epoch: int, samples: int) -> None:
        """Leave out the first ``samples`` of ``epoch``, counted over all processes, which were trained on already.

        Raises ValueError where this number of processes cannot share them evenly.
        """
        if samples % self.num_replicas:
            raise ValueError(
                f'{samples} samples of epoch {epoch} were trained on, which {self.num_replicas} processes cannot share '
                'evenly: resume with the number of processes of before'
            )
        self._start = epoch, samples // self.num_replicas

    def samples(self, batch: int) -> int:
        """Samples of this epoch that all processes have trained on, in batches of ``batch`` each."""
        skipped = self._start[1] if self._start[0] == self.epoch else 0
        return (skipped + self.batches * batch) * self.num_replicas


_current: list['weakref.ref[PlacedSampler]'] = []
_validation: 'weakref.WeakValueDictionary[str, DataLoader]' = weakref.WeakValueDictionary()


def current_sampler() -> PlacedSampler | None:
    """The sampler of the training set of this process, the newest if there were several; None without one."""
    return _current[0]() if _current else None


def note_validation(loader: DataLoader) -> None:
    """Remember ``loader`` by the name of its data set for ``validation_loaders``, as long as somebody holds it."""
    _validation[loader.dataset.opt['name']] = loader


def validation_loaders(names: Iterable[str]) -> list[DataLoader]:
    """The loaders of these validation sets of this process, the newest of each name."""
    return [_validation[name] for name in names if name in _validation]


class WrappedDataset(Dataset):
    """``dataset`` seen through a class that changes how samples are read."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # while being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededDataset(WrappedDataset):
    """``dataset`` with the global generators of Python, NumPy and torch seeded from the place of each sample.

    For datasets that draw from those, as BasicSR's do. In the process of the training their states are put back.
    """

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, Place):
            return self.dataset[index]
        if get_worker_info() is not None:
            _seed(index.seed)
            return self.dataset[index]
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002  what BasicSR draws from
        try:
            _seed(index.seed)
            return self.dataset[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_rng_state(states[2])


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
