"""What an option file may say of PairedCropDataset and CachedTeacherDataset: the check and docs/options.md share it."""

from collections.abc import Mapping

Keys = Mapping[str, tuple[str, str, str]]  # key: (type, default, meaning)

LOADER_KEYS: Keys = {
    'name': ('text', 'required', 'stands in the log'),
    'type': ('text', 'required', 'the data set'),
    'phase': ('text', 'set by BasicSR', 'train, val or test, from the name of the section'),
    'scale': ('whole number', 'set by BasicSR', 'of the option file'),
    'num_worker_per_gpu': (
        'whole number, at least 0',
        'required in training',
        'loader processes; 0 reads in the trainer itself',
    ),
    'batch_size_per_gpu': ('whole number, at least 1', 'required in training', 'images in a batch of one process'),
    'dataset_enlarge_ratio': ('number, above 0', '1', 'passes over the images that make one epoch'),
    'use_shuffle': ('true or false', 'null', 'without effect, for files that say it: BasicSR always shuffles'),
    'prefetch_mode': ('null, cpu or cuda', 'null', 'how the trainer fetches ahead'),
    'num_prefetch_queue': ('whole number, at least 1', '1', 'batches ahead with prefetch_mode cpu'),
    'pin_memory': ('true or false', 'false', 'batches in page-locked memory'),
    'skip_damaged': (
        'whole number, at least 0',
        '0',
        'damaged images that are replaced by the next whole one, each with a warning, before the run stops (training '
        'only; validation always stops)',
    ),
    'persistent_workers': ('true or false', 'false', 'loader processes outlive an epoch'),
}
PAIR_KEYS: Keys = {
    'dataroot_gt': ('path', 'required', 'GT images: an .lmdb or a folder'),
    'dataroot_lq': ('path', 'required', 'LQ images: an .lmdb or a folder'),
    'io_backend': ('mapping', 'required', '`{type: lmdb}` or `{type: disk}`'),
    'filename_tmpl': ('text', "'{}'", "LQ file name made from the GT's, such as '{}x4' (folders only)"),
    'meta_info_file': ('path', 'null', 'list of the images to take (folders only)'),
    'gt_size': ('whole number, at least 1', 'required in training', 'side of the GT patches, a multiple of the scale'),
    'use_hflip': ('true or false', 'required in training', 'random mirroring'),
    'use_rot': ('true or false', 'required in training', 'random flip and transposition, so also quarter turns'),
    'resident': ('null, host or device', 'null', 'decode everything once and keep it in that memory (training only)'),
    'resident_shard': ('true or false', 'false', 'each process holds and draws only its share of the images'),
}
CACHE_KEYS: Keys = {
    'dataroot_cache': ('path', 'required in training', 'the folder of a teacher cache, with cache.json'),
    'cached': ('list of stores', 'all of the cache', 'which to read: target, or teachers by name'),
}
