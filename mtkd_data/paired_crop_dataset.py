"""BasicSR's PairedImageDataset with crops cut in place, or the whole set in memory."""

import mtkd  # noqa: F401  mends the upstream faults before BasicSR is imported

# isort: split
from basicsr.utils.registry import DATASET_REGISTRY

from mtkd_data.paired_crops import PairedCrops


@DATASET_REGISTRY.register()
class PairedCropDataset(PairedCrops):
    """Pairs of LQ and GT, with the options of BasicSR's PairedImageDataset and, for the same seed, its very samples.

    A sample holds ``lq`` and ``gt``, float32 RGB (3, H, W) in [0, 1], ``lq_path`` and ``gt_path``. Where values are
    in-place PNG (prepare_data.py --compression-level 0) only the crop is read, else the image is decoded.

    ``resident``: host or device. All images are decoded once, into the host's memory or the model's device, when the
    first batch reaches the model; a sample then holds ``resident`` and ``coordinates`` for mtkd_data.resident.gather.
    ``resident_shard``: true. Each process of a distributed run holds and draws only its share of the images, every
    world-size-th, so images are shuffled within a process; without it each process holds all of them.

    ``mean``, ``std`` and ``color`` are refused.
    """
