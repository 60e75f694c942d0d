"""A training set whose damaged images are replaced, up to a limit, instead of ending the run."""

import logging
from collections.abc import Iterator
from typing import Any

from mtkd_data.damage import DamagedImage, Marks
from mtkd_data.placed_sampler import Place, WrappedDataset

FOUND = 1
SHOWN = 200


class SkippingDataset(WrappedDataset):
    """``dataset``, where the next whole sample stands for a damaged one, drawn by the seed of the one it replaces.

    So a sample still depends on its place and the data alone. ``limit``: how many damaged samples are allowed, in this
    process and its loader workers together (each for itself where they are not forked). Each is a warning; one more
    raises ValueError with the names of all.
    """

    def __init__(self, dataset: Any, limit: int) -> None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise ValueError(f'datasets.train.skip_damaged is {limit!r}, expected a whole number, at least 0')
        super().__init__(dataset)
        self.limit = limit
        self.damaged = Marks(len(dataset))
        self.reasons: dict[int, str] = {}

    def __getitem__(self, index: int) -> Any:
        for number in self._candidates(index):
            try:
                return self.dataset[number]
            except DamagedImage as error:
                self._count(self._image(number), error)
        raise self._too_many()

    def _candidates(self, index: int) -> Iterator[int]:
        for step in range(len(self)):
            number = (int(index) + step) % len(self)
            if not self.damaged[self._image(number)]:
                yield Place(number, index.seed) if isinstance(index, Place) else number

    def _image(self, index: int) -> int:
        return self.dataset.image_of(index) if hasattr(self.dataset, 'image_of') else int(index)

    def _count(self, number: int, error: DamagedImage) -> None:
        self.reasons[number] = str(error)
        found = self.damaged.claim(number, FOUND)
        if not found:
            return  # another loader worker was faster
        if found > self.limit:
            raise self._too_many() from error
        logger = logging.getLogger('basicsr')  # only errors are shown of processes other than the first
        level = logging.WARNING if logger.isEnabledFor(logging.WARNING) else logging.ERROR
        logger.log(level, f'damaged image {found} of {self.limit} allowed (datasets.train.skip_damaged): {error}')

    def _too_many(self) -> ValueError:
        numbers = self.damaged.marked(FOUND)
        reasons = [self.reasons.get(number) or self._reason(number) for number in numbers[:SHOWN]]
        return ValueError(
            f'{len(numbers)} images are damaged, datasets.train.skip_damaged is {self.limit}: {"; ".join(reasons)}'
        )

    def _reason(self, image: int) -> str:
        """What another process found."""
        index = next(index for index in range(len(self)) if self._image(index) == image)
        try:
            self.dataset[index]
        except DamagedImage as error:
            return str(error)
        return f'image {image}, which is whole by now'
